import copy

import pytest
import torch

from visattn.heads import CaptionDecoder
from visattn.interpret import record_attention

designs = {
    "ours": {},
    "gpt2": {"activation": "gelu_tanh", "project_memory": True},
    "bert": {"norm_first": False, "embedding_norm": True, "head_transform": True, "head_bias": True},
    "git": {
        "style": "prefix",
        "norm_first": False,
        "embedding_norm": True,
        "head_bias": True,
        "tie_embeddings": False,
    },
    "prefix, norm first": {"style": "prefix", "position": "sinusoidal"},
}


def decoder_of(design, **options):
    torch.manual_seed(0)
    decoder = CaptionDecoder(31, 10, dim=24, depth=2, num_heads=3, max_length=13, **designs[design] | options)
    for parameter in decoder.parameters():  # far from the small weights at the start, so that every part counts
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.double().eval()


def inputs(masked, batch=2, length=7):
    memory = torch.randn(batch, 5, 10, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0]], dtype=torch.bool)[:batch] if masked else None
    return memory, torch.randint(31, (batch, length)), mask


@pytest.mark.parametrize("design", designs)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunks", [(1,) * 7, (3, 1, 2, 1), (7,)])
def test_steps_with_a_cache_equal_the_whole_forward(design, masked, chunks):
    decoder = decoder_of(design)
    memory, token_ids, mask = inputs(masked)
    expected, state, place = decoder(memory, token_ids, mask), decoder.begin(memory, mask, max_length=7), 0
    for count in chunks:
        logits = decoder.step(token_ids[:, place : place + count], state)
        place += count
        torch.testing.assert_close(logits, expected[:, place - 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("design", designs)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prompt", [1, 3])
def test_reordered_beams_equal_the_whole_forward_of_their_words(design, masked, prompt):
    decoder, beams = decoder_of(design), 3
    memory, _, mask = inputs(masked)
    state = decoder.begin(memory, mask, num_beams=beams, max_length=10)
    words = torch.randint(31, (2 * beams, prompt))
    repeated = memory.repeat_interleave(beams, dim=0)
    repeated_mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
    new = words
    for _ in range(6):
        logits = decoder.step(new, state)
        torch.testing.assert_close(logits, decoder(repeated, words, repeated_mask)[:, -1], rtol=0, atol=1e-10)
        indices = torch.randint(beams, (2, beams)) + torch.tensor([[0], [beams]])
        state.reorder(indices.flatten())
        new = torch.randint(31, (2 * beams, 1))
        words = torch.cat([words[indices.flatten()], new], dim=1)


@pytest.mark.parametrize("design", designs)
@pytest.mark.parametrize("masked", [False, True])
def test_images_that_stay_go_on_as_if_alone(design, masked):
    decoder = decoder_of(design)
    memory, _, mask = inputs(masked)
    words = torch.randint(31, (4, 3))  # two beams of two images
    state = decoder.begin(memory, mask, num_beams=2, max_length=5)
    decoder.step(words[:, :2], state)
    state.reorder(torch.tensor([1, 0, 2, 2]))
    state.keep(torch.tensor([1]))
    alone = decoder.begin(memory[1:], None if mask is None else mask[1:], num_beams=2, max_length=5)
    decoder.step(words[[2, 2], :2], alone)
    for new in (words[2:, 2:], words[:2, 2:]):
        torch.testing.assert_close(decoder.step(new, state), decoder.step(new, alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize("design", designs)
def test_captions_that_share_an_image_equal_each_by_itself(design):
    decoder = decoder_of(design)
    memory, token_ids, mask = inputs(True)
    token_ids = torch.randint(31, (6, 7))
    expected = decoder(memory.repeat_interleave(3, dim=0), token_ids, mask.repeat_interleave(3, dim=0))
    torch.testing.assert_close(decoder(memory, token_ids, mask), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("design", designs)
def test_a_word_changes_no_logits_before_it(design):
    decoder = decoder_of(design)
    memory, token_ids, _ = inputs(False)
    changed = token_ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 31
    before, after = decoder(memory, token_ids), decoder(memory, changed)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=1e-10)
    assert ((after - before)[:, 4:].abs().amax(dim=2) > 1e-3).all()


@pytest.mark.parametrize("design", designs)
def test_masked_image_tokens_change_nothing(design):
    decoder = decoder_of(design)
    memory, token_ids, mask = inputs(True)
    changed = torch.where(mask[:, :, None], memory, 7.0)
    torch.testing.assert_close(decoder(changed, token_ids, mask), decoder(memory, token_ids, mask))
    assert not torch.allclose(decoder(changed, token_ids), decoder(memory, token_ids))


@pytest.mark.parametrize("design", ["ours", "git"])
@pytest.mark.parametrize("beams", [1, 3])
def test_attention_is_recorded_for_each_word_in_training_and_in_decoding(design, beams):
    decoder = decoder_of(design)
    memory, token_ids, mask = inputs(True)
    token_ids = token_ids.repeat_interleave(beams, dim=0)
    with record_attention(decoder) as maps:
        expected = decoder(memory, token_ids, mask)
    names = [f"blocks.{index}.{kind}" for index in (0, 1) for kind in ("attention", "cross_attention")]
    assert list(maps) == [name for name in names if design == "ours" or "cross" not in name]
    with record_attention(decoder) as image_maps:
        state, steps = decoder.begin(memory, mask, num_beams=beams, max_length=7), []
    if design == "git":  # the last block's output for the image tokens is never computed
        torch.testing.assert_close(image_maps["blocks.0.attention"], maps["blocks.0.attention"][::beams, :, :5, :5])
    for place in range(7):
        with record_attention(decoder) as step:
            logits = decoder.step(token_ids[:, place : place + 1], state)
        steps.append(step)
    torch.testing.assert_close(logits, expected[:, -1], rtol=0, atol=1e-10)
    prefix = 5 if design == "git" else 0
    for name, weights in maps.items():
        keys = 5 if "cross" in name else prefix + 7
        assert weights.shape == (2 * beams, 3, prefix + 7, keys)
        for place, step in enumerate(steps):
            seen = 5 if "cross" in name else prefix + place + 1
            expected_weights = weights[:, :, prefix + place, None, :seen]  # (rows, heads, 1, keys)
            torch.testing.assert_close(step[name], expected_weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize("design", designs)
def test_every_parameter_trains(design):
    decoder = decoder_of(design).float().train()
    memory, token_ids, _ = inputs(False)
    decoder(memory.float(), token_ids).square().mean().backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []
    assert decoder.step(token_ids[:, :1], decoder.begin(memory.float(), max_length=1)).requires_grad is False


def test_weights_lie_in_memory_as_few_rows_like_it_and_stay_so():
    decoder = decoder_of("ours")
    other = decoder_of("ours", dropout=0.0).float()
    other.load_state_dict(decoder.state_dict())
    for one in (decoder, copy.deepcopy(decoder), other):
        layers = [module for module in one.blocks.modules() if isinstance(module, torch.nn.Linear)]
        assert all(layer.weight.t().is_contiguous() for layer in layers)
    # A great epsilon, since the gradient of the key bias is nothing but rounding.
    optimizer = torch.optim.AdamW(other.parameters(), eps=1e-3, fused=True)
    contiguous = copy.deepcopy(other)
    for parameter in contiguous.parameters():
        parameter.data = parameter.data.contiguous()
    again = torch.optim.AdamW(contiguous.parameters(), eps=1e-3, fused=True)
    memory, token_ids, _ = inputs(False)
    for one, steps in ((other, optimizer), (contiguous, again)):
        for _ in range(2):
            one(memory.float(), token_ids).square().mean().backward()
            steps.step()
    torch.testing.assert_close(other.state_dict(), contiguous.state_dict())


def test_half_precision_decodes_under_autocast():
    decoder = decoder_of("ours").float()
    memory, token_ids, mask = inputs(True)
    memory = memory.float()
    with torch.autocast("cpu", torch.bfloat16):
        state = decoder.begin(memory, mask, num_beams=2, max_length=3)
        logits = decoder.step(token_ids.repeat_interleave(2, dim=0)[:, :3], state)
    expected = decoder(memory, token_ids[:, :3], mask)[:, -1].repeat_interleave(2, dim=0)
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.2)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="style 'infix' is unknown; choose cross or prefix"):
        decoder_of("ours", style="infix")
    decoder = decoder_of("ours")
    memory, token_ids, _ = inputs(False, length=14)
    with pytest.raises(ValueError, match="14 words, start included, exceed the 13 positions"):
        decoder(memory, token_ids)
    with pytest.raises(ValueError, match="exceed the 13 positions"):
        decoder.begin(memory, max_length=14)
    state = decoder.begin(memory, max_length=2)
    with pytest.raises(ValueError, match="3 words are more than the 2 that this state was made for"):
        decoder.step(token_ids[:, :3], state)
