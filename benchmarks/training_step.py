# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a training step: INT8 against floating point and torch.ao.

    python -m benchmarks.training_step [--network resnet18 mobilenet_v2] [--steps 15]

Each variant lives in a process of its own (peak memory is per process); their steps take
turns, so that a busy minute of the machine hits all alike, and medians are compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import initialize, mobilenet_v2, resnet18

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(resnet18, 10, small_input=True),
    "mobilenet_v2": partial(mobilenet_v2, 10, small_input=True),
}


def floating(model: nn.Module, _sample: Tensor) -> nn.Module:
    """The network as it is."""
    return model


def ours(model: nn.Module, sample: Tensor, *, recompute: bool = True) -> nn.Module:
    """The network with the quantizers of nncf on inputs and weights."""
    from nncf.algorithms.quantization.scheme import Scheme
    from nncf.algorithms.quantization.torch import FakeQuantizer
    from nncf.torch import kernels

    def quantizers(layer: nn.Module, seen: Tensor) -> tuple[nn.Module, nn.Module]:
        activation = FakeQuantizer(Scheme(), (1,))
        activation.set_range(seen.min(), seen.max())
        weight: Tensor = layer.weight  # type: ignore[assignment]
        shape = (weight.shape[0], *[1] * (weight.dim() - 1))
        scheme = Scheme(signed=True, per_channel=True, channel_axis=0, half_range=True, weight=True)
        quantizer = FakeQuantizer(scheme, shape)
        flat = weight.detach().flatten(1)
        quantizer.set_range(flat.amin(1), flat.amax(1))
        return activation, quantizer

    def call(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        if not recompute:
            return apply_layer(layer, x, weight)
        with kernels.recompute_saved((x, weight)):
            return apply_layer(layer, x, weight)

    return wrap(model, sample, quantizers, call)


def torch_ao(model: nn.Module, sample: Tensor) -> nn.Module:
    """The network with PyTorch's learnable fake-quantize on inputs and weights."""
    from torch.ao.quantization import (
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

    def quantizers(layer: nn.Module, seen: Tensor) -> tuple[nn.Module, nn.Module]:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        activation = _LearnableFakeQuantize(
            MovingAverageMinMaxObserver, 0, 255, dtype=torch.quint8, use_grad_scaling=False
        )
        quantizer = _LearnableFakeQuantize(
            MovingAveragePerChannelMinMaxObserver,
            -128,
            127,
            channel_len=weight.shape[0],
            dtype=torch.qint8,
            ch_axis=0,
            qscheme=torch.per_channel_symmetric,
        )
        for fake, tensor in ((activation, seen), (quantizer, weight)):
            fake.enable_static_estimate()
            fake(tensor.detach())
            fake.enable_param_learning()
        return activation, quantizer

    return wrap(model, sample, quantizers, apply_layer)


VARIANTS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "floating point": floating,
    "nncf": ours,
    "nncf, inputs saved": partial(ours, recompute=False),
    "torch.ao learnable": torch_ao,
}


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Run a convolution or a linear with another weight."""
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(
            x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    return nn.functional.linear(x, weight, layer.bias)  # type: ignore[arg-type]


def wrap(model: nn.Module, sample: Tensor, make: Any, call: Any) -> nn.Module:
    """Put the quantizers that ``make`` returns before each convolution and linear."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    seen: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.update({layer: inputs[0]}))
        for layer in layers
    ]
    with torch.no_grad():
        model.eval()(sample)
    for handle, layer in zip(handles, layers, strict=True):
        handle.remove()
        layer.activation_quantizer, layer.weight_quantizer = make(layer, seen[layer])

        def forward(x: Tensor, layer: Any = layer) -> Tensor:
            return call(layer, layer.activation_quantizer(x), layer.weight_quantizer(layer.weight))

        layer.forward = forward  # type: ignore[method-assign]
    return model


def serve(pipe: Connection, network: str, variant: str, arguments: argparse.Namespace) -> None:
    """Run one step for each message, answering with seconds; None ends it with the memory."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    inputs = torch.randn(arguments.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (arguments.batch,))
    model = VARIANTS[variant](initialize(NETWORKS[network]()), inputs[:8]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    clock = time.process_time if arguments.cpu else time.perf_counter
    while pipe.recv():
        start = clock()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        pipe.send((clock() - start, loss.item()))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(network: str, arguments: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Return seconds per step (median), mebibytes (peak) and the last loss of each variant."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for variant in arguments.variants:
        near, far = context.Pipe()
        process = context.Process(target=serve, args=(far, network, variant, arguments))
        process.start()
        workers[variant] = (near, process)
    times: dict[str, list[float]] = {variant: [] for variant in workers}
    losses = dict.fromkeys(workers, 0.0)
    for step in range(arguments.steps + 2):  # the first two warm up
        for variant, (pipe, _) in workers.items():
            pipe.send(True)
            seconds, losses[variant] = pipe.recv()
            if step >= 2:
                times[variant].append(seconds)
    result = {}
    for variant, (pipe, process) in workers.items():
        pipe.send(False)
        result[variant] = (statistics.median(times[variant]), pipe.recv(), losses[variant])
        process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu", action="store_true", help="count processor time (busy machine; use --threads 1)"
    )
    arguments = parser.parse_args()
    for network in arguments.network:
        result = measure(network, arguments)
        base_time, base_memory, _ = result[arguments.variants[0]]
        print(f"\n{network}, batch {arguments.batch}, 32×32, {arguments.threads} threads")
        print(f"{'':<22}{'step, ms':>10}{'×':>7}{'peak, MB':>10}{'×':>7}{'loss':>9}")
        for variant, (seconds, memory, loss) in result.items():
            print(
                f"{variant:<22}{seconds * 1e3:>10.1f}{seconds / base_time:>7.2f}"
                f"{memory:>10.0f}{memory / base_memory:>7.2f}{loss:>9.4f}"
            )


if __name__ == "__main__":
    main()
