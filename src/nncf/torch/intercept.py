# SPDX-License-Identifier: Apache-2.0
"""The ``compression`` submodule and the mode that runs its CompressionOps at their points."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from nncf.compression.layout import Layout
from nncf.compression.sites import (
    Site,
    baked_parameters,
    read_parameters,
    sites_of,
    spent_inserts,
)
from nncf.errors import ModelError
from nncf.graph.address import Address
from nncf.torch import hooks, kernels, op_kinds
from nncf.torch.capture import Capture
from nncf.torch.checkpointing import follow
from nncf.torch.provenance import Changes
from nncf.torch.rewrites import FUNCTIONS, rewrite_of
from nncf.torch.sizes import Sizes

NAMES = ("compression", "nncf_compression")
"""Names for the submodule in the user's model: the second where the model has the first itself."""


def _note_changes(site: Site, key: str, changes: Changes) -> None:
    """Keep at a site which of its inputs are changed in place, and by whom."""
    site.written = frozenset(p for p in site.before if (key, p) in changes.written)
    site.overwritten = frozenset(p for p in site.before if (key, p) in changes.overwritten)


_SAVING = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
    ]
)
"""Operations that keep their operands for the backward pass, and are worth saving that memory."""


class Compression(nn.Module):
    """All CompressionOps of a model (``ops``, by Insert name) and the sites where they run.

    It is an ordinary submodule of the user's model, so its parameters move, train, save and
    copy with the model. Called as a layer (a root ``nn.Sequential`` does) it returns its input.
    ``sizes`` corrects arguments of calls, ``notes`` holds what algorithms keep for strip, by their
    names, ``unused`` names parameters that the captured forward did not use.
    """

    def __init__(self, layout: Layout, ops: Mapping[str, nn.Module], captured: Capture) -> None:
        super().__init__()
        self.token = uuid.uuid4().hex
        self.layout = layout
        self.ops = nn.ModuleDict(dict(ops))
        self.sites = sites_of(layout, captured.graph)
        for key, site in self.sites.items():
            _note_changes(site, key, captured.changes)
        self.notes: dict[str, Any] = {}
        self.sizes = captured.sizes
        self.calls = captured.calls
        self.unused = captured.unused
        self.hidden = sorted(captured.hidden & self.sites.keys())
        self.baked_parameters = baked_parameters(layout, captured.graph)
        self.read_parameters = read_parameters(layout, captured.graph)
        self.spent_once_baked = spent_inserts(layout, captured.graph, self.baked_parameters)
        self.rewritten_scopes = frozenset(key.rpartition("/")[0] for key in self.sites)
        names = {Address.parse(key).name for key in (*self.sites, *self.sizes.rules)}
        self.functions = _functions_of_interest(names, captured.functions)
        self.names = frozenset(self.functions.values())

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] if len(inputs) == 1 else inputs

    def make_mode(self, module: nn.Module) -> hooks.ScopedMode:
        if self.hidden and (torch.compiler.is_compiling() or get_eval_frame_callback() is not None):
            raise ModelError(
                f"torch.compile cannot compress the inputs of {self.hidden[0]}: it does not show "
                "calls of this function. Put the operation into ignored_scopes, or train eagerly."
            )
        # A DataParallel replica has a copy of this submodule on its own device.
        return Interceptor(compression_of(module) or self)

    def __getstate__(self) -> dict[str, Any]:
        known = op_kinds.named_functions()
        state = dict(self.__dict__)
        own = {f: name for f, name in self.functions.items() if f not in known | FUNCTIONS}
        state["functions"] = [(_to_pickle(f), name) for f, name in own.items()]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        own = {_from_pickle(f): name for f, name in state["functions"]}
        self.functions = _functions_of_interest(set(self.names), own)


def _to_pickle(function: Any) -> Any:
    """Return ``torch.ops.<library>.<name>`` as a text: these functions cannot be pickled."""
    is_operator = isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    return str(function) if is_operator else function


def _from_pickle(function: Any) -> Any:
    return operator.attrgetter(function)(torch.ops) if isinstance(function, str) else function


def _functions_of_interest(
    names: set[str], seen: Mapping[Callable[..., Any], str]
) -> dict[Callable[..., Any], str]:
    """Return the functions whose calls must be counted, because one of that name has a site."""
    found = {f: name for f, (name, _) in op_kinds.named_functions().items() if name in names}
    found.update({f: name for f, name in seen.items() if name in names})
    found.update(FUNCTIONS)
    return found


