# SPDX-License-Identifier: Apache-2.0
"""Write a Graph, with or without its CompressionOps, as a DOT file for Graphviz."""

from __future__ import annotations

from pathlib import Path

from nncf.compression.files import write_text
from nncf.compression.layout import Layout
from nncf.graph.graph import Edge, Graph


def to_dot(graph: Graph, layout: Layout | None = None) -> str:
    """Return DOT text: one node per operation, one dashed box per point of the layout.

    Node labels are ``<number> <address>`` (the address is what ``ignored_scopes`` takes), edge
    labels the shape and ``<output port> -> <input port>``; integer tensors are dashed.
    """
    numbers = {operation.key: number for number, operation in enumerate(graph.operations())}
    lines = ["strict digraph {"]
    for key, number in numbers.items():
        lines.append(f'"{number}" [label="{number} {_escape(key)}", type="{graph[key].kind}"];')
    taken: dict[str, list[str]] = {}
    for insert in layout or ():
        for point in insert.points:
            if point.address in numbers:
                taken.setdefault(point.address, []).append(
                    f"{point.kind} {point.port}: {insert.op}"
                )
    for key, texts in taken.items():
        label = _escape("\\n".join(texts))
        lines.append(f'"{numbers[key]}c" [label="{label}", shape=box, style=dashed];')
        lines.append(f'"{numbers[key]}c" -> "{numbers[key]}" [style=dotted, arrowhead=none];')
    lines.extend(_edge_line(edge, numbers) for edge in graph.edges())
    return "\n".join([*lines, "}", ""])


def _edge_line(edge: Edge, numbers: dict[str, int]) -> str:
    style = "" if edge.dtype == "float" else ", style=dashed"
    label = f"{list(edge.shape)} \\n{edge.output_port} -> {edge.input_port}"
    return f'"{numbers[edge.source]}" -> "{numbers[edge.target]}" [label="{label}"{style}];'


def _escape(text: str) -> str:
    return text.replace('"', '\\"')


def write_dot(path: Path, graph: Graph, layout: Layout | None = None) -> None:
    """Write ``to_dot`` to a file, replacing it as a whole."""
    write_text(path, to_dot(graph, layout))
