import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM

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
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.heads import ImageCaptioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("git")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return save_word_pieces(folder)


@pytest.fixture(scope="module")
def original(folder, tokenizer):
    config = GitConfig(
        vision_config=image_sizes,
        vocab_size=len(tokenizer),
        **text_sizes,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = perturb(GitForCausalLM(config))
    model.output.bias.data[tokenizer.sep_token_id] += 2.4
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 31}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model(folder, original):
    return load_pretrained(folder, expected=ImageCaptioner)


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(original, model):
    token_ids = torch.randint(len(original.git.embeddings.word_embeddings.weight), (3, 9))
    features = original.git.image_encoder(pixels()).last_hidden_state
    logits = original(input_ids=token_ids, pixel_values=pixels()).logits[:, -9:]
    torch.testing.assert_close(model.features(pixels()).tokens, features, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(pixels(), token_ids), logits, rtol=0, atol=1e-4)


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
    prompt = [tokenizer.cls_token_id, *tokenizer.encode("a red dog", add_special_tokens=False)]
    same_captions(
        model,
        pixels(),
        lambda **options: original.generate(pixel_values=pixels(), input_ids=torch.tensor([prompt] * 3), **options),
        tokenizer,
        prompt="a red dog",
        num_beams=3,
        max_new_tokens=8,
    )


def test_pictures_are_prepared_as_published(original, model, folder):
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pictures = [picture(333, 500), picture(500, 281)]
    expected = torch.tensor(np.stack([processor(image)["pixel_values"][0] for image in pictures]))
    torch.testing.assert_close(
        torch.stack([model.preprocess(image) for image in pictures]), expected, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_larger_images_are_read_as_transformers_does(original, folder):
    model = load_pretrained(folder, image_size=42)
    images, token_ids = pixels(side=42), torch.tensor([[2, 9, 8, 7]] * 3)
    logits = original(input_ids=token_ids, pixel_values=images, interpolate_pos_encoding=True).logits[:, -4:]
    torch.testing.assert_close(model(images, token_ids), logits, rtol=0, atol=1e-4)


def test_counters_among_the_weights_are_passed_over(original, model, folder, tmp_path):
    counters = {
        "git.embeddings.position_ids": torch.arange(32)[None],
        "git.image_encoder.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    rewrite(folder, tmp_path, lambda weights: weights | counters)
    loaded = load_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_missing_weight_and_an_unknown_one_are_named(original, folder, tmp_path):
    for name in ("git.encoder.layer.1.attention.self.key.weight", "output.weight", "git.embeddings.LayerNorm.bias"):
        rewrite(folder, tmp_path, lambda weights, name=name: {k: v for k, v in weights.items() if k != name})
        with pytest.raises(CheckpointError, match=r"weights are missing: decoder\."):
            load_pretrained(tmp_path)
    rewrite(folder, tmp_path, lambda weights: weights | {"git.img_temporal_embedding.0": torch.ones(1, 1, 20)})
    with pytest.raises(CheckpointError, match=r"unexpected: decoder.img_temporal_embedding.0"):
        load_pretrained(tmp_path)


def test_a_model_of_videos_is_refused(original, folder, tmp_path):
    rewrite(folder, tmp_path, dict, num_image_with_embedding=6)
    with pytest.raises(CheckpointError, match="GIT of 6 pictures at once"):
        load_pretrained(tmp_path)


def test_a_configuration_without_sizes_names_what_it_lacks(original, folder, tmp_path):
    rewrite(folder, tmp_path, dict, vision_config={"image_size": 28})
    with pytest.raises(CheckpointError, match=r"config.json: doesn't say 'patch_size'"):
        load_pretrained(tmp_path)
