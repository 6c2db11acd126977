import numpy as np
import pytest
import torch
from PIL import Image

from visattn.backbones import SwinTransformer, VisionTransformer, local_hybrid_tiny
from visattn.data import Preprocess
from visattn.heads import Caption, CaptionDecoder, ImageCaptioner
from visattn.text import CaptionTokenizer

captions = ["a small red dog runs on the grass", "two people ride a red horse on the beach", "a dog and a horse"]


def captioner(kind="vit", encoder_depth=None, **options):
    torch.manual_seed(0)
    backbones = {
        "vit": lambda: VisionTransformer(32, 8, 24, 1, 2),
        "swin": lambda: SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4),
        "hybrid": lambda: local_hybrid_tiny(32, dims=(16, 24), depths=(1, 1), num_heads=(2, 2), stem_dim=8),
    }
    tokenizer = CaptionTokenizer.train_words(captions, min_count=1)
    memory_dim = 24 if encoder_depth is None else 36
    decoder = CaptionDecoder(tokenizer.vocabulary_size, memory_dim, dim=24, depth=2, num_heads=3, max_length=23)
    for parameter in decoder.parameters():  # far from uniform words
        torch.nn.init.normal_(parameter, std=0.3)
    model = ImageCaptioner(
        backbones[kind](), decoder, tokenizer, encoder_depth=encoder_depth, encoder_heads=3, **options
    )
    model.preprocess = Preprocess(32)
    return model.eval()


def pictures(count=3):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid"])
def test_without_an_encoder_the_decoder_reads_the_tokens_as_they_are(kind):
    model, images = captioner(kind), torch.randn(2, 3, 32, 32)
    tokens = model.features(images).tokens
    assert torch.equal(model.memory(images), tokens)
    token_ids = model.tokenizer.batch(captions[:2])
    torch.testing.assert_close(model(images, token_ids), model.decoder(tokens, token_ids))


@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_kept_features_give_the_memory_of_their_images(kind, depth, size):
    model, images = captioner(kind, depth), torch.randn(2, 3, *size)
    features = model.features(images)
    grid = features.maps[-1].shape[-2:]
    expected = model.memory(images)
    assert expected.shape == (2, model.backbone.num_prefix_tokens + grid[0] * grid[1], 36)
    torch.testing.assert_close(model.memory(features=features), expected)
    torch.testing.assert_close(model.memory(features=features.tokens, grid=grid), expected)
    if size == (32, 32):
        torch.testing.assert_close(model.memory(features=features.tokens), expected)
    else:
        with pytest.raises(ValueError, match=r"say grid=\(height, width\)"):
            model.memory(features=features.tokens)


def test_the_encoder_knows_where_tokens_are_and_leaves_prefix_tokens_without_a_place():
    model = captioner("vit", 0)
    tokens = torch.randn(1, 1, 24).expand(1, 17, 24)  # a class token and 4x4 places, all alike
    memory = model.memory(features=tokens)[0]
    assert torch.cdist(memory[1:], memory[1:]).fill_diagonal_(1).min() > 0.1
    norm, projection = model.encoder.projection_norm, model.encoder.projection
    torch.testing.assert_close(memory[0], norm(projection(tokens[0, 0])))


def test_several_captions_of_an_image_are_trained_with_one_memory():
    model, images = captioner("vit", 1), torch.randn(2, 3, 32, 32)
    token_ids = model.tokenizer.batch([*captions, *captions[::-1]])
    expected = model(images.repeat_interleave(3, dim=0), token_ids)
    torch.testing.assert_close(model(images, token_ids), expected)


def test_paths_pictures_and_tensors_get_the_same_captions(tmp_path):
    model, images = captioner("hybrid", 1), pictures()
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    expected = model.caption(torch.stack([model.preprocess(image) for image in images]), num_beams=3, num_return=2)
    assert [len(group) for group in expected] == [2, 2, 2]
    assert model.caption(images, 3, num_return=2) == expected
    assert model.caption(list(map(str, paths)), 3, num_return=2) == expected
    # One by one the numbers may differ in the last digit.
    for one in (model.caption(images[0], 3, num_return=2), model.caption(paths[0], 3, num_return=2)):
        assert [caption.token_ids for caption in one[0]] == [caption.token_ids for caption in expected[0]]


@pytest.mark.parametrize("prompt", ["", "a dog"])
def test_a_caption_carries_its_words_and_their_log_probability(prompt):
    model, images = captioner("vit"), torch.randn(2, 3, 32, 32)
    tokenizer = model.tokenizer
    start = [tokenizer.start_id, *tokenizer.encode(prompt)]
    for image, group in zip(images, model.caption(images, 3, num_return=3, prompt=prompt), strict=True):
        assert group == sorted(group, key=lambda one: -one.log_probability / (len(one.token_ids) + 1))
        for caption in group:
            assert isinstance(caption, Caption)
            assert caption.text == tokenizer.decode(caption.token_ids)
            words = caption.token_ids if len(caption.token_ids) == 20 else [*caption.token_ids, tokenizer.end_id]
            scores = model(image[None], torch.tensor([start + words[:-1]])).log_softmax(-1)[0, len(start) - 1 :]
            expected = scores.gather(1, torch.tensor(words)[:, None]).sum()
            assert caption.log_probability == pytest.approx(expected.item(), abs=1e-4)


def test_forced_words_are_text():
    model, images = captioner("vit"), torch.randn(2, 3, 32, 32)
    for (caption,) in model.caption(images, 4, forced_words=["beach", "red horse"]):
        assert "beach" in caption.text.split()
        assert "red horse" in caption.text
    with pytest.raises(ValueError, match="'zebra' can't be forced"):
        model.caption(images, forced_words=["zebra"])


def test_captions_leave_no_graph_and_no_mode_behind():
    model = captioner("vit", 1).train()
    model.caption(torch.randn(2, 3, 32, 32), 2, 5)
    assert all(module.training for module in model.modules())
    logits = model(torch.randn(2, 3, 32, 32), model.tokenizer.batch(captions[:2]))
    logits.square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_what_does_not_fit_is_named(tmp_path):
    model = captioner("vit")
    decoder, tokenizer = model.decoder, model.tokenizer
    with pytest.raises(ValueError, match="set the decoder's memory_dim, or encoder_depth=0"):
        ImageCaptioner(VisionTransformer(32, 8, 36, 1, 2), decoder, tokenizer)
    small = CaptionDecoder(tokenizer.vocabulary_size - 1, 24, dim=24, depth=1, num_heads=3)
    with pytest.raises(ValueError, match=r"set the decoder's vocabulary_size to tokenizer\.vocabulary_size"):
        ImageCaptioner(model.backbone, small, tokenizer)
    with pytest.raises(ValueError, match="give one of images"):
        model.memory()
    with pytest.raises(ValueError, match="23 positions of this decoder"):
        model.caption(pictures(1), max_new_tokens=24)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        model.caption(tmp_path / "nothing.png")
