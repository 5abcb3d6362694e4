"""Superpixels and the regions that they merge to, against masks of the same regions."""

from heapq import heappop, heappush

import numpy as np
import pytest

from workbench.segmenters.hierarchy import (
    Hierarchy,
    Price,
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


def merged_plainly(superpixels: Superpixels, price: Price) -> list[tuple[int, int]]:
    """The merges, with every price in one queue."""
    area, colour = superpixels.area.tolist(), superpixels.colour.tolist()
    priced, node = list(area), list(range(len(area)))
    borders: list[dict[int, tuple[int, float]]] = [{} for _ in area]
    queue: list[tuple[float, int, int]] = []
    merges: list[tuple[int, int]] = []

    def cost(a: int, b: int) -> float:
        difference = sum((p - q) ** 2 for p, q in zip(colour[a], colour[b], strict=True))
        return price(difference, area[a], area[b], *borders[a][b])

    for (a, b), length, strength in zip(
        superpixels.pairs.tolist(),
        superpixels.length.tolist(),
        superpixels.strengths[:, 0].tolist(),
        strict=True,
    ):
        borders[a][b] = borders[b][a] = length, strength
        heappush(queue, (cost(a, b), a, b))
    while queue:
        found, a, b = heappop(queue)
        if node[a] < 0 or node[b] < 0:
            continue
        if cost(a, b) > found:
            heappush(queue, (cost(a, b), a, b))
            continue
        kept, gone = (a, b) if len(borders[a]) >= len(borders[b]) else (b, a)
        merges.append((node[a], node[b]))
        share = area[kept] / (area[kept] + area[gone])
        colour[kept] = [
            p * share + q * (1 - share) for p, q in zip(colour[kept], colour[gone], strict=True)
        ]
        area[kept] += area[gone]
        node[kept], node[gone] = len(area) + len(merges) - 1, -1
        del borders[kept][gone], borders[gone][kept]
        new = list(borders[gone])
        for other in new:
            length, strength = borders[other].pop(gone)
            length_too, strength_too = borders[kept].get(other, (0, 0.0))
            border = length + length_too, strength + strength_too
            borders[kept][other] = borders[other][kept] = border
        if area[kept] > 1.05 * priced[kept]:
            priced[kept], new = area[kept], list(borders[kept])
        for other in new:
            heappush(queue, (cost(kept, other), kept, other))
    return merges


@pytest.mark.parametrize("exponent", [0, 2])
@pytest.mark.parametrize("levels", [4, 256])  # few of them: many prices are equal
def test_prices_that_wait_change_no_merge(exponent: int, levels: int) -> None:
    def price(difference: float, a: int, b: int, length: int, strength: float) -> float:
        return a * b / (a + b) * difference / length * (strength / length) ** exponent

    for seed in range(5):
        values = np.random.default_rng(seed).integers(0, levels, (3, 60, 70)) / levels
        borders = values[0].astype(np.float32)
        labels = flooded((borders * 255).astype(np.uint8), borders, reach=3)
        superpixels = measure_superpixels(labels, [*values.astype(np.float32)], [borders])
        merges = hierarchy_of(superpixels, superpixels.strengths[:, 0], price).merges
        assert [tuple(pair) for pair in merges.tolist()] == merged_plainly(superpixels, price)


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