class Interceptor(hooks.ScopedMode):
    """Runs the CompressionOps of one forward at their sites."""

    def __init__(self, compression: Compression) -> None:
        super().__init__(compression.token)
        self.compression = compression
        self.graded = torch.is_grad_enabled()
        self.seen_hooks: Any = None

    def enter_scope(self, scope: str) -> None:
        if self.scopes and not torch.compiler.is_compiling():
            follow(self)
        super().enter_scope(scope)

    def snapshot(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator for a function that recomputes from here on."""
        compression = self.compression
        return hooks.resuming(lambda: Interceptor(compression), self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        functions = self.compression.functions
        if func not in functions or not self.scopes or self.gaps:
            return func(*args, **kwargs)
        if not torch.compiler.is_compiling():
            follow(self)
        name = functions[func]
        key = self.next_key(name)
        if key in self.compression.sizes.rules:
            args, kwargs = self.compression.sizes.correct(key, args, kwargs)
            if name == "view" and not torch.compiler.is_compiling():
                # An axis that is now of length 1 may have left other strides than view wants.
                func = torch.Tensor.reshape
        if self.scopes[-1] in self.compression.rewritten_scopes:
            rewrite = rewrite_of(name, args, kwargs)
            if rewrite is not None:
                return rewrite(self, *args, **kwargs)
        site = self.compression.sites.get(key)
        if site is None:
            return func(*args, **kwargs)
        written: list[tuple[torch.Tensor, torch.Tensor]] = []
        if site.before:
            args, kwargs = self._before(name, site, (args, kwargs), written)
        saving = name in _SAVING and torch.is_grad_enabled()
        # Not while tracing: torch.jit.trace compares lines of code with and without gradients.
        if saving and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            with kernels.recompute_saved(args):
                output = func(*args, **kwargs)
        else:
            output = func(*args, **kwargs)
        output = _write_back(written, output)
        return self._after(site.after, output) if site.after else output

    def _run(self, names: list[str], tensor: torch.Tensor) -> torch.Tensor:
        for name in names:
            tensor = self.compression.ops[name](tensor)
        return tensor

    def _before(
        self,
        name: str,
        site: Site,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        written: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments compressed; note ``(given, compressed)`` where they are written to."""
        args, kwargs = arguments
        seen = [0]  # a closure over a number would refer to itself and keep the forward alive
        new_args = tuple([self._compressed(value, site, seen, written) for value in args])
        if not kwargs:
            return new_args, kwargs
        changed = {
            key: self._compressed(kwargs[key], site, seen, written)
            for key in op_kinds.keyword_order(name, kwargs)
        }
        return new_args, {key: changed[key] for key in kwargs}

    def _compressed(
        self,
        value: Any,
        site: Site,
        seen: list[int],
        written: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> Any:
        """Return one argument with its tensors compressed; ``seen`` counts tensors so far."""
        if isinstance(value, torch.Tensor):
            port = seen[0]
            seen[0] += 1
            if port not in site.before:
                return value
            # What a CompressionOp keeps for its gradient must not change afterwards.
            source = value.clone() if port in site.overwritten else value
            result = self._run(site.before[port], source)
            if port in site.written:
                result = result.clone()  # may be a view, into which autograd lets nobody write
                written.append((value, result))
            return result
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            items = [self._compressed(item, site, seen, written) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _after(self, ports: dict[int, list[str]], output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return self._run(ports[0], output) if 0 in ports else output
        items = [
            self._run(ports[port], item) if port in ports else item
            for port, item in enumerate(output)
        ]
        return items if isinstance(output, list) else type(output)(items)


def _write_back(written: list[tuple[torch.Tensor, torch.Tensor]], output: Any) -> Any:
    """Change the model's own tensors too, which others may read, where compressed ones were."""
    for given, changed in written:
        if given is not changed:
            given.copy_(changed)
            output = given if output is changed else output
    return output


def compression_of(model: nn.Module) -> Compression | None:
    """Return the compression submodule of a model (also behind DataParallel), or None."""
    for candidate in (model, getattr(model, "module", None)):
        if isinstance(candidate, nn.Module):
            for part in candidate._modules.values():
                if isinstance(part, Compression):
                    return part
    return None


def install(model: nn.Module, compression: Compression) -> None:
    """Make the model run its CompressionOps: add the submodule, attach hooks where needed."""
    _attach_hooks(model, compression)
    model.add_module(NAMES[1] if hasattr(model, NAMES[0]) else NAMES[0], compression)


def correct_sizes(model: nn.Module, sizes: Sizes) -> None:
    """Let the model's compression correct these sizes too, and attach the hooks it needs for it."""
    compression = compression_of(model)
    assert compression is not None
    _detach_hooks(model, compression)
    compression.sizes = compression.sizes.then(sizes)
    names = {Address.parse(key).name for key in compression.sizes.rules} | compression.names
    compression.functions = _functions_of_interest(names, compression.functions)
    compression.names = frozenset(compression.functions.values())
    _attach_hooks(model, compression)


def _attach_hooks(model: nn.Module, compression: Compression) -> None:
    """Attach hooks to a module when it or one below it calls a function of interest.

    So does a module that the capture never ran: it may call one, and must not be counted as its
    parent.
    """
    if not compression.sites and not compression.sizes.rules:
        return
    calls, ours = compression.calls, set(compression.modules())
    scopes = hooks.scope_names(model)
    interesting = {
        scope for scope, names in calls.items() if not names.isdisjoint(compression.names)
    }
    needed = set()
    for scope in interesting:
        parts = scope.split("/")
        needed.update("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    for path, module in list(model.named_modules()):
        is_caller = not path or scopes[path] in needed or scopes[path] not in calls
        if is_caller and module not in ours:
            hooks.attach(module, scopes[path], compression)


def _detach_hooks(model: nn.Module, compression: Compression) -> None:
    for module in model.modules():
        hooks.detach(module, compression)


def remove_companions(model: nn.Module) -> None:
    """Take away what only training needs: parts of ``compression`` beside its ops, their hooks."""
    compression = compression_of(model)
    if compression is None:
        return
    for name, companion in list(compression.named_children()):
        if companion is not compression.ops:
            hooks.detach(model, companion)
            delattr(compression, name)


def uninstall(model: nn.Module) -> None:
    """Take the submodule and all our hooks away again."""
    compression = compression_of(model)
    if compression is None:
        return
    remove_companions(model)
    _detach_hooks(model, compression)
    for name in [name for name, part in model._modules.items() if part is compression]:
        del model._modules[name]
