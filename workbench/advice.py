"""Which thresholds the labels of a few tiles speak for, and how sure that is.

The stored candidates of the labelled tiles are counted at every pair of thresholds, tile by tile.
Tiles are what is resampled and held out: objects of one tile are alike, so to count them as
independent would make a handful of labels look like much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench.candidates import Candidates, Thresholds
from workbench.errors import ReviewError
from workbench.finished import Run
from workbench.polygons import clean, to_polygons
from workbench.quality import (
    THRESHOLD_STEPS,
    area_of,
    pairs_of,
    plane_of_pairs,
    pool_planes,
    with_area,
)
from workbench.review import home_in
from workbench.runfolder import store_in
from workbench.store import valid_masks
from workbench.tiles import TileGrid

AXES = ["pred_iou_thresh", "stability_score_thresh"]
_RESAMPLES = 1000
_FOLDS = 10  # at most; with fewer tiles each is held out alone
_SURE = 0.9  # of the resamples


@dataclass(frozen=True)
class Rate:
    """F1 and the interval that holds 90 % of the resamples of tiles."""

    f1: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.f1:.2f} ({self.low:.2f} – {self.high:.2f})"


@dataclass(frozen=True, eq=False)
class Advice:
    """The thresholds that the labels speak for.

    `plane` has a row for each pair of thresholds: the counts and rates of `threshold_plane` over
    all labelled tiles, and `as_good`, whether the labels cannot tell it from the best. `at_current`
    is F1 at the current thresholds, `held_out` that of tiles which had no part in choosing theirs,
    the rate to expect on other tiles; `gain` is the difference of the two. `is_change` is false
    where the labels show no gain, and `advised` then is `current`.
    """

    current: Thresholds
    advised: Thresholds
    plane: pd.DataFrame
    n_tiles: int
    n_reference: int
    at_current: Rate
    held_out: Rate
    gain: Rate

    @property
    def is_change(self) -> bool:
        """Whether other thresholds are advised."""
        return self.advised != self.current

    def __str__(self) -> str:
        a, c = self.advised, self.current
        where = (
            f"pred_iou_thresh {a.pred_iou_thresh:g}, stability_score_thresh "
            f"{a.stability_score_thresh:g}"
        )
        if not self.is_change:
            return f"Keep {where} · F1 {self.at_current}; no other thresholds do better"
        return (
            f"Advised: {where} · F1 on tiles held out {self.held_out}, "
            f"now {self.at_current} at {c.pred_iou_thresh:g}, {c.stability_score_thresh:g}"
        )

    def at(self, thresholds: Thresholds) -> pd.Series:
        """Return the row of the plane that is nearest to some thresholds."""
        far = (self.plane["pred_iou_thresh"] - thresholds.pred_iou_thresh) ** 2
        far += (self.plane["stability_score_thresh"] - thresholds.stability_score_thresh) ** 2
        return self.plane.iloc[int(far.to_numpy().argmin())]


# ---------------------------------------------------------------------------------- counting


def tile_planes(
    run: Run,
    reference: gpd.GeoDataFrame,
    tiles: Iterable[str],
    *,
    within: gpd.GeoDataFrame | None = None,
    iou_thresh: float = 0.5,
) -> dict[str, pd.DataFrame]:
    """Count the matches in each tile, by its name in the ledger: one `threshold_plane` for each.

    `reference` is all that is to be found in these tiles, or in the part of them that lies `within`
    an area. An object counts in the tile whose core its representative point lies in, a polygon
    that matches it too. Tiles that failed or have no valid pixels do not count. Cleaning is that of
    the job, without `planar`. The thresholds are the steps of `threshold_plane` and the job's own.
    Raises `ReviewError` if the candidates of a tile are not stored any more.
    """
    segmented = run.tiles["status"].isin(["ok", "empty"])
    ledger = run.tiles[run.tiles["tile"].isin(set(tiles)) & segmented].reset_index(drop=True)
    reference = with_area(reference.to_crs(run.layer.crs))
    area = run.aoi
    if within is not None:
        inside = area_of(within, run.layer.crs)
        area = inside if area is None else shapely.intersection(area, inside)
    home = _home(reference, ledger, area)
    planes = {}
    for place, candidates, polygons in _polygons_by_tile(run, ledger):
        pairs = pairs_of(
            polygons.geometry.to_numpy(), reference.geometry.to_numpy(), at_least=iou_thresh
        )
        own = _home(polygons, ledger, area)
        best = np.argsort(pairs.iou, kind="stable")  # of several the best comes last
        own[pairs.predicted[best]] = home[pairs.reference[best]]
        planes[str(ledger["tile"][place])] = plane_of_pairs(
            candidates,
            polygons.iloc[own == place],
            pairs.only(own == place, home == place),
            iou_thresh=iou_thresh,
            pred_iou_threshs=_steps(run.job.pred_iou_thresh),
            stability_score_threshs=_steps(run.job.stability_score_thresh),
        )
    if len(planes) < len(ledger):
        missing = ledger["tile"][~ledger["tile"].isin(list(planes))]
        raise ReviewError(
            f"{run.folder}/candidates lacks {len(missing)} of {len(ledger)} labelled tiles, such "
            f"as {missing.iloc[0]}. Bring the run folder back whole, or run its job.yaml again."
        )
    return planes


def _steps(current: float) -> list[float]:
    return sorted({*THRESHOLD_STEPS, current})


def _home(
    layer: gpd.GeoDataFrame, ledger: gpd.GeoDataFrame, area: shapely.Geometry | None
) -> NDArray[np.int64]:
    """Row of the tile in whose core a representative point lies; -1: in none, or not in `area`."""
    home = home_in(ledger, layer)
    if area is not None and len(layer):
        points = layer.geometry.representative_point().to_numpy()
        home[~shapely.intersects(area, points)] = -1
    return home


def _polygons_by_tile(
    run: Run, ledger: gpd.GeoDataFrame
) -> Iterator[tuple[int, Candidates, gpd.GeoDataFrame]]:
    """Yield the candidates of each tile, cleaned as polygons, with its row in the ledger."""
    places = {index: place for place, index in enumerate(_indices(ledger))}
    cleaning = replace(run.job.cleaning, planar=False)  # which depends on what is chosen
    store = store_in(run.folder)
    for scene in run.scenes:
        grid = TileGrid(scene.width, scene.height, run.job.tile_size, run.job.overlap)
        here = [index for index in places if index[0] == scene.name]
        for stored, records in store.read(here):
            valid = valid_masks(records, stored.rules)
            for record in records:
                of_tile = (stored.column("tile_row") == record.tile_row) & (
                    stored.column("tile_col") == record.tile_col
                )
                candidates = stored.take(of_tile)
                polygons = clean(to_polygons(candidates, scene, grid, valid), cleaning)
                yield places[record.index], candidates, with_area(polygons)


def _indices(ledger: gpd.GeoDataFrame) -> Iterator[tuple[str, int, int]]:
    return zip(ledger["source"], ledger["tile_row"], ledger["tile_col"], strict=True)


# ---------------------------------------------------------------------------------- advising


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counts of tiles `(t, p)` at points of the plane."""

    predicted: NDArray[np.float64]
    matched: NDArray[np.float64]
    reference: NDArray[np.float64]

    def of(self, tiles: NDArray[np.int64], points: NDArray[np.int64]) -> _Counts:
        """Take one point of each tile, `(t, 1)`."""
        chosen = (of[tiles, points][:, None] for of in
                  (self.predicted, self.matched, self.reference))  # fmt: skip
        return _Counts(*chosen)

    def f1(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """F1 at each point, `(n, p)`, of weighted tiles `(n, t)`; 0 where there is nothing."""
        matched = weights @ self.matched
        whole = weights @ (self.predicted + self.reference)
        return np.divide(2 * matched, whole, out=np.zeros_like(whole), where=whole > 0)


def advise(planes: Sequence[pd.DataFrame], current: Thresholds, *, seed: int = 0) -> Advice:
    """Choose thresholds by what `tile_planes` has counted; takes milliseconds.

    Raises `ReviewError` if there are fewer than two tiles or no references.
    """
    n_reference = sum(int(plane["n_reference"].iloc[0]) for plane in planes if len(plane))
    if len(planes) < 2 or not n_reference:
        raise ReviewError(
            f"advice needs labels in at least two tiles, to hold one out: there are {n_reference} "
            f"labels in {len(planes)} tiles. Label more tiles to their end, or run with a smaller "
            "tile_size."
        )
    points = planes[0][AXES]
    columns = ("n_predicted", "n_matched", "n_reference")
    counts = _Counts(*(np.stack([p[name].to_numpy(float) for p in planes]) for name in columns))
    n = len(planes)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)
    pooled = pool_planes(list(planes))
    f1 = counts.f1(np.ones((1, n)))
    resampled = counts.f1(draws)
    chosen = _choose(f1)[0]

    # held out: what the others choose, counted in the tile that had no say
    folds = rng.permutation(n) % min(n, _FOLDS)
    others = np.array([(folds != fold).astype(float) for fold in range(folds.max() + 1)])
    picks = _choose(counts.f1(others))[folds]
    held = counts.of(np.arange(n), picks)
    here = int((points - [current.pred_iou_thresh, current.stability_score_thresh])
               .abs().sum(axis=1).to_numpy().argmin())  # fmt: skip
    held_out = held.f1(np.vstack([np.ones(n), draws]))[:, 0]
    at_current = np.concatenate([f1[:, here], resampled[:, here]])
    gain = held_out - at_current
    advised = current
    if gain[0] > 0:
        advised = Thresholds(*points.iloc[chosen].tolist())
    behind = resampled - resampled[:, [chosen]]
    pooled["as_good"] = np.quantile(behind, _SURE, axis=0) >= 0
    return Advice(
        current, advised, pooled, n, n_reference,
        _rate(at_current), _rate(held_out), _rate(gain),
    )  # fmt: skip


def _rate(values: NDArray[np.float64]) -> Rate:
    low, high = np.quantile(values[1:], [0.05, 0.95])
    return Rate(float(values[0]), float(low), float(high))


def _choose(f1: NDArray[np.float64]) -> NDArray[np.int64]:
    """Point of the best F1 `(n, p)`; of equal ones that of the highest thresholds.

    To smooth the plane first, or to average over resamples, was tried and chooses no better
    ones.
    """
    return f1.shape[1] - 1 - f1[:, ::-1].argmax(axis=1)
