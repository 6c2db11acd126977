"""CLIPScore with a small CLIP of random weights, stored as transformers stores one."""

import json
import math

import numpy as np
import pytest
import torch

from visattn.evaluation.captions.clip_score import ClipScore, clip_score, ref_clip_score

transformers = pytest.importorskip("transformers")

CAPTIONS = ["a dog runs", "two cats on a bed", "blue"]
REFERENCES = [["the dog", "a dog runs fast"], ["cats"], ["a red ball", "blue sky", "blue"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path, model_max_length=77)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(path)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    configuration = transformers.CLIPConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 77,
                     "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=12,
    )  # fmt: skip
    torch.manual_seed(4)
    transformers.CLIPModel(configuration).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images():
    from PIL import Image

    generator = np.random.default_rng(5)
    return [Image.fromarray(generator.integers(0, 256, (40, 56, 3), np.uint8)) for _ in CAPTIONS]


@pytest.fixture(scope="module")
def cosines(folder, images):
    """Cosines of the images to the captions, and of each caption to its references, by the model itself."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def text(line):
        inputs = processor(text=[f"A photo depicts {line}"], return_tensors="pt", truncation=True)
        return model.text_projection(model.text_model(**inputs).pooler_output)[0]

    @torch.no_grad()
    def image(picture):
        inputs = processor(images=[picture], return_tensors="pt")
        return model.visual_projection(model.vision_model(**inputs).pooler_output)[0]

    def cosine(first, second):
        return float(first @ second / first.norm() / second.norm())

    of_images = [cosine(image(picture), text(line)) for picture, line in zip(images, CAPTIONS, strict=True)]
    of_references = [
        max(cosine(text(line), text(reference)) for reference in lines)
        for line, lines in zip(CAPTIONS, REFERENCES, strict=True)
    ]
    return of_images, of_references


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_follow_the_published_formula(folder, images, cosines, batch_size):
    of_images, of_references = cosines
    found = ClipScore(folder, batch_size=batch_size).score(images, CAPTIONS, REFERENCES)
    plain = [2.5 * max(cosine, 0) for cosine in of_images]
    assert found.clip_score == pytest.approx(plain, abs=1e-5)
    harmonic = [2 * a * max(b, 0) / (a + max(b, 0)) if a else 0 for a, b in zip(plain, of_references, strict=True)]
    assert found.ref_clip_score == pytest.approx(harmonic, abs=1e-5)


def test_without_references_there_is_no_refclipscore(folder, images):
    assert ClipScore(folder).score(images, CAPTIONS).ref_clip_score is None


def test_captions_longer_than_the_model_reads_are_cut(folder, images):
    long = ["word " * 200] * len(images)
    assert all(map(math.isfinite, ClipScore(folder).score(images, long).clip_score))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds neither config.json \(transformers\) nor open_clip_config.json"
    ):
        ClipScore(tmp_path)


def test_different_numbers_of_images_and_captions_are_refused(folder, images):
    with pytest.raises(ValueError, match="3 images, 2 captions"):
        ClipScore(folder).score(images, CAPTIONS[:2])


def test_an_image_without_references_is_refused(folder, images):
    with pytest.raises(ValueError, match="image 1 has no references"):
        ClipScore(folder).score(images, CAPTIONS, [["a"], [], ["b"]])


def test_negative_cosines_score_0():
    assert clip_score([0.3, -0.2]) == [pytest.approx(0.75), 0]
    assert ref_clip_score([0.75, 0.75, 0.0], [0.5, -0.1, 0.0]) == [pytest.approx(2 * 0.75 * 0.5 / 1.25), 0, 0]
