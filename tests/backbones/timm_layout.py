"""Weights of timm's modules under our names, written apart from visattn.checkpoints so that each checks the other."""

import re

import torch

vit_names = [
    ("head_dist", "distillation_head"),
    ("cls_token", "class_token"),
    ("dist_token", "distillation_token"),
    ("reg_token", "register_tokens"),
    ("pos_embed", "position_embedding"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("patch_embed.", "patch_embedding."),
    ("norm_pre", "pre_norm"),
    ("fc_norm", "norm"),
    ("attn.norm", "attention.projection.norm"),
    ("attn.proj", "attention.projection"),
    ("attn.qkv", "attention.qkv"),
    ("attn.q_norm", "attention.query_norm"),
    ("attn.k_norm", "attention.key_norm"),
    ("mlp.norm", "mlp.fc2.norm"),
    ("ls1.gamma", "layer_scale1"),
    ("ls2.gamma", "layer_scale2"),
    ("attn_pool.q.", "attention_pooling.attention.query."),
    ("attn_pool.kv", "attention_pooling.attention.key_value"),
    ("attn_pool.proj", "attention_pooling.attention.projection"),
    ("attn_pool.", "attention_pooling."),
    # ParallelScalingBlock
    ("in_norm", "norm1"),
    ("attn_out_proj", "attention.projection"),
    ("mlp_out_proj", "mlp.fc2"),
    ("mlp_bias", "mlp.fc1.bias"),
    ("q_norm", "attention.query_norm"),
    ("k_norm", "attention.key_norm"),
    ("ls.gamma", "layer_scale1"),
]


def perturb(module):
    """Makes every parameter distinct, those that start at zero or one too."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def classifier_key(key, names):
    for theirs, ours in names:
        key = re.sub(rf"(^|\.){re.escape(theirs)}", rf"\1{ours}", key)  # from the start of a name on
    return key if key.startswith(("head.", "distillation_head.")) else f"backbone.{key}"


def vit_weights(model):
    weights = {}
    for key, value in model.state_dict().items():
        if ".attns." in key:  # ParallelThingsBlock: branches of two usual blocks
            key = key.replace("attns", "branches").replace(".norm.", ".norm1.").replace("ls.gamma", "layer_scale1")
        if ".ffns." in key:
            key = key.replace("ffns", "branches").replace(".norm.", ".norm2.").replace(".ls.gamma", ".layer_scale2")
        if "fc1_x" in key:
            continue
        if "fc1_g" in key:  # SwiGLU with two layers for what we keep as one
            value = torch.cat([value, model.state_dict()[key.replace("fc1_g", "fc1_x")]])
            key = key.replace("fc1_g", "fc1")
        if "in_proj" in key:
            key, split = classifier_key(key, vit_names), 3 * model.embed_dim
            weights[key.replace("in_proj", "mlp.fc1")] = value[:-split]
            weights[key.replace("in_proj", "attention.qkv")] = value[-split:]
        else:
            weights[classifier_key(key, vit_names)] = value
    return weights


swin_names = [
    ("head.fc", "head"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("patch_embed.", "patch_embedding."),
    ("layers.", "stages."),
    ("attn.proj", "attn.projection"),
    ("attn.", "attention."),
    ("relative_position_bias_table", "relative_position_bias"),
]


def swin_weights(model):
    weights = {}
    for key, value in model.state_dict().items():
        if "bias_table" in key:
            _, stage, _, block, *_ = key.split(".")
            height, width = model.layers[int(stage)].blocks[int(block)].attn.window_size
            value = value.T.reshape(-1, 2 * height - 1, 2 * width - 1)  # (heads, 2 window - 1, 2 window - 1)
        weights[classifier_key(key, swin_names)] = value
    return weights
