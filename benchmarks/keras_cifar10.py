# SPDX-License-Identifier: Apache-2.0
"""Accuracy of ResNet-20 in Keras on CIFAR-10 after INT8, sparsity and pruning.

    python -m benchmarks.keras_cifar10 --data FOLDER [--rows int8 sparse50_int8] [--seeds 0 1 2]

The folder is that of ``benchmarks.accuracy_cifar10``: images, and the weights of the network for
PyTorch, which are carried over. They are trained on for ``--baseline-epochs``; every row starts
from that model and trains for ``--epochs``, "continued" without compression. The last epoch
counts. With ``--taught`` the baseline is the teacher. ``--export`` also writes .tflite, ONNX and OpenVINO IR, each proven equal to what was
trained. ``--keep FOLDER`` stores baselines there. Needs PyTorch and Pillow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import nncf
from benchmarks import accuracy_cifar10 as cifar
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf.tensorflow import create_compressed_model, create_compression_callbacks
from nncf.tensorflow.litert import LiteRTFile

INT8 = {"algorithm": "quantization"}
TEACHER = {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 3}


def sections_of(row: str, epochs: int) -> list[dict[str, Any]]:
    """Return the algorithms of a row."""
    ramp = max(1, epochs // 2)
    schedule = {"sparsity_target_epoch": ramp, "sparsity_freeze_epoch": ramp + 1, "power": 3}
    sparse = {
        "algorithm": "magnitude_sparsity",
        "params": {"schedule": "polynomial", "sparsity_target": 0.5, **schedule},
    }
    pruned = {
        "algorithm": "filter_pruning",
        "params": {
            "schedule": "exponential",
            "pruning_flops_target": 1 - 1 / 1.37,
            "pruning_steps": max(1, epochs // 3),
            "filter_importance": "L2",
            "all_weights": True,
            "prune_first_conv": True,
            "prune_downsample_convs": True,
            "channel_multiple": 1,
        },
    }
    return {
        "continued": [],
        "int8": [INT8],
        "sparse50_int8": [sparse, INT8],
        "pruned": [pruned],
        "pruned_int8": [pruned, INT8],
    }[row]


ROWS = ("continued", "int8", "sparse50_int8", "pruned", "pruned_int8")


def block(x: Any, width: int, name: str) -> Any:
    """Return a residual block of two convolutions; a wider one halves the image."""
    halves = x.shape[-1] != width
    y = layers.ZeroPadding2D(1)(x) if halves else x
    padding = "valid" if halves else "same"
    y = layers.Conv2D(width, 3, 2 if halves else 1, padding, use_bias=False, name=f"{name}_conv1")(
        y
    )
    y = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn1")(y))
    y = layers.Conv2D(width, 3, 1, "same", use_bias=False, name=f"{name}_conv2")(y)
    y = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn2")(y)
    if halves:
        side = (width - x.shape[-1]) // 2
        x = keras.ops.pad(x[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [side, side]])
    return layers.ReLU()(layers.Add()([y, x]))


def resnet(blocks_per_stage: int = 3, classes: int = 10, width: int = 16) -> keras.Model:
    """Return ResNet-20, or with one block per stage ResNet-8, for 32×32 images."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv1")(image)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name="bn1")(x))
    for stage, channels in enumerate((width, 2 * width, 4 * width), 1):
        for position in range(blocks_per_stage):
            x = block(x, channels, f"layer{stage}_{position}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes, name="linear")(x), name="resnet")


def carry_over(model: keras.Model, state: dict[str, Any]) -> None:
    """Give the model the weights of its twin for PyTorch."""
    for layer in model.layers:
        if not layer.weights:
            continue
        name = layer.name.replace("_", ".")
        values = {k.rpartition(".")[2]: v.numpy() for k, v in state.items()
                  if k.rpartition(".")[0] == name}  # fmt: skip
        if isinstance(layer, layers.Conv2D):
            layer.set_weights([values["weight"].transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.Dense):
            layer.set_weights([values["weight"].T, values["bias"]])
        else:
            names = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([values[key] for key in names])


def dataset(batches: cifar.TrainingBatches) -> tf.data.Dataset:
    """Return the batches as a data set of Keras; each pass shuffles and shifts anew."""

    def generate() -> Iterator[Any]:
        for images, labels in batches:
            yield images.permute(0, 2, 3, 1).numpy(), labels.numpy()

    shapes = (
        tf.TensorSpec((batches.batch_size, 32, 32, 3), tf.float32),
        tf.TensorSpec((batches.batch_size,), tf.int64),
    )
    found = tf.data.Dataset.from_generator(generate, output_signature=shapes)
    return found.apply(tf.data.experimental.assert_cardinality(len(batches)))


def train(
    model: keras.Model, batches: cifar.TrainingBatches, epochs: int, rate: float, controller: Any
) -> None:
    """Train with SGD; the learning rate falls from ``rate`` to zero along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss, jit_compile=False)
    callbacks = []
    if controller is not None:
        callbacks = create_compression_callbacks(controller, log_tensorboard=False, log_text=False)
    model.fit(dataset(batches), epochs=epochs, verbose=2, callbacks=callbacks)


def accuracy(model: Any, images: cifar.Images) -> float:
    """Return the share of images whose class the model gets right, in %."""
    pixels = cifar.normalised(images.pixels).permute(0, 2, 3, 1).numpy()
    scores = np.concatenate(
        [np.asarray(model(pixels[n : n + 250], training=False)) for n in range(0, len(pixels), 250)]
    )
    return 100 * float((scores.argmax(1) == images.labels.numpy()).mean())


def baseline(seed: int, training: cifar.Images, arguments: argparse.Namespace) -> keras.Model:
    """Return the fine-tuned network of a seed, from ``--keep`` if it is there."""
    model = resnet()
    kept = arguments.keep / f"keras-resnet20-{seed}.weights.h5" if arguments.keep else None
    if kept is not None and kept.exists():
        model.load_weights(kept)
        return model
    twin = cifar.read_network(arguments.data / "cifar10_resnet_weights", 20)
    carry_over(model, twin.state_dict())
    keras.utils.set_random_seed(seed)
    batches = cifar.TrainingBatches(training, arguments.batch, seed)
    train(model, batches, arguments.baseline_epochs, arguments.baseline_rate, None)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(kept)
    return model


def run(
    row: str, seed: int, data: tuple[Any, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one row from the baseline; return what came of it, accuracies in percent."""
    keras.backend.clear_session()
    model = baseline(seed, data[0], arguments)
    found: dict[str, Any] = {"row": row, "seed": seed, "baseline": accuracy(model, data[1])}
    batches = cifar.TrainingBatches(data[0], arguments.batch, seed + 1000)
    sections, controller = sections_of(row, arguments.epochs), None
    if sections and arguments.taught:
        sections = [*sections, TEACHER]
    if sections:
        config = nncf.NNCFConfig.from_dict({"compression": sections})
        nncf.register_default_init_args(config, dataset(batches), arguments.batch)
        controller, model = create_compressed_model(model, config, dump_graphs=False)
        found["initialised"] = accuracy(model, data[1])
    keras.utils.set_random_seed(seed)
    train(model, batches, arguments.epochs, arguments.rate, controller)
    found["trained"] = accuracy(model, data[1])
    if controller is not None:
        found["stripped"] = accuracy(controller.strip(), data[1])
        if arguments.export:
            found["files"] = exported(controller, model, data[1])
    print(f"# {row} seed {seed}: {found}", flush=True)
    return found


def exported(controller: Any, model: Any, test: cifar.Images) -> dict[str, Any]:
    """Return the bytes of each kind of file, every one proven, and what the LiteRT file says."""
    found: dict[str, Any] = {}
    for name in ("model.tflite", "model.onnx", "model.xml"):
        with tempfile.TemporaryDirectory() as folder:
            controller.export_model(str(Path(folder) / name), input_names=["image"])
            found[name] = sum(file.stat().st_size for file in Path(folder).iterdir())
            if name == "model.tflite":
                found |= agreement(LiteRTFile(Path(folder) / name), model, test)
    with contextlib.redirect_stdout(io.StringIO()):  # the converter lists all variables
        dense = tf.lite.TFLiteConverter.from_keras_model(resnet()).convert()
    return {**found, "of the float file": found["model.tflite"] / len(dense)}


def agreement(file: LiteRTFile, model: Any, test: cifar.Images) -> dict[str, float]:
    """Return the shares of images whose class file and model agree on, and that the file gets."""
    pixels = cifar.normalised(test.pixels).permute(0, 2, 3, 1).numpy()
    trained = [np.asarray(model(pixels[n : n + 250], training=False)).argmax(1)
               for n in range(0, len(pixels), 250)]  # fmt: skip
    deployed = [next(iter(file({"image": x[None]}).values()))[0].argmax() for x in pixels]
    same = np.equal(np.concatenate(trained), deployed).mean()
    return {"same class": 100 * float(same),
            "accuracy of the file": 100 * float((test.labels.numpy() == deployed).mean())}  # fmt: skip


def report(runs: list[dict[str, Any]]) -> str:
    """Return a table: one line per row, mean and spread over its seeds."""
    lines = []
    for row in dict.fromkeys(item["row"] for item in runs):
        own = [item for item in runs if item["row"] == row]
        cells = [
            mean_and_spread(item["baseline"] for item in own),
            mean_and_spread(item["trained"] for item in own),
            mean_and_spread(item["baseline"] - item["trained"] for item in own),
        ]
        lines.append([row, *(f"{mean:.2f} ± {spread:.2f}" for mean, spread in cells), len(own)])
    return markdown(["row", "FP32 baseline", "compressed", "drop", "seeds"], lines)


def main() -> None:
    """Measure the rows and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--keep", type=Path, help="folder for baselines")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--taught", action="store_true", help="with the baseline as teacher")
    parser.add_argument("--export", action="store_true", help="write and prove all kinds of files")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on")
    parser.add_argument("--baseline-epochs", type=int, default=6)
    parser.add_argument("--baseline-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=8, help="of every row")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of these epochs")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    folder = arguments.data / "cifar10_jpeg"
    data = (
        cifar.read_images(find(folder, "train.zip"), arguments.images),
        cifar.read_images(find(folder, "test*.zip")),
    )
    choices = {k: str(v) for k, v in vars(arguments).items() if k not in ("data", "keep", "output")}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for row in arguments.rows:
            runs.append(run(row, seed, data, arguments))
            write(arguments.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + report(runs))


if __name__ == "__main__":
    main()
