# SPDX-License-Identifier: Apache-2.0
"""Two processes that train one model go through the loop together."""

from __future__ import annotations

from pathlib import Path

from tests.torch.test_distributed import two_processes


def test_first_process_decides_and_writes(tmp_path: Path) -> None:
    """Both train the same epochs whatever the second measures; there is one folder, read by both."""
    outputs = two_processes(
        f"""
        from pathlib import Path
        from nncf.training import create_accuracy_aware_training_loop
        from tests.training import models
        config = models.config(models.MAGNITUDE, mode="adaptive_compression_level",
                               maximal_total_epochs=4)
        controller, model = models.compressed(config)
        ddp = nn.parallel.DistributedDataParallel(model)
        controller.distributed()
        metrics = iter([95.0, 95.0, 95.0, 95.0, 80.0]) if rank == 0 else iter([10.0] * 5)
        loop = create_accuracy_aware_training_loop(config, controller, 90.0)
        loop.run(ddp, models.train_epoch, lambda model: next(metrics),
                 models.optimizers(ddp), log_dir={str(tmp_path)!r})
        rates = [round(a.rate, 2) for a in loop.statistics.attempts]
        norm = sum(float(p.double().square().sum()) for p in model.parameters())
        folders = len(list(Path({str(tmp_path / "accuracy_aware_training")!r}).iterdir()))
        print(rates, loop.statistics.compression_rate, norm, folders)
        """
    )
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("[0.0, 0.0, 0.4, 0.5, 0.6] 0.5 ")
    assert outputs[0].endswith(" 1")
