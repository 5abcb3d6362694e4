"""Advice by verdicts on single polygons: scenes where the right thresholds are known."""

import numpy as np
import pytest

from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds
from workbench.candidates.table import Candidates, Rules
from workbench.errors import ReviewError
from workbench.evaluation.judged import advise_judged

CURRENT = Thresholds(0.5, 0.5)


def tile(*objects: tuple[float, float, int]) -> Candidates:
    """Candidates of 10 × 10 pixels, from predicted IoU, stability, and place in a row."""
    masks = np.zeros((len(objects), 20, 400), bool)
    for mask, (_, _, place) in zip(masks, objects, strict=True):
        mask[5:15, 12 * place : 12 * place + 10] = True
    boxes = np.array([[12 * p, 5, 12 * p + 9, 14] for _, _, p in objects])
    n = len(objects)
    return Candidates.from_columns(
        Rules(20, 400, pred_iou_floor=0.3, stability_floor=0.3),
        {
            "tile_row": np.zeros(n), "tile_col": np.zeros(n), "ordinal": np.arange(n),
            "pred_iou": [o[0] for o in objects], "stability_score": [o[1] for o in objects],
            "x0": boxes[:, 0], "y0": boxes[:, 1], "x1": boxes[:, 2], "y1": boxes[:, 3],
            "area_px": np.full(n, 100), "point_x": boxes[:, 0], "point_y": boxes[:, 1],
            "crop_x0": np.zeros(n), "crop_y0": np.zeros(n), "crop_x1": np.full(n, 400),
            "crop_y1": np.full(n, 20), "rle": encode_masks(masks),
        },
    )  # fmt: skip


def clear_tile(seed: int, n: int = 12) -> tuple[Candidates, dict[int, bool]]:
    """Good ones score above 0.81, bad ones below 0.74; stability says nothing."""
    rng = np.random.default_rng(seed)
    good = np.arange(n) % 2 == 0
    scores = np.where(good, rng.uniform(0.81, 0.9, n), rng.uniform(0.71, 0.74, n))
    objects = zip(scores, rng.uniform(0.6, 1, n), range(n), strict=True)
    return tile(*objects), dict(enumerate(good.tolist()))


def test_the_thresholds_that_part_good_from_bad_are_found():
    advice = advise_judged([clear_tile(seed) for seed in range(3)], CURRENT)
    assert advice.advised == Thresholds(0.75, 0.5)  # the nearest of those that are right
    assert (advice.shown_good, advice.shown_bad) == (18, 0)
    assert (advice.before_good, advice.before_bad) == (18, 18)
    assert (advice.at_current, advice.held_out) == (pytest.approx(2 / 3), 1)
    assert "18 of 18 good polygons are shown (18 before) and 0 of 18 bad ones" in str(advice)


def test_one_tile_is_enough():
    assert advise_judged([clear_tile(1)], CURRENT).advised == Thresholds(0.75, 0.5)


def test_thresholds_that_are_right_stay():
    here = Thresholds(0.78, 0.55)
    advice = advise_judged([clear_tile(seed) for seed in range(3)], here)
    assert advice.advised == here
    assert not advice.is_change
    assert str(advice).startswith("The thresholds stay: F1 of the 36 verdicts is 1.00")


def test_what_nobody_judged_has_no_say():
    candidates, verdicts = clear_tile(2)
    few = {ordinal: verdicts[ordinal] for ordinal in (0, 1, 2, 3)}
    advice = advise_judged([(candidates, few)], CURRENT)
    assert (advice.n_good, advice.n_bad) == (2, 2)
    assert advice.shown_good == 2


def test_another_candidate_of_the_object_shows_it_as_well():
    # at the current thresholds a better one with little stability hides the judged one
    rivals = [(0.9, 0.6, 0), (0.8, 0.97, 0), (0.7, 0.97, 1), (0.6, 0.97, 2)]
    candidates = tile(*rivals)
    advice = advise_judged([(candidates, {1: True, 2: False, 3: False})], CURRENT)
    assert (advice.before_good, advice.before_bad) == (1, 2)
    assert (advice.shown_good, advice.shown_bad) == (1, 0)


def test_luck_is_no_advice():
    # verdicts that have nothing to do with scores still have a best point
    told = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tiles = []
        for _ in range(4):
            objects = zip(rng.uniform(0.5, 1, 6), rng.uniform(0.5, 1, 6), range(6), strict=True)
            tiles.append((tile(*objects), dict(enumerate((rng.random(6) < 0.7).tolist()))))
        advice = advise_judged(tiles, CURRENT)
        told.append((advice.is_change, advice.held_out - advice.at_current))
    changed, gain = np.mean(told, axis=0)
    assert changed < 0.2
    assert gain < 0


def test_verdicts_of_one_kind_are_refused():
    candidates, verdicts = clear_tile(0)
    with pytest.raises(ReviewError, match="6 polygons are called good and 0 bad"):
        advise_judged([(candidates, {k: v for k, v in verdicts.items() if v})], CURRENT)
    with pytest.raises(ReviewError, match="0 polygons are called good and 0 bad"):
        advise_judged([(candidates, {})], CURRENT)
