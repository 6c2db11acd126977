"""The originals that visattn's caption metrics are compared with: pycocoevalcap 1.2, its tokenizer and METEOR in Java.

`python tests/evaluation/captions/originals.py` asks them again for the values in official_scores.json and
meteor_segments.json, which the tests use where Java is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLICKR8K = HERE.parents[2].parent / "shared" / "data" / "flickr8k"

has_extra = all(importlib.util.find_spec(name) for name in ("pycocoevalcap", "marisa_trie"))
needs_extra = pytest.mark.skipif(not has_extra, reason="needs the extra visattn[meteor]")
needs_java = pytest.mark.skipif(not has_extra or shutil.which("java") is None, reason="the originals need java")
needs_flickr8k = pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared/data/flickr8k")


def package_folder() -> Path:
    return Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])


def tokenized(captions: list[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    official = PTBTokenizer().tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    return [line for (line,) in official.values()]


def scores(references: list[list[str]], candidates: list[str]) -> dict[str, tuple[float, list[float]]]:
    """BLEU, ROUGE-L and CIDEr of tokenized captions: name -> (corpus, per image)."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts, judged = dict(enumerate(references)), {number: [line] for number, line in enumerate(candidates)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_per_image = Bleu(4).compute_score(texts, judged, 0)
        results = {f"Bleu_{n + 1}": (bleu[n], bleu_per_image[n]) for n in range(4)}
        results["ROUGE_L"] = Rouge().compute_score(texts, judged)
        results["CIDEr"] = Cider().compute_score(texts, judged)
    return {name: (float(corpus), list(map(float, values))) for name, (corpus, values) in results.items()}


def meteor(
    references: list[list[str]], candidates: list[str], evaluate: int | None = None
) -> tuple[list[list[int]], float, list[float]]:
    """METEOR's statistics of each segment as it prints them, the score of the corpus and of each segment.

    With `evaluate` the scores are those of only that many segments.
    """
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command,
        cwd=package_folder() / "meteor",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    segments = [
        " ||| ".join(["SCORE", *captions, candidate.replace("|||", "").replace("  ", " ")])
        for captions, candidate in zip(references, candidates, strict=True)
    ]

    def write() -> None:
        process.stdin.write("".join(f"{segment}\n" for segment in segments))
        process.stdin.flush()

    with process:
        writer = threading.Thread(target=write)
        writer.start()
        lines = [process.stdout.readline().strip() for _ in segments]
        writer.join()
        evaluated = lines[:evaluate]
        process.stdin.write(" ||| ".join(["EVAL", *evaluated]) + "\n")
        process.stdin.flush()
        *values, corpus = [float(process.stdout.readline()) for _ in range(len(evaluated) + 1)]
        process.stdin.close()
    return [[int(float(number)) for number in line.split()] for line in lines], corpus, values


def flickr8k() -> tuple[list[list[str]], list[str]]:
    """Of each of the 8,000 images four references, and the first caption as candidate."""
    captions: dict[int, list[str]] = {}
    for split in ("train", "val", "test"):
        for entry in json.loads((FLICKR8K / f"captions_{split}.json").read_text())["annotations"]:
            captions.setdefault(entry["image_id"], []).append(entry["caption"])
    return [lines[1:] for lines in captions.values()], [lines[0] for lines in captions.values()]


def damaged(references: list[list[str]], candidates: list[str]) -> tuple[list[list[str]], list[str]]:
    """The same with each candidate shuffled between images, truncated, repeated, misspelt or in another order."""
    generator = random.Random(11)
    others = generator.sample(candidates, len(candidates))

    def damage(number: int) -> str:
        words, kind = candidates[number].split(), number % 5
        if kind == 0:
            words = others[number].split()
        elif kind == 1:
            words = words[: generator.randrange(len(words) + 1)]
        elif kind == 2:
            words = words + words[: generator.randrange(len(words) + 1)] + words
        elif kind == 3:
            words = [word[:-1] if len(word) > 2 and generator.random() < 0.4 else word for word in words]
        else:
            generator.shuffle(words)
        return " ".join(words)

    return references, [damage(number) for number in range(len(candidates))]


