# SPDX-License-Identifier: Apache-2.0
"""The architectures that ``zoo.py`` runs: timm's families, transformers, torchvision.

Everything has random weights and is as small as its family allows: the point is which
operations a model calls and how, not how well it sees. The three packages are not
dependencies of the project; a case whose package is missing is reported as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Example:
    """A model and the arguments of one forward; ``boxes``: it selects boxes by their scores."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    boxes: bool = False


@dataclass(frozen=True)
class Case:
    """One architecture: ``build()`` imports its package and makes an Example."""

    name: str
    build: Callable[[], Example]


# timm: one or a few per family (its files under timm/models), "name size", and what shrinks it
_TIMM = """
test_vit 160; test_vit2 160; test_vit3 160; test_vit4 160; vit_tiny_patch16_224 224
vit_medium_patch16_reg4_gap_256 256 depth=2; vit_xsmall_patch16_clip_224 224 depth=2
beit_base_patch16_224 224 depth=2; halonet_h1 256; eca_botnext26ts_256 256
lambda_resnet26t 128; test_byobnet 160; mobileone_s0 64; repvgg_a0 64; gernet_s 64; resnet26t 64
cait_xxs24_224 224 depth=3; coat_tiny 224; coat_lite_tiny 224; convit_tiny 224; convmixer_768_32 64
test_convnext 160; test_convnext2 160; test_convnext3 160; convnextv2_atto 64
cpubone_nano 128; crossvit_tiny_240 240; csatv2 512
cs3darknet_focus_s 64; cspresnet50 64; darknet53 64; cspnext_tiny 64
davit_tiny 224 depths=(1,1,1,1); deepseek_vit_412m 224 depth=2 embed_dim=128 num_heads=2
deit_tiny_patch16_224 224 depth=2; deit_tiny_distilled_patch16_224 224 depth=2
densenet121 64; dla46x_c 64; dla46_c 64; dpn48b 64; edgenext_xx_small 64
efficientformer_l1 224; efficientformerv2_s0 224; test_efficientnet 160; test_efficientnet_gn 160
test_efficientnet_ln 160; test_efficientnet_evos 160; efficientnet_lite0 64; mixnet_s 64
tf_efficientnetv2_b0 64; mobilenetv2_050 64; mnasnet_small 64; spnasnet_100 64; fbnetc_100 64
efficientvim_m1 224; efficientvit_b0 64; efficientvit_m0 224; eva02_tiny_patch14_224 224 depth=2
vit_tiny_patch16_dinov3_qkvb 256 depth=2; fasternet_t0 64; fastvit_t8 256; fastvit_mci0 256
focalnet_tiny_srf 64; gcvit_xxtiny 224; gemma4_vit_167m 96 depth=2 embed_dim=128 num_heads=2
ghostnet_050 64; ghostnetv2_100 64; ghostnetv3_050 64; hardcorenas_a 64; hgnetv2_b0 64; hgnet_tiny 64
hiera_tiny_224 224; sam2_hiera_tiny 224; hrnet_w18_small 64; iformer_t 224; inception_next_atto 64
inception_resnet_v2 96; inception_v3 96; inception_v4 96; lcnetv2_small 64; levit_128s 224
levit_conv_128s 224; lowformer_b0 128; test_mambaout 160; test_coatnet 160; test_maxvit 160
coatnet_nano_rw_224 224; maxxvit_rmlp_nano_rw_256 256; poolformerv2_s12 64; poolformer_s12 64
convformer_s18 64; caformer_s18 64; gmlp_ti16_224 224
mixer_s32_224 224; resmlp_12_224 224; mobilenetv3_small_050 64; lcnet_050 64; fbnetv3_b 64
mobilenetv4_conv_small_035 64; mobilenetv4_hybrid_medium 224; mobilenetv5_base 256
mobilevit_xxs 64; mobilevitv2_050 64; mvitv2_tiny 224; naflexvit_base_patch16_siglip 96 depth=2
nasnetalarge 96; jx_nest_tiny 224; nextvit_small 64; test_nfnet 160; nf_regnet_b0 64; dm_nfnet_f0 64
nf_resnet26 64; pit_ti_224 224; pnasnet5large 96; pvt_v2_b0 64
qwen3_vit_88m 96 depth=2 embed_dim=128 num_heads=2; rdnet_tiny 64; regnetx_002 64; regnety_002 64
regnetz_005 64; repghostnet_050 64; repvit_m1 64; res2next50 64; res2net50_14w_8s 64; resnest14d 64
test_resnet 160; resnet18 64; resnetblur18 64; ecaresnet26t 64; resnetrs50 64; seresnext26t_32x4d 64
resnetv2_18 64; resnetv2_50x1_bit 64; rexnet_100 64; selecsls42 64; legacy_seresnet18 64
legacy_senet154 64; sequencer2d_s 224 layers=(1,1,1,1); shvit_s1 224; skresnet18 64; starnet_s050 64
swiftformer_xs 224; swin_tiny_patch4_window7_224 224 depths=(2,1,1,1); swinv2_tiny_window8_256 256 depths=(2,1,1,1)
swin_s3_tiny_224 224 depths=(2,1,1,1); swinv2_cr_tiny_224 224 depths=(2,1,1,1); tiny_vit_5m_224 224
tnt_s_patch16_224 224 depth=2; tresnet_m 64; twins_svt_small 224; twins_pcpvt_small 224; vgg11 64
vgg11_bn 64; visformer_tiny 224; vit_tiny_r_s16_p8_224 224 depth=2; test_vit_relpos 160
samvit_base_patch16_224 224 depth=2; vitamin_small_224 224; volo_d1_224 224; ese_vovnet19b_slim 64
legacy_xception 96; xception 96; xception41p 96; xcit_nano_12_p8_224 224 depth=2
"""


