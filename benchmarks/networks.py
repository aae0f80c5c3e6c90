# SPDX-License-Identifier: Apache-2.0
"""The networks that the benchmarks and examples measure, small enough to read in one go.

Layers carry the names that published checkpoints use (``layer1.0.conv1.weight``,
``features.0.weight``), so weights trained elsewhere load with ``load_state_dict``.
``initialize`` gives a network random weights whose activations keep a useful spread at any
depth, which is what a latency or a parity measurement needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def initialize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give convolutions and linears He-normal weights and batch norms varied statistics.

    The batch norms are not left at their identity: an export that folds them wrongly would
    pass unseen. Returns the model.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            deviation = (2.0 / fan_in) ** 0.5
            module.weight.data.normal_(0.0, deviation, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0.0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.normal_(0.0, 0.1, generator=generator)
    return model


def conv_norm(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution with "same" padding for odd kernels, and its batch norm."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, stride=stride)
        self.conv2, self.bn2 = conv_norm(width, width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the 3×3 one carries the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, width, kernel=1)
        self.conv2, self.bn2 = conv_norm(width, width, stride=stride)
        self.conv3, self.bn3 = conv_norm(width, width * self.expansion, kernel=1)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + identity)


class ResNet(nn.Module):
    """The ImageNet residual network; ``small_input`` replaces its stem for 32×32 images."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        classes: int = 1000,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        if small_input:
            self.conv1, self.bn1 = conv_norm(3, 64)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1, self.bn1 = conv_norm(3, 64, kernel=7, stride=2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for index, depth in enumerate(depths):
            width, stride = 64 * 2**index, 1 if index == 0 else 2
            self.add_module(
                f"layer{index + 1}", residual_stage(block, inputs, width, stride, depth)
            )
            inputs = width * block.expansion
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def residual_stage(
    block: type[BasicBlock | Bottleneck], inputs: int, width: int, stride: int, depth: int
) -> nn.Sequential:
    """Return ``depth`` blocks, the first of which changes resolution and channels."""
    outputs = width * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(*conv_norm(inputs, outputs, kernel=1, stride=stride))
    first = block(inputs, width, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(depth - 1)))


def resnet18(classes: int = 1000, *, small_input: bool = False) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), classes=classes, small_input=small_input)


def resnet50(classes: int = 1000, *, small_input: bool = False) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), classes=classes, small_input=small_input)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR networks: every second pixel, zero channels."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.added_channels = added_channels

    def forward(self, x: Tensor) -> Tensor:
        side = self.added_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


class CifarResNet(nn.Module):
    """ResNet-20 and its deeper sisters for 32×32 images (arXiv:1512.03385, section 4.2)."""

    def __init__(self, blocks_per_stage: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(3, 16)
        inputs = 16
        for index, width in enumerate((16, 32, 64)):
            blocks: list[nn.Module] = []
            for position in range(blocks_per_stage):
                halves = index > 0 and position == 0
                shortcut = PaddedShortcut(width - inputs) if halves else None
                blocks.append(BasicBlock(inputs, width, 2 if halves else 1, shortcut))
                inputs = width
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def resnet20(classes: int = 10) -> CifarResNet:
    return CifarResNet(3, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    return CifarResNet(9, classes)


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter depthwise, project by 1×1 (arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_relu6(inputs, hidden, kernel=1))
        layers.append(conv_norm_relu6(hidden, hidden, stride=stride, groups=hidden))
        self.conv = nn.Sequential(*layers, *conv_norm(hidden, outputs, kernel=1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


def conv_norm_relu6(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layers = conv_norm(inputs, outputs, kernel=kernel, stride=stride, groups=groups)
    return nn.Sequential(*layers, nn.ReLU6(inplace=True))


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0; ``small_input`` keeps more resolution for 32×32 images."""

    # expansion, output channels, repeats, stride of the first
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000, *, small_input: bool = False) -> None:
        super().__init__()
        inputs = 32
        layers: list[nn.Module] = [conv_norm_relu6(3, inputs, stride=1 if small_input else 2)]
        for index, (expansion, outputs, repeats, stride) in enumerate(self.STAGES):
            for position in range(repeats):
                step = stride if position == 0 and not (small_input and index == 1) else 1
                layers.append(InvertedResidual(inputs, outputs, step, expansion))
                inputs = outputs
        layers.append(conv_norm_relu6(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def mobilenet_v2(classes: int = 1000, *, small_input: bool = False) -> MobileNetV2:
    return MobileNetV2(classes, small_input=small_input)


class Fire(nn.Module):
    """Squeeze by 1×1, expand by 1×1 and 3×3 side by side (arXiv:1602.07360)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for 224×224 images: eight Fire modules and a convolutional classifier."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        stem = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True), pool()]
        first = [Fire(64, 16, 64), Fire(128, 16, 64), pool()]
        second = [Fire(128, 32, 128), Fire(256, 32, 128), pool()]
        third = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        self.features = nn.Sequential(*stem, *first, *second, *third)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean(dim=(2, 3))


def squeezenet1_1(classes: int = 1000) -> SqueezeNet:
    return SqueezeNet(classes)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet1_1": squeezenet1_1,
}
"""Constructors by name; all take ``classes``."""
