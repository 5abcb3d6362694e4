"""What a layer costs its reviewer, against drawing everything by hand.

Every label is looked at. A reference that a label nearly fits (IoU 0.5 to 0.75) is mended, one
that no label reaches is drawn. The ratio decides whether pre-labelling saves time: 1 saves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np

from workbench.evaluation.matching import Pairs, match

FITS = 0.75  # IoU from which a label is accepted as it is
NEARLY = 0.5  # IoU from which mending is quicker than drawing
LOOK_S, MEND_S, DRAW_S = 1.5, 6.0, 10.0  # seconds for one label, one outline, one object


@dataclass(frozen=True)
class ReviewCost:
    """Seconds that a review takes, and how they come about.

    `drawing_seconds` is what drawing all references by hand takes. `ratio` is NaN without
    references.
    """

    seconds: float
    drawing_seconds: float
    n_looked_at: int
    n_mended: int
    n_drawn: int

    @property
    def ratio(self) -> float:
        """Review against drawing everything; below 1 the layer saves time."""
        return self.seconds / self.drawing_seconds if self.drawing_seconds else float("nan")


def review_cost(
    layer: gpd.GeoDataFrame,
    reference: gpd.GeoDataFrame,
    *,
    look_s: float = LOOK_S,
    mend_s: float = MEND_S,
    draw_s: float = DRAW_S,
) -> ReviewCost:
    """Estimate the seconds from a layer to its reference polygons.

    Args:
        layer: the labels, in any CRS.
        reference: the objects as they should be; they cover the same area.
        look_s: seconds to look at one label and press a key.
        mend_s: seconds to mend the outline of one label.
        draw_s: seconds to draw one object.

    Raises:
        WorkbenchError: a layer has no CRS.
    """
    pairs = match(layer, reference, at_least=NEARLY)
    return cost_of_pairs(pairs, look_s=look_s, mend_s=mend_s, draw_s=draw_s)


def cost_of_pairs(
    pairs: Pairs, *, look_s: float = LOOK_S, mend_s: float = MEND_S, draw_s: float = DRAW_S
) -> ReviewCost:
    """As `review_cost`, of labels that are matched already."""
    best = pairs.best_iou()
    n_drawn = int(np.count_nonzero(best < NEARLY))
    n_mended = int(np.count_nonzero((best >= NEARLY) & (best < FITS)))
    seconds = look_s * pairs.n_predicted + mend_s * n_mended + draw_s * n_drawn
    return ReviewCost(seconds, draw_s * pairs.n_reference, pairs.n_predicted, n_mended, n_drawn)
