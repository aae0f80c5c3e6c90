# SPDX-License-Identifier: Apache-2.0
"""What each Keras layer and operation means to nncf: its steps, their Kinds, its weights.

A layer may do several things one after the other: ``Conv2D(activation="relu")`` is a convolution
and a ReLU. Each is a *step* and an Operation of its own in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from nncf.graph.kinds import KINDS, Kind

# kind -> class names of layers and of keras.ops' operations
_CLASSES: dict[str, str] = {
    "convolution": "Conv1D Conv2D Conv3D Conv",
    "depthwise_convolution": "DepthwiseConv1D DepthwiseConv2D DepthwiseConv",
    "transposed_convolution": "Conv1DTranspose Conv2DTranspose Conv3DTranspose ConvTranspose",
    "linear": "Dense EinsumDense",
    "matmul": "Matmul Dot Einsum Tensordot Inner Vdot",
    "attention": "Attention AdditiveAttention DotProductAttention",
    "embedding": "Embedding ReversibleEmbedding",
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "SimpleRNN",
    "batch_norm": "BatchNormalization BatchNorm",
    "layer_norm": "LayerNormalization LayerNorm",
    "group_norm": "GroupNormalization",
    "rms_norm": "RMSNormalization RMSNorm",
    "l2_norm": "UnitNormalization Normalize",
    "add": "Add",
    "subtract": "Subtract",
    "multiply": "Multiply LayerScale",
    "divide": "Divide TrueDivide DivideNoNan Reciprocal",
    "maximum": "Maximum Fmax",
    "minimum": "Minimum Fmin",
    "power": "Power Square",
    "floor_mod": "Mod Fmod FloorDivide",
    "compare": "Equal NotEqual Greater GreaterEqual Less LessEqual Isclose",
    "logical": "LogicalAnd LogicalOr LogicalNot LogicalXor",
    "mean": "Mean Average",
    "sum": "Sum",
    "reduce_max": "Max Min Amax Amin",
    "average_pool": "AveragePooling1D AveragePooling2D AveragePooling3D GlobalAveragePooling1D "
    "GlobalAveragePooling2D GlobalAveragePooling3D AveragePool AdaptiveAveragePool "
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D",
    "max_pool": "MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
    "GlobalMaxPooling3D MaxPool AdaptiveMaxPool AdaptiveMaxPooling1D AdaptiveMaxPooling2D "
    "AdaptiveMaxPooling3D",
    "concat": "Concatenate Stack Hstack Vstack Dstack Append",
    "split": "Split Unstack ArraySplit Hsplit Vsplit Dsplit",
    "reshape": "Reshape Flatten Ravel",
    "squeeze": "Squeeze",
    "unsqueeze": "ExpandDims",
    "transpose": "Permute Transpose Moveaxis Swapaxes",
    "expand": "BroadcastTo RepeatVector",
    "repeat": "Repeat Tile UpSampling1D",
    "pad": "ZeroPadding1D ZeroPadding2D ZeroPadding3D Pad PadImages",
    "slice": "Cropping1D Cropping2D Cropping3D CenterCrop GetItem Slice CropImages",
    "gather": "Take TakeAlongAxis Where",
    "scatter": "SliceUpdate ScatterUpdate Scatter",
    "roll": "Roll Flip Fliplr Flipud Rot90",
    "interpolate": "UpSampling2D UpSampling3D Resizing Resize",
    "pixel_shuffle": "DepthToSpace SpaceToDepth",
    "dropout": "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout "
    "GaussianDropout GaussianNoise StochasticDepth",
    "identity": "Identity Cast Copy StopGradient ConvertToTensor ActivityRegularization Masking",
    "relu": "ReLU Relu",
    "relu6": "Relu6",
    "hardtanh": "Clip HardTanh",
    "elu": "ELU Elu Selu Celu",
    "prelu": "PReLU",
    "leaky_relu": "LeakyReLU LeakyRelu",
    "sigmoid": "Sigmoid LogSigmoid",
    "gelu": "Gelu",
    "silu": "Silu",
    "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSilu",
    "tanh": "Tanh",
    "softplus": "Softplus Softsign",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "exp": "Exp Exp2 Expm1",
    "log": "Log Log2 Log10 Log1p",
    "sqrt": "Sqrt Rsqrt",
    "erf": "Erf",
    "round": "Round Floor Ceil Trunc",
    "negate": "Negative",
    "absolute": "Absolute Abs",
    "norm": "Norm",
    "variance": "Var Std",
    "sort": "Sort Argsort TopK",
    "cumulative": "Cumsum Cumprod",
    "trigonometric": "Sin Cos Tan Arcsin Arccos Arctan Arctan2",
    "fourier": "FFT FFT2 IFFT2 RFFT IRFFT STFT ISTFT",
    "constant": "ZerosLike OnesLike FullLike EmptyLike",
}
_KIND_OF_CLASS = {name: KINDS[kind] for kind, names in _CLASSES.items() for name in names.split()}

_KIND_OF_ACTIVATION = {
    "relu": "relu",
    "relu6": "relu6",
    "elu": "elu",
    "selu": "elu",
    "celu": "elu",
    "leaky_relu": "leaky_relu",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "hardsigmoid",
    "hard_silu": "hardswish",
    "hard_swish": "hardswish",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "mish": "mish",
    "tanh": "tanh",
    "hard_tanh": "hardtanh",
    "softplus": "softplus",
    "softsign": "softplus",
    "exponential": "exp",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
}

WRITTEN_OUT = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
"""Layers of Keras that are followed inside, as a user's own layers are."""

