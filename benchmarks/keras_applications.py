# SPDX-License-Identifier: Apache-2.0
"""How many architectures of ``keras.applications`` compress to INT8, and how well they agree.

    python -m benchmarks.keras_applications [names…]

Random weights, two random images of the least size that an architecture takes; ranges from these
images. Prints for each the number of quantizers, what stays in floating point, whether the
stripped model gives the same bits, and the seconds that compression took.
"""

from __future__ import annotations

import sys
import time
import traceback

import keras
import numpy as np

import nncf
from nncf.tensorflow import create_compressed_model

NAMES = (
    *("ConvNeXtTiny", "DenseNet121", "DenseNet169", "EfficientNetB0", "EfficientNetB1"),
    *("EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2S", "InceptionResNetV2"),
    *("InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetMobile", "ResNet101", "ResNet101V2", "ResNet152V2", "ResNet50", "ResNet50V2"),
    *("VGG16", "VGG19", "Xception"),
)


def size_of(name: str) -> int:
    """Return the side of the image: the least that the architecture takes, or 224."""
    if name.startswith("NASNet"):
        return 224
    return 96 if name not in ("InceptionV3", "InceptionResNetV2", "Xception") else 128


def compress(name: str) -> str:
    """Return one row of the table for an architecture."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    side = size_of(name)
    top = {"include_top": name.startswith("NASNet")}
    extra = {} if name.startswith("NASNet") else {"pooling": "avg"}
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), **top, **extra
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype("float32")
    config = nncf.NNCFConfig.from_dict(
        {
            "compression": {
                "algorithm": "quantization",
                "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}},
            }
        }
    )
    nncf.register_default_init_args(config, [images], 2)
    start = time.perf_counter()
    controller, compressed = create_compressed_model(model, config, dump_graphs=False)
    seconds = time.perf_counter() - start
    statistics = controller.statistics().quantization
    outputs = compressed(images, training=False).numpy()
    same = np.array_equal(controller.strip()(images, training=False).numpy(), outputs)
    return (
        f"{name:20} {statistics.wq_counter.total_count:4} {statistics.aq_counter.total_count:4} "
        f"{len(statistics.unreached):4}  {'same' if same else 'differs':8} {seconds:6.1f} s"
    )


def main() -> None:
    """Print the table; exit with 1 when an architecture failed."""
    names = sys.argv[1:] or NAMES
    print(f"{'architecture':20} {'WQ':>4} {'AQ':>4} {'float':>5} {'strip':8} time")
    failed = 0
    for name in names:
        try:
            print(compress(name), flush=True)
        except Exception:  # noqa: BLE001  # the table goes on
            failed += 1
            print(f"{name:20} failed", flush=True)
            traceback.print_exc()
    print(f"{len(names) - failed} of {len(names)} compressed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
