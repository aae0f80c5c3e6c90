# SPDX-License-Identifier: Apache-2.0
"""Learned global ranking of a model: what the search leaves behind, its files and its mistakes."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from tests.algorithms.filter_pruning.pruned import Residual, kept_filters, prune
from tests.torch.test_distributed import two_processes


class Task:
    """Data and the user's functions; notes how they were called."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(24, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 5, (24,), generator=generator)
        data = torch.utils.data.TensorDataset(images, labels)
        self.loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
        self.kept: list[dict[str, int]] = []
        self.rates: list[float] = []
        self.starts: list[bytes] = []
        self.optimizers: list[Any] = []

    def train(self, loader: Any, model: nn.Module, optimizer: Any, ctrl: Any, steps: int) -> None:
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        self.starts.append(state + torch.get_rng_state().numpy().tobytes())
        self.kept.append(kept_filters(ctrl))
        self.rates.append(ctrl.compression_rate)
        self.optimizers.append((optimizer, steps))
        model.train()
        batches = iter(loader)
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels) + ctrl.loss()
            loss.backward()
            optimizer.step()
            ctrl.scheduler.step()
        random.random()
        ctrl.set_pruning_level(0.0)  # frozen: candidates stay as they are

    def validate(self, model: nn.Module, loader: Any) -> tuple[float, torch.Tensor]:
        model.eval()
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(model(x), y) for x, y in loader]
        return 0.0, torch.stack(losses).mean()

    def functions(self, **changed: Any) -> dict[str, Any]:
        found = {
            "train_loader": self.loader,
            "val_loader": self.loader,
            "train_steps_fn": self.train,
            "validate_fn": self.validate,
        }
        return {key: value for key, value in {**found, **changed}.items() if value is not None}


def learned(model: nn.Module, task: Task, functions: Any = None, **section: Any) -> Any:
    section["params"] = {
        "interlayer_ranking_type": "learned_ranking",
        "pruning_flops_target": 0.4,
        "legr_params": {"generations": 12, "train_steps": 2},
        "channel_multiple": 2,
        **section.get("params", {}),
    }
    return prune(model, registered=functions or task.functions(), **section)


def everything(model: nn.Module, loader: Any) -> list[Any]:
    """Return all that a search must leave as it is, comparable."""
    tensors = [*model.parameters(), *model.buffers()]
    own = [t for t in tensors if "kept_" not in str(t)]
    return [
        [t.detach().numpy().tobytes() for t in own],
        [(p.grad, p.requires_grad) for p in model.parameters()],
        [module.training for module in model.modules()],
        [torch.get_rng_state().numpy().tobytes(), random.getstate(), loader.generator],
    ]


def test_the_search_finds_a_pair_for_each_group_and_leaves_no_trace() -> None:
    """Weights, gradients, flags, masks and random streams are as before; coefficients are there."""
    model, task = Residual(), Task()
    plain = everything(model, task.loader)
    controller = learned(model, task)
    compression = model.compression
    del model.compression
    assert everything(model, task.loader) == plain
    assert all(bool((mask == 1).all()) for mask in compression.buffers())
    assert list(controller.coefficients) == ["stem.weight", "inner.weight", "wide.weight"]
    assert not controller.frozen
    assert controller.scheduler.current_step == -1


def test_every_candidate_starts_from_the_same_weights_and_random_numbers() -> None:
    """All candidates train from one start, each a network of its own at the target level."""
    task = Task()
    learned(Residual(), task)
    networks = [tuple(kept.values()) for kept in task.kept]
    assert len(set(task.starts)) == 1
    assert 1 < len(networks) <= 12
    assert (16, 16, 24, 32) not in networks


def test_the_user_gets_the_default_optimizer_and_the_number_of_steps() -> None:
    """SGD with learning rate 0.01, momentum 0.9, weight decay 5e-4, Nesterov; train_steps as set."""
    task = Task()
    learned(Residual(), task)
    optimizer, steps = task.optimizers[0]
    wanted = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    assert isinstance(optimizer, torch.optim.SGD)
    assert {key: optimizer.defaults[key] for key in wanted} == wanted
    assert steps == 2