OPAQUE = (
    keras.layers.Wrapper,
    keras.layers.Lambda,
    keras.layers.RNN,
    keras.layers.Pipeline,
)
"""Layers of which the inside is not followed: what they hold is compressed by its weights."""

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_ACTIVATED = frozenset(
    [f"Conv{n}D" for n in (1, 2, 3)]
    + [f"Conv{n}DTranspose" for n in (1, 2, 3)]
    + ["DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"]
    + ["Dense", "EinsumDense"]
)
"""Layers that apply ``layer.activation`` to their result last of all."""


@dataclass(frozen=True)
class Step:
    """One thing a layer does: its name in addresses, and its Kind."""

    function: str
    kind: Kind


@dataclass(frozen=True)
class Use:
    """A weight of a layer: the step that takes it, the attribute that holds it, how it is seen.

    ``shape`` is the shape in which CompressionOps see it: the two last axes of a depthwise kernel
    are one axis of output channels. ``channel_axis`` is the axis of output channels then, and
    ``input_axis`` that of input channels.
    """

    step: int
    attribute: str
    shape: tuple[int, ...]
    channel_axis: int | None
    input_axis: int | None = None


def keras_class(operation: Any) -> type:
    """Return the class of Keras that an operation is of or derives from, whatever a user added."""
    for base in type(operation).__mro__:
        if base.__module__.startswith("keras.") and base.__name__ in _KIND_OF_CLASS:
            return base
    return type(operation)


def is_own_code(operation: Any) -> bool:
    """Tell whether the class is a user's, with a ``call`` of its own that Keras knows nothing of.

    So are the layers that ``keras.applications`` has for single architectures, unless their class
    is listed above.
    """
    for base in type(operation).__mro__:
        if "call" in vars(base):
            home = base.__module__
            if home.startswith("keras.src.applications"):
                return base.__name__ not in _KIND_OF_CLASS
            return not home.startswith("keras.")
    return False


def is_followed(operation: Any) -> bool:
    """Tell whether the capture looks for the operations inside a layer."""
    if isinstance(operation, OPAQUE):
        return False
    if isinstance(operation, (keras.Model, *WRITTEN_OUT)):
        return True
    return isinstance(operation, keras.layers.Layer) and is_own_code(operation)


def steps_of(operation: Any) -> list[Step]:
    """Return what a layer or operation does, in order; at least one step."""
    kind = KINDS["unknown"] if is_own_code(operation) else _first_kind(operation)
    name = type(operation).__name__
    if isinstance(operation, _SEPARABLE):
        steps = [
            Step("depthwise_conv", KINDS["depthwise_convolution"]),
            Step("pointwise_conv", KINDS["convolution"]),
        ]
    elif isinstance(operation, keras.layers.Activation):
        return [_activation_step(operation.activation) or Step("linear", KINDS["identity"])]
    elif isinstance(operation, keras.layers.Rescaling):
        # scale · (x + offset / scale): what images go through first
        return [Step("add", KINDS["add"]), Step("multiply", KINDS["multiply"])]
    elif isinstance(operation, keras.layers.Normalization):
        return [Step("subtract", KINDS["subtract"]), Step("divide", KINDS["divide"])]
    else:
        steps = [Step(name, kind)]
    if keras_class(operation).__name__ in _ACTIVATED or isinstance(operation, _SEPARABLE):
        steps.extend(filter(None, [_activation_step(operation.activation)]))
    return steps


