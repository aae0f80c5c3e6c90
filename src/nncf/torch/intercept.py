# SPDX-License-Identifier: Apache-2.0
"""The ``compression`` submodule and the mode that runs its CompressionOps at their points."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nncf.compression.layout import Layout
from nncf.errors import ModelError
from nncf.graph.address import Address, Point
from nncf.graph.graph import Graph
from nncf.torch import hooks, kernels, op_kinds
from nncf.torch.capture import Capture
from nncf.torch.checkpointing import follow
from nncf.torch.rewrites import FUNCTIONS, rewrite_of

NAMES = ("compression", "nncf_compression")
"""Names for the submodule in the user's model: the second where the model has the first itself."""


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


@dataclass
class Site:
    """What runs at one operation: op names by input port, and by output port."""

    before: dict[int, list[str]] = field(default_factory=dict)
    after: dict[int, list[str]] = field(default_factory=dict)


class Compression(nn.Module):
    """All CompressionOps of a model (``ops``, by Insert name) and the sites where they run.

    It is an ordinary submodule of the user's model, so its parameters move, train, save and
    copy with the model. Called as a layer (a root ``nn.Sequential`` does) it returns its input.
    """

    def __init__(self, layout: Layout, ops: Mapping[str, nn.Module], captured: Capture) -> None:
        super().__init__()
        self.token = uuid.uuid4().hex
        self.layout = layout
        self.ops = nn.ModuleDict(dict(ops))
        self.sites = sites_of(layout, captured.graph)
        self.hidden = sorted(captured.hidden & self.sites.keys())
        self.baked_parameters = baked_parameters(layout, captured.graph)
        self.rewritten_scopes = frozenset(key.rpartition("/")[0] for key in self.sites)
        names = {Address.parse(key).name for key in self.sites}
        self.functions = _functions_of_interest(names, captured.functions)
        self.names = frozenset(self.functions.values())

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] if len(inputs) == 1 else inputs

    def make_mode(self, module: nn.Module) -> hooks.ScopedMode:
        if self.hidden and torch.compiler.is_compiling():
            # Without fullgraph=True this makes the compiler leave the model to eager execution.
            raise ModelError(
                f"torch.compile cannot compress the inputs of {self.hidden[0]}: it does not show "
                "calls of this function. Call the function of torch.nn.functional without "
                '"inplace" that it stands for, or put the operation into ignored_scopes.'
            )
        # A DataParallel replica has a copy of this submodule on its own device.
        return Interceptor(compression_of(module) or self)

    def __getstate__(self) -> dict[str, Any]:
        known = op_kinds.named_functions()
        state = dict(self.__dict__)
        own = {
            f: name for f, name in self.functions.items() if f not in known and f not in FUNCTIONS
        }
        state["functions"] = own
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.functions = _functions_of_interest(set(self.names), state["functions"])


def _functions_of_interest(
    names: set[str], seen: Mapping[Callable[..., Any], str]
) -> dict[Callable[..., Any], str]:
    """Return the functions whose calls must be counted, because one of that name has a site."""
    found = {f: name for f, (name, _) in op_kinds.named_functions().items() if name in names}
    found.update({f: name for f, name in seen.items() if name in names})
    found.update(FUNCTIONS)
    return found


def sites_of(layout: Layout, graph: Graph) -> dict[str, Site]:
    """Resolve the points of a layout to calls of functions.

    An output point is resolved to the inputs of its consumers where no call can be intercepted
    (model inputs) or where a consumer reads the tensor behind an in-place operation's back.
    """
    sites: dict[str, Site] = {}
    for insert in layout:
        for point in insert.points:
            for actual in _actual_points(point, graph):
                site = sites.setdefault(actual.address, Site())
                ports = site.after if actual.kind == "output" else site.before
                names = ports.setdefault(actual.port, [])
                if insert.name not in names:
                    names.append(insert.name)
    return sites


def _actual_points(point: Point, graph: Graph) -> Iterable[Point]:
    if point.kind != "output" or point.address not in graph:
        return [point]
    edges = [e for e in graph.outputs_of(point.address) if e.output_port == point.port]
    readers = [edge for edge in edges if graph[edge.target].kind.name != "output"]
    callable_source = graph[point.address].kind.name not in ("input", "constant")
    if callable_source and not (readers and any(edge.aliased for edge in edges)):
        return [point]
    edges = readers or edges
    return [Point(edge.target, "input", edge.input_port) for edge in edges]


