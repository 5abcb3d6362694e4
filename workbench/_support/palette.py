"""Which colour means what, on the map, in QGIS, in the report and in the charts.

All are bright enough for imagery unless they are for charts on white, and the colour blind can tell
them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

ConfidenceClasses = Sequence[
    tuple[float, str]
]  # lower bound and colour of each class, the lowest first

# of layers that are too small, or too uniform, for classes of their own
CONFIDENCE_CLASSES: ConfidenceClasses = (
    (0.0, "#d32a8c"),
    (0.7, "#ff6f59"),
    (0.8, "#ffa62b"),
    (0.9, "#ffe45c"),
    (0.95, "#b9fbc0"),
)
NO_SCORE_COLOR = "#4cc9f0"  # polygons without a confidence: somebody drew them

# of a label, as the field `status` of the layer has it
LABEL_STATUS_COLORS: Mapping[str, str] = {
    "unreviewed": "#ffe45c",
    "accepted": "#57e08a",
    "rejected": "#ff5252",
    "edited": "#4cc9f0",
}
# behind the rows of QGIS's attribute table
ROW_REJECTED, ROW_KEPT = "#f4b6b6", "#c7e9c0"
# of classes in their order; the ninth class starts again
CLASS_COLORS = ("#ffe45c", "#4cc9f0", "#ff6f59", "#b9fbc0", "#d9a6ff", "#ffa62b", "#ffffff",
                "#ff8fc7")  # fmt: skip
OTHER_COLOR = "#ff00ff"  # any other value of a field

FAILED = "#ff1744"  # outlines of failed tiles
# outlines of tiles on imagery
TILE_STATUS_COLORS: Mapping[str, str] = {
    "ok": "#e0e0e0",
    "empty": "#9e9e9e",
    "nodata": "#616161",
    "failed": FAILED,
}
# filled tiles in a chart
TILE_CHART_COLORS: Mapping[str, str] = {
    "ok": "#2e9e5b",
    "empty": "#b9d8c4",
    "nodata": "#d5d5d5",
    "failed": "#d50000",
}

# what a review made of a label; charts on white tell them apart by lightness too
CHANGE_CHART_COLORS: Mapping[str, str] = {
    "accepted": "#1b9e77",
    "edited": "#7cc4e8",
    "rejected": "#d95f02",
    "deleted": "#8c3b00",
    "unreviewed": "#d9d9d9",
    "added": "#6a4fb3",
}
# the same hues on imagery, in the order in which they are drawn: the last one lies on top
CHANGE_MAP_COLORS: Mapping[str, str] = {
    "unreviewed": "#e6e6e6",
    "rejected": "#ff8c1a",
    "deleted": "#ff4b2e",
    "accepted": "#57e08a",
    "edited": "#4cc9f0",
    "added": "#d9a6ff",
}
ADVISED = "#ff4fa3"  # the points of current and advised thresholds in a plane of scores

# a bright line on a wider dark one is seen on any ground
LINE, LINE_RIM = "#ffffff", "#000000"


FEWEST_SCORES = 20  # for classes of a layer's own: four in each class
_STEPS = (0.01, 0.005, 0.001)  # what class bounds are rounded to; the first that tells them apart


def confidence_classes(scores: ArrayLike) -> ConfidenceClasses:
    """Choose five classes of about equal size for the scores `(n,)` of a layer, with round bounds.

    Models differ in the scores that they give, so most of a layer would be in one fixed class.
    Scores that are NaN do not count. Fewer than `FEWEST_SCORES`, or scores too close for five
    classes, give `CONFIDENCE_CLASSES`.

    Example:
        >>> [low for low, _ in confidence_classes(np.linspace(0.5, 1, 101))]
        [0.0, 0.6, 0.7, 0.8, 0.9]
    """
    known = np.asarray(scores, float)
    known = known[~np.isnan(known)]
    if len(known) < FEWEST_SCORES:
        return CONFIDENCE_CLASSES
    quantiles = np.quantile(known, [0.2, 0.4, 0.6, 0.8])
    for step in _STEPS:
        lows = np.round(np.rint(quantiles / step) * step, 3)
        if (np.bincount(np.digitize(known, lows), minlength=5) > 0).all():
            colors = [color for _, color in CONFIDENCE_CLASSES]
            return tuple(zip([0.0, *lows.tolist()], colors, strict=True))
    return CONFIDENCE_CLASSES


def confidence_labels(classes: ConfidenceClasses) -> list[str]:
    """Return what a legend says of each class of confidence."""
    lows = [low for low, _ in classes]
    between = [f"{a:g} – {b:g}" for a, b in pairwise(lows[1:])]
    return [f"below {lows[1]:g}", *between, f"{lows[-1]:g} and above"]
