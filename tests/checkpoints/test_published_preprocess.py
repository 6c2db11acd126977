"""A loaded model prepares a picture as its publishers did."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from visattn.checkpoints import load_pretrained
from visattn.checkpoints.transformers import preprocess_of

small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
published = {
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": small,
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k": small,
    "deit_tiny_distilled_patch16_224.fb_in1k": small,
    "deit3_small_patch16_224.fb_in22k_ft_in1k": small,
    "vit_small_patch14_reg4_dinov2.lvd142m": small,
    "vit_base_patch16_clip_224.openai_ft_in1k": small,
    "vit_base_patch16_siglip_224.webli": small,
    "swin_tiny_patch4_window7_224.ms_in1k": {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4)},
    "swin_base_patch4_window12_384.ms_in22k_ft_in1k": {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4)},
}


def picture(height, width):
    """A photograph-like picture: smooth shapes and fine noise."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + generator.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", published)
@pytest.mark.parametrize("size", [(333, 500), (500, 281)])
def test_pixels_equal_those_of_the_transform_of_timm(name, size, tmp_path):
    original = timm.create_model(name, num_classes=3, **published[name])
    save_for_hf(original, tmp_path, model_args=published[name], safe_serialization=True)
    transform = create_transform(**resolve_data_config(model=original))
    pixels = load_pretrained(tmp_path).preprocess(picture(*size))
    torch.testing.assert_close(pixels, transform(picture(*size)), rtol=0, atol=1e-5)


processors = {
    "ViT": ("ViTImageProcessorPil", {}),
    "ViT, bicubic": ("ViTImageProcessorPil", {"resample": 3, "image_mean": [0.4, 0.5, 0.6]}),
    "DeiT": ("DeiTImageProcessorPil", {}),
    "Dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 256}}),
    "Swin": ("ViTImageProcessorPil", {"resample": 3}),
}


@pytest.mark.parametrize("kind", processors)
@pytest.mark.parametrize("size", [(333, 500), (500, 281)])
def test_pixels_equal_those_of_the_image_processor_of_transformers(kind, size, tmp_path):
    name, options = processors[kind]
    family = kind.partition(",")[0]
    if kind == "Swin":
        sizes = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4]}
    else:
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = getattr(transformers, f"{family}Config")(
        **sizes, image_size=224, patch_size=4 if kind == "Swin" else 16, num_labels=3
    )
    getattr(transformers, f"{family}ForImageClassification")(config).save_pretrained(tmp_path)
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    expected = torch.tensor(np.asarray(processor(picture(*size))["pixel_values"][0]))
    pixels = load_pretrained(tmp_path).preprocess(picture(*size))
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


photos = sorted((Path(__file__).parents[3] / "shared/data/coco_mini/train2017").glob("*.jpg"))[:2]


@pytest.mark.skipif(not photos, reason="needs ../shared/data/coco_mini/train2017")
@pytest.mark.parametrize("name", ["ViTImageProcessor", "CLIPImageProcessor", "BlipImageProcessor"])
def test_photos_are_prepared_for_captioners_as_by_transformers(name, tmp_path):
    """To the bit as by PIL there, to a grey level as by torchvision, which rounds otherwise while it resizes."""
    for backend, tolerance in (("Pil", 1e-5), ("", 0.02)):
        processor = getattr(transformers, f"{name}{backend}")()
        processor.save_pretrained(tmp_path)
        preprocess = preprocess_of(json.loads((tmp_path / "preprocessor_config.json").read_text()), (224, 224))
        for photo in photos:
            image = Image.open(photo).convert("RGB")
            expected = torch.tensor(np.asarray(processor(image)["pixel_values"][0]))
            torch.testing.assert_close(preprocess(image), expected, rtol=0, atol=tolerance)
