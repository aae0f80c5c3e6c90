# SPDX-License-Identifier: Apache-2.0
"""What each PyTorch function means to nncf: its name in addresses, its Kind, its tensors.

The name is the one that configurations of earlier releases use: arithmetic operators are
``__add__``, ``__iadd__``…; everything else is the function's own name (``conv2d``, ``relu_``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from nncf.graph.kinds import KINDS, Kind

# kind -> names of functions, looked up in torch, torch.nn.functional, torch.Tensor, torch.special
_FUNCTIONS: dict[str, str] = {
    "convolution": "conv1d conv2d conv3d",
    "transposed_convolution": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "linear": "linear addmm",
    "matmul": "matmul bmm mm baddbmm mv dot _grouped_mm grouped_mm",
    "attention": "scaled_dot_product_attention",
    "embedding": "embedding",
    "embedding_bag": "embedding_bag",
    "lstm": "lstm",
    "gru": "gru",
    "rnn": "rnn_tanh rnn_relu",
    "batch_norm": "batch_norm",
    "layer_norm": "layer_norm",
    "group_norm": "group_norm",
    "instance_norm": "instance_norm",
    "rms_norm": "rms_norm",
    "l2_norm": "normalize",
    "add": "add __add__ add_ __iadd__ __radd__",
    "subtract": "sub __sub__ sub_ __isub__ __rsub__ rsub subtract",
    "multiply": "mul __mul__ mul_ __imul__ __rmul__ multiply",
    "divide": "div __truediv__ div_ __itruediv__ __rdiv__ __rtruediv__ divide true_divide",
    "maximum": "maximum",
    "minimum": "minimum",
    "power": "pow __pow__ __rpow__ pow_ square reciprocal",
    "floor_mod": "fmod remainder __mod__ __floordiv__ floor_divide",
    "compare": "lt le gt ge eq ne __lt__ __le__ __gt__ __ge__ __eq__ __ne__ less greater",
    "logical": "logical_and logical_or logical_xor logical_not __and__ __or__ __xor__ __invert__ "
    "bitwise_not bitwise_and bitwise_or bitwise_xor",
    "mean": "mean",
    "sum": "sum",
    "reduce_max": "max min amax amin",
    "average_pool": "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d",
    "max_pool": "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d max_pool2d_with_indices max_pool1d_with_indices max_pool3d_with_indices",
    "max_unpool": "max_unpool1d max_unpool2d max_unpool3d",
    "concat": "cat concat concatenate stack hstack vstack dstack column_stack",
    "split": "split chunk unbind tensor_split split_with_sizes hsplit vsplit dsplit",
    "reshape": "reshape view flatten unflatten view_as reshape_as ravel unfold_copy",
    "squeeze": "squeeze squeeze_",
    "unsqueeze": "unsqueeze unsqueeze_",
    "transpose": "permute transpose t swapaxes swapdims movedim moveaxis adjoint T mT transpose_",
    "expand": "expand expand_as broadcast_to",
    "repeat": "repeat repeat_interleave tile",
    "pad": "pad constant_pad_nd",
    "slice": "__getitem__ narrow select",
    "gather": "index_select gather where take_along_dim masked_select unfold as_strided take diagonal",
    "scatter": "masked_fill masked_fill_ scatter scatter_ index_fill index_fill_ __setitem__ "
    "index_put index_put_ masked_scatter masked_scatter_ index_copy index_copy_ copy_ select_scatter "
    "slice_scatter diagonal_scatter",
    "roll": "roll flip",
    "interpolate": "interpolate upsample upsample_nearest upsample_bilinear grid_sample",
    "deformable_convolution": "deform_conv2d",
    "pixel_shuffle": "pixel_shuffle pixel_unshuffle",
    "channel_shuffle": "channel_shuffle native_channel_shuffle",
    "dropout": "dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout",
    "identity": "contiguous clone detach to float double half bfloat16 type type_as cpu cuda bool int long "
    "alias requires_grad_ data positive lift_fresh",
    "relu": "relu relu_",
    "relu6": "relu6 relu6_",
    "hardtanh": "hardtanh hardtanh_ clamp clamp_ clip clip_",
    "elu": "elu elu_ celu celu_ selu selu_",
    "prelu": "prelu",
    "leaky_relu": "leaky_relu leaky_relu_ rrelu",
    "sigmoid": "sigmoid sigmoid_ logsigmoid",
    "gelu": "gelu",
    "silu": "silu silu_",
    "mish": "mish",
    "hardsigmoid": "hardsigmoid hardsigmoid_",
    "hardswish": "hardswish hardswish_",
    "tanh": "tanh tanh_",
    "softplus": "softplus softsign",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
    "exp": "exp exp_ exp2 expm1",
    "log": "log log2 log10 log1p",
    "sqrt": "sqrt rsqrt sqrt_ rsqrt_",
    "erf": "erf",
    "round": "round round_ floor ceil trunc",
    "negate": "neg negative neg_",
    "absolute": "abs absolute abs_",
    "norm": "norm linalg_vector_norm",
    "variance": "var std var_mean std_mean",
    "sort": "sort argsort topk kthvalue",
    "cumulative": "cumsum cumprod",
    "trigonometric": "sin cos tan asin acos atan atan2",
    "fourier": "fft_fft fft_fft2 fft_fftn fft_rfft fft_rfft2 fft_rfftn fft_ifft fft_irfft stft",
}

_KINDS_OF_OPERATORS = {
    name: KINDS[kind] for kind, names in _FUNCTIONS.items() for name in names.split()
}

# Tensor methods that implement Python operators carry the operator's name in addresses.
_OPERATORS: dict[str, str] = {
    "add": "__add__",
    "add_": "__iadd__",
    "sub": "__sub__",
    "sub_": "__isub__",
    "mul": "__mul__",
    "mul_": "__imul__",
    "div": "__truediv__",
    "div_": "__itruediv__",
    "__rdiv__": "__rtruediv__",
    "lt": "__lt__",
    "le": "__le__",
    "gt": "__gt__",
    "ge": "__ge__",
}

# Order of tensor arguments given by keyword, for functions that receive weights.
_TENSOR_ORDER: dict[str, tuple[str, ...]] = {
    **{f"conv{n}d": ("input", "weight", "bias") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("input", "weight", "bias") for n in (1, 2, 3)},
    "linear": ("input", "weight", "bias"),
    "addmm": ("input", "mat1", "mat2"),
    "matmul": ("input", "other"),
    "embedding": ("input", "weight"),
    "embedding_bag": ("input", "weight", "offsets"),
    "layer_norm": ("input", "weight", "bias"),
    "group_norm": ("input", "weight", "bias"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
}

_PASSIVE_NAMES = frozenset(
    [
        "size",
        "dim",
        "numel",
        "stride",
        "storage_offset",
        "is_contiguous",
        "element_size",
        "get_device",
        "nelement",
        "ndimension",
        "__len__",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__format__",
        "__repr__",
        "__str__",
        "__hash__",
        "__deepcopy__",
        "is_floating_point",
        "is_complex",
        "item",
        "tolist",
        "numpy",
        "data_ptr",
        "storage",
        "untyped_storage",
        "backward",
        "register_hook",
        "__contains__",
        "is_same_size",
        "allclose",
        "equal",
        "_is_view",
        "is_nonzero",
    ]
)


_USUAL_ORDER = ("self", "input", "tensors", "condition", "mat1", "mat2", "other", "weight", "bias")

CREATING = frozenset(
    ["new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like"]
    + ["empty_like", "full_like", "rand_like", "randn_like", "randint_like"]
)
"""Functions that take only shape, type and device from a tensor: their results are constants."""


def passive(function: Callable[..., Any]) -> bool:
    """Tell whether a function only asks about a tensor and never makes one."""
    return getattr(function, "__name__", "") in _PASSIVE_NAMES


@functools.cache
def named_functions() -> dict[Callable[..., Any], tuple[str, Kind]]:
    """Return ``{function: (name in addresses, kind)}`` for every function that has a kind."""
    table: dict[Callable[..., Any], tuple[str, Kind]] = {}
    homes = (F, torch, torch.special, torch._C._nn, torch._C._fft, torch._C._linalg, torch.Tensor)
    for kind, names in _FUNCTIONS.items():
        for name in names.split():
            for home in homes:
                function = getattr(home, name, None)
                if not callable(function) or isinstance(function, type):
                    continue
                shown = _OPERATORS.get(name, name) if home is torch.Tensor else name
                table.setdefault(function, (shown, KINDS[kind]))
    table.update(_property_functions())
    return table


def _property_functions() -> Iterator[tuple[Callable[..., Any], tuple[str, Kind]]]:
    for attribute, kind in {"T": "transpose", "mT": "transpose", "H": "transpose", "mH": "transpose",
                            "data": "identity", "real": "identity"}.items():  # fmt: skip
        getter = getattr(torch.Tensor, attribute).__get__
        yield getter, (attribute, KINDS[kind])


@functools.cache
def _seen_by_compilers() -> frozenset[Any]:
    by_home = torch.overrides.get_overridable_functions()
    return frozenset(function for functions in by_home.values() for function in functions)


def hidden_from_compilers(function: Callable[..., Any]) -> bool:
    """Tell whether ``torch.compile`` runs a call of this function past every mode.

    So it does with ``torch.relu_``, ``F.hardswish`` and others that PyTorch does not list as
    overridable, though eager calls pass through modes.
    """
    if function in _seen_by_compilers() or function not in named_functions():
        return False
    return getattr(torch.Tensor, function.__name__, None) is not function


OPERATOR_NAME = "_nncf_operator_name"
"""Attribute of functions that ``register_operator`` made operations of their own."""


@functools.cache
def _kinds_by_name() -> dict[str, Kind]:
    # A convolution's attributes are read from the arguments, which the user's function may not have.
    known = _KINDS_OF_OPERATORS.items()
    return {name: kind for name, kind in known if "convolution" not in kind.name}


def describe(function: Callable[..., Any]) -> tuple[str, Kind]:
    """Return the name and kind of a function; unknown functions have kind ``unknown``."""
    found = named_functions().get(function)
    if found is not None:
        return found
    registered = getattr(function, OPERATOR_NAME, None)
    if registered is not None:
        return registered, _kinds_by_name().get(registered, KINDS["unknown"])
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _describe_operator(function)
    return getattr(function, "__name__", type(function).__name__), KINDS["unknown"]


def _describe_operator(function: Any) -> tuple[str, Kind]:
    """Describe ``torch.ops.<library>.<name>``, also with an overload behind it."""
    packet = getattr(function, "overloadpacket", function)
    library, _, name = packet._qualified_op_name.partition("::")
    known = _KINDS_OF_OPERATORS if library in ("aten", "torchvision") else {}
    return name, known.get(name, KINDS["unknown"])


def tensor_arguments(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[torch.Tensor]:
    """Yield the tensors among the arguments in port order (lists item by item)."""
    for value in args:
        yield from _tensors_in(value)
    for key in keyword_order(name, kwargs):
        yield from _tensors_in(kwargs[key])


def keyword_order(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return keyword names with the tensor arguments of known functions in signature order."""
    order = _TENSOR_ORDER.get(name, _USUAL_ORDER)
    rank = {key: index for index, key in enumerate(order)}
    return sorted(kwargs, key=lambda key: rank.get(key, len(order)))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
