# SPDX-License-Identifier: Apache-2.0
"""A training script: an adaptive run in a folder, from its last saved epoch if there is one.

``python -m tests.training.run_aware FOLDER KIND [SECONDS]`` prints the digest of the weights and of
the attempts at the end. After SECONDS it kills itself, as nothing else can be caught less.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from typing import Any

import torch

from nncf.training import create_accuracy_aware_training_loop
from tests.training import models

KINDS: dict[str, Any] = {
    "pruning": [models.PRUNING, models.QUANTIZATION],
    "magnitude": [models.MAGNITUDE],
    "rb": [models.RB],
    "bits": [models.BITS],
}


def main(folder: str, kind: str, seconds: str = "") -> None:
    torch.set_num_threads(1)
    base = models.trained()[1]
    torch.manual_seed(3)
    params = {"maximal_absolute_accuracy_degradation": 3.0, "patience_epochs": 2}
    config = models.config(*KINDS[kind], mode="adaptive_compression_level", **params)
    controller, model = models.compressed(config)
    if seconds:  # counted from here, so that the kill comes while the loop runs
        killer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()
    loop = create_accuracy_aware_training_loop(config, controller, base, verbose=False)
    model = loop.run(
        model,
        train_epoch_fn=models.train_epoch,
        validate_fn=models.accuracy,
        configure_optimizers_fn=models.optimizers(model),
        log_dir=folder,
        resume=True,
    )
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    attempts = [
        [a.epoch, a.rate, a.metric, int(a.stage), a.lr_factor] for a in loop.statistics.attempts
    ]
    sys.stdout.write(json.dumps({"weights": weights.hexdigest(), "attempts": attempts}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
