# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmarks on made-up images: they run, and count what they say they count."""

from __future__ import annotations

import importlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from benchmarks.networks import resnet20, squeezenet1_1
from benchmarks.records import markdown, mean_and_spread, write

Image = pytest.importorskip("PIL.Image", reason="the accuracy benchmarks read images with Pillow")


def archive(path, names, side):
    noise = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as files:
        for name in names:
            pixels = noise.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)[:, :side]
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG")
            files.writestr(name, buffer.getvalue())


def test_a_run_of_the_cifar_benchmark_reports_every_stage(tmp_path, monkeypatch, capsys):
    """A tiny CIFAR-10 folder gives a table with all stages and the same figures as JSON."""
    from benchmarks import accuracy_cifar10

    names = [f"{label}/{index:04d}.jpg" for label in ("bird", "cat") for index in range(8)]
    archive(tmp_path / "cifar10_jpeg" / "train.zip", names, 32)
    archive(tmp_path / "cifar10_jpeg" / "test_some.zip", names, 32)
    weights = tmp_path / "cifar10_resnet_weights" / "resnet20-made-up.th"
    weights.parent.mkdir()
    state = {f"module.{name}": value for name, value in resnet20().state_dict().items()}
    torch.save({"state_dict": state}, weights)
    output = tmp_path / "result.json"
    settings = '{"initializer": {"range": {"num_init_samples": 4}}}'
    arguments = f"- --data {tmp_path} --output {output} --images 8 --batch 4 --seeds 2 --epochs 1"
    arguments += " --baseline-epochs 1 --threads 1"
    monkeypatch.setattr("sys.argv", [*arguments.split(), "--settings", settings])
    accuracy_cifar10.main()
    runs = json.loads(output.read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert all(run["trained"] == run["stripped"] for run in runs)
    assert runs[0]["drop"] == runs[0]["baseline"] - runs[0]["trained"]
    assert "| mean ± spread |" in capsys.readouterr().out


def test_a_training_image_is_only_shifted_and_mirrored():
    """An augmented image is a window of the padded one, in half of the cases mirrored."""
    from benchmarks.accuracy_cifar10 import BORDER, Images, TrainingBatches

    image = torch.arange(1.0, 3 * 32 * 32 + 1).view(1, 3, 32, 32)
    batches = TrainingBatches(Images(image, torch.zeros(1)), 1, seed=0)
    padded = torch.nn.functional.pad(image[0], [BORDER] * 4)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for found in batches.augmented(image.expand(20, -1, -1, -1)):
        same = (windows == found).flatten(1).all(1) | (windows == found.flip(2)).flatten(1).all(1)
        assert same.any()


def test_no_image_is_judged_by_ranges_it_helped_to_find(tmp_path, monkeypatch):
    """Each half of the samples calibrates once, and is then evaluated with the other's ranges."""
    from benchmarks import accuracy_imagenet_samples as benchmark

    images, labels = torch.arange(10.0).view(10, 1), torch.arange(10)
    model = torch.nn.Identity()
    calibrated, judged = [], []

    def compress(model, images, section, batch):
        calibrated.append(set(images.flatten().tolist()))
        return model

    def best_five(model, images, batch):
        judged.append(set(images.flatten().tolist()))
        return images.long().expand(-1, 5)

    monkeypatch.setattr(benchmark, "compress", compress)
    monkeypatch.setattr(benchmark, "best_five", best_five)
    samples = benchmark.Samples(images, labels, labels[:, None].expand(-1, 5), 2)
    result = benchmark.measure(model, samples, {}, seed=0)
    assert calibrated[0] | calibrated[1] == set(range(10))
    assert [a & b for a, b in zip(calibrated, judged, strict=True)] == [set(), set()]
    assert result["top1"] == result["same_class"] == 100


def test_a_drop_is_what_was_lost_less_what_was_gained():
    """The figures of a comparison fit together."""
    from benchmarks.accuracy_imagenet_samples import judge

    found = torch.tensor([[0, 1, 2, 3, 4], [5, 1, 6, 7, 8], [9, 1, 2, 3, 4], [2, 1, 0, 3, 4]])
    reference = torch.tensor([[0, 1, 2, 3, 4], [1, 5, 6, 7, 8], [9, 1, 2, 3, 4], [1, 2, 5, 3, 4]])
    figures = judge(found, reference, torch.tensor([0, 1, 8, 2]))
    assert figures["lost"] == figures["gained"] == 25
    assert figures["top1"] == 50
    assert figures["top1_drop"] == 0
    assert figures["top5"] == 75
    assert figures["same_class"] == 50


def test_samples_are_cropped_and_normalised_for_the_network(tmp_path):
    """An image becomes blue-green-red, centred, less the means, and its name gives the class."""
    from benchmarks.accuracy_imagenet_samples import MEANS, SIDE, read_images, read_network

    archive(tmp_path / "imagenet_samples_few.zip", ["0007_n0.jpg"], SIDE + 2)
    images, labels = read_images(tmp_path / "imagenet_samples_few.zip")
    with zipfile.ZipFile(tmp_path / "imagenet_samples_few.zip") as files:
        whole = np.asarray(Image.open(io.BytesIO(files.read("0007_n0.jpg"))), np.float32)
    assert labels.tolist() == [7]
    assert np.allclose(images[0, 0], whole[1:-1, 1:-1, 2] - MEANS[0])
    torch.save(squeezenet1_1().state_dict(), tmp_path / "squeezenet1_1.pth")
    assert read_network(tmp_path / "squeezenet1_1.pth")(images).shape == (1, 1000)


@pytest.mark.parametrize("name", ["accuracy_cifar10", "accuracy_imagenet_samples"])
def test_a_folder_without_the_data_is_told(name, tmp_path, monkeypatch, capsys):
    """Without a folder nothing is measured, and an empty one ends with the file expected."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", ["-"])
    benchmark.main()
    assert "not measured: pass --data FOLDER" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["-", "--data", str(tmp_path), "--threads", "1"])
    with pytest.raises(SystemExit, match=r"expected a file .*zip"):
        benchmark.main()


def test_records_are_whole_or_absent(tmp_path):
    """A record that JSON cannot hold leaves the earlier file as it was."""
    path = tmp_path / "folder" / "record.json"
    write(path, {"a": 1})
    with pytest.raises(TypeError):
        write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_means_and_tables():
    """The spread is the sample's standard deviation, and a table is valid markdown."""
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([4.0]) == (4.0, 0.0)
    assert markdown(["a", "bb"], [[1, 22]]) == "| a | bb |\n| - | -- |\n| 1 | 22 |"
