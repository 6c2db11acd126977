"""One very large image over several processes: time and memory of a Vision Transformer by processes and chunks."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import distributed, multiprocessing

from visattn.attention import ring_attention
from visattn.backbones import VisionTransformer
from visattn.benchmark.measure import print_environment


def main(
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 1024,
    patch_size: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = 8,
    dim: Annotated[int, typer.Option(help="Channels of a token.")] = 96,
    depth: Annotated[int, typer.Option(help="Blocks.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 3,
    processes: Annotated[list[int] | None, typer.Option(help="Give it again for more.")] = None,
    chunk: Annotated[list[int] | None, typer.Option(help="Queries and keys at once; give it again for more.")] = None,
) -> None:
    """Forward and backward of one image, with gloo on this machine's cores, which the processes share evenly."""
    print_environment()
    tokens = (image_size // patch_size) ** 2
    print(f"{image_size}x{image_size} pixels, {tokens:,} tokens; ViT of {depth} blocks of {dim}, {heads} heads")
    print(f"{'processes':>9}  {'forward + backward s':>21}{'memory of each MB':>19}{'loss':>12}")
    for count in processes or [1, 2, 4]:
        seconds, memory, loss = run(vit_step, count, (image_size, patch_size, dim, depth, heads))
        print(f"{count:>9}  {seconds:>21.2f}{memory:>19.0f}{loss:>12.6f}", flush=True)
    print(f"\nattention alone, {heads} heads of {dim // heads}, forward and backward, by the chunk")
    print(f"{'processes':>9}{'chunk':>8}{'s':>9}{'memory of each MB':>19}")
    for count in processes or [1, 2, 4]:
        for size in chunk or [256, 1024, 4096]:
            seconds, memory, _ = run(attention_step, count, (tokens, dim, heads, size))
            print(f"{count:>9}{size:>8}{seconds:>9.2f}{memory:>19.0f}", flush=True)


def run(step, count: int, arguments: tuple[int, ...]) -> tuple[float, float, float]:
    """Seconds, megabytes and loss of step(rank, count, *arguments) in the slowest and largest of the processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(process, (count, step, folder, arguments), nprocs=count)
        results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(count)]
    return max(result[0] for result in results), max(result[1] for result in results), results[0][2]


def process(rank: int, count: int, step, folder: str, arguments: tuple[int, ...]) -> None:
    """One process; leaves its seconds, megabytes beyond what it began with, and loss in the folder."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = step(rank, count, *arguments)
    distributed.barrier()
    start = time.perf_counter()
    loss = work()
    distributed.barrier()
    seconds = time.perf_counter() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    Path(folder, f"{rank}.json").write_text(json.dumps((seconds, megabytes, loss)))
    distributed.destroy_process_group()


def vit_step(rank: int, count: int, image_size: int, patch_size: int, dim: int, depth: int, heads: int):
    """A training step's forward and backward; returns the loss."""
    model = VisionTransformer(
        image_size, patch_size, dim, depth, heads, class_token=False, pooling="average", token_parallel=True
    )
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    image = torch.randn(1, 3, image_size, image_size)

    def work() -> float:
        loss = parallel(image).pooled.square().sum()
        loss.backward()
        return float(loss.detach())

    return work


def attention_step(rank: int, count: int, tokens: int, dim: int, heads: int, chunk: int):
    """Ring attention on this process's part."""
    leaves = [torch.randn(1, heads, tokens // count, dim // heads, requires_grad=True) for _ in range(3)]

    def work() -> float:
        output = ring_attention(leaves[0], leaves[1], leaves[2], query_chunk=chunk, key_chunk=chunk)
        torch.autograd.grad(output.sum(), leaves)
        return 0.0

    return work
