import pytest
import torch

from visattn.heads import CaptionDecoder

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
