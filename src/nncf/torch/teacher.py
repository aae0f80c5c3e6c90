# SPDX-License-Identifier: Apache-2.0
"""The Teacher: a frozen model that answers the same inputs as the model that trains.

It runs in evaluation mode and without gradients. It is no submodule of anybody: the user's model
keeps its parameters and its state dict.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from nncf.compression.layout import Insert, Layout
from nncf.errors import ModelError
from nncf.torch import hooks
from nncf.torch.answers import Answer, AnswerCache
from nncf.torch.calibration import evaluating
from nncf.torch.capture import Capture, capture
from nncf.torch.distributed import agree
from nncf.torch.intercept import Compression, compression_of, install
from nncf.torch.structure import map_tensors, tensors_by_path, tensors_in

FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)


def answer_of(outputs: Any, features: Mapping[str, torch.Tensor]) -> Answer:
    """Return the Answer in the outputs of a forward."""
    floats = {p: t for p, t in tensors_by_path(outputs) if t.is_floating_point()}
    return Answer(floats, dict(features))


class Teacher:
    """A frozen model beside the user's.

    ``device`` is where the user's model was when the teacher was put there; ``fingerprint``
    tells two teachers apart by their weights.
    """

    def __init__(self, module: nn.Module, device: torch.device | None) -> None:
        self.module = module.eval()
        self.device = device
        self.fingerprint = fingerprint(module)
        self.writes_inputs = False
        self.cache: AnswerCache | None = None
        self._replicas: dict[torch.device, nn.Module] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Teacher({type(self.module).__name__}, {self.fingerprint[:12]})"

    def try_out(self, forward: Callable[[nn.Module], Any]) -> Answer | None:
        """Return what the teacher says to the example inputs, None where ``forward`` returns none.

        Notes whether it writes into its inputs. Raises ModelError where it cannot run on them.
        """
        seen: list[tuple[torch.Tensor, int]] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = tensors_in((args, kwargs))
            seen.extend((tensor, tensor._version) for tensor in given if not tensor.is_inference())

        handle = self.module.register_forward_pre_hook(note, prepend=True, with_kwargs=True)
        try:
            return outputs_of(self.module, forward)
        except FORWARD_ERRORS as error:
            raise ModelError(
                f"The teacher ({type(self.module).__name__}) failed on the inputs of the model: "
                f"{type(error).__name__}: {error}. Register a teacher that is called as the model "
                "is and takes tensors of the same shapes."
            ) from error
        finally:
            handle.remove()
            self.writes_inputs = any(tensor._version != version for tensor, version in seen)

    def look(self, forward: Callable[[nn.Module], Any]) -> Capture:
        """Return the Capture of the teacher, to choose features in its Graph.

        Raises ModelError for a compressed teacher: it runs in a mode of its own.
        """
        if compression_of(self.module) is not None:
            raise ModelError(
                "The registered teacher is a compressed model, inside which no features can be "
                "compared. Register its strip(), or remove the features."
            )
        return capture(self.module, forward)

    def remember(self, limit_mib: float) -> None:
        """Keep answers for samples that come again.

        Raises ModelError where an answer depends on the other samples of its batch.
        """
        for path, module in self.module.named_modules():
            is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm))
            if is_norm and module.running_mean is None:
                raise ModelError(
                    f"cache_teacher_outputs: the batch norm {path} of the teacher has no running "
                    "statistics, so that the answer to a sample depends on its batch. Set "
                    '"cache_teacher_outputs": false.'
                )
        self.cache = AnswerCache(limit_mib)

    def observe(self, layout: Layout, captured: Capture, make_op: Callable[[Insert], Any]) -> None:
        """Install ops that note features."""
        ops = {insert.name: make_op(insert) for insert in layout}
        install(self.module, Compression(layout, ops, captured))

    def answer(self, args: Any, kwargs: Any, device: torch.device | None) -> Answer:
        """Return what the teacher says to a batch on ``device``."""
        module = self.module if device in (self.device, None) else self._replica(device)
        if self.cache is None:
            return self._run(module, args, kwargs)
        return self.cache.answer(args, kwargs, lambda: self._run(module, args, kwargs))

    def _run(self, module: nn.Module, args: Any, kwargs: Any) -> Answer:
        with torch.no_grad():
            if self.writes_inputs:
                args, kwargs = map_tensors((args, kwargs), torch.clone)
            taps = taps_of(module)
            expect(taps, True)
            outputs = module(*args, **kwargs)
            return answer_of(outputs, taken(taps))

    def follow(self, function: Any) -> None:
        """Do to the weights what ``model.to(…)`` does to the user's model."""
        self.module._apply(function)
        with self._lock:
            self._replicas.clear()
        if self.cache is not None:
            self.cache.clear()
        first = next(self.module.parameters(), None)
        self.device = self.device if first is None else first.device

    def _replica(self, device: torch.device | None) -> nn.Module:
        assert device is not None
        with self._lock:
            if device not in self._replicas:
                self._replicas[device] = copy.deepcopy(self.module).to(device)
            return self._replicas[device]


def make_teacher(model: nn.Module, registered: nn.Module | None = None) -> Teacher:
    """Return the teacher of a model: a copy of it, or a registered one.

    The weights of a registered teacher are not copied; its modes and flags stay as they are. All
    ranks of a distributed run get those of rank 0.
    Raises ModelError where the model cannot be copied or what was registered is no model.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    module = _module(model, registered, device)
    agree(module)
    return Teacher(module, device)


def _module(
    model: nn.Module, registered: nn.Module | None, device: torch.device | None
) -> nn.Module:
    if registered is None or registered is model:
        module = _copied(model, {})
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        return module
    if not isinstance(registered, nn.Module):
        raise ModelError(
            f"register_default_init_args: teacher is of type {type(registered).__name__}. "
            "Expected a torch.nn.Module that takes the same inputs as the model."
        )
    if isinstance(registered, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        registered = registered.module
    shared = {id(t): t for t in (*registered.parameters(), *registered.buffers())}
    module = _copied(registered, shared)
    return module if device is None else module.to(device)


def _copied(model: nn.Module, shared: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:
        raise ModelError(
            f"The teacher cannot be made: copying {type(model).__name__} failed with "
            f"{type(error).__name__}: {error}. Expected a model that copy.deepcopy can copy; or "
            "register a second instance: register_default_init_args(…, teacher=other)."
        ) from error


def outputs_of(model: nn.Module, forward: Callable[[nn.Module], Any]) -> Answer | None:
    """Return what a model says in evaluation mode, None where ``forward`` returns nothing."""
    with evaluating(model), hooks.leaving_all_modes():
        outputs = forward(model)
    return None if outputs is None else answer_of(outputs, {})


def fingerprint(model: nn.Module) -> str:
    """Return a digest of all weights and persistent buffers with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            data = value.detach().cpu().contiguous().reshape(-1)
            digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- features: ops that note what passes -------------------------------------------------------


def taps_of(model: nn.Module) -> dict[str, Any]:
    """Return the ops of a model (or of its replica) that note what passes, by Insert name."""
    compression = compression_of(model)
    if compression is None:
        return {}
    return {name: op for name, op in compression.ops.items() if hasattr(op, "expecting")}


def expect(taps: Mapping[str, Any], expecting: bool) -> None:
    """Make ops note what passes next, or forget it."""
    for tap in taps.values():
        tap.expecting = expecting
        tap.seen = None


def taken(taps: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the ops have noted, and make them forget it."""
    seen = {name: tap.seen for name, tap in taps.items() if tap.seen is not None}
    expect(taps, False)
    return seen
