"""Which polygons the browser has, and which of them it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from workbench.polygons.clean import Cleaning
from workbench.tuning.preview import Key, Preview, View, stack
from workbench.tuning.teach import Classes
from workbench.widgets.overlay import FADED, REFUSED, UNSAID, Flag, PolygonOverlay


@dataclass(frozen=True)
class ClassedRows:
    """The classes of a view as they are drawn.

    `numbers` are those of the palette in its order; `said` are the verdicts of a person by row, 0
    for none of the classes. `classes` is None while nothing was learned.
    """

    numbers: tuple[int, ...]
    said: Mapping[int, int]
    classes: Classes | None


class DrawnPolygons:
    """Shows views in an overlay, and sends coordinates only if the browser does not have them.

    Rows are those of the preview; places number the polygons that the browser has.
    """

    def __init__(self, overlay: PolygonOverlay) -> None:
        self.overlay = overlay
        self.frames: tuple[gpd.GeoDataFrame, ...] = ()  # what was sent, one for each sample
        self.rows = np.empty(0, np.int64)  # of each place
        self.place = np.empty(0, np.int64)  # of each row, -1: none
        self._seam = np.empty(0, bool)  # of each place: reaches a tile that is not merged
        self._cleaning: Cleaning | None = None
        self._merged: gpd.GeoDataFrame | None = None
        self._alone = self._united = self.place  # before and after seams are merged
        self._selected = -1  # row

    def show(
        self,
        view: View,
        preview: Preview,
        judged: Mapping[Key, bool],
        classed: ClassedRows | None = None,
    ) -> None:
        """Show the polygons that a view keeps, and those that have a class or were given one."""
        shown = _shown(view, classed)
        known = len(self.place) == preview.n_candidates and self._cleaning == view.cleaning
        merged = _merged(view, classed)
        known &= merged is None or merged is self._merged
        self.place = self._alone if merged is None else self._united
        if not known or (self.place[shown] < 0).any() or view.cleaning.planar:
            self.send(view, preview, judged, classed)
        else:
            with self.overlay.hold_sync():
                self.overlay.shown = self.place[shown].astype("<u4").tobytes()
                self._mark_classes(classed)

    def send(
        self,
        view: View,
        preview: Preview,
        judged: Mapping[Key, bool],
        classed: ClassedRows | None = None,
    ) -> None:
        """Send all polygons of a view, including those that it does not show now."""
        drawn, merged = view.drawn, _merged(view, classed)
        if classed is not None and classed.classes is not None:
            drawn = classed.classes.drawn
        frame = stack(drawn if merged is None else [*drawn, merged])
        self.rows = frame["row"].to_numpy()
        places, n_alone = np.arange(len(self.rows)), sum(map(len, drawn))
        self._alone = np.full(preview.n_candidates, -1)
        self._alone[self.rows[:n_alone]] = places[:n_alone]
        self._united = self._alone.copy()
        self._united[self.rows[n_alone:]] = places[n_alone:]
        self.place, self._merged = self._united, merged
        self._cleaning, self.frames = view.cleaning, drawn
        self._seam = frame["seam"].to_numpy(bool) if len(frame) else np.empty(0, bool)
        flags = self._flags(preview, judged)
        shown = self.place[_shown(view, classed)]
        with self.overlay.hold_sync():
            self._mark_classes(classed)
            self.overlay.draw(frame, shown[shown >= 0], flags)
            self.select(self._selected)

    def _mark_classes(self, classed: ClassedRows | None) -> None:
        """Tell the overlay the class of each polygon, and a person's verdict on it."""
        overlay = self.overlay
        if classed is None:
            overlay.kinds = overlay.said = overlay.class_scores = b""
            return
        of_number = {number: place for place, number in enumerate(classed.numbers)}
        said = np.full(len(self.rows), UNSAID, np.uint8)
        for row, number in classed.said.items():
            if self.place[row] >= 0:
                said[self.place[row]] = of_number.get(number, REFUSED)
        kinds = np.full(len(self.rows), FADED, np.uint8)
        scores = np.full(len(self.rows), np.nan, "<f4")
        classes = classed.classes
        if classes is not None:
            kept = classes.kept[self.place[classes.kept] >= 0]
            places = [of_number.get(number, FADED) for number in classes.class_id[kept].tolist()]
            kinds[self.place[kept]] = np.array(places, np.uint8)
            scores[:] = classes.class_score[self.rows]
        overlay.kinds, overlay.said = kinds.tobytes(), said.tobytes()
        overlay.class_scores = scores.tobytes()

    def misses(self, view: View) -> bool:
        """Whether a view has polygons that the browser lacks."""
        return any(new is not old for new, old in zip(view.drawn, self.frames, strict=False))

    def mark_judged(self, preview: Preview, judged: Mapping[Key, bool]) -> None:
        """Mark the polygons that were called good or bad."""
        self.overlay.flags = self._flags(preview, judged)

    def select(self, row: int) -> bool:
        """Highlight a polygon, -1: none; returns whether it is drawn."""
        self._selected = row
        place = int(self.place[row]) if 0 <= row < len(self.place) else -1
        if place >= 0 and place not in np.frombuffer(self.overlay.shown, "<u4"):
            place = -1
        self.overlay.selected = place
        return place >= 0

    def row_at(self, place: int) -> int:
        """Return the row at a place, -1 if there is none."""
        return int(self.rows[place]) if 0 <= place < len(self.rows) else -1

    def _flags(self, preview: Preview, judged: Mapping[Key, bool]) -> bytes:
        flags = np.where(self._seam, Flag.SEAM, 0).astype(np.uint8)
        for key, good in judged.items():
            row = preview.row(key)
            if row >= 0 and self.place[row] >= 0:
                flags[self.place[row]] |= Flag.GOOD if good else Flag.BAD
        return flags.tobytes()


def _merged(view: View, classed: ClassedRows | None) -> gpd.GeoDataFrame | None:
    """The merged polygons at seams; None with classes, which are decided before seams."""
    return view.merged if classed is None else None


def _shown(view: View, classed: ClassedRows | None) -> NDArray[np.int64]:
    """The rows that are shown: kept by thresholds, with a class, or given one by a person."""
    if classed is None:
        return view.kept
    has_class = view.kept if classed.classes is None else classed.classes.kept
    if view.cleaning.planar:
        return has_class  # what is cut to fit the others has no shape of its own
    return np.union1d(view.kept, has_class)
