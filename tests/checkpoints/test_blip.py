import numpy as np
import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

from tests.checkpoints.published_captioners import (
    image_sizes,
    perturb,
    pixels,
    rewrite,
    same_captions,
    save_word_pieces,
    text_sizes,
)
from tests.checkpoints.test_published_preprocess import picture
from visattn.checkpoints import CheckpointError, load_pretrained, save_pretrained
from visattn.heads import ImageCaptioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blip")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return save_word_pieces(folder)


@pytest.fixture(scope="module")
def original(folder, tokenizer):
    """As published, its start is an id that the tokenizer doesn't know, and its eos_token_id means nothing."""
    text = text_sizes | {"vocab_size": len(tokenizer) + 2, "bos_token_id": len(tokenizer), "eos_token_id": 2}
    text |= {"sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = perturb(BlipForConditionalGeneration(BlipConfig(vision_config=image_sizes, text_config=text)))
    model.text_decoder.cls.predictions.bias.data[tokenizer.sep_token_id] += 2.0
    model.save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 28, "width": 28}), tokenizer)
    processor.save_pretrained(folder)  # in processor_config.json
    return model


@pytest.fixture(scope="module")
def model(folder, original):
    return load_pretrained(folder, expected=ImageCaptioner)


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(original, model):
    token_ids = torch.randint(model.decoder.vocabulary_size, (3, 9))
    outputs = original(pixel_values=pixels(), input_ids=token_ids)
    torch.testing.assert_close(model.features(pixels()).tokens, outputs.image_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(pixels(), token_ids), outputs.logits, rtol=0, atol=1e-4)


def test_captions_are_those_of_transformers(original, model, tokenizer):
    lengths = []
    for num_beams, num_return in ((1, 1), (3, 1), (5, 3)):
        captions = same_captions(
            model,
            pixels(6),
            lambda **options: original.generate(pixel_values=pixels(6), **options),
            tokenizer,
            num_beams=num_beams,
            num_return=num_return,
            max_new_tokens=12,
        )
        lengths += map(len, captions)
        assert len(set(map(tuple, captions))) > 2
    assert 0 < sum(length < 12 for length in lengths) < len(lengths)  # some have ended, some not


def test_a_prompt_is_continued_as_by_transformers(original, model, tokenizer):
    prompt = tokenizer(["a red dog"] * 3, return_tensors="pt", return_token_type_ids=False)
    same_captions(
        model,
        pixels(),
        lambda **options: original.generate(pixel_values=pixels(), **prompt, **options),
        tokenizer,
        prompt="a red dog",
        num_beams=3,
        max_new_tokens=8,
    )


def test_pictures_are_prepared_as_published(original, model, folder):
    assert not (folder / "preprocessor_config.json").exists()
    processor = BlipImageProcessorPil.from_pretrained(folder)
    pictures = [picture(333, 500), picture(500, 281)]
    expected = torch.tensor(np.stack([processor(image)["pixel_values"][0] for image in pictures]))
    torch.testing.assert_close(
        torch.stack([model.preprocess(image) for image in pictures]), expected, rtol=0, atol=1e-5
    )


def test_a_picture_gets_the_caption_that_transformers_gives_it(original, model, folder, tokenizer):
    image = picture(333, 500)
    prepared = torch.tensor(BlipImageProcessorPil.from_pretrained(folder)(image)["pixel_values"][0][None])
    output = original.generate(pixel_values=prepared, num_beams=3, max_new_tokens=9, do_sample=False)
    [[caption]] = model.caption(image, num_beams=3, max_new_tokens=9)
    assert caption.text == tokenizer.decode(output[0], skip_special_tokens=True).strip() != ""


def test_it_comes_back_from_our_own_format(model, tmp_path):
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.tokenizer.arguments == model.tokenizer.arguments
    assert loaded.caption(pixels(), max_new_tokens=9) == model.caption(pixels(), max_new_tokens=9)


@torch.no_grad()
def test_larger_images_are_read_as_transformers_does(original, folder):
    model = load_pretrained(folder, image_size=42)
    images, token_ids = pixels(side=42), torch.tensor([[2, 9, 8, 7]] * 3)
    logits = original(pixel_values=images, input_ids=token_ids, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(images, token_ids), logits, rtol=0, atol=1e-4)


def as_of_version_4(weights):
    """With counters, and the tied table and bias under both of their names."""
    head, table = "text_decoder.cls.predictions.", weights["text_decoder.bert.embeddings.word_embeddings.weight"]
    return weights | {
        "text_decoder.bert.embeddings.position_ids": torch.arange(32)[None],
        f"{head}decoder.weight": table.clone(),
        f"{head}decoder.bias": weights[f"{head}bias"].clone(),
    }


def without_the_embedding(weights):
    """As the hub's converter leaves it, which keeps one name of what is shared."""
    weights = as_of_version_4(weights)
    del weights["text_decoder.bert.embeddings.word_embeddings.weight"], weights["text_decoder.cls.predictions.bias"]
    return weights


@pytest.mark.parametrize("change", [as_of_version_4, without_the_embedding])
def test_files_of_older_versions_give_the_same_model(original, model, folder, tmp_path, change):
    rewrite(folder, tmp_path, change)
    loaded = load_pretrained(tmp_path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_head_of_its_own_is_kept(original, folder, tmp_path):
    def untied(weights):
        weights = as_of_version_4(weights)
        weights["text_decoder.cls.predictions.decoder.weight"] *= 2
        return weights

    rewrite(folder, tmp_path, untied)
    one, other = load_pretrained(folder), load_pretrained(tmp_path)
    bias, token_ids = one.decoder.head.bias, torch.tensor([[2, 9, 8]] * 3)
    expected = (one(pixels(), token_ids) - bias) * 2 + bias
    torch.testing.assert_close(other(pixels(), token_ids), expected, rtol=0, atol=1e-4)


def test_a_missing_weight_and_an_unknown_one_are_named(original, folder, tmp_path):
    name = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"
    rewrite(folder, tmp_path, lambda weights: {key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(CheckpointError, match=r"missing: decoder.blocks.1.cross_attention.key_value.weight"):
        load_pretrained(tmp_path)
    rewrite(folder, tmp_path, lambda weights: weights | {"text_encoder.pooler.dense.bias": torch.ones(24)})
    with pytest.raises(CheckpointError, match=r"unexpected: text_encoder.pooler.dense.bias"):
        load_pretrained(tmp_path)
