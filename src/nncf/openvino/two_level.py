# SPDX-License-Identifier: Apache-2.0
"""Weights of binary convolutions as one bit each in OpenVINO's intermediate representation."""

from __future__ import annotations

from typing import Any

import numpy as np


def store_bits(model: Any) -> None:
    """Replace the stored signs before each FakeQuantize of two levels by bits, in place.

    A bit becomes 0 or 1, and the threshold of the node ½ in place of 0.
    """
    from openvino import Tensor, Type, op, opset13

    for node in model.get_ops():
        if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != 2:
            continue
        constant = node.input_value(0).get_node()
        if constant.get_type_name() == "Convert":
            constant = constant.input_value(0).get_node()
        if constant.get_type_name() != "Constant":
            continue
        positive = np.asarray(constant.data) > 0
        packed = np.packbits(positive.reshape(-1))  # the first element in the highest bit
        tensor = Tensor(packed, list(positive.shape), Type.u1)  # shares the memory of packed
        bits = op.Constant(tensor, shared_memory=False)
        half = opset13.constant(np.full((1,) * positive.ndim, 0.5, np.float32))
        node.input(0).replace_source_output(opset13.convert(bits, "f32").output(0))
        for port in (1, 2):
            node.input(port).replace_source_output(half.output(0))
