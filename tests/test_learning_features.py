"""Features: what they say of simple shapes, and that they say the same at another size."""

import cv2
import numpy as np
import pytest
from known_objects import candidates_of

from workbench.candidates.table import Candidates, Rules
from workbench.learning.features import FEATURES, SceneColours, describe
from workbench.learning.store import FeatureStore

PLAIN = SceneColours.of_pixels(np.empty((0, 3), np.uint8))


def disc(radius, size=200):
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return x**2 + y**2 < radius**2


def rectangle(width, height, angle=0, size=200):
    box = cv2.boxPoints(((size / 2, size / 2), (width, height), angle))
    return cv2.fillPoly(np.zeros((size, size), np.uint8), [box.astype(int)], 1).astype(bool)


def figures(masks, image=None, valid=None, pixel_m=1.0, scores=None):
    """The features of some masks of one tile, by name, each `(n,)`."""
    size = masks[0].shape[0]
    image = np.full((size, size, 3), 90, np.uint8) if image is None else image
    valid = np.ones((size, size), bool) if valid is None else valid
    scores = np.full(len(masks), 0.9) if scores is None else scores
    candidates = candidates_of(masks, scores, Rules(size, size))
    table = describe(candidates, image, valid, PLAIN, pixel_m)
    return dict(zip(FEATURES, table.T, strict=True))


def test_shapes_are_told_apart():
    got = figures([disc(40), rectangle(90, 30), rectangle(90, 30, 30)])
    assert got["compactness"][0] == pytest.approx(1, abs=0.08)
    assert got["rectangularity"] == pytest.approx([np.pi / 4, 1, 1], abs=0.06)
    assert got["solidity"] == pytest.approx([1, 1, 1], abs=0.06)
    assert got["rectangle_ratio"] == pytest.approx([1, 1 / 3, 1 / 3], abs=0.04)
    assert got["elongation"] == pytest.approx([1, 1 / 3, 1 / 3], abs=0.03)
    assert got["box_fill"][2] < 0.6 < got["box_fill"][1]


def test_a_ring_is_not_solid():
    got = figures([disc(40) & ~disc(30)])
    assert got["solidity"][0] == pytest.approx(1 - 9 / 16, abs=0.03)


def test_size_is_in_ground_metres():
    small, large = figures([disc(20)], pixel_m=0.6), figures([disc(60)], pixel_m=0.2)
    for name in ("log_area", "log_perimeter", "log_width"):
        assert small[name] == pytest.approx(large[name], abs=0.05)
    assert np.exp(small["log_area"])[0] == pytest.approx(np.pi * 12**2, rel=0.03)


def test_figures_are_the_same_at_another_resolution():
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 90, (128, 128, 3)).astype(np.uint8)
    coarse[disc(30, 128)] += 80
    fine = cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_NEAREST)
    one = figures([disc(30, 128)], coarse, pixel_m=0.8)
    other = figures([disc(120, 512)], fine, pixel_m=0.2)
    for name in FEATURES:
        if "texture" not in name and not name.startswith(("edge", "spread")):
            assert one[name] == pytest.approx(other[name], abs=3 if "_" in name else 0.2), name


def test_contrast_is_that_of_inside_and_ring():
    image = np.full((200, 200, 3), 100, np.uint8)
    image[disc(30)] = 150
    got = figures([disc(30), disc(60)], image)
    assert got["contrast_brightness"][0] > 20
    assert abs(got["contrast_brightness"][1]) < got["contrast_brightness"][0]
    assert got["edge_ratio"][0] > 2 > got["edge_ratio"][1]
    assert got["separation"][0] > got["separation"][1]


def test_the_shadow_side_is_seen():
    image = np.full((200, 200, 3), 120, np.uint8)
    plain = figures([disc(30)], image)
    shadow = disc(38) & (np.mgrid[:200, :200][1] > 100) & ~disc(30)
    image[shadow] = 20
    assert figures([disc(30)], image)["darkest_side"][0] < plain["darkest_side"][0] - 20


def test_half_an_object_has_a_side_without_contrast():
    image = np.full((200, 200, 3), 100, np.uint8)
    whole = rectangle(80, 60)
    image[whole] = 160
    half = whole & (np.mgrid[:200, :200][1] < 100)
    got = figures([whole, half], image)
    assert got["weakest_side"][0] > 4 * got["weakest_side"][1]
    assert got["weakest_edge"][0] > 2 * got["weakest_edge"][1]


def test_two_objects_in_one_have_edges_and_tones_inside():
    image = np.full((200, 200, 3), 100, np.uint8)
    left, right = (np.roll(rectangle(40, 60), by, axis=1) for by in (-22, 22))
    image[left], image[right] = 160, 190
    both = rectangle(86, 60)
    got = figures([left, both], image)
    assert got["inner_edges"][0] < 0.02 < got["inner_edges"][1]
    assert got["tones"][1] > 4 * got["tones"][0]
    assert got["edge_spread"][1] > 4 * got["edge_spread"][0]


