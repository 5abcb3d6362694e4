"""Selection and pruning against an oracle in plain loops."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_objects import candidates_of

from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds, nms, prune, select
from workbench.candidates.table import SCHEMA, Candidates, Rules, concat

# ------------------------------------------------------------------------------- the oracle


def box_iou(a: list[int], b: list[int]) -> float:
    """Of boxes between pixel centres; whole numbers are exact, so only the division rounds."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(np.float32(inter) / np.float32(union)) if union else 0.0


def suppress(boxes: list[list[int]], scores: list[float], thresh: float) -> list[int]:
    """Greedy non-maximum suppression; of equal scores the first wins."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if not any(box_iou(boxes[k], boxes[i]) > thresh for k in kept):
            kept.append(i)
    return kept


def select_by_oracle(candidates: Candidates, thresholds: Thresholds) -> list[bytes]:
    """The RLEs that SAM's generator would keep, read off its source, row by row."""
    rules, kept = candidates.rules, []
    rows = sorted(candidates.table.to_pylist(), key=lambda row: row["ordinal"])
    for tile in sorted({(row["tile_row"], row["tile_col"]) for row in rows}):
        survivors = []
        of_tile = [row for row in rows if (row["tile_row"], row["tile_col"]) == tile]
        for crop in dict.fromkeys(map(crop_of, of_tile)):
            passed = [
                row
                for row in of_tile
                if crop_of(row) == crop
                and (
                    thresholds.pred_iou_thresh == 0
                    or row["pred_iou"] > np.float32(thresholds.pred_iou_thresh)
                )
                and (
                    thresholds.stability_score_thresh == 0
                    or row["stability_score"] >= np.float32(thresholds.stability_score_thresh)
                )
            ]
            best = suppress(
                [box_of(row) for row in passed],
                [row["pred_iou"] for row in passed],
                rules.box_nms_thresh,
            )
            survivors += [passed[i] for i in best]
        if rules.crop_n_layers > 0:
            areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in map(crop_of, survivors)]
            best = suppress(
                [box_of(row) for row in survivors],
                [1 / area for area in areas],
                rules.crop_nms_thresh,
            )
            survivors = [survivors[i] for i in best]
        kept += [row["rle"] for row in sorted(survivors, key=lambda row: row["ordinal"])]
    return kept


def crop_of(row: dict) -> tuple[int, ...]:
    return tuple(row[f"crop_{name}"] for name in ("x0", "y0", "x1", "y1"))


def box_of(row: dict) -> list[int]:
    return [row[name] for name in ("x0", "y0", "x1", "y1")]


def rles(candidates: Candidates) -> list[bytes]:
    return candidates.table.column("rle").to_pylist()


# --------------------------------------------------------------------------- random tables

CROPS = [(0, 0, 100, 100), (0, 0, 60, 60), (40, 0, 100, 60)]  # two of one area
# No twentieth is a float32: a score of 0.85 must not exceed a threshold of 0.85.
twentieths = st.integers(0, 20).map(lambda n: n / 20)
some_thresholds = st.builds(
    Thresholds,
    st.one_of(twentieths, st.floats(0, 1)),
    st.one_of(twentieths, st.floats(0, 1)),
)


