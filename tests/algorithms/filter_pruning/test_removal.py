# SPDX-License-Identifier: Apache-2.0
"""The small model: trained, quantized, saved, rebuilt, and refused where it cannot be."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nncf
from tests.algorithms.filter_pruning.pruned import Residual, config, prune

BATCHES = [(torch.rand(4, 3, 8, 8), torch.arange(4)) for _ in range(3)]


class Heads(nn.Module):
    """Attention whose sizes stand in the code as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 96)
        self.proj = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 32)
        return self.head((x + self.proj(y)).mean(1))


def small(model: nn.Module, level: float = 0.5, **params: Any) -> tuple[Any, nn.Module]:
    """Return the controller of the model pruned at once, and the model without the channels."""
    controller = prune(model, params={"schedule": "baseline", "pruning_target": level, **params})
    controller.scheduler.epoch_step()
    return controller, controller.strip()


def pruned_heads() -> tuple[Any, nn.Module, torch.Tensor]:
    tokens = torch.randint(0, 11, (5, 6))
    text = {
        "input_info": {"sample_size": [2, 6], "type": "long"},
        "compression": {
            "algorithm": "filter_pruning",
            "params": {"schedule": "baseline", "channel_multiple": 1},
        },
    }
    controller, model = nncf.create_compressed_model(
        Heads().eval(), nncf.NNCFConfig.from_dict(text), dump_graphs=False
    )
    controller.scheduler.epoch_step()
    return controller, model, tokens


def test_layers_know_their_new_sizes() -> None:
    """Attributes of layers follow their weights, and nothing of nncf is left in the model."""
    _, stripped = small(Residual())
    inner, norm, head = stripped.inner, stripped.norm, stripped.head
    assert (inner.in_channels, inner.out_channels) == tuple(inner.weight.shape[1::-1]) == (8, 16)
    assert norm.num_features == len(norm.running_mean) == 8
    assert head.in_features == 16
    assert not hasattr(stripped, "compression")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in stripped.modules())


def test_numbers_in_code_are_corrected() -> None:
    """Heads go, though their number stands in the forward; embedding and layer norm follow."""
    controller, model, tokens = pruned_heads()
    stripped = controller.strip()
    assert stripped.qkv.weight.shape == (48, 8)
    assert stripped.embed.embedding_dim == 8
    assert stripped.norm.normalized_shape == (8,)
    for batch in (tokens, tokens[:1], tokens[:, :3]):
        torch.testing.assert_close(stripped(batch), model(batch), rtol=1e-5, atol=1e-6)


def test_copies_of_a_corrected_model_compute_the_same() -> None:
    """Deep copies, pickles and compiled forms of a model with corrected numbers work."""
    controller, _, tokens = pruned_heads()
    stripped = controller.strip()
    expected = stripped(tokens)
    file = io.BytesIO()
    torch.save(stripped, file)
    file.seek(0)
    for twin in (copy.deepcopy(stripped), torch.load(file, weights_only=False)):
        assert torch.equal(twin(tokens), expected)
    compiled = torch.compile(stripped, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), expected)
    exported = torch.export.export(stripped, (tokens,)).module()
    torch.testing.assert_close(exported(tokens), expected)


@pytest.mark.parametrize("kind", ["plain", "corrected"])
def test_small_model_trains_and_is_quantized(kind: str, tmp_path: Path) -> None:
    """The small model trains, takes INT8 as any other model, and its file is proven."""
    if kind == "plain":
        _, stripped = small(Residual())
        x, info = BATCHES[0][0], {"sample_size": [1, 3, 8, 8]}
        batches: Any = BATCHES
    else:
        controller, _, x = pruned_heads()
        stripped, info = controller.strip(), {"sample_size": [1, 6], "type": "long"}
        batches = [(x, torch.zeros(5))]
    stripped.train()
    optimizer = torch.optim.SGD(stripped.parameters(), 0.1)
    before = copy.deepcopy(stripped.state_dict())
    stripped(x).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(value, before[key]) for key, value in stripped.state_dict().items())
    text = {"input_info": info, "compression": {"algorithm": "quantization"}}
    quantized = nncf.register_default_init_args(nncf.NNCFConfig.from_dict(text), batches)
    controller, model = nncf.create_compressed_model(stripped, quantized, dump_graphs=False)
    model.eval()
    assert torch.equal(controller.strip()(x), model(x))
    pytest.importorskip("onnxruntime")
    assert controller.export_model(str(tmp_path / "small.onnx")).outputs


def test_failed_compression_leaves_a_corrected_model_as_it_was() -> None:
    """When the second compression is refused, the small model goes on working."""
    controller, _, tokens = pruned_heads()
    stripped = controller.strip()
    expected = stripped(tokens)
    text = {
        "input_info": {"sample_size": [1, 6], "type": "long"},
        "compression": {"algorithm": "quantization", "ignored_scopes": ["Nowhere"]},
    }
    with pytest.raises(nncf.ScopeNotFound):
        nncf.create_compressed_model(stripped, nncf.NNCFConfig.from_dict(text), dump_graphs=False)
    assert torch.equal(stripped(tokens), expected)


def test_small_model_is_rebuilt_from_the_compression_state() -> None:
    """A fresh model, the compression state and the small model's weights give the small model."""
    controller, stripped = small(Residual())
    saved = {"state": controller.get_compression_state(), "weights": stripped.state_dict()}
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again, _ = nncf.create_compressed_model(
        Residual(), config(), compression_state=loaded["state"], dump_graphs=False
    )
    rebuilt = again.strip(do_copy=False)
    rebuilt.load_state_dict(loaded["weights"])
    x = BATCHES[0][0]
    assert torch.equal(rebuilt.eval()(x), stripped.eval()(x))


def test_batch_norms_may_be_spared() -> None:
    """With prune_batch_norms false their parameters have no masks; removal is the same."""
    controller, stripped = small(Residual(), prune_batch_norms=False)
    masked = [name for name in controller.model.compression.ops if "batch_norm" in name]
    assert masked == []
    assert len(stripped.norm.weight) == 8


def test_only_layers_whose_channels_leave_the_model_is_refused() -> None:
    """A target scope of which nothing can go is an error that says why; the model is untouched."""
    model = Residual()
    keys = list(model.state_dict())
    with pytest.raises(nncf.ConfigError, match=r"target_scopes\[0\].*output of the model"):
        nncf.create_compressed_model(
            model, config(target_scopes=["Residual/Linear[head]"]), dump_graphs=False
        )
    assert list(model.state_dict()) == keys


def test_frozen_layers_are_refused_by_name() -> None:
    """A layer that cannot train after pruning is named."""
    model = Residual()
    model.inner.weight.requires_grad_(False)
    with pytest.raises(nncf.ModelError, match=r"inner\.weight.*frozen"):
        prune(model)


def test_model_without_channels_to_prune_is_refused() -> None:
    """A single linear layer has nothing to lose."""
    text = {"input_info": {"sample_size": [1, 4]}, "compression": {"algorithm": "filter_pruning"}}
    with pytest.raises(nncf.ConfigError, match="no layer of the model can lose channels"):
        nncf.create_compressed_model(
            nn.Linear(4, 2), nncf.NNCFConfig.from_dict(text), dump_graphs=False
        )
