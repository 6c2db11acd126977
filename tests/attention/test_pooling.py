import torch

from visattn.attention import AdditiveAttentionPooling, HierarchicalAttentionPooling, SequencePooling


def test_pooling_equals_its_definition_token_by_token():
    torch.manual_seed(0)
    module = AdditiveAttentionPooling(5, 7).double()
    tokens = torch.randn(2, 11, 5, dtype=torch.float64)
    for batch in range(2):
        scores = torch.stack([module.context.weight[0] @ module.hidden(token).tanh() for token in tokens[batch]])
        shares = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(
            module(tokens)[batch], sum(s * t for s, t in zip(shares, tokens[batch], strict=True))
        )


def test_sequence_pooling_equals_its_definition_token_by_token():
    torch.manual_seed(0)
    module, seen = SequencePooling(5).double(), []
    module.record = seen.append
    tokens = torch.randn(2, 11, 5, dtype=torch.float64)
    pooled = module(tokens)
    for batch in range(2):
        scores = torch.stack([module.linear.weight[0] @ token + module.linear.bias[0] for token in tokens[batch]])
        shares = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(seen[0][batch], shares)
        torch.testing.assert_close(pooled[batch], sum(s * t for s, t in zip(shares, tokens[batch], strict=True)))


def test_tokens_that_do_not_exist_change_nothing():
    torch.manual_seed(0)
    module, tokens = HierarchicalAttentionPooling(5).double(), torch.randn(2, 3, 7, 5, dtype=torch.float64)
    mask = torch.ones(2, 3, 7, dtype=torch.bool)
    mask[0, 2], mask[1, :, 4:] = False, False
    output = module(tokens, mask)
    torch.testing.assert_close(output[0], module(tokens[:1, :2])[0])
    torch.testing.assert_close(output[1], module(tokens[1:, :, :4])[0])
    changed = torch.where(mask[..., None], tokens, 9.0)
    torch.testing.assert_close(module(changed, mask), output)


def test_nothing_at_all_gives_finite_numbers_and_gradients():
    module, tokens = HierarchicalAttentionPooling(5), torch.randn(2, 3, 7, 5, requires_grad=True)
    output = module(tokens, torch.zeros(2, 3, 7, dtype=torch.bool))
    assert (output == 0).all()
    output.sum().backward()
    assert tokens.grad.isfinite().all()


def test_both_levels_show_their_weights():
    module, seen = HierarchicalAttentionPooling(5), []
    module.tokens.record = module.groups.record = seen.append
    module(torch.randn(2, 3, 7, 5))
    assert [weights.shape for weights in seen] == [(2, 3, 7), (2, 3)]
    torch.testing.assert_close(seen[1].sum(-1), torch.ones(2))


def test_gradients_pass_gradcheck():
    module = HierarchicalAttentionPooling(3).double()
    tokens = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 4) > 0.3
    assert torch.autograd.gradcheck(lambda t: module(t, mask), tokens, fast_mode=True)