def baked_parameters(layout: Layout, graph: Graph) -> dict[str, tuple[str, ...]]:
    """Return, by Insert name, the parameters that strip may overwrite with compressed values.

    All uses of such a parameter read it directly and go through that one op.
    """
    owner = {point: insert.name for insert in layout for point in insert.points}
    owners: dict[str, set[str | None]] = {}
    for operation in graph.operations():
        for parameter in operation.parameters:
            point = Point(operation.key, "weight", parameter.port)
            user = owner.get(point) if parameter.direct else None
            owners.setdefault(parameter.name, set()).add(user)
    found: dict[str, tuple[str, ...]] = {}
    for parameter_name, users in owners.items():
        if len(users) == 1 and (name := next(iter(users))) is not None:
            found[name] = (*found.get(name, ()), parameter_name)
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
        if func not in functions or not self.scopes or self.tracing != "on":
            return func(*args, **kwargs)
        if not torch.compiler.is_compiling():
            follow(self)
        name = functions[func]
        key = self.next_key(name)
        if self.scopes[-1] in self.compression.rewritten_scopes:
            rewrite = rewrite_of(name, args, kwargs)
            if rewrite is not None:
                return rewrite(self, *args, **kwargs)
        site = self.compression.sites.get(key)
        if site is None:
            return func(*args, **kwargs)
        if site.before:
            args, kwargs = self._before(name, site.before, args, kwargs)
        saving = name in _SAVING and torch.is_grad_enabled()
        # Not while tracing: torch.jit.trace compares lines of code with and without gradients.
        if saving and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            with kernels.recompute_saved(args):
                output = func(*args, **kwargs)
        else:
            output = func(*args, **kwargs)
        return self._after(site.after, output) if site.after else output

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function as if the model had called it (used by rewrites)."""
        return self.__torch_function__(func, (), args, kwargs)

    def _run(self, names: list[str], tensor: torch.Tensor) -> torch.Tensor:
        for name in names:
            tensor = self.compression.ops[name](tensor)
        return tensor

    def _before(
        self, name: str, ports: dict[int, list[str]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        port = 0

        def visit(value: Any) -> Any:
            nonlocal port
            if isinstance(value, torch.Tensor):
                names = ports.get(port)
                port += 1
                return value if names is None else self._run(names, value)
            if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
                return type(value)([visit(item) for item in value])
            return value

        new_args = tuple([visit(value) for value in args])
        if not kwargs:
            return new_args, kwargs
        changed = {key: visit(kwargs[key]) for key in op_kinds.keyword_order(name, kwargs)}
        return new_args, {key: changed[key] for key in kwargs}

    def _after(self, ports: dict[int, list[str]], output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return self._run(ports[0], output) if 0 in ports else output
        items = [
            self._run(ports[port], item) if port in ports else item
            for port, item in enumerate(output)
        ]
        return items if isinstance(output, list) else type(output)(items)


def compression_of(model: nn.Module) -> Compression | None:
    """Return the compression submodule of a model (also behind DataParallel), or None."""
    for candidate in (model, getattr(model, "module", None)):
        if isinstance(candidate, nn.Module):
            for part in candidate._modules.values():
                if isinstance(part, Compression):
                    return part
    return None


def install(model: nn.Module, compression: Compression, captured: Capture) -> None:
    """Make the model run its CompressionOps: add the submodule, attach hooks where needed.

    A module gets hooks when it or one below it calls a function of interest, or when the
    capture never ran it (it may call one, and must not be counted as its parent).
    """
    scopes = hooks.scope_names(model)
    interesting = {
        scope for scope, names in captured.calls.items() if not names.isdisjoint(compression.names)
    }
    needed = set()
    for scope in interesting:
        parts = scope.split("/")
        needed.update("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    for path, module in list(model.named_modules()):
        if not path or scopes[path] in needed or scopes[path] not in captured.calls:
            hooks.attach(module, scopes[path], compression)
    model.add_module(NAMES[1] if hasattr(model, NAMES[0]) else NAMES[0], compression)


def uninstall(model: nn.Module) -> None:
    """Take the submodule and all our hooks away again."""
    compression = compression_of(model)
    if compression is None:
        return
    for module in model.modules():
        hooks.detach(module, compression)
    for name in [name for name, part in model._modules.items() if part is compression]:
        del model._modules[name]
