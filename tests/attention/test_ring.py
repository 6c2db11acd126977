import pytest
import torch
from torch import distributed, multiprocessing

from visattn.attention import MultiHeadAttention, RingAttention, gather_tokens, ring_attention, tokens_here
from visattn.attention.dot_product import dot_product_attention
from visattn.attention.ring import without_other_processes
from visattn.backbones import VisionTransformer


def run_in_processes(work, count, folder, *arguments):
    """Calls work(rank, count, *arguments) in processes of a gloo group; returns what each gave."""
    multiprocessing.spawn(process, (work, count, str(folder), arguments), nprocs=count)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(count)]


def process(rank, work, count, folder, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.save(work(rank, count, *arguments), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def qkv():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 23, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def part_of(rank, count, length=23):
    """Parts of different lengths, the first of one token."""
    ends = [0] + [1 + (length - 1) * i // max(count - 1, 1) for i in range(count)]
    return slice(ends[rank], ends[rank + 1])


def attend_on_a_part(rank, count):
    leaves, part = qkv(), part_of(rank, count)
    output = ring_attention(*(leaf[:, :, part] for leaf in leaves), query_chunk=4, key_chunk=3)
    outer = torch.linspace(-1, 1, output.numel() // output.shape[2] * 23, dtype=torch.float64).view(2, 3, 23, 5)
    gradients = torch.autograd.grad(output, leaves, outer[:, :, part])
    return [output.detach(), *(gradient[:, :, part] for gradient in gradients)]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_with_parts_of_the_tokens_equal_one_with_all(count, tmp_path):
    leaves = qkv()
    expected = dot_product_attention(*leaves)
    outer = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    gradients = torch.autograd.grad(expected, leaves, outer)
    results = run_in_processes(attend_on_a_part, count, tmp_path)
    for number, wanted in enumerate((expected.detach(), *gradients)):
        got = torch.cat([result[number] for result in results], dim=2)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def module_on_a_part(rank, count, weights):
    module = RingAttention(12, 3).double()
    module.load_state_dict(weights)
    model = torch.nn.parallel.DistributedDataParallel(module)
    tokens = torch.randn(2, 23, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    recorded = []
    module.record = lambda weights, keys: recorded.append(weights.detach())
    gathered = gather_tokens(model(tokens[:, part_of(rank, count)]))
    gathered.square().sum().backward()
    return [gathered.detach(), recorded[0], *(parameter.grad for parameter in module.parameters())]


def test_a_module_under_data_parallelism_has_the_gradients_of_one_process(tmp_path):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3).double()
    tokens = torch.randn(2, 23, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    recorded = []
    module.record = lambda weights, keys: recorded.append(weights.detach())
    output = module(tokens)
    output.square().sum().backward()
    results = run_in_processes(module_on_a_part, 2, tmp_path, module.state_dict())
    wanted = [output.detach(), *(parameter.grad for parameter in module.parameters())]
    for gathered, _, *gradients in results:
        torch.testing.assert_close([gathered, *gradients], wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([result[1] for result in results], dim=2), recorded[0])


def test_without_other_processes_it_is_attention_among_all_tokens():
    leaves = qkv()
    output, expected = ring_attention(*leaves, query_chunk=4), dot_product_attention(*leaves)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), rtol=0, atol=1e-10
    )
    tokens = torch.randn(2, 7, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(gather_tokens(tokens).sum(), tokens)
    assert (gradient == 1).all()


def test_weights_cannot_be_dropped():
    module = RingAttention(12, 3, dropout=0.1)
    with pytest.raises(ValueError, match="set dropout"):
        module(torch.randn(2, 7, 12))
    with pytest.raises(ValueError, match="no mask"):
        module(torch.randn(2, 7, 12), mask=torch.ones(7, 7, dtype=torch.bool))
    assert module.eval()(torch.randn(2, 7, 12)).shape == (2, 7, 12)


def alone_among_others(rank, count):
    """What a process does by itself, while the other one is doing nothing of the kind."""
    module = RingAttention(12, 3).double()
    tokens = torch.randn(2, 23, 12, dtype=torch.float64)
    if rank == 1:
        return torch.zeros(0)
    recorded = []
    module.record = lambda weights, keys: recorded.append(weights)
    with without_other_processes():
        output = module(tokens_here(tokens))
        (gradient,) = torch.autograd.grad(gather_tokens(output).sum(), recorded)
    return gradient


def test_one_of_several_processes_can_work_alone(tmp_path):
    gradient, _ = run_in_processes(alone_among_others, 2, tmp_path)
    assert gradient.shape == (2, 3, 23, 23)  # all tokens, none of which were asked of the other process
    assert gradient.any()


def vision_transformer(**options):
    return VisionTransformer(20, 4, 12, 2, 3, pooling="average", num_registers=2, **options).double()


def transformer_on_a_part(rank, count, weights):
    model = vision_transformer(token_parallel=True)
    model.load_state_dict(weights)
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parallel = torch.nn.parallel.DistributedDataParallel(model)  # which must live until the backward
    features = parallel(images)
    features.pooled.square().sum().backward()
    return [*features.maps, features.tokens, features.pooled, *(parameter.grad for parameter in model.parameters())]


def test_a_vision_transformer_over_processes_equals_one(tmp_path):
    torch.manual_seed(0)
    model = vision_transformer()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = model(images)
    features.pooled.square().sum().backward()
    wanted = [*features.maps, features.tokens, features.pooled, *(parameter.grad for parameter in model.parameters())]
    for result in run_in_processes(transformer_on_a_part, 2, tmp_path, model.state_dict()):
        torch.testing.assert_close(result, [tensor.detach() for tensor in wanted], rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"attention": ("local", "global"), "class_token": False}, {"drop_path": 0.1}])
def test_what_processes_could_not_share_is_refused(options):
    with pytest.raises(ValueError, match="token_parallel"):
        vision_transformer(token_parallel=True, **options)
