# SPDX-License-Identifier: Apache-2.0
"""One network built for PyTorch and for Keras: the same layout, ranges, masks and outputs.

Both get the same weights, data and configuration. Names of operations differ, so quantizers are
compared in the order of the graph, by what they are and by their ranges; the outputs may differ
where a value lies between two points of a grid and each framework's rounding decides.
"""

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers, ops
from torch import nn

import nncf

IMAGES = np.random.default_rng(0).normal(0, 1, (16, 12, 12, 3)).astype("float32")
TOKENS = np.random.default_rng(0).normal(0, 1, (16, 6, 8)).astype("float32")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x) + x)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def residual():
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(image)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-3, name="bn1")(x))
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same", name="conv2")(x) + x)
    x = layers.Conv2D(16, 3, activation="relu", name="conv3")(x)
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return keras.Model(image, layers.Dense(5, name="head")(x))


class Inverted(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn0 = nn.BatchNorm2d(8, eps=1e-3)
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16, eps=1e-3)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8, eps=1e-3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu6(self.bn0(self.stem(x)))
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depthwise(y)))
        x = x + self.bn3(self.project(y))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def inverted():
    def norm(x, name):
        return layers.BatchNormalization(epsilon=1e-3, name=name)(x)

    image = keras.Input((12, 12, 3))
    x = norm(layers.Conv2D(8, 3, use_bias=False, name="stem")(image), "bn0")
    x = layers.ReLU(6.0)(x)
    y = layers.ReLU(6.0)(norm(layers.Conv2D(16, 1, use_bias=False, name="expand")(x), "bn1"))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.ReLU(6.0)(norm(y, "bn2"))
    x = layers.Add()([x, norm(layers.Conv2D(8, 1, use_bias=False, name="project")(y), "bn3")])
    return keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(8, eps=1e-3)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8)
        self.norm2 = nn.LayerNorm(8, eps=1e-3)
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = x + self.second(F.gelu(self.first(self.norm1(x)), approximate="none"))
        return self.head(self.norm2(x).flatten(1))


