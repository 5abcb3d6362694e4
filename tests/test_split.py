"""The split: no two chips that see the same ground or object are in different splits."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.dataset.split import spatial_split


def grid(n_rows: int, n_cols: int) -> np.ndarray:
    boxes = [shapely.box(c, r, c + 1, r + 1) for r in range(n_rows) for c in range(n_cols)]
    return np.array(boxes, object)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.randoms())
def test_nothing_leaks(n_rows: int, n_cols: int, seed: int, random) -> None:
    boxes = grid(n_rows, n_cols)
    objects = [[random.randrange(30)] if random.random() < 0.2 else [] for _ in boxes]
    split = spatial_split(boxes, objects, val=0.2, test=0.1, seed=seed)
    for i in range(len(boxes)):
        for j in range(i):
            if split[i] and split[j] and split[i] != split[j]:
                assert not boxes[i].intersects(boxes[j])
                assert not set(objects[i]) & set(objects[j])


def test_shares_are_met_and_few_chips_are_lost() -> None:
    boxes = grid(30, 30)
    split = spatial_split(boxes, [[]] * len(boxes), val=0.2, test=0.1, seed=3)
    kept = split[split != ""]
    assert len(kept) > 0.75 * len(boxes)
    assert np.mean(kept == "val") == pytest.approx(0.2, abs=0.05)
    assert np.mean(kept == "test") == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_of_few_chips_any_seed_finds_the_best_split(seed: int) -> None:
    split = spatial_split(grid(2, 6), [[]] * 12, val=0.15, test=0.15, seed=seed)
    counts = [int((split == name).sum()) for name in ("train", "val", "test", "")]
    assert counts == [4, 1, 2, 5]  # test at one end, val in a corner of the other


def test_seed_decides() -> None:
    boxes = grid(12, 12)
    splits = [spatial_split(boxes, [[]] * 144, val=0.2, test=0.1, seed=s) for s in (1, 1, 2)]
    assert list(splits[0]) == list(splits[1])
    assert list(splits[0]) != list(splits[2])


def test_all_train_without_shares() -> None:
    boxes = grid(3, 3)
    assert set(spatial_split(boxes, [[]] * 9, val=0, test=0, seed=0)) == {"train"}
    assert len(spatial_split(boxes[:0], [], val=0.2, test=0.2, seed=0)) == 0
