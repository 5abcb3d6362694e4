"""What is offered as labels of what SAM's selection keeps."""

import time
from threading import Thread, current_thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_objects import candidates_of
from pycocotools import mask as coco

from workbench import Job
from workbench.candidates import offer as module
from workbench.candidates.offer import MaskPairs, Offer, Reason, TileMasks, offered
from workbench.candidates.table import Candidates, Rules
from workbench.candidates.valid import on_valid_pixels
from workbench.raster.tiles import TileGrid

SIZE = 100
RULES = Rules(SIZE, SIZE)
GRID = TileGrid(SIZE, SIZE, SIZE)
EVERYTHING = Offer(None, None, "all")


def box(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def reasons(masks, scores, offer=Offer(), grid=GRID, valid=None):  # noqa: B008
    candidates = candidates_of(masks, scores, RULES)
    tile = TileMasks(candidates, grid.tile(0, 0), grid, valid)
    found = tile.offered(np.arange(len(masks)), offer)
    kept = offered(candidates, grid, {} if valid is None else {(0, 0): valid}, offer)
    assert (found.reason == Reason.OFFERED).sum() == len(kept)
    return [Reason(reason) for reason in found.reason], found.rival.tolist()


def test_the_defaults_are_those_of_a_job():
    assert Job().offer == Offer()


def test_a_mask_as_large_as_its_tile_is_not_offered():
    masks = [box(0, 0, 100, 90), box(5, 5, 60, 60), box(10, 10, 98, 98)]
    told, _ = reasons(masks, [1.0, 0.9, 0.95], Offer(overlaps="all"))
    assert told == [Reason.WHOLE_TILE, Reason.OFFERED, Reason.OFFERED]
    assert reasons(masks, [1.0, 0.9, 0.95], EVERYTHING)[0] == [Reason.OFFERED] * 3


def test_the_share_counts_valid_pixels_only():
    valid = box(0, 0, 40, 50)
    told, _ = reasons([box(0, 0, 38, 48), box(45, 45, 99, 99)], [0.9, 0.9], valid=valid)
    assert told == [Reason.WHOLE_TILE, Reason.OFFERED]


def test_masks_that_differ_in_invalid_pixels_only_are_doubles():
    valid = box(0, 0, 60, 100)  # the second mask is twice as large as what can be seen of it
    told, rival = reasons([box(20, 20, 60, 60), box(20, 20, 100, 60)], [0.9, 0.8], valid=valid)
    assert (told, rival[1]) == ([Reason.OFFERED, Reason.DUPLICATE], 0)
    beyond = TileGrid(60, 100, SIZE)  # the scene ends there
    told, _ = reasons([box(20, 20, 60, 60), box(20, 20, 100, 60)], [0.9, 0.8], grid=beyond)
    assert told == [Reason.OFFERED, Reason.DUPLICATE]


def test_the_valid_pixels_of_many_masks_are_counted():
    masks = [box(0, 0, 1 + i % 90, 2) for i in range(300)]
    candidates = candidates_of(masks, [0.9] * 300, RULES)
    seen = on_valid_pixels(candidates, GRID, {(0, 0): box(0, 0, 100, 1)})
    assert seen.column("area_px").tolist() == [1 + i % 90 for i in range(300)]


def test_only_valid_pixels_count_where_classes_compete_for_a_place():
    candidates = candidates_of([box(20, 20, 60, 60), box(20, 20, 100, 60)], [0.9, 0.9], RULES)
    seen = on_valid_pixels(candidates, GRID, {(0, 0): box(0, 0, 60, 100)})
    assert seen.column("area_px").tolist() == [1600, 1600]
    assert seen.boxes.tolist() == candidates.boxes.tolist()
    first, second = seen.masks()
    np.testing.assert_array_equal(first, second)
    assert on_valid_pixels(candidates, GRID, {}).table == candidates.table


def test_the_share_counts_the_scene_where_it_is_smaller_than_its_tile():
    told, _ = reasons([box(3, 3, 58, 58)], [0.9], grid=TileGrid(60, 60, SIZE))
    assert told == [Reason.WHOLE_TILE]


@pytest.mark.parametrize(
    ("mask", "n"),
    [
        ((0, 40, 100, 60), 2),
        ((1, 40, 99, 100), 3),
        ((0, 0, 100, 60), 3),
        ((0, 50, 100, 60), 2),
    ],
)
def test_a_mask_that_touches_three_edges_of_the_scene_is_background(mask, n):
    expected = Reason.WHOLE_TILE if n >= 3 else Reason.OFFERED
    assert reasons([box(*mask)], [0.9])[0] == [expected]


def test_edges_that_another_tile_sees_beyond_do_not_count():
    grid = TileGrid(300, 300, SIZE)
    assert reasons([box(0, 0, 100, 60)], [0.9], grid=grid)[0] == [Reason.OFFERED]


def test_of_two_near_doubles_the_better_stays():
    masks = [box(10, 10, 50, 50), box(10, 10, 50, 45)]
    told, rival = reasons(masks, [0.8, 0.9])
    assert told == [Reason.DUPLICATE, Reason.OFFERED]
    assert rival == [1, -1]
    assert reasons(masks, [0.8, 0.9], Offer(duplicate_iou=0.9))[0] == [Reason.OFFERED] * 2
    assert reasons(masks, [0.9, 0.9])[0] == [Reason.OFFERED, Reason.DUPLICATE]  # ties by ordinal


def test_masks_are_compared_where_boxes_say_nothing():
    # a diagonal band and its box: the boxes are equal, the masks are not
    band = np.tril(box(10, 10, 60, 60)) & ~np.tril(box(10, 10, 60, 60), -12)
    told, _ = reasons([band, box(10, 10, 60, 60)], [0.9, 0.8], Offer(overlaps="all"))
    assert told == [Reason.OFFERED] * 2


def test_parts_may_lie_on_their_wholes_but_nothing_may_overlap_in_part():
    whole, part, aside = box(10, 10, 60, 60), box(20, 20, 30, 30), box(50, 20, 70, 40)
    scores = [0.95, 0.9, 0.85]
    told, rival = reasons([whole, part, aside], scores)
    assert told == [Reason.OFFERED, Reason.OFFERED, Reason.OVERLAP]
    assert rival == [-1, -1, 0]
    told, _ = reasons([whole, part, aside], scores, Offer(overlaps="one"))
    assert told == [Reason.OFFERED, Reason.OVERLAP, Reason.OVERLAP]
    told, _ = reasons([whole, part, aside], scores, Offer(overlaps="all"))
    assert told == [Reason.OFFERED] * 3


def test_outlines_that_are_not_exact_are_no_overlap():
    told, _ = reasons([box(10, 10, 50, 50), box(46, 10, 80, 50)], [0.9, 0.8], Offer(overlaps="one"))
    assert told == [Reason.OFFERED] * 2


def test_what_is_not_offered_takes_nothing_away():
    masks = [box(10, 10, 50, 50), box(10, 10, 50, 43), box(10, 10, 50, 31)]  # a chain of doubles
    told, rival = reasons(masks, [0.9, 0.8, 0.7], Offer(overlaps="all"))
    assert told == [Reason.OFFERED, Reason.DUPLICATE, Reason.OFFERED]
    assert rival == [-1, 0, -1]


boxes = st.tuples(*[st.integers(0, 80)] * 2, *[st.integers(5, 60)] * 2)


@given(st.lists(boxes, max_size=12), st.randoms(), st.sampled_from(["all", "nested", "one"]))
@settings(deadline=None, max_examples=60)
def test_neither_the_order_of_rows_nor_what_was_asked_before_matters(drawn, random, overlaps):
    masks = [box(x, y, x + w, y + h) for x, y, w, h in drawn]
    scores = [0.5 + i / 100 for i in range(len(masks))]
    candidates, offer = candidates_of(masks, scores, RULES), Offer(overlaps=overlaps)
    kept = offered(candidates, GRID, {}, offer).column("ordinal").tolist()
    shuffled = np.array(random.sample(range(len(masks)), len(masks)), int)
    again = offered(candidates.take(shuffled), GRID, {}, offer).column("ordinal")
    assert sorted(again.tolist()) == kept
    tile = TileMasks(candidates, GRID.tile(0, 0), GRID, None)
    some = np.flatnonzero(np.array([random.random() < 0.5 for _ in masks], bool))
    tile.offered(some, offer)
    reason = tile.offered(np.arange(len(masks)), offer).reason
    assert candidates.column("ordinal")[reason == Reason.OFFERED].tolist() == kept


def plain(masks, order, offer):
    """Which masks are labels, decided one by one, best first, on the pixels themselves."""
    kept = []
    for i in order:
        allowed = masks[i].mean() <= offer.max_area_share
        for j in kept:
            common, smaller = (masks[i] & masks[j]).sum(), min(masks[i].sum(), masks[j].sum())
            double = common > offer.duplicate_iou * (masks[i] | masks[j]).sum()
            partly = common > offer.apart * smaller
            if offer.overlaps == "nested":
                partly &= common < module.INSIDE * smaller
            allowed &= not (double or (partly and offer.overlaps != "all"))
        if allowed:
            kept.append(i)
    return sorted(kept)


settings_of_a_slider = st.lists(st.integers(0, 12), min_size=1, max_size=4)


@given(
    st.lists(boxes, max_size=12), st.randoms(), st.sampled_from(["all", "nested", "one"]),
    st.booleans(), settings_of_a_slider, st.sampled_from([2, 1024]),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_each_step_of_a_slider_decides_as_one_by_one_would(
    drawn, random, overlaps, ahead, steps, at_once
):
    masks = [box(x, y, x + w, y + h) for x, y, w, h in drawn]
    scores = [random.randrange(50, 100) / 100 for _ in masks]
    best_first = np.lexsort((np.arange(len(masks)), -np.float32(scores)))
    candidates, offer = candidates_of(masks, scores, RULES), Offer(overlaps=overlaps)
    tile = TileMasks(
        candidates, TileGrid(300, 300, SIZE).tile(1, 1), TileGrid(300, 300, SIZE), None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        for n in steps:
            if ahead:
                tile.compare(np.sort(best_first[: n + 2]))
            selected = np.sort(best_first[:n])
            assert tile.labels(selected, offer).tolist() == plain(masks, best_first[:n], offer)


@given(st.lists(boxes, min_size=1, max_size=8), st.sampled_from(["all", "nested", "one"]))
@settings(deadline=None, max_examples=60)
def test_one_more_label_may_join_if_it_would_be_kept_as_the_last_one(drawn, overlaps):
    masks = [box(x, y, x + w, y + h) for x, y, w, h in drawn]
    offer = Offer(overlaps=overlaps)
    candidates = candidates_of(masks, [0.9] * len(masks), RULES)
    grid = TileGrid(300, 300, SIZE)
    tile = TileMasks(candidates, grid.tile(1, 1), grid, None)
    *others, last = range(len(masks))
    labels = tile.labels(np.array(others, int), offer)
    kept = plain(masks, [*labels.tolist(), last], offer)
    assert tile.may_join(last, labels, offer) == (last in kept)


def test_masks_are_compared_once(monkeypatch):
    compared = []

    def iou(ours, theirs, crowd):
        compared.append((len(ours), len(theirs)))
        return coco_iou(ours, theirs, crowd)

    coco_iou = coco.iou
    monkeypatch.setattr(coco, "iou", iou)
    masks = [box(10, 10, 30, 30), box(20, 10, 40, 30), box(60, 60, 90, 90), box(62, 60, 90, 90)]
    tile = TileMasks(candidates_of(masks, [0.9] * 4, RULES), GRID.tile(0, 0), GRID, None)
    tile.compare(np.arange(3))
    assert compared.pop() == (3, 3)
    for rows in ([0, 1], [0, 2], [2]):
        tile.offered(np.array(rows), Offer())
    assert compared == []
    tile.offered(np.arange(4), Offer())  # only the third mask is near the new one
    assert compared == [(1, 1), (1, 1)]


def test_two_threads_compare_each_pair_once(monkeypatch):
    """A pair of a mask with itself, as once from two at a time, would never be decided."""
    between = MaskPairs.between

    def slowly(pairs, ours, theirs):
        found = between(pairs, ours, theirs)
        time.sleep(0.03 if current_thread().name == "slow" else 0.01)
        return found

    monkeypatch.setattr(MaskPairs, "between", slowly)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    masks = [box(10 + 2 * n, 10, 40 + 2 * n, 40) for n in range(8)]
    tile = TileMasks(candidates_of(masks, [0.9] * 8, RULES), GRID.tile(0, 0), GRID, None)
    threads = [
        Thread(target=tile.compare, args=[np.arange(8)], name=name) for name in ("slow", "fast")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pairs = np.sort(np.column_stack((tile.pairs.shared.i, tile.pairs.shared.j)), axis=1)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 8 * 7 // 2


def test_no_masks_are_fine():
    assert len(offered(Candidates.empty(RULES), GRID, {}, Offer())) == 0
    tile = TileMasks(Candidates.empty(RULES), GRID.tile(0, 0), GRID, None)
    assert len(tile.offered(np.empty(0, int), Offer()).reason) == 0