def mixer():
    tokens = keras.Input((6, 8))
    y = layers.Dense(16, name="first")(
        layers.LayerNormalization(epsilon=1e-3, name="norm1")(tokens)
    )
    x = tokens + layers.Dense(8, name="second")(keras.activations.gelu(y))
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-3, name="norm2")(x))
    return keras.Model(tokens, layers.Dense(5, name="head")(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(8, eps=1e-3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8, eps=1e-3)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = self.norm1(x)
        scores = torch.matmul(self.query(y), self.key(y).transpose(1, 2)) * 0.35
        x = x + self.out(torch.matmul(torch.softmax(scores, -1), self.value(y)))
        x = x + self.second(F.relu(self.first(self.norm2(x))))
        return torch.softmax(self.head(x.mean(1)), -1)


def attention():
    tokens = keras.Input((6, 8))
    y = layers.LayerNormalization(epsilon=1e-3, name="norm1")(tokens)
    query, key, value = (layers.Dense(8, name=name)(y) for name in ("query", "key", "value"))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) * 0.35
    y = ops.matmul(ops.softmax(scores, axis=-1), value)
    x = tokens + layers.Dense(8, name="out")(y)
    y = layers.LayerNormalization(epsilon=1e-3, name="norm2")(x)
    y = layers.Dense(8, name="second")(layers.Dense(16, activation="relu", name="first")(y))
    x = ops.mean(x + y, axis=1)
    return keras.Model(tokens, layers.Dense(5, activation="softmax", name="head")(x))


NETWORKS = {
    "residual": (Residual, residual, IMAGES),
    "inverted": (Inverted, inverted, IMAGES),
    "mixer": (Mixer, mixer, TOKENS),
    "attention": (Attention, attention, TOKENS),
}


def build(name):
    """Return both networks with the same weights, and the data."""
    first, second, data = NETWORKS[name]
    torch.manual_seed(0)
    ours, theirs = first(), second()
    with torch.no_grad():  # batch norms with statistics of their own
        for module in ours.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    for path, module in ours.named_modules():
        if path:
            theirs.get_layer(path).set_weights(values_of(module))
    return ours.eval(), theirs, data


def values_of(module):
    """Return a module's weights in the order and layout of its Keras layer."""
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    if isinstance(module, nn.Conv2d):
        axes = (2, 3, 0, 1) if module.groups > 1 else (2, 3, 1, 0)
        state["weight"] = state["weight"].transpose(axes)
    elif isinstance(module, nn.Linear):
        state["weight"] = state["weight"].T
    names = ("weight", "bias", "running_mean", "running_var")
    return [state[key] for key in names if key in state]


def to_torch(data):
    tensor = torch.tensor(data)
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


def both(name, *sections, **root):
    """Return controller and model of both, compressed by one configuration, and the data."""
    ours, theirs, data = build(name)
    no_adaptation = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    sections = [
        {**s, "initializer": {**no_adaptation, **s.get("initializer", {})}}
        if s["algorithm"] == "quantization"
        else s
        for s in sections
    ]
    found = []
    for model, values in ((ours, to_torch(data)), (theirs, data)):
        config = nncf.NNCFConfig.from_dict({"compression": list(sections), **root})
        batches = [(values[n : n + 8], values[n : n + 8]) for n in (0, 8)]
        nncf.register_default_init_args(config, batches)
        found.append(nncf.create_compressed_model(model, config, dump_graphs=False))
    return *found, data


def outputs(model, data):
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model.eval()(to_torch(data)).numpy()
    return model(data, training=False).numpy()


def described(controller):
    """Return what each quantizer is, with its range, in the order of the graph."""
    rows = []
    for insert in controller.layout:
        op, scheme = controller.all_quantizations[insert.name], insert.op
        facts = op.describe()
        kind = (scheme.weight, scheme.bits, scheme.mode, facts["signed"], scheme.per_channel,
                scheme.half_range, scheme.narrow_range, facts["channels"])  # fmt: skip
        rows.append((kind, facts["minimum"], facts["maximum"]))
    return rows


def layers_of(controller):
    """Return the names of the layers whose weights are quantized: ``Net/Conv2d[conv]/…``, ``Net/conv/…``."""
    names = [i.name.split("/")[1] for i in controller.layout if i.op.weight]
    return [name.partition("[")[2].rstrip("]") or name for name in names]


INT8 = {"algorithm": "quantization"}
CONFIGURATIONS = {
    "int8": [INT8],
    "mixed": [{**INT8, "preset": "mixed"}],
    "per_tensor": [{**INT8, "weights": {"per_channel": False}}],
    "asymmetric4": [
        {
            **INT8,
            "weights": {"bits": 4},
            "activations": {"bits": 4, "mode": "asymmetric"},
            "initializer": {"range": {"type": "mean_min_max", "num_init_samples": 16}},
        }
    ],
    "per_channel": [{**INT8, "activations": {"per_channel": True}}],
    "few_bits": [{**INT8, "weights": {"bits": 3}, "activations": {"bits": 3}}],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_before_compression(name):
    """The two networks are one."""
    ours, theirs, data = build(name)
    np.testing.assert_allclose(outputs(ours, data), outputs(theirs, data), atol=2e-5)


@pytest.mark.parametrize("setting", CONFIGURATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_layout_ranges_and_outputs(name, setting):
    """The same quantizers at the same operations with the same ranges, and outputs within rounding."""
    if name in ("mixer", "attention") and setting == "per_channel":
        pytest.skip("PyTorch has the channels of tokens at axis 1, Keras at the end")
    first, second, data = both(name, *CONFIGURATIONS[setting], target_device="TRIAL")
    ours, theirs = described(first[0]), described(second[0])
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    np.testing.assert_allclose(
        [row[1:] for row in ours], [row[1:] for row in theirs], rtol=1e-5, atol=1e-6
    )
    assert layers_of(first[0]) == layers_of(second[0])
    one, other = outputs(first[1], data), outputs(second[1], data)
    bits = min(row[0][1] for row in ours)
    deviation = np.sqrt(np.mean((one - other) ** 2) / np.mean(one**2))
    assert deviation < (0.01 if bits == 8 else 0.15)
    # a value on the middle between two points may go either way, and with it what it reaches
    assert np.mean(np.abs(one - other) < 1e-4 * np.abs(one).max()) > 0.75


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", ["ANY", "GPU", "CPU_SPR"])
def test_each_device(name, device):
    """Hardware descriptions give the same quantizers."""
    first, second, _ = both(name, INT8, target_device=device)
    assert [r[0] for r in described(first[0])] == [r[0] for r in described(second[0])]


@pytest.mark.parametrize("name", NETWORKS)
def test_masks(name):
    """Magnitude sparsity drops the same weights of each layer."""
    section = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5,
               "params": {"weight_importance": "abs"}}  # fmt: skip
    (ours, _), (theirs, _), _ = both(name, section)
    stripped, other = ours.strip(), theirs.strip()
    for path, module in stripped.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            expected = values_of(module)[0]
            found = other.get_layer(path).get_weights()[0]
            np.testing.assert_array_equal(found == 0, expected == 0, err_msg=path)
    summaries = [c.statistics().magnitude_sparsity.model_statistics for c in (ours, theirs)]
    assert summaries[0].sparsity_level == pytest.approx(summaries[1].sparsity_level)