def _timm_case(line: str) -> Case:
    name, size, *settings = line.split()
    sizes = {key: eval(value) for key, value in (item.split("=") for item in settings)}  # noqa: S307 (numbers and tuples of the table above)

    def build() -> Example:
        import timm

        model = timm.create_model(name, pretrained=False, **sizes)
        return Example(model, (torch.rand(2, 3, int(size), int(size)),))

    return Case(f"timm/{name}", build)


# transformers -----------------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_IMAGE: dict[str, Any] = {**_SMALL, "image_size": 32, "patch_size": 8}

# class, configuration class, settings, and what the forward takes
_TRANSFORMERS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("BertForSequenceClassification", "BertConfig", _SMALL, "text"),
    ("BertForQuestionAnswering", "BertConfig", {**_SMALL, "attn_implementation": "eager"}, "text"),
    ("DistilBertForSequenceClassification", "DistilBertConfig",
     {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, "text"),
    ("RobertaForMaskedLM", "RobertaConfig", _SMALL, "text"),
    ("MobileBertForSequenceClassification", "MobileBertConfig",
     {**_SMALL, "embedding_size": 32, "intra_bottleneck_size": 32}, "text"),
    ("AlbertForMaskedLM", "AlbertConfig", {**_SMALL, "embedding_size": 16}, "text"),
    ("ElectraForPreTraining", "ElectraConfig", {**_SMALL, "embedding_size": 16}, "text"),
    ("DebertaV2ForSequenceClassification", "DebertaV2Config",
     {**_SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p", "conv_kernel_size": 3}, "text"),
    ("DebertaModel", "DebertaConfig", {**_SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p"}, "text"),
    ("MPNetModel", "MPNetConfig", _SMALL, "text"),
    ("XLNetModel", "XLNetConfig", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, "text"),
    ("LongformerModel", "LongformerConfig", {**_SMALL, "attention_window": [4, 4]}, "text"),
    ("FNetModel", "FNetConfig", {**_SMALL, "tpu_short_seq_length": 16}, "text"),
    ("ModernBertModel", "ModernBertConfig", _SMALL, "text"),
    ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "text"),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL, "text"),
    ("OPTForCausalLM", "OPTConfig", {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, "text"),
    ("LlamaForCausalLM", "LlamaConfig", _DECODER, "text"),
    ("MistralForCausalLM", "MistralConfig", _DECODER, "text"),
    ("Qwen2ForCausalLM", "Qwen2Config", _DECODER, "text"),
    ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "head_dim": 8}, "text"),
    ("MixtralForCausalLM", "MixtralConfig", {**_DECODER, "num_local_experts": 2}, "text"),
    ("PhiForCausalLM", "PhiConfig", _SMALL, "text"),
    ("BloomForCausalLM", "BloomConfig", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "text"),
    ("MambaForCausalLM", "MambaConfig", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "text"),
    ("T5ForConditionalGeneration", "T5Config",
     {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "text to text"),
    ("BartForConditionalGeneration", "BartConfig", _SEQ2SEQ, "text to text"),
    ("MarianMTModel", "MarianConfig", {**_SEQ2SEQ, "pad_token_id": 0, "decoder_start_token_id": 0}, "text to text"),
    ("ViTForImageClassification", "ViTConfig", _IMAGE, "image"),
    ("DeiTForImageClassification", "DeiTConfig", _IMAGE, "image"),
    ("BeitForImageClassification", "BeitConfig", {**_IMAGE, "use_relative_position_bias": True}, "image"),
    ("SwinForImageClassification", "SwinConfig",
     {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, "image"),
    ("SegformerForSemanticSegmentation", "SegformerConfig",
     {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}, "image"),
    ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "image"),
    ("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, "image"),
    ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64}, "large image"),
    ("CLIPModel", "CLIPConfig", {"text_config": _SMALL, "vision_config": _IMAGE}, "image and text"),
    ("WhisperForConditionalGeneration", "WhisperConfig",
     {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32,
      "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, "spectrogram"),
    ("Wav2Vec2ForCTC", "Wav2Vec2Config",
     {**_SMALL, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 8,
      "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}, "wave"),
    ("HubertModel", "HubertConfig",
     {**_SMALL, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 8,
      "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}, "wave"),
)  # fmt: skip


def _tokens(length: int = 8) -> torch.Tensor:
    return torch.randint(3, 99, (2, length), generator=torch.Generator().manual_seed(1))


def _fields(takes: str) -> dict[str, Any]:
    text = {"input_ids": _tokens(), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    images = {"pixel_values": torch.rand(2, 3, 32, 32)}
    return {
        "text": text,
        "text to text": {**text, "decoder_input_ids": _tokens(6)},
        "image": images,
        "large image": {"pixel_values": torch.rand(2, 3, 64, 64)},
        "image and text": {**text, **images},
        "spectrogram": {"input_features": torch.rand(2, 8, 64), "decoder_input_ids": _tokens(6)},
        "wave": {"input_values": torch.rand(2, 800)},
    }[takes]


def _transformers_case(name: str, config: str, settings: dict[str, Any], takes: str) -> Case:
    def build() -> Example:
        import transformers

        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
        return Example(model, kwargs=_fields(takes))

    attention = settings.get("attn_implementation")
    return Case(f"transformers/{name}" + (f"+{attention}" if attention else ""), build)


# torchvision ------------------------------------------------------------------------------

_TORCHVISION = """
resnet18 64; resnet50 64; wide_resnet50_2 64; resnext50_32x4d 64; mobilenet_v2 64
mobilenet_v3_small 64; mobilenet_v3_large 64; squeezenet1_0 64; squeezenet1_1 64; inception_v3 96
googlenet 64; alexnet 64; vgg11 64; vgg16_bn 64; densenet121 64; efficientnet_b0 64
efficientnet_v2_s 64; shufflenet_v2_x0_5 64; mnasnet0_5 64; regnet_y_400mf 64; swin_t 64
swin_v2_t 64; convnext_tiny 64; vit_b_16 224; maxvit_t 224
segmentation.fcn_resnet50 64; segmentation.deeplabv3_mobilenet_v3_large 64
segmentation.lraspp_mobilenet_v3_large 64; video.r3d_18 32; optical_flow.raft_small 128
detection.ssdlite320_mobilenet_v3_large 320; detection.ssd300_vgg16 300
detection.retinanet_resnet50_fpn 64; detection.retinanet_resnet50_fpn_v2 64
detection.fcos_resnet50_fpn 64; detection.fasterrcnn_mobilenet_v3_large_320_fpn 320
"""


# Random weights find objects everywhere; suppressing thousands of boxes is not what is tried here.
_FEW_BOXES: dict[str, dict[str, Any]] = {
    "one stage": {"topk_candidates": 20, "detections_per_img": 10},
    "faster": {"rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 40, "box_detections_per_img": 10},
}  # fmt: skip


def _torchvision_case(line: str) -> Case:
    name, size = line.split()

    def build() -> Example:
        import torchvision
        from torchvision.models import get_model

        if name.startswith("detection."):
            torchvision.extension._has_ops = lambda: True  # noqa: SLF001 (nms may be a shim's)
        settings: dict[str, Any] = {"weights": None}
        if name.startswith(("detection.", "segmentation.")):
            settings["weights_backbone"] = None
        if name.startswith("detection."):
            settings |= _FEW_BOXES["faster" if "faster" in name else "one stage"]
        if name.startswith("detection.") and "ssd" not in name:
            settings |= {"min_size": int(size), "max_size": int(size)}
        if name in ("inception_v3", "googlenet"):
            settings["init_weights"] = False
        model = get_model(name.rpartition(".")[2], **settings)
        boxes = name.startswith("detection.")
        return Example(model, _torchvision_inputs(name, int(size)), boxes=boxes)

    return Case(f"torchvision/{name}", build)


def _torchvision_inputs(name: str, size: int) -> tuple[Any, ...]:
    if name.startswith("detection."):
        return ([torch.rand(3, size, size), torch.rand(3, size, size)],)
    if name.startswith("optical_flow."):
        return torch.rand(1, 3, size, size), torch.rand(1, 3, size, size)
    if name.startswith("video."):
        return (torch.rand(2, 3, 4, size, size),)
    return (torch.rand(2, 3, size, size),)


def cases() -> Iterator[Case]:
    """Yield every case of the zoo."""
    for table, make in ((_TORCHVISION, _torchvision_case), (_TIMM, _timm_case)):
        for line in table.replace("\n", ";").split(";"):
            if line.strip():
                yield make(line)
    for row in _TRANSFORMERS:
        yield _transformers_case(*row)