def test_the_optimizer_of_the_user_is_taken() -> None:
    """legr_train_optimizer makes the optimizer of each candidate, for what is trainable."""
    task = Task()
    functions = task.functions(legr_train_optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    learned(Residual(), task, functions)
    optimizers = [optimizer for optimizer, _ in task.optimizers]
    assert {type(optimizer) for optimizer in optimizers} == {torch.optim.Adam}
    assert len({id(optimizer) for optimizer in optimizers}) == len(optimizers)
    assert len(optimizers[0].param_groups[0]["params"]) == 12


def test_max_pruning_is_the_level_of_the_candidates() -> None:
    """Candidates are judged at max_pruning, the schedule still ends at the target."""
    task = Task()
    params = {"legr_params": {"generations": 3, "train_steps": 1, "max_pruning": 0.9}}
    controller = learned(Residual(), task, params=params)
    assert min(task.rates) >= 0.9 - 1e-5
    assert controller.child_ctrls[0].scheduler.target_level == 0.4


def test_the_search_is_repeatable_and_a_matter_of_its_seed() -> None:
    """The same seed finds the same coefficients, another one finds others."""
    model = Residual()
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        task = Task()
        task.validate = lambda model, _: (0.0, -float(model.stem.weight.detach().sum()))
        params = {"legr_params": {"generations": 10, "train_steps": 1, "random_seed": seed}}
        found.append(learned(copy.deepcopy(model), task, params=params).coefficients)
    assert found[0] == found[1] != found[2]


def test_a_ranking_that_matters_is_found() -> None:
    """Where only a layer's width counts for the loss, the coefficients come to spare that layer."""
    model, task = Residual(), Task()
    with torch.no_grad():
        model.wide.weight[4:] *= 1e-3  # as importances are, these filters go first

    def validate(model: nn.Module, _: Any) -> tuple[float, float]:
        mask = next(op.mask(0) for name, op in model.compression.ops.items() if "[wide]" in name)
        return 0.0, -float(mask.sum())

    params = {"legr_params": {"generations": 40, "train_steps": 1}}
    functions = task.functions(validate_fn=validate)
    controller = learned(model, task, functions, params=params)
    controller.set_pruning_level(0.4)
    assert task.kept[0]["wide"] < 8
    assert kept_filters(controller)["wide"] > 20


def test_resuming_does_not_search_again() -> None:
    """Coefficients come with the compression state, without the functions, and prune the same."""
    model, task = Residual(), Task()
    twin = copy.deepcopy(model)
    controller = learned(model, task)
    state = json.loads(json.dumps(controller.get_compression_state()))
    calls = len(task.kept)
    again = prune(
        twin,
        state=state,
        params={
            "interlayer_ranking_type": "learned_ranking",
            "pruning_flops_target": 0.4,
            "channel_multiple": 2,
        },
    )
    again.set_pruning_level(0.4)
    controller.set_pruning_level(0.4)
    assert len(task.kept) == calls
    assert again.coefficients == controller.coefficients
    assert (again.kept == controller.kept).all()


def test_quantizers_of_the_same_model_do_not_take_part() -> None:
    """Candidates train in floating point; afterwards the quantizers are there, initialised."""
    task = Task()
    text = {
        "input_info": {"sample_size": [2, 3, 8, 8]},
        "compression": [
            {
                "algorithm": "filter_pruning",
                "params": {
                    "interlayer_ranking_type": "learned_ranking",
                    "pruning_target": 0.4,
                    "legr_params": {"generations": 2, "train_steps": 1},
                },
            },
            {"algorithm": "quantization"},
        ],
    }
    trained: list[int] = []

    def train(_loader: Any, model: nn.Module, *_rest: Any) -> None:
        trained.append(len(list(model.parameters())))

    config = nncf.register_default_init_args(
        nncf.NNCFConfig.from_dict(text), **task.functions(train_steps_fn=train)
    )
    model = Residual()
    _, model = nncf.create_compressed_model(model, config, dump_graphs=False)
    assert trained[0] == 12
    assert len(list(model.parameters())) > 12
    assert all(op.initialized for op in model.compression.ops.values() if hasattr(op, "scale"))


def test_processes_agree_on_the_coefficients() -> None:
    """Two ranks with other weights and other losses end with rank 0's coefficients."""
    outputs = two_processes(
        """
        from tests.algorithms.filter_pruning.test_legr import Task, learned
        from tests.algorithms.filter_pruning.pruned import Residual

        torch.set_num_threads(1)
        torch.manual_seed(rank)
        task = Task()
        functions = task.functions(validate_fn=lambda model, _: (0.0, torch.rand(()) + rank))
        controller = learned(Residual(), task, functions)
        print(sorted(controller.coefficients.items()))
        """
    )
    first, second = (output.splitlines()[-1] for output in outputs)  # a slow rank 0 shows progress
    assert first == second != "[]"


# --- files ---------------------------------------------------------------------------------------


def test_coefficients_are_saved_and_loaded(tmp_path: Path) -> None:
    """The file holds a pair for each group; loaded, it spares the search and its functions."""
    model, task, path = Residual(), Task(), tmp_path / "ranking.json"
    twin = copy.deepcopy(model)
    controller = learned(model, task, params={"save_ranking_coeffs_path": str(path)})
    saved = json.loads(path.read_text())
    calls = len(task.kept)
    functions = {"train_loader": task.loader}
    loaded = learned(twin, task, functions, params={"load_ranking_coeffs_path": str(path)})
    assert {name: tuple(pair) for name, pair in saved.items()} == controller.coefficients
    assert loaded.coefficients == controller.coefficients
    assert len(task.kept) == calls
    assert [file.name for file in tmp_path.iterdir() if "ranking" in file.name] == ["ranking.json"]


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (None, "cannot be read"),
        ("no JSON", "is no file of coefficients"),
        ("[1, 2]", "is no file of coefficients"),
        ('{"stem.weight": [1]}', "is no file of coefficients"),
        ('{"stem.weight": ["a", 1]}', "is no file of coefficients"),
        (
            '{"stem.weight": [1, 0], "other": [1, 0]}',
            "no coefficients for inner.weight, wide.weight, and some for other",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    content: str | None, advice: str, tmp_path: Path
) -> None:
    """The error names the file and what is wrong with it; the model is not compressed."""
    path = tmp_path / "ranking.json"
    if content is not None:
        path.write_text(content)
    model = Residual()
    with pytest.raises(nncf.ConfigError, match=advice):
        learned(model, Task(), params={"load_ranking_coeffs_path": str(path)})
    assert not hasattr(model, "compression")


def test_a_file_that_cannot_be_written_is_refused_before_the_search(tmp_path: Path) -> None:
    """A folder that does not exist is reported at once, not after hours."""
    task = Task()
    path = str(tmp_path / "nowhere" / "ranking.json")
    with pytest.raises(nncf.ConfigError, match=r"ranking\.json\" cannot be written"):
        learned(Residual(), task, params={"save_ranking_coeffs_path": path})
    assert task.kept == []


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["train_steps_fn", "validate_fn", "val_loader"])
def test_missing_functions_are_named(missing: str) -> None:
    """Without one of the three the error says what to register; the model is as it was."""
    model, task = Residual(), Task()
    before = everything(model, task.loader)
    with pytest.raises(nncf.DataError, match=r"train_steps_fn=….*validate_fn=….*val_loader=…"):
        learned(model, task, task.functions(**{missing: None}))
    assert everything(model, task.loader) == before
    assert not hasattr(model, "compression")


