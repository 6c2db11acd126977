import pytest
import torch

from visattn.attention import KeyValueCache, MultiHeadAttention


def numbered(batch, length):
    """Keys (batch, 3, length, 5) that differ in every number."""
    return torch.arange(batch * 3 * length * 5, dtype=torch.float64).view(batch, 3, length, 5)


@pytest.mark.parametrize("shared", [0, 4])
def test_it_returns_the_shared_keys_and_then_position_by_position_those_of_all_texts(shared):
    cache = KeyValueCache(2, 3, 7, shared)
    prefix, words = numbered(2, shared), numbered(6, 7)
    if shared:
        key, value = cache.extend(prefix, -prefix)
        assert torch.equal(key, prefix)
    place = 0
    for count in (2, 1, 4):
        new = words[:, :, place : place + count]
        key, value = cache.extend(new, -new)
        place += count
    expected = words.view(2, 3, 3, 7, 5).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (images, heads, 7 * texts, 5)
    assert torch.equal(key, torch.cat([prefix, expected], dim=2))
    assert torch.equal(value, -key)


def test_later_words_leave_earlier_keys_where_they_are():
    cache = KeyValueCache(2, 3, 7)
    first, _ = cache.extend(numbered(6, 2), numbered(6, 2))
    second, _ = cache.extend(numbered(6, 1), numbered(6, 1))
    assert first.data_ptr() == second.data_ptr()


def test_it_forgets_images():
    cache, whole = KeyValueCache(5, 3, 7, 4), KeyValueCache(5, 3, 7, 4)
    kept = torch.tensor([1, 4])
    for one in (cache, whole):
        one.extend(numbered(5, 4), numbered(5, 4))
        one.extend(numbered(15, 2), numbered(15, 2))
    cache.keep(kept)
    new = numbered(15, 1)
    expected, _ = whole.extend(new, new)
    new = new.view(5, 3, 3, 1, 5)[kept].flatten(0, 1)
    key, _ = cache.extend(new, new)
    assert torch.equal(key, expected[kept])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("texts", [1, 3])
def test_words_that_come_one_by_one_equal_all_at_once(qk_norm, texts):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3, qk_norm=qk_norm).double()
    tokens, cache, seen = torch.randn(2 * texts, 7, 12).double(), KeyValueCache(2, texts, 7), []
    own = torch.eye(texts).log().double()  # a text sees its own keys only
    module.record = lambda weights, keys: seen.append(weights)
    expected = module(tokens, is_causal=True)
    for place in range(7):
        bias = own.repeat(1, place + 1)[None, None]  # (1, 1, texts, keys so far)
        output = module(tokens[:, place : place + 1], bias=bias, cache=cache)
        torch.testing.assert_close(output, expected[:, place : place + 1], rtol=0, atol=1e-12)
        weights = seen[0][:, :, place : place + 1, : place + 1]  # (2 * texts, heads, 1, positions)
        torch.testing.assert_close(seen[-1], weights, rtol=0, atol=1e-12)
