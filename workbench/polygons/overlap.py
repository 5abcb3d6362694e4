"""What two polygons share: the one place where the IoU of polygons is computed."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from workbench.candidates.offer import Offer
from workbench.polygons.pixel_area import Lattice, common_pixel_area

# a ratio of areas has rounding errors
SLACK = 1e-9
HOLDS = 0.95  # share of a part that lies on its whole


def common_area(
    one: NDArray[np.object_], other: NDArray[np.object_], lattice: Lattice | None = None
) -> NDArray[np.float64]:
    """The area that each of `(n,)` pairs of valid polygons shares, in square map units.

    This is much faster if all of them lie along pixel edges of a `lattice`.
    """
    counted = None if lattice is None else common_pixel_area(one, other, lattice)
    if counted is not None:
        return counted
    return np.asarray(shapely.area(shapely.intersection(one, other)), float)


def iou(
    common: NDArray[np.float64], area: NDArray[np.float64], other_area: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Intersection over union `(n,)` from the common area and both areas; 0 if both are empty."""
    union = area + other_area - common
    return np.divide(common, union, out=np.zeros(len(common)), where=union > 0)


def iou_of(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """Intersection over union of `(n,)` pairs of valid polygons; 0 where both are empty."""
    return iou(common_area(one, other), shapely.area(one), shapely.area(other))


def holds(
    common: NDArray[np.float64], area: NDArray[np.float64], other_area: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether one of each pair `(n,)` contains the other, by the common area and both areas.

    A review accepts that. The smaller one may stick out by a few pixels.
    """
    return np.asarray(common >= HOLDS * np.minimum(area, other_area))


def common_frame(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each pair of bounds `(n, 4)` shares: at least that of their contents."""
    sides = np.minimum(one, other)[:, 2:] - np.maximum(one, other)[:, :2]
    return np.asarray(sides.clip(0).prod(axis=1), float)


def most_common(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    area: NDArray[np.float64],
    other_area: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The most that each pair can share, by its bounds `(n, 4)` and areas `(n,)` alone.

    This rules out most pairs at a fraction of the cost of an intersection.
    """
    return np.minimum(common_frame(one, other), np.minimum(area, other_area))


def may_reach(
    at_least: float,
    most: NDArray[np.float64],
    area: NDArray[np.float64],
    other_area: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether the IoU of each pair can reach `at_least`, given the `most` that it can share."""
    return np.asarray(most >= at_least * (area + other_area - most) * (1 - SLACK))


def may_conflict(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    area: NDArray[np.float64],
    other_area: NDArray[np.float64],
    offer: Offer,
) -> NDArray[np.bool_]:
    """Whether `one_label_per_object` may drop one of each pair.

    Judged by the bounds `(n, 4)` and areas `(n,)` of the pairs.
    """
    possible = may_repeat(one, other, area, other_area, offer)
    if offer.overlaps != "all":
        possible |= most_common(one, other, area, other_area) > offer.apart * np.minimum(
            area, other_area
        )
    return possible


def may_repeat(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    area: NDArray[np.float64],
    other_area: NDArray[np.float64],
    offer: Offer,
) -> NDArray[np.bool_]:
    """Whether each pair can be a duplicate, by its bounds `(n, 4)` and areas `(n,)`."""
    if offer.duplicate_iou is None:
        return np.zeros(len(one), bool)
    return may_reach(
        offer.duplicate_iou, most_common(one, other, area, other_area), area, other_area
    )
