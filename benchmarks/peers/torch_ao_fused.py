# SPDX-License-Identifier: Apache-2.0
"""``torch.ao`` in fx mode with its default settings: fused observers."""

from __future__ import annotations

from benchmarks.peers.torch_ao import fused
from benchmarks.step_server import serve

if __name__ == "__main__":
    serve(fused)