@st.composite
def several_rows(draw: st.DrawFn) -> list[tuple]:
    """Coarse values, so that overlaps, ties and scores equal to a threshold are the rule."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, 40))
    return sorted(
        zip(
            random.integers(0, 2, n).tolist(),  # tiles
            random.integers(0, 3, n).tolist(),  # crops
            np.hstack([random.integers(0, 3, (n, 2)), random.choice([0, 3, 4, 5, 6], (n, 2))]),
            (random.integers(0, 21, n) / 20).tolist(),
            random.choice([*np.arange(21) / 20, np.nan, np.nan], n).tolist(),
            strict=True,
        ),
        key=lambda row: row[:2],
    )


@st.composite
def tables(draw: st.DrawFn) -> Candidates:
    """A few tiles and crops without floors; the RLE of each row is its name."""
    rules = Rules(
        height=100,
        width=100,
        pred_iou_floor=0.0,
        stability_floor=0.0,
        box_nms_thresh=draw(st.sampled_from([0.3, 0.5, 0.7])),
        crop_nms_thresh=draw(st.sampled_from([0.25, 0.5, 0.8])),
        crop_n_layers=draw(st.integers(0, 1)),
    )
    return table_of(draw(several_rows()), rules)


def table_of(rows: list[tuple], rules: Rules) -> Candidates:
    tiles, crops, corners, ious, stabilities = zip(*rows, strict=True) if rows else ([],) * 5
    x, y, w, h = np.array(corners, int).reshape(-1, 4).T * 5
    crop_boxes = np.array([CROPS[crop] for crop in crops], int).reshape(-1, 4).T
    n = len(rows)
    return Candidates.from_columns(
        rules,
        {
            "tile_row": np.zeros(n, int),
            "tile_col": np.array(tiles, int),
            "ordinal": np.arange(n),
            "pred_iou": np.array(ious, np.float32),
            "stability_score": np.array(stabilities, np.float32),
            **{"x0": x, "y0": y, "x1": x + w, "y1": y + h},
            "area_px": w * h,
            "point_x": x.astype(float),
            "point_y": y.astype(float),
            **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), crop_boxes, strict=True)),
            "rle": [str(i).encode() for i in range(n)],
        },
    )


@settings(max_examples=200, deadline=None)
@given(tables(), some_thresholds)
def test_C1_select_keeps_what_the_generator_would(
    candidates: Candidates, thresholds: Thresholds
) -> None:
    assert rles(select(candidates, thresholds)) == select_by_oracle(candidates, thresholds)


@settings(max_examples=200, deadline=None)
@given(tables(), st.lists(some_thresholds, min_size=4, max_size=4))
def test_pruned_rows_could_never_have_been_selected(
    candidates: Candidates, several: list[Thresholds]
) -> None:
    pruned = prune(candidates)
    for thresholds in [Thresholds(0, 0), *several]:
        assert rles(select(pruned, thresholds)) == rles(select(candidates, thresholds))


@settings(max_examples=100, deadline=None)
@given(tables(), some_thresholds, st.randoms(use_true_random=False))
def test_C3_the_order_of_rows_does_not_matter(
    candidates: Candidates, thresholds: Thresholds, random: object
) -> None:
    order = list(range(len(candidates)))
    random.shuffle(order)
    shuffled = candidates.take(np.array(order, int))
    assert rles(select(shuffled, thresholds)) == rles(select(candidates, thresholds))
    assert rles(prune(shuffled)) == rles(prune(candidates))


@settings(max_examples=200, deadline=None)
@given(several_rows(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_equals_plain_loops(rows: list[tuple], thresh: float) -> None:
    table = table_of(rows, Rules(100, 100))
    boxes, scores = table.boxes.astype(np.float32), table.column("pred_iou")
    assert nms(boxes, scores, thresh).tolist() == suppress(boxes.tolist(), scores.tolist(), thresh)


# ----------------------------------------------------------------------------- examples

ABOVE_ALL = Rules(100, 100, pred_iou_floor=0.0, stability_floor=0.0)
EARLY, LATE, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (12, 12, 4, 4)  # EARLY, LATE: box IoU 0.9


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        # the better score is as stable: the other can never win
        ([(0, 0, EARLY, 0.9, 0.9), (0, 0, LATE, 0.8, 0.9)], [b"0"]),
        # the other is more stable: it wins once the first is filtered
        ([(0, 0, EARLY, 0.9, 0.8), (0, 0, LATE, 0.8, 0.9)], [b"0", b"1"]),
        # equal scores: the first of the generator's order is suppressed by none
        ([(0, 0, LATE, 0.9, 0.9), (0, 0, EARLY, 0.9, 0.9)], [b"0"]),
        # apart, in two crops, in two tiles: nothing overlaps
        ([(0, 0, EARLY, 0.9, 0.9), (0, 0, FAR, 0.8, 0.8)], [b"0", b"1"]),
        ([(0, 0, EARLY, 0.9, 0.9), (0, 1, EARLY, 0.8, 0.8)], [b"0", b"1"]),
        ([(0, 0, EARLY, 0.9, 0.9), (1, 0, EARLY, 0.8, 0.8)], [b"0", b"1"]),
        # a stability that is not a number passes only where nothing is filtered
        ([(0, 0, EARLY, 0.9, float("nan")), (0, 0, LATE, 0.8, 0.5)], [b"0", b"1"]),
        # what was dropped settles what it had overlapped
        ([(0, 0, EARLY, 0.9, 0.9), (0, 0, EARLY, 0.8, 0.9), (0, 0, LATE, 0.7, 0.9)], [b"0"]),
    ],
)
def test_pruning_by_example(rows: list[tuple], left: list[bytes]) -> None:
    assert rles(prune(table_of(rows, ABOVE_ALL))) == left


def test_pruning_holds_only_for_its_own_box_nms_thresh() -> None:
    rows = [(0, 0, EARLY, 0.9, 0.9), (0, 0, LATE, 0.8, 0.9)]
    candidates = table_of(rows, ABOVE_ALL)
    other = replace(ABOVE_ALL, box_nms_thresh=0.95)
    kept = select(replace(prune(candidates), rules=other), Thresholds(0.5, 0.5))
    assert len(kept) == 1
    assert len(select(replace(candidates, rules=other), Thresholds(0.5, 0.5))) == 2


def test_a_higher_stability_threshold_can_bring_a_mask_back() -> None:
    candidates = table_of([(0, 0, EARLY, 0.9, 0.8), (0, 0, LATE, 0.8, 0.9)], ABOVE_ALL)
    assert rles(select(candidates, Thresholds(0.5, 0.5))) == [b"0"]
    assert rles(select(candidates, Thresholds(0.5, 0.85))) == [b"1"]


def test_predicted_iou_must_exceed_its_threshold_and_stability_may_equal_it() -> None:
    candidates = table_of([(0, 0, EARLY, 0.75, 0.5), (0, 0, FAR, 0.8, 0.5)], ABOVE_ALL)
    assert rles(select(candidates, Thresholds(0.75, 0.5))) == [b"1"]
    below, above = np.nextafter(0.75, 0, dtype=np.float32), np.nextafter(0.5, 1, dtype=np.float32)
    assert rles(select(candidates, Thresholds(float(below), 0.5))) == [b"0", b"1"]
    assert rles(select(candidates, Thresholds(0.75, float(above)))) == []


def test_among_crops_the_smaller_wins_whatever_its_score() -> None:
    rows = [(0, 0, EARLY, 0.9, 0.9), (0, 1, EARLY, 0.6, 0.9)]
    layered = replace(ABOVE_ALL, crop_n_layers=1)
    assert rles(select(table_of(rows, layered), Thresholds(0.5, 0.5))) == [b"1"]
    assert rles(select(table_of(rows, ABOVE_ALL), Thresholds(0.5, 0.5))) == [b"0", b"1"]


@pytest.mark.parametrize(
    ("thresholds", "name"),
    [
        (Thresholds(0.49, 0.9), r"pred_iou_thresh \(0.49\) is below the floor .*\(0.5\)"),
        (Thresholds(0.9, 0.3), r"stability_score_thresh \(0.3\) is below the floor"),
    ],
)
def test_C5_thresholds_below_the_floors_are_refused(thresholds: Thresholds, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        select(Candidates.empty(Rules(8, 8)), thresholds)


def test_nothing_in_is_nothing_out_with_all_columns() -> None:
    empty = Candidates.empty(Rules(8, 8))
    for result in (select(empty, Thresholds()), prune(empty), concat([empty, empty])):
        assert len(result) == 0
        assert result.table.schema == SCHEMA
        assert result.rules == empty.rules
    assert empty.boxes.shape == (0, 4)
    assert list(empty.masks()) == []


def test_tables_of_different_rules_do_not_stack() -> None:
    with pytest.raises(ValueError, match="2 sets of rules"):
        concat([Candidates.empty(Rules(8, 8)), Candidates.empty(Rules(8, 8, box_nms_thresh=0.5))])


def test_masks_come_back_as_they_were() -> None:
    masks = np.random.default_rng(0).random((3, 7, 9)) > 0.5
    masks[1] = False
    masks[2] = True
    table = table_of([(0, 0, EARLY, 0.9, 0.9)] * 3, Rules(7, 9)).table
    where = SCHEMA.get_field_index("rle")
    table = table.set_column(where, SCHEMA.field("rle"), pa.array(encode_masks(masks), pa.binary()))
    for decoded, mask in zip(Candidates(table, Rules(7, 9)).masks(), masks, strict=True):
        np.testing.assert_array_equal(decoded, mask)


def test_the_masks_that_cover_a_pixel() -> None:
    masks = np.random.default_rng(0).random((6, 20, 30)) > 0.5
    candidates = candidates_of(masks, [0.9] * 6, Rules(20, 30))
    for column, line in ((0, 0), (29, 19), (7, 11)):
        covering = candidates.covering(column, line)
        assert covering.tolist() == np.flatnonzero(masks[:, line, column]).tolist()
    for outside in ((-1, 5), (30, 5), (5, 20)):
        assert candidates.covering(*outside).tolist() == []
    assert Candidates.empty(Rules(20, 30)).covering(1, 1).tolist() == []
