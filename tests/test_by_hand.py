"""Clicks and boxes on a tile that a network has seen."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import shapely
import torch
from known_objects import scene_of
from rasterio.windows import Window
from small_sams import small_sam

from workbench.candidates.table import Rules
from workbench.samples.demo import make_sample
from workbench.segmenters.sam import SamSegmenter, sam_segmenter
from workbench.segmenters.sam.by_hand import EncodedTile
from workbench.tuning.clicks import TileOfScene
from workbench.tuning.questions import Clicks

from segment_anything import SamPredictor  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")
ON, BESIDE = np.array([True]), np.array([False])


@cache
def image() -> np.ndarray:
    return make_sample(256, 3).rgb


@cache
def by_tiny() -> EncodedTile:
    return EncodedTile.of(sam_segmenter("tiny"), image())


@pytest.mark.parametrize("with_box", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_clicks_a_box_and_a_mask_are_asked_as_sam_asks_them(
    with_box: bool, with_mask: bool
) -> None:
    torch.manual_seed(0)
    sam = small_sam()
    points = np.array([[60.0, 80.0], [70.5, 90.0], [200.0, 30.0]])
    on_object = np.array([True, True, False])
    box = np.array([40.0, 50.0, 120.0, 140.0]) if with_box else None
    tile = EncodedTile.of(SamSegmenter(lambda: sam, "vit_b", ""), image())
    before, logits = None, None
    if with_mask:  # in whole pixels of the mask prompt, which has an eighth of the image's
        before = np.zeros((256, 256), bool)
        before[40:136, 48:120] = True
        logits = np.where(before[::8, ::8], 1, -1)[None] * np.log(0.999 / 0.001)
    answer = tile.answer(points, on_object, box, before)
    predictor = SamPredictor(sam)
    predictor.set_image(image())
    masks, ious, _ = predictor.predict(points, on_object.astype(int), box=box, mask_input=logits)
    same = [(answer.mask == mask).mean() > 0.999 for mask in masks]
    assert any(same)
    assert answer.pred_iou == pytest.approx(float(ious[same.index(True)]), abs=1e-4)


def test_a_click_gets_one_of_the_masks_of_a_prompt() -> None:
    tile, point = by_tiny(), np.array([[130.0, 120.0]])
    everything = replace(tile.segmenter, rules=Rules(256, 256, 0.0, 0.0))
    found, _ = everything.answer(image(), point)
    answer = tile.answer(point, ON)
    assert answer.mask[120, 130]
    assert any(np.array_equal(answer.mask, mask) for mask in found.masks())


def test_what_is_beside_the_object_leaves_the_mask() -> None:
    """Of three masks one without that place is taken; else the mask there is taken away."""
    tile = by_tiny()
    rng = np.random.default_rng(0)
    for x, y in rng.integers(20, 236, (10, 2)).tolist():
        first = np.array([[x, y]], float) + 0.5
        mask = tile.answer(first, ON).mask
        inside = np.argwhere(mask)
        if not len(inside):
            continue
        far = inside[np.argmax(np.hypot(*(inside - (y, x)).T))]
        clicks = np.vstack([first, far[::-1] + 0.5])
        mended = tile.answer(clicks, np.array([True, False])).mask
        assert mended.sum() < mask.sum() or not mended[far[0], far[1]]


def test_a_second_click_adds_to_the_mask() -> None:
    tile = by_tiny()
    one, other = np.array([[40.0, 40.0]]), np.array([[200.0, 180.0]])
    both = tile.answer(np.vstack([one, other]), np.array([True, True])).mask
    assert both[40, 40]
    assert both[180, 200]


def test_each_click_counts_though_masks_beside_it_are_offered() -> None:
    tile = by_tiny()
    rng = np.random.default_rng(1)
    for clicks in rng.integers(5, 251, (20, 2, 2)):
        mask = tile.answer(clicks + 0.5, np.array([True, True])).mask
        assert mask[clicks[:, 1], clicks[:, 0]].all()


def test_only_a_click_beside_the_object_gives_nothing() -> None:
    assert not by_tiny().answer(np.array([[40.0, 40.0]]), BESIDE).mask.any()


def test_a_box_alone_is_enough() -> None:
    answer = by_tiny().answer(np.empty((0, 2)), np.empty(0, bool), np.array([30.0, 30, 90, 100]))
    assert answer.mask[65, 60]


def clicks_at(x: float, y: float, shape: shapely.MultiPolygon | None = None) -> Clicks:
    return Clicks(np.array([[x, y]]), ON, shape=shape)


def on_the_map() -> TileOfScene:
    window, valid = Window(300, 200, 256, 256), np.ones((256, 256), bool)
    return TileOfScene(by_tiny(), scene_of(1000, 1000), window, valid)


def test_the_polygon_lies_on_the_map() -> None:
    tile = on_the_map()
    to_map = tile.scene.transform
    x, y = to_map @ (300 + 130.5, 200 + 120.5)
    shape, pred_iou = tile.polygon_at(clicks_at(x, y))
    assert shapely.contains_xy(shape, x, y)
    mask = by_tiny().answer(np.array([[130.5, 120.5]]), ON).mask
    assert shape.area == pytest.approx(mask.sum() * 0.25)
    assert 0 < pred_iou <= 1.1
    west, north = to_map @ (330, 230)
    east, south = to_map @ (390, 300)
    box = np.array([west, south, east, north])
    shape, _ = tile.polygon_at(Clicks(np.empty((0, 2)), np.empty(0, bool), box))
    assert shapely.intersects(shape, shapely.box(*box))


def test_what_lies_outside_of_the_tile_of_a_corrected_outline_stays() -> None:
    tile = on_the_map()
    before = shapely.multipolygons([shapely.box(*tile.scene.bounds)])
    x, y = tile.scene.transform @ (430.5, 320.5)
    shape, _ = tile.polygon_at(clicks_at(x, y, before))
    assert shapely.symmetric_difference(shape, before).area < 1e-6


def test_a_mask_is_corrected_by_clicks() -> None:
    tile = by_tiny()
    before = np.zeros((256, 256), bool)
    before[20:60, 30:200] = True
    first = np.array([[130.0, 120.0]])
    added = tile.answer(first, ON, before=before).mask
    assert added[before].all()
    assert added[120, 130]
    taken = tile.answer(np.array([[100.0, 40.0]]), BESIDE, before=before).mask
    assert taken.any()
    assert not (taken & ~before).any()
    assert not taken[40, 100]
