"""The polygons of sample tiles at any thresholds and cleaning, fast enough to follow a slider.

Calls the same `select`, `to_polygons` and `clean` as a run, and caches what no slider changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from threading import RLock

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.cores import usable_cores
from workbench.candidates.offer import Offer, Reason, TileMasks
from workbench.candidates.select import Selector, Thresholds, passes
from workbench.candidates.store import valid_masks
from workbench.candidates.table import Candidates
from workbench.polygons.areas import lies_in
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.chosen import choose_labels, with_class
from workbench.tuning.figures import Figures, covered_cells
from workbench.tuning.reasons import why_below, why_cleaned, why_not_offered
from workbench.tuning.sample_seams import ChosenTile, beside_others, merged, what_continues

Key = tuple[str, int, int, int]  # source, tile row, tile column, ordinal
_THREADS = ThreadPoolExecutor(usable_cores(), "preview")


class Fate(IntEnum):
    """Whether a candidate is shown, and if not, why."""

    BELOW = 0  # below a threshold
    KEPT = 1
    SUPPRESSED = 2  # overlaps a better one: non-maximum suppression
    CLEANED = 3  # removed by cleaning
    OUTSIDE = 4  # of the AOI
    WHOLE_TILE = 5  # as large as its tile
    DUPLICATE = 6  # repeats a better mask
    OVERLAP = 7  # lies partly on a better mask
    MERGED = 8  # at a seam: united with the polygon of another sample, or dropped for it


_FATE_OF = {
    Reason.WHOLE_TILE: Fate.WHOLE_TILE,
    Reason.DUPLICATE: Fate.DUPLICATE,
    Reason.OVERLAP: Fate.OVERLAP,
}


@dataclass(frozen=True)
class View:
    """The candidates of all samples as thresholds and cleaning leave them.

    Rows number all candidates: sample by sample, each by ordinal. `fate` says for each row whether
    it is shown. `drawn` has one frame for each sample, with the columns of `clean` and `row`: at
    least the polygons of all rows that are kept. A frame stays the same object until thresholds
    need polygons that it lacks. `merged` has the labels of overlapping samples, which replace the
    drawn ones; None before seams are merged.
    """

    thresholds: Thresholds
    cleaning: Cleaning
    offer: Offer
    fate: NDArray[np.uint8]
    drawn: tuple[gpd.GeoDataFrame, ...]
    merged: gpd.GeoDataFrame | None = None

    @property
    def kept(self) -> NDArray[np.int64]:
        """The rows that are shown, ascending."""
        return np.flatnonzero(self.fate == Fate.KEPT)

    @cached_property
    def polygons(self) -> gpd.GeoDataFrame:
        """The polygons that are shown, by row."""
        frame = stack(self.drawn)
        if self.merged is not None:
            frame = stack([frame[~frame["row"].isin(self.merged["row"])], self.merged])
        kept = frame[self.fate[frame["row"]] == Fate.KEPT]
        return kept.sort_values("row", ignore_index=True)


@dataclass(frozen=True)
class Verdict:
    """Why a candidate is shown or not.

    `rival` is the row of the candidate that suppresses it, -1 if none does. `area_m2` is the area
    of the mask.
    """

    row: int
    fate: Fate
    pred_iou: float
    stability_score: float
    area_m2: float
    reason: str
    rival: int = -1


class Traced:
    """The polygons of one sample that were needed so far, with rows numbered from its first."""

    def __init__(self, sample: SegmentedTile, first: int) -> None:
        self.sample, self.first = sample, first
        self.selector = Selector(sample.candidates)
        self.candidates = self.selector.candidates
        valid = valid_masks([sample.record], self.candidates.rules)
        index = (sample.tile.row, sample.tile.col)
        self.masks = TileMasks(self.candidates, sample.tile, sample.part.grid, valid.get(index))
        self.by_score = np.argsort(-self.candidates.column("pred_iou"), kind="stable")
        self.known = np.zeros(len(self.candidates), bool)  # traced
        nothing = np.empty(0, np.int64)
        self.polygons = _polygons(sample, self.candidates.take(nothing), nothing)
        self.cleaning: Cleaning | None = None  # the cleaning for which the next three hold
        self.tried = np.zeros(len(self.candidates), bool)
        self.outcome = np.zeros(len(self.candidates), np.uint8)
        self.cleaned = self.polygons.assign(area_m2=0.0)

    @property
    def rows(self) -> slice:
        """The rows of the sample among those of all samples."""
        return slice(self.first, self.first + len(self.candidates))

    def chosen(self, offered: NDArray[np.bool_]) -> ChosenTile:
        """The sample with its candidates that are `offered`, a mask of all samples' rows."""
        rows = np.flatnonzero(offered[self.rows])
        sample = self.sample
        return ChosenTile(sample.part, sample.tile, self.candidates, self.masks, rows)

    def knows(self, chosen: NDArray[np.int64], cleaning: Cleaning) -> bool:
        """Whether `outcome` is known for these chosen rows (ascending)."""
        if cleaning != self.cleaning or not self.tried[chosen].all():
            return False
        # in a planar layer, what lies on top of a polygon changes it
        return not cleaning.planar or len(chosen) == np.count_nonzero(self.tried)

    def find_out(
        self, chosen: NDArray[np.int64], cleaning: Cleaning, aoi: shapely.Geometry | None
    ) -> None:
        """Fill in `outcome` for chosen rows: kept, cleaned or outside."""
        if cleaning != self.cleaning or cleaning.planar:
            self.cleaning, self.tried[:], self.cleaned = cleaning, False, self.cleaned[:0]
        new = chosen[~self.tried[chosen]]
        self.trace(new)
        wanted = self.polygons[np.isin(self.polygons["row"] - self.first, new)]
        cleaned = clean(wanted.reset_index(drop=True), cleaning)
        self.tried[new], self.outcome[new] = True, Fate.CLEANED
        self.outcome[cleaned["row"].to_numpy() - self.first] = _kept_in(aoi, cleaned)
        cleaned = stack([self.cleaned, cleaned]) if len(self.cleaned) else cleaned
        self.cleaned = cleaned.sort_values("row", ignore_index=True)

    def trace(self, wanted: NDArray[np.int64]) -> None:
        """Make the missing polygons of these rows."""
        missing = wanted[~self.known[wanted]]
        if len(missing):
            traced = _polygons(self.sample, self.candidates.take(missing), self.first + missing)
            traced = stack([self.polygons, traced]) if len(self.polygons) else traced
            self.polygons = traced.sort_values("row", ignore_index=True)
            self.known[missing] = True