def _first_kind(operation: Any) -> Kind:
    base = keras_class(operation)
    kind = _KIND_OF_CLASS.get(base.__name__, KINDS["unknown"])
    if kind.name == "mean" and isinstance(operation, keras.layers.Layer):
        return KINDS["add"]  # the layer Average: elementwise, of its inputs
    if kind.name == "convolution":
        groups = getattr(operation, "groups", 1)
        kernel = getattr(operation, "_kernel", None)
        if groups > 1 and kernel is not None and kernel.shape[-2] == 1:
            return KINDS["depthwise_convolution"]
    if isinstance(operation, keras.layers.ReLU):
        if operation.negative_slope:
            return KINDS["leaky_relu"]
        return KINDS["relu6"] if operation.max_value == 6 else KINDS["relu"]
    return kind


def _activation_step(activation: Any) -> Step | None:
    if activation is None or activation is keras.activations.linear:
        return None
    name = getattr(activation, "__name__", type(activation).__name__)
    if isinstance(activation, keras.layers.Layer):
        return Step(name, _first_kind(activation))
    kind = _KIND_OF_ACTIVATION.get(name, "unknown")
    known = getattr(keras.activations, name, None) is activation
    return Step(name, KINDS[kind if known else "unknown"])


def uses_of(layer: Any) -> Iterator[Use]:
    """Yield the weights of a layer of Keras by which it multiplies or in which it looks up."""
    if is_own_code(layer) or not getattr(layer, "built", False):
        return
    if isinstance(layer, _SEPARABLE):
        yield _depthwise(0, "depthwise_kernel", layer.depthwise_kernel)
        yield _plain(1, "pointwise_kernel", layer.pointwise_kernel)
        return
    kind = _first_kind(layer).name
    if kind == "depthwise_convolution" and isinstance(layer, _DEPTHWISE):
        yield _depthwise(0, "kernel", layer.kernel)
    elif kind == "transposed_convolution":
        rank = len(layer.kernel.shape)
        yield Use(0, "kernel", tuple(layer.kernel.shape), rank - 2, rank - 1)
    elif kind in ("convolution", "depthwise_convolution"):
        yield _plain(0, "_kernel", layer.kernel)
    elif kind == "linear":
        yield _dense(layer)
    elif kind == "embedding":
        yield Use(0, "_embeddings", tuple(layer.embeddings.shape), 0)
    elif kind in ("lstm", "gru", "rnn"):
        for name in ("kernel", "recurrent_kernel"):
            shape = tuple(getattr(layer.cell, name).shape)
            yield Use(0, f"cell.{name}", shape, len(shape) - 1, 0)


_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def _plain(step: int, attribute: str, kernel: Any) -> Use:
    rank = len(kernel.shape)
    return Use(step, attribute, tuple(kernel.shape), rank - 1, rank - 2)


def _depthwise(step: int, attribute: str, kernel: Any) -> Use:
    *window, channels, multiplier = kernel.shape
    return Use(step, attribute, (*window, channels * multiplier), len(window))


def _dense(layer: Any) -> Use:
    shape = tuple(layer.kernel.shape)
    if len(shape) == 2 and not isinstance(layer, keras.layers.EinsumDense):
        return Use(0, "_kernel", shape, 1, 0)
    return Use(0, "_kernel", shape, _einsum_axis(layer), None)


def _einsum_axis(layer: Any) -> int | None:
    """Return the axis of an EinsumDense kernel that its output has and its input has not."""
    inputs, _, output = layer.equation.replace(" ", "").partition("->")
    data, _, kernel = inputs.partition(",")
    own = [place for place, letter in enumerate(kernel) if letter in output and letter not in data]
    return own[-1] if len(own) == 1 else None


def weight_of(layer: Any, attribute: str) -> Any:
    """Return the variable of a layer that a ``Use`` names."""
    value = layer
    for part in attribute.split("."):
        value = getattr(value, part)
    return value
