"""Our caption evaluation beside pycocoevalcap's with Java, part by part, on the same made-up captions."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_WORDS = """
a man woman dog cat child boy girl red blue small large runs sits stands jumps plays rides holds looks on in at with
near the grass street beach ball bike horse table water snow white black two three people group wearing hat shirt
walking through field while another watches behind front of building park down hill
""".split()  # noqa: SIM905 (a list of 60 strings is no easier to read)


def main(
    images: Annotated[int, typer.Option(help="how many images")] = 5000,
    captions: Annotated[int, typer.Option(help="references an image")] = 5,
    references: Annotated[
        Path | None, typer.Option(help="COCO annotations to use: the first caption of each image is the candidate")
    ] = None,
    meteor: Annotated[bool, typer.Option(help="METEOR too (the extra visattn[meteor])")] = True,
) -> None:
    """Times tokenizer, BLEU, METEOR, ROUGE-L and CIDEr, and checks that the scores agree."""
    from rich.console import Console
    from rich.table import Table

    texts, candidates = _captions_of(references, images) if references else _captions(images, captions)
    ours, our_scores = _ours(texts, candidates, meteor)
    theirs, their_scores = _official(texts, candidates, meteor) if shutil.which("java") else ({}, {})
    number = sum(map(len, texts.values())) / len(texts)
    table = Table(
        "part", "visattn (s)", "pycocoevalcap (s)", "faster", title=f"{len(texts)} images x {number:g} references"
    )
    for name, seconds in [*ours.items(), ("total", sum(ours.values()))]:
        other = theirs.get(name, sum(theirs.values())) if theirs else None
        table.add_row(
            name, f"{seconds:.2f}", f"{other:.2f}" if other else "-", f"{other / seconds:.1f}x" if other else "-"
        )
    console = Console()
    console.print(table)
    values = Table("metric", "visattn", "pycocoevalcap", "difference")
    for name, score in our_scores.items():
        official = f"{their_scores[name]:.10f}" if their_scores else "-"
        difference = f"{abs(score - their_scores[name]):.0e}" if their_scores else "-"
        values.add_row(name, f"{score:.10f}", official, difference)
    console.print(values)
    console.print(f"CIDEr-D with known document frequencies: {_cider_rate(texts, candidates):,.0f} candidates/s")
    console.print(_fresh_process(images, captions, meteor), highlight=False)


def _captions_of(file: Path, images: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    from visattn.evaluation.captions import read_references

    groups = [(image, lines) for image, lines in read_references(file).items() if len(lines) > 1][:images]
    return {image: lines[1:] for image, lines in groups}, {image: lines[0] for image, lines in groups}


_FRESH = """
import time
from pathlib import Path
start = time.perf_counter()
from visattn.evaluation.captions import METRICS, evaluate
imported = time.perf_counter()
metrics = [name for name in METRICS if name != "METEOR" or {meteor}]
evaluate({{1: ["a dog runs"], 2: ["two cats"]}}, {{1: "the dogs run", 2: "cats"}}, metrics)
scored = time.perf_counter()
from visattn.benchmark.caption_scores import _captions
evaluate(*_captions({images}, {captions}), metrics)
print(f"import {{imported - start:.2f}} s, first score {{scored - imported:.2f}} s later", end="")
status = Path("/proc/self/status")
if status.exists():  # on Linux
    kilobytes = int(status.read_text().split("VmHWM:")[1].split()[0])
    print(f", {{kilobytes * 1024 / 1e6:.0f}} MB at most", end="")
"""


def _fresh_process(images: int, captions: int, meteor: bool) -> str:
    """What a new process pays for the import and a first score, and its memory after scoring everything."""
    code = _FRESH.format(images=images, captions=captions, meteor=meteor)
    return "in a new process: " + subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def _captions(images: int, captions: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Captions of about COCO's length whose words overlap within an image."""
    generator = random.Random(0)
    references, candidates = {}, {}
    for image in range(images):
        topic = generator.choices(_WORDS, k=14)
        lines = [
            " ".join(
                generator.choice(topic) if generator.random() < 0.7 else generator.choice(_WORDS) for _ in range(n)
            )
            for n in generator.choices(range(8, 15), k=captions + 1)
        ]
        references[image] = [f"{line.capitalize()}." for line in lines[1:]]
        candidates[image] = lines[0]
    return references, candidates


def _timed(times: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = function()
    times[name] = time.perf_counter() - start
    return result


def _ours(references: dict, candidates: dict, meteor: bool) -> tuple[dict[str, float], dict[str, float]]:
    from visattn.evaluation.captions import Cider, bleu, rouge_l, tokenize

    times: dict[str, float] = {}
    lines = [line for group in references.values() for line in group]
    flat, judged = _timed(times, "tokenizer", lambda: (tokenize(lines), tokenize(list(candidates.values()))))
    rest = iter(flat)
    texts = [[next(rest) for _ in group] for group in references.values()]
    scores = {f"Bleu_{n + 1}": s for n, s in enumerate(_timed(times, "BLEU", lambda: bleu(texts, judged))[0])}
    if meteor:
        from visattn.evaluation.captions.meteor import Meteor

        Meteor().score(texts[:1], judged[:1])  # builds the index once
        scores["METEOR"] = _timed(times, "METEOR", lambda: Meteor().score(texts, judged))[0]
    scores["ROUGE_L"] = _timed(times, "ROUGE-L", lambda: rouge_l(texts, judged)).mean()
    scores["CIDEr"] = _timed(times, "CIDEr", lambda: Cider(texts).score(judged)).mean()
    return times, scores


def _official(references: dict, candidates: dict, meteor: bool) -> tuple[dict[str, float], dict[str, float]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenized() -> tuple[dict, dict]:
        wrapped = {image: [{"caption": line} for line in lines] for image, lines in references.items()}
        judged = {image: [{"caption": line}] for image, line in candidates.items()}
        return PTBTokenizer().tokenize(wrapped), PTBTokenizer().tokenize(judged)

    times: dict[str, float] = {}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        texts, judged = _timed(times, "tokenizer", tokenized)
        corpus = _timed(times, "BLEU", lambda: Bleu(4).compute_score(texts, judged, 0))[0]
        scores = {f"Bleu_{n + 1}": score for n, score in enumerate(corpus)}
        if meteor:
            scores["METEOR"] = _timed(times, "METEOR", lambda: Meteor().compute_score(texts, judged))[0]
        scores["ROUGE_L"] = _timed(times, "ROUGE-L", lambda: Rouge().compute_score(texts, judged))[0]
        scores["CIDEr"] = _timed(times, "CIDEr", lambda: Cider().compute_score(texts, judged))[0]
    return times, scores


def _cider_rate(references: dict, candidates: dict) -> float:
    from visattn.evaluation.captions import Cider

    scorer = Cider(list(references.values()))
    batch = list(candidates.values())
    start = time.perf_counter()
    scorer.score(batch, range(len(batch)))
    return len(batch) / (time.perf_counter() - start)