class Preview:
    """The candidates of sample tiles at any thresholds and cleaning.

    With an `aoi` (in the working CRS), only polygons whose representative point is inside are
    shown, as in the layer. Several threads may use it.
    """

    def __init__(
        self,
        samples: Sequence[SegmentedTile],
        aoi: shapely.Geometry | None = None,
        before: Preview | None = None,
    ) -> None:
        """`before` is an earlier preview; its work on samples that both have is kept."""
        self.aoi = aoi
        self._parts: list[Traced] = []
        self._lock = RLock()
        self.n_candidates = 0
        done = before._parts if before is not None and before.aoi is aoi else []
        for i, sample in enumerate(samples):
            if i < len(done) and done[i].sample is sample and done[i].first == self.n_candidates:
                self._parts.append(done[i])
            else:
                self._parts.append(Traced(sample, self.n_candidates))
            self.n_candidates += len(sample.candidates)

    @property
    def samples(self) -> tuple[SegmentedTile, ...]:
        """The samples, in the order of their rows."""
        return tuple(part.sample for part in self._parts)

    @property
    def parts(self) -> tuple[Traced, ...]:
        """The samples with their candidates by ordinal and what was traced of them."""
        return tuple(self._parts)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Predicted IoU and stability of all rows, `(n, 2)`."""
        scores = [np.empty((0, 2), np.float32)]
        for part in self._parts:
            columns = ("pred_iou", "stability_score")
            scores.append(np.column_stack([part.candidates.column(name) for name in columns]))
        return np.concatenate(scores)

    def key(self, row: int) -> Key:
        """Return the key of a candidate, which is the same in every preview of its tile."""
        part = self.part_of(row)
        return (*part.sample.record.index, int(part.candidates.column("ordinal")[row - part.first]))

    def row(self, key: Key) -> int:
        """Return the row of a candidate, -1 if its tile is not a sample."""
        for part in self._parts:
            if part.sample.record.index == key[:3]:
                found = np.flatnonzero(part.candidates.column("ordinal") == key[3])
                return part.first + int(found[0]) if len(found) else -1
        return -1

    def look(
        self,
        thresholds: Thresholds,
        cleaning: Cleaning,
        offer: Offer = Offer(),  # noqa: B008  a plain value
    ) -> View:
        """Return what these thresholds, cleaning and offer leave.

        Raises `ValueError` for thresholds below the floors.
        """
        fate = np.full(self.n_candidates, Fate.BELOW, np.uint8)
        with self._lock:
            found = [choose_labels(p.selector, p.masks, thresholds, offer) for p in self._parts]
            kept = [rows[of.reason[rows] == Reason.OFFERED] for rows, of in found]
            self._find_out(kept, cleaning)
            for part, rows, (_, of) in zip(self._parts, kept, found, strict=True):
                mine, reason = fate[part.rows], of.reason
                mine[passes(part.candidates, thresholds)] = Fate.SUPPRESSED
                for why, becomes in _FATE_OF.items():
                    mine[reason == why] = becomes
                mine[rows] = part.outcome[rows]
            drawn = tuple(part.cleaned for part in self._parts)
        return View(thresholds, cleaning, offer, fate, drawn)

    def merge(self, view: View) -> View:
        """Merge the seams of samples that overlap one another, as a run does.

        Too slow for a slider. Without such samples the view is returned as it is.
        """
        offered = np.isin(view.fate, (Fate.KEPT, Fate.CLEANED, Fate.OUTSIDE))
        tiles = [part.chosen(offered) for part in self._parts]
        near = beside_others(tiles) if view.merged is None else []
        if not near:
            return view
        tiles = [tiles[n] for n in near]
        frames = []
        offer = replace(view.offer, overlaps="all") if view.offer.by_class else view.offer
        for n, one, more in zip(near, tiles, what_continues(tiles, view.offer), strict=True):
            part = self._parts[n]
            for rows, continues in ((one.rows, False), (more, True)):
                with self._lock:
                    part.trace(rows)
                    mine = part.polygons["row"].isin(part.first + rows)
                    pieces = with_class(part.polygons[mine], view.offer)
                    frames.append(pieces.assign(continues=continues))
        cleaned = clean(merged(frames, tiles, offer), view.cleaning)
        fate = view.fate.copy()
        for n in near:
            mine = fate[self._parts[n].rows]
            mine[mine == Fate.KEPT] = Fate.MERGED
        fate[cleaned["row"].to_numpy()] = _kept_in(self.aoi, cleaned)
        return replace(view, fate=fate, merged=cleaned)

    def fates(
        self, chosen: NDArray[np.int64], cleaning: Cleaning
    ) -> tuple[NDArray[np.uint8], tuple[gpd.GeoDataFrame, ...]]:
        """Trace and clean chosen rows (ascending), however they were chosen.

        Returns the `Fate` of each, which is kept, cleaned or outside, and the frames of `View`.
        """
        with self._lock:
            rows = [
                chosen[(chosen >= p.first) & (chosen < p.first + len(p.candidates))] - p.first
                for p in self._parts
            ]
            self._find_out(rows, cleaning)
            found = [part.outcome[of] for part, of in zip(self._parts, rows, strict=True)]
            drawn = tuple(part.cleaned for part in self._parts)
        return np.concatenate([np.empty(0, np.uint8), *found]), drawn

    def _find_out(self, chosen: Sequence[NDArray[np.int64]], cleaning: Cleaning) -> None:
        new = [
            (part, rows)
            for part, rows in zip(self._parts, chosen, strict=True)
            if not part.knows(rows, cleaning)
        ]
        # shapely does not hold Python's lock while it works
        list(_THREADS.map(lambda one: one[0].find_out(one[1], cleaning, self.aoi), new))

    def prepare(self, cleaning: Cleaning, limit: int) -> int:
        """Compare, trace and clean up to `limit` more candidates, before thresholds need them.

        Best scores first; returns how many are left. In a planar layer, the result depends on which
        polygons are chosen, so the masks are only traced.
        """
        left = 0
        with self._lock:
            for part in self._parts:
                if not part.sample.whole:
                    continue  # the whole tile will replace it soon
                todo = ~part.known
                if part.cleaning == cleaning and not cleaning.planar:
                    todo = ~part.tried
                rows = part.by_score[todo[part.by_score]]
                now = np.sort(rows[:limit])
                left += len(rows) - len(now)
                if not len(now):
                    continue  # so that its frame stays the same object
                part.masks.compare(now)
                if part.cleaning == cleaning and not cleaning.planar:
                    part.find_out(now, cleaning, self.aoi)
                else:
                    part.trace(now)
                limit -= len(now)
        return left

    def figures(self, view: View) -> Figures:
        """Count and measure the polygons of a view."""
        polygons = view.polygons
        filled, possible = 0, 0
        geometry = polygons.geometry.to_numpy()
        frames = np.asarray(shapely.box(*shapely.bounds(geometry).reshape(-1, 4).T), object)
        for part in self._parts:
            rows = polygons["row"].to_numpy() - part.first
            here = (rows >= 0) & (rows < len(part.candidates))
            if view.merged is not None:
                window = part.sample.part.scene.window_polygon(part.sample.tile.window)
                here |= shapely.intersects(frames, window)
            cells, of = covered_cells(part.sample, geometry[here])
            filled, possible = filled + cells, possible + of
        return Figures(
            n=len(polygons),
            covered=filled / possible if possible else float("nan"),
            median_area_m2=float(polygons["area_m2"].median()) if len(polygons) else float("nan"),
            n_seam=int(polygons["seam"].sum()),
        )

    def at(self, x: float, y: float, view: View) -> list[Verdict]:
        """Explain all candidates whose mask covers a point of the map, best first."""
        verdicts = []
        for part in self._parts:
            rows = part.first + part.candidates.covering(*part.sample.pixel_at(x, y))
            verdicts += [self.explain(row, view) for row in rows.tolist()]
        return sorted(verdicts, key=lambda verdict: (-verdict.pred_iou, verdict.row))

    def explain(self, row: int, view: View) -> Verdict:
        """Say why a candidate is shown or not."""
        part, fate, rival = self.part_of(row), Fate(view.fate[row]), -1
        if fate == Fate.KEPT:
            reason = "kept"
        elif fate == Fate.BELOW:
            reason = why_below(self.scores[row], view.thresholds)
        elif fate == Fate.SUPPRESSED:
            rival = part.first + part.selector.rival(row - part.first, view.thresholds)
            reason = f"overlaps a better one (predicted IoU {self.scores[rival, 0]:.3f})"
        elif fate == Fate.CLEANED:
            with self._lock:
                polygon = part.polygons[part.polygons["row"] == row]
            reason = why_cleaned(polygon, view.cleaning)
        elif fate == Fate.MERGED:
            reason = "a tile beside it shows the same object, or shows that there is none"
        elif fate == Fate.OUTSIDE:
            reason = "its representative point is outside the AOI"
        else:
            with self._lock:
                _, found = choose_labels(part.selector, part.masks, view.thresholds, view.offer)
            reason, rival = why_not_offered(part.masks, found, row - part.first, view.offer)
            rival += part.first if rival >= 0 else 0
        iou, stability = self.scores[row].tolist()
        area_px = part.candidates.column("area_px")[row - part.first]
        area_m2 = float(area_px) * part.sample.part.scene.pixel_m**2
        return Verdict(row, fate, iou, stability, area_m2, reason, rival)

    def outline(self, row: int) -> gpd.GeoSeries:
        """Return a candidate's polygon before cleaning; empty if its mask has no valid pixel."""
        part = self.part_of(row)
        with self._lock:
            part.trace(np.array([row - part.first]))
            return part.polygons.geometry[part.polygons["row"] == row]

    def polygons_before_cleaning(self, rows: NDArray[np.int64]) -> gpd.GeoDataFrame:
        """The polygons of rows of one sample, by row; a mask without valid pixels has none."""
        part = self.part_of(int(rows[0]))
        with self._lock:
            part.trace(rows - part.first)
            return part.polygons[part.polygons["row"].isin(rows)]

    def part_of(self, row: int) -> Traced:
        """The sample of a row."""
        if not 0 <= row < self.n_candidates:
            raise IndexError(f"row {row} of {self.n_candidates} candidates")
        return next(part for part in reversed(self._parts) if part.first <= row)


