# SPDX-License-Identifier: Apache-2.0
"""Second derivatives of the loss, and what rounding does to weights.

Both look at weights where they enter their operations, so that weights which are computed from
parameters, shared, or inside rewritten layers are seen as the quantizers will see them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncf.errors import DataError
from nncf.torch.calibration import (
    CalibrationBatch,
    calibration_batches,
    device_of,
    evaluating,
    moved,
    on_device,
    progress,
)
from nncf.torch.data import target_of
from nncf.torch.intercept import compression_of
from nncf.torch.trials import trial

_LOGGER = logging.getLogger("nncf")

FEWEST_VECTORS = 10
"""The estimate goes on at least so long: its first changes may be small by chance."""

_BLOCK = 4  # vectors that share one first derivative
_SEED = 0


@dataclass(frozen=True)
class TraceWish:
    """How traces are estimated: from what data and loss, with how many vectors at most.

    ``loss(outputs, target)`` returns a scalar; ``samples`` are used at most, but one batch at
    least. Ends when the relative change of the mean falls below ``tolerance``.
    """

    loader: Iterable[Any]
    loss: Callable[[Any, Any], Any]
    samples: int
    vectors: int
    tolerance: float
    device: Any = None


class _Probe(nn.Module):
    """Adds zeros to a weight, by which the loss can be differentiated; stands for its quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.change: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if not weight.is_floating_point():
            return weight
        if self.change is None:
            self.change = torch.zeros_like(weight, requires_grad=True)
        return weight.detach() + self.change


def average_traces(model: nn.Module, weights: Sequence[str], wish: TraceWish) -> dict[str, float]:
    """Return the trace of the loss's Hessian by each weight, over the number of its values.

    ``weights`` name CompressionOps of the model. Estimated by Hutchinson's method, as the mean of
    v·Hv over vectors v of random signs: the same for the same data, whatever the random streams.
    The model runs in evaluation mode without its CompressionOps and is as before afterwards.
    Weights that the data did not lead to are missing.

    Raises DataError when the data or the loss does not fit, when the loss cannot be differentiated
    twice, or when memory runs out.
    """
    compression = compression_of(model)
    assert compression is not None
    probes = {name: _Probe() for name in weights}
    ops = dict(compression.ops.items())
    with trial(model, wish.loader), on_device(model, wish.device), torch.enable_grad():
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        try:
            for name in ops:
                compression.ops[name] = probes.get(name) or nn.Identity()
            return _Hutchinson(model, probes, wish).run()
        except (RuntimeError, MemoryError) as error:
            advice = _advice(error)
            if advice is None:
                raise
            raise DataError(f"initializer.precision: {advice}") from error
        finally:
            for name, op in ops.items():
                compression.ops[name] = op


