"""Neighborhood attention and its alternatives on maps of growing size: times, ratios and peak memory of one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visattn.attention import neighborhood_attention, neighborhood_keys
from visattn.benchmark.measure import peak_memory, print_environment, time_alternatives

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (batch, height, width, heads, head_dim)


class Alternative(NamedTuple):
    """One row of the table: a way to attend, or why it can't run here."""

    name: str
    attend: Attention | None
    reason: str = ""
    trains: bool = True


def main(
    size: Annotated[list[int] | None, typer.Option(help="Side of the map; give it again for more.")] = None,
    kernel: Annotated[list[int] | None, typer.Option(help="Side of the neighborhood; give it again for more.")] = None,
    batch: Annotated[int, typer.Option(help="Maps at once.")] = 1,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Time for each comparison, at least.")] = 1.5,
    flex: Annotated[bool, typer.Option(help="Compile and measure FlexAttention too.")] = True,
) -> None:
    """Times ours and the alternatives in turns; a ratio above 1 says how many times ours is faster."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"dtype {dtype} is none of float32, bfloat16, float16")
    print_environment()
    print(f"batch {batch}, {heads} heads of {head_dim}, {dtype}; memory as multiples of query + key + value")
    for kernel_size in kernel or [7, 13]:
        for side in size or [16, 32, 56, 64, 128]:
            query, key, value = (
                torch.randn(batch, side, side, heads, head_dim, dtype=getattr(torch, dtype), device=device)
                for _ in range(3)
            )
            print(f"\nmap {side}x{side}, kernel {kernel_size}")
            print(f"  {'':<18}{'forward ms':>11}{'ratio':>8}{'both ms':>11}{'ratio':>8}{'memory':>8}")
            compare(alternatives(query, kernel_size, flex), (query, key, value), seconds)


def compare(rows: list[Alternative], inputs: tuple[Tensor, ...], seconds: float) -> None:
    """Measures what can run and prints a line for each; "both" is forward and backward."""
    runnable = {row.name: row for row in rows if row.attend is not None}
    forward = {name: without_gradients(row.attend, inputs) for name, row in runnable.items()}
    both = {name: with_gradients(row.attend, inputs) for name, row in runnable.items() if row.trains}
    forward_times = time_alternatives(forward, seconds=seconds / 2, warmup=1)
    both_times = time_alternatives(both, seconds=seconds, warmup=1)
    inputs_bytes = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    for row in rows:
        if row.attend is None:
            print(f"  {row.name:<18}{'skipped: ' + row.reason}")
            continue
        time = forward_times[row.name]
        line = f"  {row.name:<18}{time * 1e3:>11.2f}{time / forward_times['ours']:>8.2f}"
        if row.trains:
            time = both_times[row.name]
            memory = peak_memory(both[row.name]) / inputs_bytes
            line += f"{time * 1e3:>11.2f}{time / both_times['ours']:>8.2f}{memory:>8.1f}"
        else:
            line += f"  {row.reason}"
        print(line, flush=True)


def without_gradients(attend: Attention | None, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A function that computes the output only."""
    assert attend is not None

    def run() -> Tensor:
        with torch.no_grad():
            return attend(*inputs)

    return run


def with_gradients(attend: Attention | None, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A function that computes the output and the gradients of query, key and value."""
    assert attend is not None
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    gradient = torch.randn_like(inputs[0])

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*leaves), leaves, gradient)

    return run


def alternatives(query: Tensor, kernel_size: int, flex: bool) -> list[Alternative]:
    """The rows for one size of map; those that would need too much memory or time are skipped with the reason."""
    batch, side, _, heads, _ = query.shape
    keys = neighborhood_keys(side, side, kernel_size).to(query.device)  # (N, kernel_size**2)
    rows = [
        Alternative("ours", lambda query, key, value: neighborhood_attention(query, key, value, kernel_size)),
        Alternative("global", lambda query, key, value: as_map(global_attention(query, key, value), side)),
    ]
    scores = batch * heads * side**4
    if scores * query.element_size() > 2**30:
        rows.append(Alternative("dense mask", None, f"the mask and its scores are {side**4 / 1e6:.0f} million a head"))
    else:
        seen = torch.zeros(side**2, side**2, dtype=torch.bool, device=query.device).scatter_(1, keys, True)
        rows.append(Alternative("dense mask", lambda q, k, v: as_map(global_attention(q, k, v, seen), side)))
    gathered = 2 * query.numel() * kernel_size**2 * query.element_size()
    if gathered > 2**31:
        rows.append(Alternative("gather", None, f"{gathered / 2**30:.1f} GiB of copied keys and values"))
    else:
        rows.append(Alternative("gather", lambda q, k, v: gather_attention(q, k, v, keys)))
    rows.append(flex_alternative(query, kernel_size) if flex else Alternative("flex", None, "left out on request"))
    return rows


def sequence(cells: Tensor) -> Tensor:
    """(batch, height, width, heads, head_dim) -> (batch, heads, height * width, head_dim)."""
    return cells.flatten(1, 2).transpose(1, 2)


def as_map(tokens: Tensor, side: int) -> Tensor:
    """The inverse of `sequence` for a square map."""
    return tokens.transpose(1, 2).unflatten(1, (side, side))


def global_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return scaled_dot_product_attention(sequence(query), sequence(key), sequence(value), mask)


def gather_attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor) -> Tensor:
    """Copies the keys and values of every query side by side."""
    near, seen = (tensor.flatten(1, 2)[:, keys] for tensor in (key, value))  # (batch, N, n, heads, head_dim)
    queries = query.flatten(1, 2) * query.shape[-1] ** -0.5
    weights = torch.einsum("bqhd,bqnhd->bhqn", queries, near).softmax(dim=-1)
    return torch.einsum("bhqn,bqnhd->bqhd", weights, seen).view_as(query)


def flex_alternative(query: Tensor, kernel_size: int) -> Alternative:
    """Compiled FlexAttention with the neighborhood as its block mask; on CPUs it has no backward."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    side = query.shape[1]

    def seen(batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        row = (query_index // side - kernel_size // 2).clamp(0, side - kernel_size)
        column = (query_index % side - kernel_size // 2).clamp(0, side - kernel_size)
        down, right = key_index // side - row, key_index % side - column
        return (down >= 0) & (down < kernel_size) & (right >= 0) & (right < kernel_size)

    try:
        torch._dynamo.reset()
        mask = create_block_mask(seen, None, None, side**2, side**2, device=query.device.type)
        compiled = torch.compile(flex_attention)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return as_map(compiled(sequence(query), sequence(key), sequence(value), block_mask=mask), side)

        with torch.no_grad():
            attend(query, query, query)
    except Exception as error:  # no compiler, or a processor that it doesn't support
        return Alternative("flex", None, (str(error) or type(error).__name__).splitlines()[0][:80])
    on_cpu = query.device.type == "cpu"
    return Alternative("flex", attend, "no backward on CPUs" if on_cpu else "", trains=not on_cpu)
