import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from visattn.data.scene_coco import coco_captions, coco_instances
from visattn.data.scenes import draw_scene


def loaded(contents):
    coco = COCO()
    coco.dataset = contents
    coco.createIndex()
    return coco


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_instances_are_what_pycocotools_reads():
    coco = loaded(coco_instances(0, range(3, 9), 50))
    assert sorted(coco.imgs) == list(range(3, 9))
    for index in coco.imgs:
        objects = draw_scene(0, index, 50).objects
        annotations = coco.loadAnns(coco.getAnnIds(index))
        assert [coco.cats[annotation["category_id"]]["name"] for annotation in annotations] == [
            thing.kind for thing in objects
        ]
        for annotation, thing in zip(annotations, objects, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), thing.mask)
            assert annotation["bbox"] == run_lengths.toBbox(annotation["segmentation"]).tolist()
            assert annotation["area"] == run_lengths.area(annotation["segmentation"])


def test_captions_are_what_pycocotools_reads():
    coco = loaded(coco_captions(0, [4, 2], 32))
    sentences = [annotation["caption"] for annotation in coco.loadAnns(coco.getAnnIds(2))]
    assert tuple(sentences) == draw_scene(0, 2, 32).captions