@pytest.mark.parametrize(
    ("returned", "advice"),
    [
        (0.5, r"validate_fn returned 0\.5"),
        ((1, 2, 3), r"\(accuracy, loss\)"),
        ((0.5, None), r"\(accuracy, loss\)"),
        ((0.5, float("nan")), "NaN or infinite"),
    ],
)
def test_what_validate_fn_returns_is_checked(returned: Any, advice: str) -> None:
    """Anything but a pair with a finite loss is refused with what was expected."""
    model, task = Residual(), Task()
    with pytest.raises(nncf.DataError, match=advice):
        learned(model, task, task.functions(validate_fn=lambda _model, _loader: returned))
    assert not hasattr(model, "compression")


def test_a_level_out_of_reach_is_refused_before_anything_trains() -> None:
    """max_pruning beyond what channels allow names the most that can go."""
    task = Task()
    params = {"legr_params": {"generations": 3, "train_steps": 1, "max_pruning": 0.99}}
    with pytest.raises(nncf.ConfigError, match="is the most"):
        learned(Residual(), task, params=params)
    assert task.kept == []


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_search_that_breaks_off_leaves_the_model_as_it_was(error: BaseException) -> None:
    """After an exception or Ctrl-C in the middle of training all values and flags are as before."""
    model, task = Residual(), Task()
    model.wide.bias.requires_grad_(True)
    before = everything(model, task.loader)

    def train(loader: Any, model: nn.Module, *rest: Any) -> None:
        task.train(loader, model, *rest)
        if len(task.kept) == 2:
            raise error

    with pytest.raises(type(error)):
        learned(model, task, task.functions(train_steps_fn=train))
    assert everything(model, task.loader) == before
    assert not hasattr(model, "compression")
