import pytest
import torch

from tests.interpret.small_captioners import captioner_of, kinds
from visattn.interpret import record_attention, word_attention
from visattn.interpret.relevance import to_image


def image_of(size=32):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def ids_of(model, caption="two red horse on the grass"):
    return model.tokenizer.encode(caption)


@pytest.mark.parametrize("kind", kinds)
def test_every_word_has_a_map_of_the_image_from_zero_to_one(kind):
    model = captioner_of(kind)
    words = word_attention(model, image_of(), ids_of(model))
    assert " ".join(word.word for word in words) == "two red horse on the grass"
    assert sorted(place for word in words for place in word.positions) == list(range(len(ids_of(model))))
    for word in words:
        assert word.attention.shape == (32, 32)
        assert (float(word.attention.min()), float(word.attention.max())) == (0, pytest.approx(1))
    maps = torch.stack([word.attention for word in words])
    assert torch.pdist(maps.flatten(1)).min() > 0.1  # each word its own


@pytest.mark.parametrize("kind", ["cross", "encoder", "prefix", "swin"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_word_shows_what_the_decoder_looked_at_as_it_wrote_it(kind, layers):
    model, image = captioner_of(kind), image_of()
    part = "attention" if kind == "prefix" else "cross_attention"
    names = [f"decoder.blocks.{number}.{part}" for number in range(2 - layers, 2)]
    said, written = ids_of(model), [model.tokenizer.start_id, *ids_of(model)]
    words = word_attention(model, image, said, layers=layers)
    with torch.no_grad():
        features = model.features(image)
        memory = model.memory(features=features)
        state = model.decoder.begin(memory, max_length=len(written))
        for word, before in zip(words, written, strict=False):
            with record_attention(model, modules=names) as maps:  # one word at a time, from the cache
                model.decoder.step(torch.tensor([[before]]), state)
            seen = torch.cat([maps[name][..., : memory.shape[1]] for name in names], dim=1).mean(dim=1)  # (1, 1, N)
            expected = to_image(seen[:, 0], features.maps[-1].shape[-2:], (32, 32))[0]
            torch.testing.assert_close(word.attention, expected, rtol=0, atol=1e-4)


def test_a_word_of_several_tokens_has_the_mean_of_their_attention():
    model, image = captioner_of("byte pairs"), image_of()
    said = ids_of(model)
    with torch.no_grad(), record_attention(model) as maps:
        model(image, torch.tensor([[model.tokenizer.start_id, *said]]))
    seen = maps["decoder.blocks.1.cross_attention"][0].mean(dim=0)  # (T + 1, N)
    words = word_attention(model, image, said)
    assert max(len(word.positions) for word in words) > 2
    for word in words:
        expected = to_image(seen[word.positions].mean(dim=0, keepdim=True), (4, 4), (32, 32))[0]
        torch.testing.assert_close(word.attention, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["cross", "encoder", "prefix", "swin"]
)  # byte pairs may be of no word: a space at the end
@pytest.mark.parametrize("prompt", ["", "a dog"])
def test_probabilities_of_the_words_make_that_of_the_caption(kind, prompt):
    model, image = captioner_of(kind), image_of()
    ((caption,),) = model.caption(image, num_beams=1, max_new_tokens=6, min_new_tokens=6, prompt=prompt)
    assert len(caption.token_ids) == 6  # cut off: no end among the factors
    words = word_attention(model, image, caption.token_ids, prompt=prompt)
    product = torch.tensor([word.probability for word in words]).double().log().sum()
    assert float(product) == pytest.approx(caption.log_probability, abs=1e-3)


def test_the_model_is_left_as_it_was():
    model = captioner_of("encoder").train()
    model.backbone.eval()
    first = word_attention(model, image_of(), ids_of(model))
    again = word_attention(model, image_of(), ids_of(model))
    assert all(torch.equal(one.attention, other.attention) for one, other in zip(first, again, strict=True))
    assert model.decoder.training
    assert not model.backbone.training
    assert all(getattr(module, "record", None) is None for module in model.modules())


def test_an_image_of_another_size_has_maps_of_its_own_size():
    model = captioner_of("cross")
    assert word_attention(model, image_of(48), ids_of(model))[0].attention.shape == (48, 48)


def test_what_cannot_be_explained_is_refused_and_an_empty_caption_has_no_words():
    model = captioner_of("cross")
    assert word_attention(model, image_of(), []) == []
    with pytest.raises(ValueError, match="one image"):
        word_attention(model, image_of().repeat(2, 1, 1, 1), ids_of(model))
    with pytest.raises(ValueError, match=r"layers 3 is not between 1 and the decoder's 2 blocks"):
        word_attention(model, image_of(), ids_of(model), layers=3)
