# SPDX-License-Identifier: Apache-2.0
"""Configurations as training scripts of several years wrote them, by era and algorithm."""

from __future__ import annotations

TODAY = {
    "resnet50_int8": """
    {
        "model": "resnet50",
        "pretrained": true,
        "input_info": {"sample_size": [2, 3, 224, 224]},
        "num_classes": 1000,
        "batch_size": 256,
        "epochs": 15,
        "optimizer": {"type": "Adam", "base_lr": 1e-5, "schedule_params": {"gamma": 0.1}},
        "compression": {
            "algorithm": "quantization",
            "preset": "mixed",
            "initializer": {
                "range": {"num_init_samples": 2560},
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 2560},
            },
        },
    }""",
    "mobilenet_v2_int8_percentile": """
    {
        "input_info": [{"sample_size": [1, 3, 224, 224], "type": "float", "filler": "random"}],
        "target_device": "TRIAL", // anything goes
        "compression": [{
            "algorithm": "quantization",
            "weights": {"mode": "asymmetric", "per_channel": true, "bits": 8},
            "activations": {"mode": "asymmetric", "signed": true},
            "initializer": {"range": {
                "num_init_samples": 1024, "type": "percentile",
                "params": {"min_percentile": 0.01, "max_percentile": 99.99}
            }},
            "ignored_scopes": "{re}.*classifier.*",
            "overflow_fix": "first_layer_only",
            "quantize_outputs": true,
            "export_to_onnx_standard_ops": true
        }]
    }""",
    "per_layer_ranges": """
    {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "compression": {
            "algorithm": "quantization",
            "initializer": {"range": [
                {"type": "min_max", "num_init_samples": 10, "target_scopes": ["{re}conv.*"],
                 "target_quantizer_group": "weights"},
                {"type": "mean_min_max", "ignored_scopes": ["{re}conv.*"]}
            ]},
            "scope_overrides": {
                "weights": {"{re}.*InvertedResidual.*": {"mode": "symmetric", "bits": 8}},
                "activations": {"Net/Conv2d[a]/conv2d_0": {
                    "per_channel": false, "initializer": {"range": {"type": "threesigma"}}}}
            }
        }
    }""",
    "hawq": """
    {
        "input_info": {"sample_size": [2, 3, 224, 224]},
        "target_device": "VPU",
        "compression": {
            "algorithm": "quantization",
            "weights": {"mode": "symmetric"},
            "initializer": {
                "range": {"num_init_samples": 256},
                "precision": {"type": "hawq", "bits": [4, 8], "num_data_points": 100,
                              "iter_number": 200, "tolerance": 1e-4, "compression_ratio": 1.5,
                              "bitwidth_assignment_mode": "strict"}
            }
        }
    }""",
    "autoq_staged": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "target_device": "VPU",
        "compression": {
            "algorithm": "quantization",
            "initializer": {"precision": {
                "type": "autoq", "bits": [2, 4, 8], "iter_number": 300,
                "compression_ratio": 0.15, "eval_subset_ratio": 0.2, "warmup_iter_number": 20,
                "dump_init_precision_data": true}},
            "params": {"activations_quant_start_epoch": 0, "weights_quant_start_epoch": 1,
                       "lr_poly_drop_start_epoch": 20, "lr_poly_drop_duration_epochs": 10,
                       "disable_wd_start_epoch": 30, "base_lr": 3.1e-4, "base_wd": 1e-5,
                       "batch_multiplier": 2}
        }
    }""",
    "manual_bits": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression_lr_multiplier": 10,
        "compression": {
            "algorithm": "quantization",
            "params": {},
            "initializer": {"precision": {"bitwidth_per_scope": [
                [4, "MobileNetV2/Conv2d[conv]/conv2d_0|WEIGHT"], [8, "MobileNetV2/relu_1"]]}}
        }
    }""",
    "bert_xnli": """
    {
        "input_info": [
            {"sample_size": [1, 128], "type": "long"},
            {"sample_size": [1, 128], "type": "long", "keyword": "attention_mask"}
        ],
        "log_dir": "logs",
        "compression": {
            "algorithm": "quantization",
            "initializer": {"range": {"num_init_samples": 24}},
            "ignored_scopes": ["{re}BertSelfAttention\\\\[self\\\\]/__add___0", "{re}.*LayerNorm.*"],
            "activations": {"mode": "symmetric",
                            "unified_scale_ops": [["A/add_0", "A/add_1", "A/add_2"]]},
            "weights": {"mode": "symmetric", "signed": true, "per_channel": false}
        }
    }""",
    "rb_sparsity_int8": """
    {
        "input_info": {"sample_size": [1, 3, 299, 299]},
        "compression": [
            {
                "algorithm": "rb_sparsity",
                "sparsity_init": 0.01,
                "params": {"schedule": "polynomial", "power": 1, "sparsity_target": 0.61,
                           "sparsity_target_epoch": 40, "sparsity_freeze_epoch": 50},
                "ignored_scopes": ["{re}Inception3.*"],
                "compression_lr_multiplier": 0.5
            },
            {"algorithm": "quantization"}
        ]
    }""",
    "rb_adaptive": """
    {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "compression": {"algorithm": "rb_sparsity", "params": {
            "schedule": "adaptive", "patience": 3, "step": 0.1, "eps": 0.02}}
    }""",
    "magnitude_int8": """
    {
        "input_info": {"sample_size": [1, 3, 300, 300]},
        "compression": [
            {
                "algorithm": "magnitude_sparsity",
                "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 100}},
                "params": {"schedule": "multistep", "multistep_steps": [5, 10, 15],
                           "multistep_sparsity_levels": [0.1, 0.3, 0.5, 0.7],
                           "weight_importance": "abs", "sparsity_freeze_epoch": 20}
            },
            {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 0}}}
        ]
    }""",
    "per_step_schedule": """
    {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.1, "params": {
            "update_per_optimizer_step": true, "steps_per_epoch": 100, "concave": false,
            "power": 3}}
    }""",
    "const_sparsity_int8": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": [
            {"algorithm": "const_sparsity", "target_scopes": ["{re}conv"],
             "validate_scopes": false},
            {"algorithm": "quantization"}
        ]
    }""",
    "pruning_flops": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": {
            "algorithm": "filter_pruning",
            "pruning_init": 0.1,
            "params": {"schedule": "exponential_with_bias", "pruning_flops_target": 0.4,
                       "pruning_steps": 20, "filter_importance": "geometric_median",
                       "prune_batch_norms": false, "all_weights": true}
        }
    }""",
    "learned_ranking_distillation": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": [
            {"algorithm": "filter_pruning", "params": {
                "interlayer_ranking_type": "learned_ranking", "pruning_target": 0.4,
                "legr_params": {"generations": 200, "train_steps": 150, "max_pruning": 0.6},
                "save_ranking_coeffs_path": "ranking.json"}},
            {"algorithm": "knowledge_distillation", "type": "softmax", "scale": 0.6,
             "temperature": 4}
        ]
    }""",
    "adaptive_pruning_int8": """
    {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "accuracy_aware_training": {
            "mode": "adaptive_compression_level",
            "params": {"maximal_relative_accuracy_degradation": 1.0,
                       "initial_training_phase_epochs": 5, "patience_epochs": 3,
                       "lr_reduction_factor": 0.7, "maximal_total_epochs": 100}
        },
        "compression": [
            {"algorithm": "filter_pruning"},
            {"algorithm": "quantization"}
        ]
    }""",
    "early_exit_int8": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "accuracy_aware_training": {"mode": "early_exit", "params": {
            "maximal_absolute_accuracy_degradation": 0.5, "maximal_total_epochs": 10}},
        "compression": {"algorithm": "quantization"}
    }""",
    "binarization_staged": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": {
            "algorithm": "binarization",
            "mode": "dorefa",
            "ignored_scopes": ["ResNet/NNCFConv2d[conv1]/conv2d_0", "ResNet/NNCFLinear[fc]/linear_0"],
            "params": {"batch_multiplier": 1, "activations_quant_start_epoch": 10,
                       "weights_quant_start_epoch": 30}
        }
    }""",
    "loader_gives_shapes": '{"compression": {"algorithm": "quantization"}}',
    "only_wrapped": '{"input_info": {"sample_size": [1, 3, 8, 8]}}',
}
"""Files that need no translation, by name."""

EARLIER = {
    "int8_1_7": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "disable_shape_matching": true,
        "compression": {
            "algorithm": "quantization",
            "disable_saturation_fix": true,
            "quantizable_subgraph_patterns": [["conv2d", "relu"], ["cat"]],
            "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 100,
                                                     "num_bn_forget_samples": 50}}
        }
    }""",
    "pruning_1_7": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": [{"algorithm": "filter_pruning", "params": {
            "weight_importance": "L1", "prune_last_conv": false, "zero_grad": true}}]
    }""",
    "accuracy_aware_2_0": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "accuracy_aware_training": {"maximal_relative_accuracy_degradation": 1,
                                    "initial_training_phase_epochs": 5, "patience_epochs": 3},
        "compression": [{"algorithm": "magnitude_sparsity"}]
    }""",
    "accuracy_aware_early_exit_2_0": """
    {
        "accuracy_aware_training": {"maximal_absolute_accuracy_degradation": 1,
                                    "maximal_total_epochs": 5},
        "compression": [{"algorithm": "quantization"}]
    }""",
    "keras_2_6": """
    {
        "input_info": {"sample_size": [1, 224, 224, 3]},
        "scopes_without_shape_matching": [],
        "compression": {"algorithm": "experimental_quantization", "preset": "performance"}
    }""",
    "rb_1_x": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": {"algorithm": "rb_sparsity", "params": {"check_sparsity_masks": true}}
    }""",
    "open_sections_2_6": """
    {
        "input_info": {"sample_size": [1, 3, 224, 224]},
        "compression": {"algorithm": "quantization", "initializer": {
            "precision": {"type": "manual", "bits": [4, 8], "num_data_points": 5},
            "range": [{"ignored_scopes": [], "type": "percentile", "comment": "all",
                       "params": {"min_percentil": 1}}]}}
    }""",
}
"""Files of earlier releases, which are read with warnings, by name."""
