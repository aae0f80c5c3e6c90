# SPDX-License-Identifier: Apache-2.0
"""Parameters and buffers that are only moved before an operation takes them.

``gamma[None, :, None]``, ``token.expand(n, -1, -1)`` or ``positions[:, :n]`` still show the
parameter: where one of its axes lies in full, it can be shortened with the tensor's. The calls
are repeated on a stand-in without memory, whose strides tell what lies where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncf.graph.kinds import Kind
from nncf.torch.call_shapes import REARRANGING, Arguments, lines_of, moved, numbers_of
from nncf.torch.structure import tensors_in


@dataclass(frozen=True)
class Moved:
    """A tensor made from a parameter or buffer by moves alone.

    ``view`` is the same view of a stand-in, ``axes`` gives for each of its axes the parameter's
    axis that lies there in full, ``fixed`` the parameter's axes whose length the calls rely on.
    """

    view: Tensor
    axes: tuple[int | None, ...]
    fixed: frozenset[int] = frozenset()


def unmoved(shape: tuple[int, ...]) -> Moved:
    """Return the parameter itself."""
    return Moved(torch.empty(shape, device="meta"), tuple(range(len(shape))))


def move(
    func: Callable[..., Any],
    name: str,
    kind: Kind,
    call: tuple[Arguments, Any],
    source: Moved,
) -> list[Moved] | None:
    """Return what a call, given as (arguments, result), makes of a moved parameter; None if more."""
    arguments, result = call
    shapes = [tuple(tensor.shape) for tensor in tensors_in(result)]
    before = tuple(source.view.shape)
    if kind.name not in REARRANGING:
        return None
    if kind.name == "identity" and shapes == [before]:
        return [source]
    views = moved(func, arguments, source.view)
    if views is None or [tuple(view.shape) for view in views] != shapes:
        return None
    given = {"input_shapes": (before,), "output_shapes": tuple(shapes)}
    numbers = [n for n in numbers_of(kind, name, arguments, given) if n.meaning != "open"]
    outputs = {n.axis for n in numbers if kind.name in ("reshape", "expand")}
    inputs = {n.axis for n in numbers} - outputs
    fixed = source.fixed | {axis for k in inputs if (axis := source.axes[k]) is not None}
    found = [_seen(view, source, fixed, outputs) for view in views]
    return [one for one in found if one is not None] if None not in found else None


def _seen(view: Tensor, source: Moved, fixed: frozenset[int], named: set[int]) -> Moved | None:
    """Return what a view shows; ``named`` are its axes whose length the call names."""
    root = source.view if source.view._base is None else source.view._base
    lines = lines_of(view, root)
    if lines is None:
        return None
    whole: dict[int, int] = {}
    partly = set(range(root.dim()))
    varied = [int(axis) for line in lines for axis in np.flatnonzero((line != line[0]).any(axis=0))]
    for place, line in enumerate(lines):
        for axis in range(root.dim()):
            in_order = np.array_equal(line[:, axis], np.arange(root.shape[axis]))
            if len(line) > 1 and in_order and varied.count(axis) == 1 and axis not in fixed:
                whole[place] = axis
                partly.discard(axis)
    used = {axis for axis in partly if root.shape[axis] > 1}
    used |= {axis for place, axis in whole.items() if place in named}
    return Moved(view, tuple(whole.get(place) for place in range(len(lines))), fixed | used)
