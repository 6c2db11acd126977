"""CLIPScore and RefCLIPScore, with any CLIP checkpoint on disk.

Source: Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_WEIGHT = 2.5
_PROMPT = "A photo depicts "


class ClipScores(NamedTuple):
    clip_score: list[float]
    """Per image: 2.5 max(cos(image, caption), 0)."""
    ref_clip_score: list[float] | None
    """Per image: harmonic mean of that with the largest cosine to a reference; None without references."""


class ClipScore:
    """Scores captions by a CLIP model.

    Args:
        checkpoint: a folder of transformers' (config.json, weights, tokenizer), or one of open_clip's
            (open_clip_config.json, weights).
        device: where the model runs.
        batch_size: images or captions at once.
    Raises:
        FileNotFoundError: the folder is neither.
        ModuleNotFoundError: the library that the folder needs is not installed.
    """

    def __init__(self, checkpoint: str | PathLike[str], device: str = "cpu", batch_size: int = 64) -> None:
        folder = Path(checkpoint)
        self.device, self.batch_size = device, batch_size
        self._encoder: _Transformers | _OpenClip
        if (folder / "open_clip_config.json").is_file():
            self._encoder = _OpenClip(folder, device)
        elif (folder / "config.json").is_file():
            self._encoder = _Transformers(folder, device)
        else:
            raise FileNotFoundError(f"{folder} holds neither config.json (transformers) nor open_clip_config.json")

    def score(
        self, images: Sequence[Image], captions: Sequence[str], references: Sequence[Sequence[str]] | None = None
    ) -> ClipScores:
        """Scores one caption an image.

        Args:
            images: RGB images.
            captions: for each image the caption to judge, untokenized.
            references: for each image its reference captions, for RefCLIPScore.
        Raises:
            ValueError: their numbers differ, or an image has no references.
        """
        numbers = {"images": len(images), "captions": len(captions)}
        if references is not None:
            numbers["groups of references"] = len(references)
        if len(set(numbers.values())) > 1:
            given = ", ".join(f"{number} {name}" for name, number in numbers.items())
            raise ValueError(f"there must be one caption an image, and one group of references: {given}")
        if not images:
            return ClipScores([], None if references is None else [])
        for number, lines in enumerate(references or ()):
            if not lines:
                raise ValueError(f"image {number} has no references")
        pictures = self._embed(self._encoder.images, images)  # (images, dim)
        texts = self._embed(self._encoder.texts, [_PROMPT + caption for caption in captions])  # (images, dim)
        plain = clip_score((pictures * texts).sum(-1).tolist())
        if references is None:
            return ClipScores(plain, None)
        flat = self._embed(self._encoder.texts, [_PROMPT + line for lines in references for line in lines])
        nearest, start = [], 0
        for text, lines in zip(texts, references, strict=True):
            nearest.append(float((flat[start : start + len(lines)] @ text).max()))
            start += len(lines)
        return ClipScores(plain, ref_clip_score(plain, nearest))

    def _embed(self, encode: Any, items: Sequence[Any]) -> Tensor:
        import torch

        with torch.inference_mode():
            batches = [encode(items[i : i + self.batch_size]) for i in range(0, len(items), self.batch_size)]
            return torch.nn.functional.normalize(torch.cat(batches).float(), dim=-1)  # (items, dim)


def clip_score(cosines: Sequence[float]) -> list[float]:
    """CLIPScore of the cosines between images and captions."""
    return [_WEIGHT * max(cosine, 0.0) for cosine in cosines]


def ref_clip_score(clip_scores: Sequence[float], nearest: Sequence[float]) -> list[float]:
    """RefCLIPScore: harmonic mean of CLIPScore and the largest cosine of a caption to its references, if positive."""
    pairs = [(score, max(cosine, 0.0)) for score, cosine in zip(clip_scores, nearest, strict=True)]
    return [2 * a * b / (a + b) if a + b > 0 else 0.0 for a, b in pairs]


class _Transformers:
    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel, AutoProcessor

        self.device = device
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def images(self, items: Sequence[Image]) -> Tensor:
        inputs = self.processor(images=list(items), return_tensors="pt").to(self.device)
        return _features(self.model.get_image_features(**inputs))

    def texts(self, items: Sequence[str]) -> Tensor:
        inputs = self.processor(text=list(items), return_tensors="pt", padding=True, truncation=True).to(self.device)
        return _features(self.model.get_text_features(**inputs))


def _features(output: Any) -> Tensor:
    # transformers 5 returns an output object whose pooler_output is the projected embedding, 4 the tensor itself.
    return output if hasattr(output, "shape") else output.pooler_output


class _OpenClip:
    def __init__(self, folder: Path, device: str) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        self.device = device
        self.model, self.transform = open_clip.create_model_from_pretrained(name, device=device)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval()

    def images(self, items: Sequence[Image]) -> Tensor:
        import torch

        return self.model.encode_image(torch.stack([self.transform(item) for item in items]).to(self.device))

    def texts(self, items: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(items)).to(self.device))
