import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from tests.checkpoints.published_captioners import (
    image_sizes,
    perturb,
    pixels,
    rewrite,
    same_captions,
    save_byte_pairs,
)
from tests.checkpoints.test_published_preprocess import picture
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.heads import ImageCaptioner

swin = {"image_size": 56, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 5}
# Those of 24 channels are as wide as the decoder, so that nothing lies between the two. The number says how much
# likelier the end becomes, so that some captions end.
encoders = {
    "vit": (transformers.ViTConfig(**image_sizes | {"hidden_size": 24}), 2),
    "deit": (transformers.DeiTConfig(**image_sizes), 2),
    "swin": (transformers.SwinConfig(**swin), 1),
    "narrow swin": (transformers.SwinConfig(**swin | {"embed_dim": 8}), 1.4),
}


def save_original(folder, encoder, **options):
    """A captioner with a tokenizer and a transform, all three as transformers writes them."""
    tokenizer = save_byte_pairs(folder)
    end = tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
    decoder = GPT2Config(**text, bos_token_id=end, eos_token_id=end, **options)
    vision, likelier = encoders[encoder]
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    model = perturb(VisionEncoderDecoderModel(config), spread=0.3)
    gpt = model.decoder.transformer
    gpt.wte.weight.data[end] += likelier * gpt.ln_f.bias.data
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, end)
    model.save_pretrained(folder)
    size = {"height": vision.image_size, "width": vision.image_size}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module", params=encoders)
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)  # some captions of all three end, some don't
    return folder, *save_original(folder, request.param)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder alone, of which tests write other versions."""
    folder = tmp_path_factory.mktemp("vit")
    save_original(folder, "vit")
    return folder


@pytest.fixture(scope="module")
def model(published):
    return load_pretrained(published[0], expected=ImageCaptioner)


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(published, model):
    _, original, tokenizer = published
    images, token_ids = pixels(side=model.backbone.image_size[0]), torch.randint(len(tokenizer), (3, 9))
    outputs = original(pixel_values=images, decoder_input_ids=token_ids)
    features = model.features(images).tokens
    torch.testing.assert_close(features, outputs.encoder_last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(images, token_ids), outputs.logits, rtol=0, atol=1e-4)


def test_captions_are_those_of_transformers(published, model):
    _, original, tokenizer = published
    images, lengths, texts = pixels(6, side=model.backbone.image_size[0]), [], set()
    for num_beams, num_return in ((1, 1), (3, 1), (5, 3)):
        captions = same_captions(
            model,
            images,
            lambda **options: original.generate(images, **options),
            tokenizer,
            num_beams=num_beams,
            num_return=num_return,
            max_new_tokens=12,
        )
        lengths += map(len, captions)
        texts |= set(map(tuple, captions))
    assert len(texts) > 6
    assert 0 < sum(length < 12 for length in lengths) < len(lengths)  # some have ended, some not


def test_a_prompt_is_continued_as_by_transformers(published, model):
    _, original, tokenizer = published
    images = pixels(side=model.backbone.image_size[0])
    prompt = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode("a red dog")]] * 3)
    same_captions(
        model,
        images,
        lambda **options: original.generate(images, decoder_input_ids=prompt, **options),
        tokenizer,
        prompt="a red dog",
        num_beams=3,
        max_new_tokens=8,
    )


def test_pictures_are_prepared_as_published(published, model):
    processor = transformers.ViTImageProcessorPil.from_pretrained(published[0])
    pictures = [picture(333, 500), picture(500, 281)]
    expected = torch.tensor(np.stack([processor(image)["pixel_values"][0] for image in pictures]))
    torch.testing.assert_close(
        torch.stack([model.preprocess(image) for image in pictures]), expected, rtol=0, atol=1e-5
    )


def test_a_file_of_version_4_gives_the_same_model(vit, tmp_path):
    """With causal masks among the weights, the tied table twice, and the ids of start and end in config.json."""

    def as_of_version_4(weights):
        masks = {}
        for layer in range(2):
            for part in ("attn", "crossattention"):
                name = f"decoder.transformer.h.{layer}.{part}"
                masks[f"{name}.bias"] = torch.ones(1, 1, 32, 32).tril().to(torch.uint8)
                masks[f"{name}.masked_bias"] = torch.tensor(-1e4)
        return weights | masks | {"decoder.lm_head.weight": weights["decoder.transformer.wte.weight"].clone()}

    end = json.loads((vit / "generation_config.json").read_text())["eos_token_id"]
    rewrite(vit, tmp_path, as_of_version_4, decoder_start_token_id=end, eos_token_id=end, pad_token_id=end)
    (tmp_path / "generation_config.json").unlink()
    one, other = load_pretrained(vit), load_pretrained(tmp_path)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert one.tokenizer.arguments == other.tokenizer.arguments


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_inner": 56, "activation_function": "relu", "tie_word_embeddings": False},
    ],
)
def test_options_of_gpt_2_are_followed(options, tmp_path):
    original, tokenizer = save_original(tmp_path, "vit", **options)
    model = load_pretrained(tmp_path)
    token_ids = torch.randint(len(tokenizer), (3, 9))
    logits = original(pixel_values=pixels(), decoder_input_ids=token_ids).logits
    torch.testing.assert_close(model(pixels(), token_ids), logits, rtol=0, atol=1e-4)


def test_a_hub_id_brings_weights_and_tokenizer(vit, tmp_path, monkeypatch):
    """The hub's own choice among the files of a repository as the first captioners had them."""
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir(), cache.mkdir()
    rewrite(vit, repository, dict)
    (repository / "tokenizer.json").unlink()
    (repository / "rust_model.ot").write_text("of no use")

    def download(name, allow_patterns):
        assert name == "somebody/some-captioner"
        for file in filter_repo_objects([path.name for path in repository.iterdir()], allow_patterns=allow_patterns):
            shutil.copy(repository / file, cache)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    one, other = load_pretrained(vit), load_pretrained("somebody/some-captioner")
    assert one.caption(pixels(), max_new_tokens=9) == other.caption(pixels(), max_new_tokens=9)
    assert not (cache / "rust_model.ot").exists()


def test_a_missing_weight_and_an_unknown_one_are_named(vit, tmp_path):
    name = "decoder.transformer.h.1.crossattention.c_attn.bias"
    rewrite(vit, tmp_path, lambda weights: {key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(CheckpointError, match=r"missing: decoder.blocks.1.cross_attention.key_value.bias"):
        load_pretrained(tmp_path)
    rewrite(vit, tmp_path, lambda weights: weights | {"enc_to_dec_proj.weight": torch.ones(24, 24)})
    with pytest.raises(CheckpointError, match=r"unexpected: decoder.memory_projection.weight"):
        load_pretrained(tmp_path)


def test_a_captioner_without_its_tokenizer_is_refused(vit, tmp_path):
    rewrite(vit, tmp_path, dict)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_pretrained(tmp_path)


def test_another_decoder_is_named(vit, tmp_path):
    config = json.loads((vit / "config.json").read_text())
    rewrite(vit, tmp_path, dict, decoder=config["decoder"] | {"model_type": "bert"})
    with pytest.raises(CheckpointError, match="decoder of type 'bert'"):
        load_pretrained(tmp_path)


def test_several_ends_are_refused(vit, tmp_path):
    rewrite(vit, tmp_path, dict)
    generation = json.loads((vit / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [3, 4]}))
    with pytest.raises(CheckpointError, match=r"eos_token_id \[3, 4\] are several"):
        load_pretrained(tmp_path)