def _kept_in(aoi: shapely.Geometry | None, cleaned: gpd.GeoDataFrame) -> NDArray[np.uint8]:
    """The fate of cleaned polygons `(n,)`: kept, or outside of the AOI."""
    fate = np.full(len(cleaned), Fate.KEPT, np.uint8)
    if aoi is not None and len(cleaned):
        fate[~lies_in(cleaned.geometry.to_numpy(), aoi)] = Fate.OUTSIDE
    return fate


def _polygons(
    sample: SegmentedTile, candidates: Candidates, rows: NDArray[np.int64]
) -> gpd.GeoDataFrame:
    """The exact polygons of candidates in the order of their ordinals, with their `rows`."""
    valid = valid_masks([sample.record], candidates.rules)
    polygons = to_polygons(candidates, sample.part.scene, sample.part.grid, valid)
    # a mask without valid pixels leaves no polygon
    place = np.searchsorted(candidates.column("ordinal"), polygons["ordinal"])
    return polygons.assign(row=rows[place])


def stack(frames: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """Concatenate the polygons of several samples; no frames give an empty one."""
    # an empty frame would turn the columns into object columns
    filled = [frame for frame in frames if len(frame)] or list(frames[:1])
    if not filled:
        return gpd.GeoDataFrame({"row": np.empty(0, np.int64)}, geometry=[])
    return filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)