def test_how_much_parts_cover_and_how_many_edges_of_the_tile_are_touched():
    whole = rectangle(80, 80)
    parts = [np.roll(rectangle(30, 30), by, axis=1) for by in (-20, 20)]
    corner = np.zeros((200, 200), bool)
    corner[:40, 170:] = True
    got = figures([whole, *parts, corner])
    share = 31**2 / 81**2
    assert got["largest_part"] == pytest.approx([share, 0, 0, 0], abs=0.01)
    assert got["parts_cover"] == pytest.approx([2 * share, 0, 0, 0], abs=0.02)
    assert got["tile_sides"].tolist() == [0, 0, 0, 2]


def test_light_of_another_day_changes_little():
    rng = np.random.default_rng(1)
    image = rng.integers(40, 120, (200, 200, 3)).astype(np.uint8)
    image[disc(30)] = (150, 90, 60)
    bright = np.clip(image * 1.5 + 10, 0, 255).astype(np.uint8)
    masks = candidates_of([disc(30)], [0.9], Rules(200, 200))
    one, other = (
        describe(masks, pixels, np.ones((200, 200), bool),
                 SceneColours.of_pixels(pixels.reshape(-1, 3)), 1.0)[0]
        for pixels in (image, bright)
    )  # fmt: skip
    assert one == pytest.approx(other, rel=0.1, abs=6)


def test_parts_parents_and_doubles_are_counted():
    whole, part, double = rectangle(80, 80), rectangle(30, 30), rectangle(82, 80)
    got = figures([whole, part, double], scores=[0.9, 0.8, 0.95])
    assert np.expm1(got["log_parts"]) == pytest.approx([1, 0, 1], abs=1e-3)
    assert np.expm1(got["log_parents"]) == pytest.approx([0, 2, 0], abs=1e-3)
    assert np.expm1(got["log_doubles"]) == pytest.approx([1, 0, 1], abs=1e-3)
    assert got["lead"] == pytest.approx([-0.05, 0.5, 0.05], abs=1e-3)


def test_invalid_pixels_and_the_tile_edge_count_for_nothing():
    image = np.full((200, 200, 3), 120, np.uint8)
    valid = np.ones((200, 200), bool)
    image[:, 140:], valid[:, 140:] = 0, False
    masks = [rectangle(78, 60), np.roll(rectangle(60, 60), -70, axis=1)]
    got = figures(masks, image, valid)
    assert got["contrast_brightness"] == pytest.approx([0, 0], abs=1)


@pytest.mark.parametrize("mask", [np.zeros((64, 64), bool), np.ones((64, 64), bool)])
def test_odd_masks_have_finite_figures(mask):
    point = np.zeros((64, 64), bool)
    point[3, 5] = True
    line = np.zeros((64, 64), bool)
    line[np.arange(64), np.arange(64)] = True
    got = figures([point, line, mask | point])
    assert all(np.isfinite(values).all() for values in got.values())


def test_no_candidates_give_no_rows():
    table = describe(
        Candidates.empty(Rules(64, 64)), np.zeros((64, 64, 3), np.uint8),
        np.ones((64, 64), bool), PLAIN, 1.0,
    )  # fmt: skip
    assert table.shape == (0, len(FEATURES))


def test_the_order_of_candidates_does_not_matter():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (200, 200, 3)).astype(np.uint8)
    masks = [disc(r) for r in (10, 20, 40, 60)]
    candidates = candidates_of(masks, [0.9, 0.8, 0.7, 0.6], Rules(200, 200))
    order = np.array([2, 0, 3, 1])
    valid = np.ones((200, 200), bool)
    one = describe(candidates, image, valid, PLAIN, 1.0)
    other = describe(candidates.take(order), image, valid, PLAIN, 1.0)
    assert (one[order] == other).all()


def test_features_are_computed_once_and_never_stand_for_others(tmp_path):
    store, calls = FeatureStore(tmp_path / "features"), []
    candidates = candidates_of([disc(10), disc(20)], [0.9, 0.8], Rules(200, 200))

    def compute():
        calls.append(1)
        return np.full((2, len(FEATURES)), len(calls), np.float32)

    first = store.figures(candidates, "scene", compute)
    assert (store.figures(candidates, "scene", compute) == first).all()
    assert len(calls) == 1
    store.figures(candidates, "another scene", compute)
    store.figures(candidates.take(np.array([1, 0])), "scene", compute)
    assert len(calls) == 3
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    store.figures(candidates, "scene", compute)
    assert len(calls) == 4
    (tmp_path / "features" / "mine.parquet").write_text("not ours")
    store.clear()
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["mine.parquet"]
