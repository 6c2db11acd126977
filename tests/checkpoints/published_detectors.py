"""Small detectors as transformers writes them, with random weights of which none is 0 or 1."""

import torch
from torch import nn
from torch.nn import functional

from tests.checkpoints.test_published_preprocess import picture
from visattn.data.image_batch import pad_images

sizes = {"d_model": 32, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
sizes |= {"encoder_ffn_dim": 44, "decoder_ffn_dim": 44, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 11}


def timm_network(name="test_resnet", **options):
    """The `backbone_config` of a network of timm."""
    out_indices = options.pop("out_indices", [1, 2, 3, 4])
    return {"model_type": "timm_backbone", "backbone": name, "out_indices": out_indices, **options}


def own_network():
    """The `backbone_config` of a ResNet of transformers' own."""
    widths = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1], "layer_type": "bottleneck"}
    return {"model_type": "resnet", "out_features": ["stage4"], **widths}


@torch.no_grad()
def perturb(model, seed=0):
    """Draws weights anew and moves statistics of norms, so that queries differ and logits are about normal."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() * 0.3 + 0.7)
        elif tensor.ndim == 2:
            tensor.copy_(noise * tensor.shape[1] ** -0.5)
            if ".encoder.layers." in name:
                tensor.mul_(0.5)  # or the tokens become too similar for queries to find different ones
            elif ".q_" in name or ".k_" in name or "encoder_attn.o_proj" in name:
                tensor.mul_(3)
        elif tensor.ndim == 4:
            tensor.add_(noise * tensor.std() * 0.3)
        else:
            tensor.add_(noise * 0.2)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    projection = model.model.input_projection.weight
    projection.sub_(projection.mean(dim=1, keepdim=True)).mul_(20)
    images, padding, _ = batch((64, 96), (77, 53))
    logits = model.eval()(images, (~padding).long()).logits.flatten(0, 1)  # (queries, classes)
    classifier, mean, deviation = model.class_labels_classifier, logits.mean(dim=0), logits.std(dim=0)
    classifier.weight.div_(deviation[:, None])
    classifier.bias.sub_(mean).div_(deviation)
    return model


def batch(*shapes, seed=1):
    """Images (3, height, width) of these shapes with large random patches, padded to the largest."""
    generator = torch.Generator().manual_seed(seed)
    patches = [3 * torch.randn(1, 3, shape[0] // 14, shape[1] // 14, generator=generator) for shape in shapes]
    images = [functional.interpolate(patch, shape)[0] for patch, shape in zip(patches, shapes, strict=True)]
    return pad_images(images, divisor=1)


@torch.no_grad()
def same_outputs(original, model, *shapes):
    """Whether logits and boxes of images of these shapes are those of the original; returns ours."""
    images, padding, _ = batch(*shapes)
    expected = original(pixel_values=images, pixel_mask=(~padding).long())
    actual = model(images, padding)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(actual.boxes, expected.pred_boxes, rtol=0, atol=1e-4)
    assert actual.logits.std(dim=1).mean() > 0.1  # queries differ
    return actual


@torch.no_grad()
def same_detections(original, processor, model, threshold):
    """Whether `model.detect` finds in two pictures what transformers finds, sorted; returns ours."""
    pictures = [picture(75, 100), picture(120, 80)]
    inputs = processor(images=pictures, return_tensors="pt")
    outputs = original(**inputs)
    target_sizes = [(image.height, image.width) for image in pictures]
    results = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=target_sizes)
    found = model.detect(pictures, threshold=threshold)
    for image, expected, actual in zip(pictures, results, found, strict=True):
        order = expected["scores"].argsort(descending=True, stable=True)
        bounds = torch.tensor([image.width, image.height] * 2)
        boxes = torch.minimum(expected["boxes"][order].clamp(min=0), bounds)
        torch.testing.assert_close(actual.scores, expected["scores"][order], rtol=0, atol=1e-4)
        assert actual.labels.tolist() == expected["labels"][order].tolist()
        torch.testing.assert_close(actual.boxes, boxes, rtol=0, atol=0.02)
    assert sum(len(one.scores) for one in found) > 0
    return found
