# SPDX-License-Identifier: Apache-2.0
"""Learned global ranking (LeGR): an evolutionary search for a scale and a shift of each group.

The importance ``u`` of a filter becomes ``scale · u + shift`` before all filters are ranked.
A candidate (a pair for each group) is judged by the loss of the network that it prunes, after
a few steps of training. T.-W. Chin et al. 2020 (arXiv:1904.12368).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.filter_pruning.options import FilterPruningOptions, LegrOptions
from nncf.algorithms.filter_pruning.schedule import target_of
from nncf.compression.algorithm import Compressed
from nncf.config.structures import LeGRInitArgs
from nncf.errors import ConfigError, DataError

_LOGGER = logging.getLogger("nncf")

Coefficients = Mapping[str, tuple[float, float]]
"""By key of a group, its scale and shift."""

_POPULATION = 64
_TOURNAMENT = 16
_MUTATED = 0.1


# --- the search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Scales and shifts of all groups, and the loss they lead to."""

    scales: NDArray[np.float64]
    shifts: NDArray[np.float64]
    loss: float


def evolve(
    spreads: Mapping[str, float],
    judge: Callable[[Coefficients], float],
    *,
    generations: int,
    seed: int,
) -> tuple[Coefficients, float]:
    """Return the best of ``generations`` candidates and its loss; ``judge`` returns a loss.

    ``spreads`` are the standard deviations of the importances in each group. The first candidate
    leaves importances as they are, the rest of the population is random: scale ``exp(N(0, 1))``,
    shift ``N(0, spread)``. Then the best of a random tournament is changed in a tenth of its
    groups, by steps of scale that become smaller, and takes the place of the oldest. The
    population is 64, or a quarter of fewer generations. One generator draws everything.
    """
    names, spread = list(spreads), np.array(list(spreads.values()))
    generator = np.random.default_rng(seed)
    population: deque[Candidate] = deque(maxlen=min(_POPULATION, math.ceil(generations / 4)))
    best: Candidate | None = None
    for generation in range(generations):
        scales, shifts = np.ones(len(names)), np.zeros(len(names))
        if generation >= (population.maxlen or 1):
            step = 1 - generation / (1.25 * generations)
            scales, shifts = _mutated(population, spread, step, generator)
        elif generation > 0:
            scales = np.exp(generator.normal(size=len(names)))
            shifts = generator.normal(0.0, spread)
        candidate = Candidate(scales, shifts, judge(_named(names, scales, shifts)))
        population.append(candidate)
        if best is None or candidate.loss < best.loss:
            best = candidate
    assert best is not None
    return _named(names, best.scales, best.shifts), best.loss


