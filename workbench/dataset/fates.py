"""What became of each label: the split that has it, or why it is in none."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.dataset.chips import ONLY_PIECES, Chip

NOWHERE = "beside all rasters"
NO_AREA = "no area"


def fates_of(
    layer: gpd.GeoDataFrame, exported: NDArray[np.bool_], chips: Sequence[Chip]
) -> pd.Series:
    """Say where each exported label is, by its id: its split, or why it is in none.

    A label is in a split if a chip shows enough of it to be an object. Otherwise the chip that
    covers most of it says why: it is left out, or shows no more than a piece.
    """
    rows = np.flatnonzero(exported)
    fates = pd.Series("", index=rows, dtype=object)
    for chip in chips:
        if chip.split:
            fates[[o.row for o in chip.whole if o.row in fates.index]] = chip.split
    lost = (fates == "").to_numpy(bool)
    if lost.any():
        fates[lost] = _why_lost(np.asarray(layer.geometry.array)[rows[lost]], chips)
    return fates.set_axis(layer["id"].iloc[rows].to_numpy())


def _why_lost(shapes: NDArray[np.object_], chips: Sequence[Chip]) -> NDArray[np.object_]:
    """Give the reason of the chip that covers most of each shape `(n,)`."""
    outlines = np.array([chip.scene.window_polygon(chip.window) for chip in chips], object)
    shape, chip = shapely.STRtree(outlines).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[shape], outlines[chip]))
    why = np.where(shapely.area(shapes) > 0, NOWHERE, NO_AREA).astype(object)
    for i in np.argsort(shared, kind="stable"):  # the largest share comes last
        if shared[i] > 0:
            # a chip that is exported has only a piece of it
            why[shape[i]] = chips[chip[i]].left_out or ONLY_PIECES
    return why
