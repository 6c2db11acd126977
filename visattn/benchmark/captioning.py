"""Decoding of captions beside transformers' `generate` with the same weights: milliseconds and ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from visattn.benchmark.measure import print_environment, time_alternatives
from visattn.checkpoints.vision_encoder_decoder import decoder_weights
from visattn.heads import CaptionDecoder
from visattn.text import generate


class Size(NamedTuple):
    """A GPT-2 with cross-attention."""

    dim: int
    depth: int
    num_heads: int
    vocabulary_size: int


sizes = {
    "micro": Size(64, 2, 2, 1000),
    "tiny": Size(192, 4, 3, 50257),
    "distil": Size(768, 6, 12, 50257),  # as distilgpt2
    "base": Size(768, 12, 12, 50257),  # as gpt2, and in nlpconnect/vit-gpt2-image-captioning
}


def main(
    size: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(sizes)}; give it again for more.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images at once; give it again for more.")] = None,
    beams: Annotated[list[int] | None, typer.Option(help="Beams; 1 is greedy. Give it again for more.")] = None,
    words: Annotated[int, typer.Option(help="Words of each caption.")] = 20,
    image_tokens: Annotated[int, typer.Option(help="Tokens of an image; 197 as ViT-B/16 at 224 pixels.")] = 197,
    turns: Annotated[int, typer.Option(help="Turns of each alternative, at least; each is measured twice.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time for each comparison, at least.")] = 6.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Times both in turns, given the encoder's output; a ratio above 1 says how many times ours is faster."""
    names = size or ["tiny", "distil", "base"]
    unknown = set(names) - set(sizes)
    if unknown:
        raise typer.BadParameter(f"no such size: {', '.join(sorted(unknown))}; there are {', '.join(sizes)}")
    print_environment()
    print(f"{words} words, {image_tokens} image tokens; equal: images with the same caption, token for token")
    print(f"{'size':<8}{'batch':>6}{'beams':>6}{'transformers ms':>17}{'ours ms':>10}{'ratio':>8}{'equal':>9}")
    for name in names:
        theirs, ours = twins(sizes[name])
        for module in (theirs, ours):
            module.to(device)
        for images in batch or [1, 16]:
            memory = torch.randn(images, image_tokens, sizes[name].dim, device=device)
            for num_beams in beams or [1, 5]:
                functions: dict[str, Callable[[], Any]] = {
                    "transformers": their_captions(theirs, memory, num_beams, words),
                    "ours": our_captions(ours, memory, num_beams, words),
                }
                expected, captions = (function() for function in functions.values())
                equal = sum(a == b for a, b in zip(expected, captions, strict=True))
                times = time_alternatives(functions, seconds=seconds, warmup=0, turns=turns)
                milliseconds = f"{times['transformers'] * 1e3:>17.1f}{times['ours'] * 1e3:>10.1f}"
                ratio = times["transformers"] / times["ours"]
                print(
                    f"{name:<8}{images:>6}{num_beams:>6}{milliseconds}{ratio:>8.2f}{f'{equal}/{images}':>9}", flush=True
                )


def twins(size: Size) -> tuple[Any, CaptionDecoder]:
    """transformers' model with random weights, and our decoder with the same weights."""
    import transformers

    vision = transformers.ViTConfig(
        hidden_size=size.dim, num_hidden_layers=1, num_attention_heads=size.num_heads, intermediate_size=size.dim
    )
    end = size.vocabulary_size - 1
    text = transformers.GPT2Config(
        vocab_size=size.vocabulary_size,
        n_embd=size.dim,
        n_layer=size.depth,
        n_head=size.num_heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = end, end, 0
    theirs = transformers.VisionEncoderDecoderModel(config).eval()
    with torch.no_grad():
        words = theirs.decoder.transformer.wte.weight
        words.mul_(6)  # probabilities as uneven as those of a trained model, so that no word hangs on rounding
        words[end] = 0  # never likely: all captions get their full length
    weights = theirs.decoder.state_dict()
    del weights["lm_head.weight"]  # tied to the embedding
    ours = CaptionDecoder(
        size.vocabulary_size,
        size.dim,
        size.dim,
        size.depth,
        size.num_heads,
        max_length=text.n_positions,
        activation="gelu_tanh",
    )
    ours.load_state_dict(decoder_weights(weights, text.to_dict()))
    return theirs, ours.eval()


def their_captions(model: Any, memory: Tensor, num_beams: int, words: int) -> Callable[[], list[list[int]]]:
    """A function that writes captions with transformers."""
    from transformers.modeling_outputs import BaseModelOutput

    @torch.inference_mode()
    def run() -> list[list[int]]:
        outputs = BaseModelOutput(last_hidden_state=memory)
        rows = model.generate(encoder_outputs=outputs, num_beams=num_beams, max_new_tokens=words, min_new_tokens=words)
        return rows[:, 1:].tolist()  # without the start

    return run


def our_captions(decoder: CaptionDecoder, memory: Tensor, num_beams: int, words: int) -> Callable[[], list[list[int]]]:
    """A function that writes captions with `visattn.text.generate`."""
    end = decoder.vocabulary_size - 1

    def run() -> list[list[int]]:
        captions = generate(
            decoder,
            memory,
            start_ids=[end],
            end_id=end,
            padding_id=0,
            num_beams=num_beams,
            max_new_tokens=words,
        )
        return [group[0].token_ids for group in captions]

    return run