def _mutated(
    population: deque[Candidate],
    spread: NDArray[np.float64],
    step: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = min(_TOURNAMENT, len(population))
    drawn = generator.choice(len(population), size, replace=False)
    parent = min((population[int(place)] for place in drawn), key=lambda one: one.loss)
    number = max(1, round(_MUTATED * len(spread)))
    chosen = generator.choice(len(spread), number, replace=False)
    scales, shifts = parent.scales.copy(), parent.shifts.copy()
    scales[chosen] *= np.exp(generator.normal(0.0, step, number))
    shifts[chosen] += generator.normal(0.0, spread[chosen])
    return scales, shifts


def _named(
    names: list[str], scales: NDArray[np.float64], shifts: NDArray[np.float64]
) -> Coefficients:
    return {
        name: (float(scale), float(shift))
        for name, scale, shift in zip(names, scales, shifts, strict=True)
    }


# --- with a model --------------------------------------------------------------------------------


def ranking_coefficients(
    compressed: Compressed, control: Callable[[Compressed], Any], options: FilterPruningOptions
) -> Coefficients:
    """Load the coefficients, or search them, and save them where the options say so.

    ``control`` makes the controller that prunes for the candidates. Weights, buffers, masks and
    random streams are as before afterwards, also after a failure.

    Raises DataError when functions of the user are missing or return something else than they
    should, ConfigError for files that do not fit and levels out of reach.
    """
    params, backend = options.params, compressed.backend
    to = params.save_ranking_coeffs_path
    if to is not None:
        _check_writable(Path(to))
    with backend.trial(compressed.model):
        controller = control(compressed)
        if params.load_ranking_coeffs_path is not None:
            groups = [group.key for group in controller.groups]
            found = load_coefficients(Path(params.load_ranking_coeffs_path), groups)
        else:
            found = _learn(compressed, controller, options)
    found = backend.from_main(found)
    if to is not None and backend.is_main_process():
        save_coefficients(Path(to), found)
    return found


def _learn(compressed: Compressed, controller: Any, options: FilterPruningOptions) -> Coefficients:
    legr = options.params.legr_params or LegrOptions()
    level = target_of(options) if legr.max_pruning is None else legr.max_pruning
    judge = _Judge(compressed, controller, level, legr.train_steps)
    spreads = {g.key: float(controller.importances[g.number].std()) for g in controller.groups}
    backend = compressed.backend
    with (
        backend.only_ops(compressed.model, compressed.ops.keys()),
        backend.progress("Learned ranking", legr.generations) as show,
    ):

        def judged(coefficients: Coefficients) -> float:
            loss = judge(coefficients)
            show(judge.calls)
            return loss

        found, loss = evolve(spreads, judged, generations=legr.generations, seed=legr.random_seed)
    if loss == math.inf:
        raise DataError(
            f"filter_pruning: after each of {legr.generations} candidates of the learned ranking "
            "validate_fn returned a loss that is NaN or infinite. Expected finite numbers: lower "
            "the learning rate of legr_train_optimizer, or legr_params.max_pruning."
        )
    _LOGGER.info(
        "Learned ranking: loss %.4f with the best of %d candidates (%d different networks), %.4f "
        "without it.",
        *(loss, judge.calls, len(judge.known), judge.first),
    )
    return found


class _Judge:
    """Prunes by a candidate, trains, and returns the loss; equal networks are trained once."""

    def __init__(
        self, compressed: Compressed, controller: Any, level: float, train_steps: int
    ) -> None:
        self.calls = 0
        self.first = math.inf
        self.known: dict[bytes, float] = {}
        self._compressed = compressed
        self._controller = controller
        self._level = level
        self._train_steps = train_steps
        self._functions = _functions(compressed)
        controller.disable_scheduler()

    def __call__(self, coefficients: Coefficients) -> float:
        controller = self._controller
        controller.coefficients = dict(coefficients)
        controller.freeze(False)
        controller.set_pruning_level(self._level)
        controller.freeze()  # whatever the user's function does
        network: bytes = self._compressed.backend.from_main(controller.kept.tobytes())
        if network not in self.known:
            self.known[network] = self._trained_loss()
        self.calls += 1
        if self.calls == 1:
            self.first = self.known[network]
        return self.known[network]

    def _trained_loss(self) -> float:
        user, model = self._functions, self._compressed.model
        home, backend = self._compressed.home, self._compressed.backend
        with backend.together(), backend.trial(model, user.train_loader, user.val_loader):
            optimizer = home.make_optimizer(model, user.train_optimizer)
            arguments = (user.train_loader, model, optimizer, self._controller)
            user.train_fn(*arguments, self._train_steps)
            loss = _loss_of(user.val_fn(model, user.val_loader))
        found: float = backend.from_main(loss)
        return found


def _functions(compressed: Compressed) -> LeGRInitArgs:
    if not compressed.config.has_extra_struct(LeGRInitArgs):
        raise DataError(
            'filter_pruning: interlayer_ranking_type "learned_ranking" trains and judges pruned '
            "networks, but its functions are not registered. Call "
            "nncf.register_default_init_args(nncf_config, train_loader, train_steps_fn=…, "
            "validate_fn=…, val_loader=…) with all three, or give load_ranking_coeffs_path. "
            "train_steps_fn(loader, model, optimizer, compression_ctrl, steps) trains for so many "
            "steps, validate_fn(model, loader) returns (accuracy, loss)."
        )
    found: LeGRInitArgs = compressed.config.get_extra_struct(LeGRInitArgs)
    return found


def _loss_of(returned: Any) -> float:
    try:
        _, loss = returned
        value = float(loss)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"filter_pruning: validate_fn returned {returned!r:.200}. Expected a pair of numbers, "
            "(accuracy, loss), as the learned ranking judges by the loss."
        ) from error
    return value if math.isfinite(value) else math.inf


# --- files ---------------------------------------------------------------------------------------


def load_coefficients(path: Path, groups: list[str]) -> Coefficients:
    """Read ``{key of a group: [scale, shift]}``. Raises ConfigError unless it fits the groups."""
    where = f'filter_pruning.params.load_ranking_coeffs_path "{path}"'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {name: (float(scale), float(shift)) for name, (scale, shift) in content.items()}
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read ({error.strerror}). Expected a file that "
            "save_ranking_coeffs_path wrote: correct the path, or remove the key to search anew."
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{where} is no file of coefficients ({error}). Expected JSON such as {{"{groups[0]}": '
            "[1.0, 0.0]}, as save_ranking_coeffs_path writes it."
        ) from error
    missing = [name for name in groups if name not in found]
    unknown = [name for name in found if name not in groups]
    if missing or unknown:
        raise ConfigError(
            f"{where} belongs to another model or other options: it has no coefficients for "
            f"{_some(missing)}, and some for {_some(unknown)}, which the model has no group for. "
            "Expected one pair for each group: remove the key to search anew."
        )
    return {name: found[name] for name in groups}


def save_coefficients(path: Path, coefficients: Coefficients) -> None:
    """Write the file whole or not at all."""
    text = json.dumps({name: list(pair) for name, pair in coefficients.items()}, indent=2)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(f"{text}\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """Raise ConfigError now rather than after the search."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f'filter_pruning.params.save_ranking_coeffs_path "{path}" cannot be written. Expected '
            "the path of a file in a folder that exists and that you may write to."
        )


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
    )
