# SPDX-License-Identifier: Apache-2.0
"""Export: from a stripped model to an ONNX file or an OpenVINO IR that is proven equal to it.

The steps: PyTorch's exporter writes ONNX with QuantizeLinear and DequantizeLinear;
``nncf.onnx.write`` brings it into the form that runtimes run fast; the result is written under
a temporary name, run on the sample inputs, compared with the trained model operation by
operation (``nncf.compression.parity``) and renamed only when all of it agrees.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nncf.compression.parity import (
    DEFAULT_TOLERANCE,
    Comparison,
    ParityReport,
    Tolerance,
    compare,
)
from nncf.errors import ExportError, MissingDependency, UnsupportedFormat
from nncf.torch import hooks
from nncf.torch.fake_quantize_calls import DeployedValues

Array = NDArray[Any]
Samples = tuple[tuple[Any, ...], dict[str, Any]]

FORMATS = ("onnx", "onnx_<opset>", "onnx_int8", "onnx_fakequantize", "openvino")


@dataclass(frozen=True)
class Naming:
    """Names of the file's inputs and outputs; ``input.0``, ``output.0``… where None."""

    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None


@dataclass(frozen=True)
class Format:
    """What to write: ``kind`` is "onnx", "onnx_fakequantize" or "openvino".

    ``opset`` None leaves it to the export. ``packs``: whether weights of 4 bits and fewer take
    less than a byte each.
    """

    kind: str
    opset: int | None = None
    packs: bool = True

    @classmethod
    def choose(cls, path: Path, save_format: str | None) -> Format:
        """Read ``save_format``, by default from the path's ending. Raises UnsupportedFormat."""
        default = {".onnx": "onnx", ".xml": "openvino"}.get(path.suffix)
        text = save_format or default
        if text is None:
            raise UnsupportedFormat(
                f"The ending of {path.name!r} says no format. Expected: '.onnx' or '.xml'."
            )
        match = re.fullmatch(r"(onnx)_(\d+)", text)
        if match:
            text = "onnx"
        if text not in FORMATS:
            raise UnsupportedFormat(
                f"Unsupported saving format: {save_format!r}. Available formats: {list(FORMATS)}."
            )
        if (text == "openvino") != (path.suffix == ".xml"):
            raise UnsupportedFormat(
                f"{path.name!r} and the format {text!r} do not go together: '.xml' is for "
                "'openvino', any other ending for ONNX."
            )
        if text == "onnx_int8":
            return cls("onnx", packs=False)
        return cls(text, int(match[2]) if match else None)


@dataclass(frozen=True)
class Proof:
    """What the written file is compared with.

    ``reference`` is the trained model in evaluation mode, called with the same arguments; the
    stripped model where None. ``further`` are more inputs of the example's shapes: their
    outputs are compared too, all of them as one batch.
    """

    reference: Callable[..., Any] | None = None
    further: Sequence[Samples] = ()
    tolerance: Tolerance = DEFAULT_TOLERANCE


def export(
    stripped: nn.Module,
    path: str | Path,
    *,
    example_inputs: Samples,
    proof: Proof = Proof(),
    save_format: str | None = None,
    naming: Naming = Naming(),
) -> ParityReport:
    """Write ``stripped`` to ``path`` and return how the file compares with the trained model.

    The report prints the comparison and the file's size; ``report.sizes`` is the table of where
    its bytes go.

    ``example_inputs`` are positional and keyword arguments of the forward; shapes in the file
    are theirs. ``save_format``: "onnx" (default for any ending but ``.xml``), "onnx_<opset>",
    "onnx_int8" (a byte for every weight, however few its bits), "onnx_fakequantize" (nodes that
    OpenVINO alone knows) or "openvino" (``.xml``). The given model keeps its mode and device.

    Raises UnsupportedFormat, MissingDependency, ExportError (the path cannot be written, or the
    exporter or the runtime refuses the model) and ParityError (the file computes something
    else; nothing is left at ``path``).
    """
    path = Path(path)
    chosen = checked_format(path, save_format)
    from nncf.torch.deployment import Deployment  # needs the packages

    with temporary_folder(path) as folder:
        model = copy.deepcopy(stripped).cpu().eval()
        samples = on_processor(example_inputs)
        with torch.no_grad():
            program = quiet_export(model, samples, opset=chosen.opset)
            check_written(program, chosen.opset)
            deployment = Deployment.build(program, chosen, naming)
            written = deployment.write(folder / path.name)
            report = verify(model, samples, proof=proof, deployment=deployment, path=written)
        report.check(path)
        sizes = deployment.sizes(written)
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".xml"):
            file.replace(path.parent / file.name)
    return dataclasses.replace(report, sizes=sizes)