def _advice(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
        return (
            f"memory ran out while second derivatives were computed ({text.splitlines()[0]:.200}). "
            "Expected room for the activations of one batch, a few times over: register a loader "
            "with a smaller batch size, or give traces_per_layer_path."
        )
    if "twice" in text or "is not implemented" in text or "not differentiable" in text:
        return (
            f"the loss cannot be differentiated twice ({text.splitlines()[0]:.200}). Expected "
            "operations of PyTorch with second derivatives: give traces_per_layer_path, or the bit "
            'widths themselves with type "manual".'
        )
    return None


class _Hutchinson:
    """Runs the estimate on a model whose weights pass probes."""

    def __init__(self, model: nn.Module, probes: Mapping[str, _Probe], wish: TraceWish) -> None:
        self.model = model
        self.probes = probes
        self.wish = wish
        self.device = wish.device if wish.device is not None else device_of(model)
        self.generator = torch.Generator().manual_seed(_SEED)

    def run(self) -> dict[str, float]:
        batches = self._batches()
        with torch.no_grad():
            for batch in batches:  # makes the probes' zeros
                self.model(*batch.args, **batch.kwargs)
        reached = {name: p.change for name, p in self.probes.items() if p.change is not None}
        changes = list(reached.values())
        mean = torch.zeros(len(changes), dtype=torch.float64)
        done, sizes = 0, torch.tensor([float(change.numel()) for change in changes])
        settled = False
        with progress("Hessian traces", self.wish.vectors) as show:
            while changes and not settled and done < self.wish.vectors:
                for found in self._block(batches, changes, min(_BLOCK, self.wish.vectors - done)):
                    done += 1
                    before, mean = mean, mean + (found / sizes - mean) / done
                    show(done)
                    settled = done >= FEWEST_VECTORS and self._settled(before, mean)
                    if settled:
                        break
        _LOGGER.info(
            "Hessian traces: %d random vectors over %d samples%s.",
            *(done, sum(batch.samples for batch in batches)),
            "" if settled else ", all that iter_number allows",
        )
        return dict(zip(reached, mean.tolist(), strict=True))

    def _settled(self, before: Tensor, mean: Tensor) -> bool:
        last = float(before.sum())
        return abs(float(mean.sum()) - last) / (abs(last) + 1e-6) < self.wish.tolerance

    def _batches(self) -> list[CalibrationBatch]:
        loader, samples = self.wish.loader, self.wish.samples
        found: list[CalibrationBatch] = []
        batches = calibration_batches(
            loader, samples, self.model, device=self.device, description="Data for traces"
        )
        for batch in batches:
            if found and sum(b.samples for b in found) + batch.samples > samples:
                break
            found.append(batch)
        return found

    def _loss(self, batch: CalibrationBatch) -> Tensor:
        target = target_of(batch.raw, self.model, loader=self.wish.loader)
        outputs = self.model(*batch.args, **batch.kwargs)
        loss = self.wish.loss(outputs, moved(target, self.device))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss)):
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise DataError(
                f"initializer.precision: the criterion returned {shown:.100} on batch {batch.index}. "
                "Expected one finite number as a tensor: check the criterion or criterion_fn that is "
                "given to register_default_init_args."
            )
        return loss.reshape(())

    def _block(
        self, batches: Sequence[CalibrationBatch], changes: list[Tensor], count: int
    ) -> Tensor:
        """Return v·Hv of each weight for ``count`` vectors, [vectors, weights]."""
        vectors = [[self._signs(change) for change in changes] for _ in range(count)]
        found = torch.zeros(count, len(changes), dtype=torch.float64)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for batch in batches:
                first = torch.autograd.grad(
                    self._loss(batch), changes, create_graph=True, materialize_grads=True
                )
                places = [place for place, slope in enumerate(first) if slope.requires_grad]
                for row, vector in enumerate(vectors if places else ()):
                    second = torch.autograd.grad(
                        [first[place] for place in places],
                        changes,
                        [vector[place] for place in places],
                        retain_graph=row + 1 < count,
                        materialize_grads=True,
                    )
                    products = [float((v * h).sum()) for v, h in zip(vector, second, strict=True)]
                    found[row] += batch.samples * torch.tensor(products, dtype=torch.float64)
        return found / sum(batch.samples for batch in batches)

    def _signs(self, like: Tensor) -> Tensor:
        bits = torch.randint(0, 2, like.shape, generator=self.generator)
        return (2 * bits - 1).to(like.device, like.dtype)


def rounding_errors(
    model: nn.Module, quantizers: Mapping[str, Any], forward: Callable[[nn.Module], Any]
) -> dict[str, float]:
    """Return ‖Q(W) − W‖² of each weight quantizer; ``forward(model)`` lets the weights pass.

    All quantizers of the model pass values unchanged meanwhile. What no value reaches is missing.
    """
    compression = compression_of(model)
    assert compression is not None
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[[Tensor], None]:
        def measure(weight: Tensor) -> None:
            if name in quantizers and name not in found:
                difference = quantizers[name].bake(weight).double() - weight.double()
                found[name] = float(difference.square().sum())

        return measure

    before = {name: op.observer for name, op in compression.ops.items()}
    try:
        for name, op in compression.ops.items():
            op.observer = watch(name)
        with evaluating(model):
            forward(model)
    finally:
        for name, observer in before.items():
            compression.ops[name].observer = observer
    return found


def load_numbers(path: Path) -> Any:
    """Return the numbers in a file: JSON as it is, a tensor of PyTorch's as a list.

    Nothing in the file is executed. Raises ValueError for anything else, OSError as reading does.
    """
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with path.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # many kinds; all say that the file holds something else
            raise ValueError(f"{type(error).__name__}: {error}") from error
    return content.tolist() if isinstance(content, Tensor) else content