_PIECES = """
fig. e.g. i.e. v. vs. no. No. pp. U.S. a.b. ... .. .... a..b 1,000 a,b 1,a b,2 's n't o'clock ' '' ` \u2019 \u201c
\u201d -- - \u2013 \u2014 t-shirt a- -b x-y-z a'b'c 1's 5's \u00e9t\u00e9 \u0101 \u0436\u0438 \u4e2d\u6587
\U0001f600 a\U0001f600b
$5 5% @x #y a/b (x) [y] siblings teheran the The A rev. dr. 3 ten a. b. c aa.bb. x.y \u00b2 _ a_b % &amp; <b> evening
evenings mice mouse men man better good best is are was photo photographs running ran runs \u00ad ||| | \u03a3\u03a3
http://a.b/c?d=e a@b.org 1/2 5\u00bd \u20ac7 o' ol' 'til gonna cannot \u2026 \u00a0 \u3000 :-) ;P <a> </a> Vitamin C.
""".split()  # noqa: SIM905


def nasty(number: int) -> tuple[list[list[str]], list[str]]:
    """Made-up captions of what tokenizers stumble over, each candidate close to one of its references."""
    generator = random.Random(12)
    texts = [text for text, _ in json.loads((HERE / "ptb_tokens.json").read_text())]
    texts = [text for text in texts if not set(text) & set("\n\r\x0b\x0c\x85\u2028\u2029")]

    def caption() -> str:
        words = [
            generator.choice(_PIECES if generator.random() < 0.6 else texts) for _ in range(generator.randrange(10))
        ]
        return generator.choice([" ", " ", " ", " ", "", "  "]).join(words)

    references, candidates = [], []
    for _ in range(number):
        captions = [caption() for _ in range(generator.randint(1, 4))]
        words = captions[0].split(" ")
        if generator.random() < 0.5:
            generator.shuffle(words)
        references.append(captions)
        candidates.append(caption() if generator.random() < 0.3 else " ".join(words))
    return references, candidates


def crowded(number: int) -> tuple[list[list[str]], list[str]]:
    """Long captions of few words, whose alignments outgrow METEOR's beam."""
    generator = random.Random(13)
    words = "a the dog dogs man men in on of the photo photographs run running is are has over looking at".split()  # noqa: SIM905

    def caption() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, 40)))

    return [[caption() for _ in range(generator.randint(1, 3))] for _ in range(number)], [
        caption() for _ in range(number)
    ]


def tokenized_corpus(references: list[list[str]], candidates: list[str]) -> tuple[list[list[str]], list[str]]:
    """Both as the original tokenizer cuts them, the references in the order of the images."""
    flat = iter(tokenized([caption for captions in references for caption in captions]))
    return [[next(flat) for _ in captions] for captions in references], tokenized(candidates)


def store() -> None:
    path = HERE / "official_scores.json"
    stored = json.loads(path.read_text())
    texts, judged = tokenized_corpus(
        [captions for _, captions in stored["references"]], [caption for _, caption in stored["candidates"]]
    )
    results = scores(texts, judged)
    parts = [(texts, judged)]
    for captions, candidates in (damaged(*flickr8k()), nasty(3000), crowded(300)):
        numbers = random.Random(14).sample(range(len(candidates)), 50)
        parts.append(tokenized_corpus([captions[i] for i in numbers], [candidates[i] for i in numbers]))
    groups, lines = ([item for part in parts for item in part[side]] for side in (0, 1))
    statistics, corpus, values = meteor(groups, lines, evaluate=len(judged))
    results["METEOR"] = corpus, values[: len(judged)]
    stored["tokenized"] = judged
    stored["corpus"] = {name: total for name, (total, _) in results.items()}
    stored["per_image"] = {name: values for name, (_, values) in results.items()}
    path.write_text(json.dumps(stored, indent=0) + "\n")
    rows = list(zip(groups, lines, statistics, strict=True))[len(judged) :]
    (HERE / "meteor_segments.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    store()