def checked_format(path: Path, save_format: str | None) -> Format:
    """Return what is to be written, once packages are there and the runtime reads its opset.

    Raises UnsupportedFormat and MissingDependency.
    """
    chosen = Format.choose(path, save_format)
    require_packages(chosen)
    if chosen.opset is not None:
        from nncf.onnx.run import check_opset

        check_opset(chosen.opset)
    return chosen


def require_packages(chosen: Format) -> None:
    """Raise MissingDependency for the first package that the format needs and that is absent."""
    needed = {
        "onnx": ["onnx", "onnx_ir", "onnxscript", "onnxruntime"],
        "onnx_fakequantize": ["onnx", "onnx_ir", "onnxscript", "openvino"],
        "openvino": ["onnx", "onnx_ir", "onnxscript", "openvino"],
    }
    for package in needed[chosen.kind]:
        if importlib.util.find_spec(package) is None:
            extra = "openvino" if package == "openvino" else "onnx"
            raise MissingDependency(package.replace("_", "-"), extra, f"Export to {chosen.kind}")


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path``, so that renaming out of it is one step.

    Raises ExportError when the folder of ``path`` is absent or cannot be written.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder. Expected: the name of a file.")
    try:
        holder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.")
    except OSError as error:
        raise ExportError(
            f"Cannot write to {path.parent}: {error.strerror}. Create the folder, or choose "
            "another path."
        ) from error
    with holder as name:
        yield Path(name)


def flat_arrays(outputs: Any) -> list[Array]:
    """Return the tensors in nested outputs as arrays, in the exporter's order."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def quiet_export(model: nn.Module, samples: Samples, *, opset: int | None) -> Any:
    """Return the exporter's program; nothing is printed. Raises ExportError when it fails."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), hooks.leaving_all_modes():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                model,
                samples[0],
                kwargs=samples[1] or None,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the model raised
        cause = error.__cause__ or error
        raise ExportError(
            f"PyTorch's exporter cannot write {type(model).__name__} as ONNX: "
            f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''} "
            "Expected: a model that torch.export.export takes. Call that on the stripped model "
            "to see the line of the model that it stops at."
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_written(program: Any, wanted: int | None) -> None:
    """Raise ExportError when the exporter could not convert the model to the opset asked for."""
    written = program.model.opset_imports[""]
    if wanted not in (None, written):
        raise ExportError(
            f'"onnx_{wanted}": PyTorch\'s exporter cannot write this model with opset {wanted}; it '
            f'wrote opset {written}. Expected an opset that it can convert to: "onnx_{written}", '
            'or "onnx", which leaves the choice to it.'
        )


def on_processor(samples: Samples) -> Samples:
    """Return the inputs with their tensors detached and in main memory."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach().cpu(), samples)  # type: ignore[no-any-return]  # the structure is kept


def verify(
    model: nn.Module, samples: Samples, *, proof: Proof, deployment: Any, path: Path
) -> ParityReport:
    """Run the written file; compare its outputs with the trained ones, its layers with ``model``."""
    values: Mapping[str, Array] = deployment.quantizer_codes(fed(deployment, samples))
    layers: list[Comparison] = []
    if values:
        watch = DeployedValues(values, deployment.labels)
        with watch.watching(model):
            local = flat_arrays(model(*samples[0], **samples[1]))
        layers = watch.layers
        layers += [
            compare(f"{name} (given the layers before)", a, np.asarray(values[name]))
            for name, a in zip(deployment.output_names, local, strict=True)
        ]
    outputs = compare_outputs(model, samples, proof=proof, deployment=deployment, path=path)
    return ParityReport(deployment.runtime, outputs, tuple(layers), proof.tolerance)


def compare_outputs(
    model: nn.Module, samples: Samples, *, proof: Proof, deployment: Any, path: Path
) -> tuple[Comparison, ...]:
    """Compare the outputs of both models running on their own, over all samples."""
    reference = proof.reference or model
    file = deployment.open(path)
    trained: list[list[Array]] = []
    deployed: list[list[Array]] = []
    for given in (samples, *map(on_processor, proof.further)):
        trained.append(flat_arrays(reference(*given[0], **given[1])))
        results = file(fed(deployment, given))
        deployed.append([np.asarray(results[name]) for name in deployment.output_names])
    return tuple(
        compare(name, batched([one[k] for one in trained]), batched([one[k] for one in deployed]))
        for k, name in enumerate(deployment.output_names)
    )


def fed(deployment: Any, samples: Samples) -> dict[str, Array]:
    """Return the inputs by the names they have in the file."""
    return dict(zip(deployment.input_names, flat_arrays(samples), strict=True))


def batched(arrays: Sequence[Array]) -> Array:
    """Join outputs along the batch axis; outputs without one are stacked."""
    return np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays)
