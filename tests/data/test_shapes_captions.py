import pytest
import torch

from visattn.data import ShapesCaptionsDataModule
from visattn.data.scenes import draw_scene


def prepared(**options):
    data = ShapesCaptionsDataModule(
        32, batch_size=4, train_scenes=60, validation_scenes=7, test_scenes=5, mean=(0, 0, 0), std=(1, 1, 1), **options
    )
    data.prepare_data()
    data.setup()
    return data


def test_scenes_have_their_own_captions_and_are_in_one_split():
    data = prepared(seed=3)
    first = 0
    for split, number in (("test", 5), ("validation", 7), ("train", 60)):
        references = data.references(split)
        assert list(references) == list(range(first, first + number))
        for place, (index, captions) in enumerate(references.items()):
            scene = draw_scene(3, index, 32)
            assert captions == list(scene.captions)
            assert torch.equal(data.splits[split].images[place], torch.from_numpy(scene.image).permute(2, 0, 1))
        first += number


def test_every_caption_comes_whole_and_every_word_is_known():
    data = prepared()
    found = set()
    for epoch_batches in [list(data.train_dataloader())]:
        for _, token_ids, index in epoch_batches:
            assert not (token_ids == data.tokenizer.unknown_id).any()
            found |= {(image, data.tokenizer.decode(row)) for image, row in zip(index.tolist(), token_ids, strict=True)}
    words = str.maketrans({",": "", ":": ""})
    assert found == {
        (image, " ".join(caption.translate(words).split()))
        for image, captions in enumerate(data.splits["train"].captions)
        for caption in captions
    }


def test_a_seed_draws_the_same_scenes_and_another_draws_others():
    assert prepared().references("test") == prepared().references("test")
    assert prepared().references("test") != prepared(seed=1).references("test")


def test_a_flip_would_make_captions_false():
    with pytest.raises(ValueError, match="what is left and right: flip must be 0"):
        prepared(augmentation={"flip": 0.5})
    assert prepared(augmentation={"flip": 0.0, "crop_padding": 2}).train_dataloader()
