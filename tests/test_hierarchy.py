"""Superpixels and the regions that they merge to, against masks of the same regions."""

import numpy as np
import pytest

from workbench.segmenters.hierarchy import (
    Hierarchy,
    Superpixels,
    best_ious,
    flooded,
    hierarchy_of,
    joins,
    measure_superpixels,
)


@pytest.fixture(scope="module")
def superpixels() -> Superpixels:
    rng = np.random.default_rng(0)
    values = rng.random((40, 50)).astype(np.float32)
    labels = flooded((values * 255).astype(np.uint8), values, reach=5)
    colours = rng.random((3, 40, 50)).astype(np.float32)
    return measure_superpixels(labels, [*colours, values], [values])


@pytest.fixture(scope="module", params=[0, 2])
def hierarchy(superpixels: Superpixels, request: pytest.FixtureRequest) -> Hierarchy:
    def price(difference: float, a: int, b: int, length: int, strength: float) -> float:
        return a * b / (a + b) * difference / length * (strength / length) ** request.param

    return hierarchy_of(superpixels, superpixels.strengths[:, 0], price)


def masks(superpixels: Superpixels, hierarchy: Hierarchy) -> np.ndarray:
    held = hierarchy.membership(np.arange(len(hierarchy.area))).toarray().astype(bool)
    return held[:, superpixels.labels]


def test_every_region_is_two_others_and_the_last_one_is_all(
    superpixels: Superpixels, hierarchy: Hierarchy
) -> None:
    shapes, n = masks(superpixels, hierarchy), len(superpixels.area)
    assert len(shapes) == 2 * n - 1
    assert shapes[-1].all()
    for region, (one, two) in enumerate(hierarchy.merges, start=n):
        assert np.array_equal(shapes[region], shapes[one] | shapes[two])
        assert not (shapes[one] & shapes[two]).any()
        assert hierarchy.parent[one] == hierarchy.parent[two] == region


def test_areas_boxes_and_outlines_are_those_of_the_masks(
    superpixels: Superpixels, hierarchy: Hierarchy
) -> None:
    n, two = len(superpixels.area), superpixels.pairs.T.ravel()
    own = np.bincount(two, np.tile(superpixels.length, 2), n)
    removed = np.bincount(joins(superpixels, hierarchy), superpixels.length, len(hierarchy.area))
    np.testing.assert_array_equal(removed[n:], hierarchy.removed[:, 0])
    outline = hierarchy.totals(own[:, None], 2 * removed[n:, None])[:, 0]
    for i, mask in enumerate(masks(superpixels, hierarchy)):
        y, x = np.nonzero(mask)
        assert hierarchy.area[i] == mask.sum()
        assert hierarchy.boxes[i].tolist() == [x.min(), y.min(), x.max(), y.max()]
        edges = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        assert outline[i] == edges


def test_the_best_iou_with_another_hierarchy_is_that_of_the_masks(
    superpixels: Superpixels, hierarchy: Hierarchy
) -> None:
    other = hierarchy_of(superpixels, superpixels.strengths[:, 0], lambda d, a, b, n, s: s / n)
    rows = np.arange(0, len(hierarchy.area), 7)
    found = best_ious(superpixels, hierarchy, rows, other, share=1.0)
    ours = masks(superpixels, hierarchy)[rows].reshape(len(rows), -1).astype(float)
    theirs = masks(superpixels, other).reshape(len(other.area), -1).astype(float)
    shared = ours @ theirs.T
    union = ours.sum(1)[:, None] + theirs.sum(1) - shared
    np.testing.assert_allclose(found, (shared / union).max(1))


def test_what_is_nearly_the_whole_stands_for_it(
    superpixels: Superpixels, hierarchy: Hierarchy
) -> None:
    alike = hierarchy.alike(0.9)
    assert (hierarchy.area >= 0.9 * hierarchy.area[alike]).all()
    n = len(superpixels.area)
    for region, pair in enumerate(hierarchy.merges, start=n):
        for part in pair:
            if hierarchy.area[part] >= 0.9 * hierarchy.area[alike[region]]:
                assert alike[part] == alike[region]
