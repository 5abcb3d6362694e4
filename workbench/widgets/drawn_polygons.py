"""Which polygons the browser has, and which of them it shows."""

from __future__ import annotations

from collections.abc import Mapping

import geopandas as gpd
import numpy as np

from workbench.polygons.clean import Cleaning
from workbench.tuning.preview import Key, Preview, View, stack
from workbench.widgets.overlay import Flag, PolygonOverlay


class DrawnPolygons:
    """Shows views in an overlay, and sends coordinates only if the browser does not have them.

    Rows are those of the preview; a place counts the polygons that the browser has.
    """

    def __init__(self, overlay: PolygonOverlay) -> None:
        self.overlay = overlay
        self.frames: tuple[gpd.GeoDataFrame, ...] = ()  # what was sent, one for each sample
        self.rows = np.empty(0, np.int64)  # of each place
        self.place = np.empty(0, np.int64)  # of each row, -1: none
        self._cleaning: Cleaning | None = None
        self._selected = -1  # row

    def show(self, view: View, preview: Preview, judged: Mapping[Key, bool]) -> None:
        """Show what a view keeps."""
        kept = view.kept
        known = len(self.place) == preview.n_candidates and self._cleaning == view.cleaning
        if not known or (self.place[kept] < 0).any() or view.cleaning.planar:
            self.send(view, preview, judged)
        else:
            self.overlay.shown = self.place[kept].astype("<u4").tobytes()

    def send(self, view: View, preview: Preview, judged: Mapping[Key, bool]) -> None:
        """Send all polygons of a view, also those that it does not show now."""
        frame = stack(view.drawn)
        self.rows = frame["row"].to_numpy()
        self.place = np.full(preview.n_candidates, -1)
        self.place[self.rows] = np.arange(len(self.rows))
        self._cleaning, self.frames = view.cleaning, view.drawn
        flags = self._flags(frame, preview, judged)
        self.overlay.draw(frame, self.place[view.kept], flags)
        self.select(self._selected)

    def misses(self, view: View) -> bool:
        """Whether a view has polygons that the browser does not have."""
        return any(new is not old for new, old in zip(view.drawn, self.frames, strict=False))

    def mark_judged(self, preview: Preview, judged: Mapping[Key, bool]) -> None:
        """Mark the polygons that were called good or bad."""
        self.overlay.flags = self._flags(stack(self.frames), preview, judged)

    def select(self, row: int) -> None:
        """Point out a polygon; -1: none."""
        self._selected = row
        self.overlay.selected = int(self.place[row]) if row >= 0 else -1

    def row_at(self, place: int) -> int:
        """Return the row at a place, -1 if there is none."""
        return int(self.rows[place]) if 0 <= place < len(self.rows) else -1

    def _flags(
        self, frame: gpd.GeoDataFrame, preview: Preview, judged: Mapping[Key, bool]
    ) -> bytes:
        if not len(frame):
            return b""
        flags = np.where(frame["seam"], Flag.SEAM, 0).astype(np.uint8)
        for key, good in judged.items():
            row = preview.row(key)
            if row >= 0 and self.place[row] >= 0:
                flags[self.place[row]] |= Flag.GOOD if good else Flag.BAD
        return flags.tobytes()
