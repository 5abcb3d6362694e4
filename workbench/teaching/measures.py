"""What the tour measures against ground truth: candidates, seams, simplification and advice.

Nothing here is needed to label a raster. It compares the results of the package with the true
objects, which are known only for a sample scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from workbench.candidates.select import Selector, Thresholds
from workbench.candidates.table import Candidates
from workbench.evaluation.advice import AXES, Advice, advise
from workbench.evaluation.cost import review_cost
from workbench.evaluation.matching import match
from workbench.evaluation.thresholds import best_thresholds, pool_planes
from workbench.polygons.areas import lies_in, with_area
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.overlap import iou_of
from workbench.raster.scene import Scene
from workbench.raster.tiles import Tile, TileGrid, tile_windows
from workbench.review.tile_planes import tile_planes
from workbench.runs.result import Run
from workbench.segmenters.protocol import Segmenter

STEPS = tuple(percent / 100 for percent in range(50, 100))  # of a slider


@dataclass(frozen=True, eq=False)
class TileWithTruth:
    """The candidates of a tile without invalid pixels, and the true objects there.

    `masks` has a row for each of `candidates`, with the columns of `to_polygons`. For the object
    that a mask fits best it also has `true_iou`, `kind` and `object`, its row in `truth`, or -1 if
    the mask fits none. `truth` is clipped to the tile.
    """

    scene: Scene
    tile: Tile
    candidates: Candidates  # by ordinal
    masks: gpd.GeoDataFrame
    truth: gpd.GeoDataFrame

    def kept(self, thresholds: Thresholds) -> NDArray[np.int64]:
        """Return the rows that both thresholds and non-maximum suppression keep."""
        return Selector(self.candidates).rows(thresholds)


def propose(
    segmenter: Segmenter, scene: Scene, grid: TileGrid, tile: Tile, truth: gpd.GeoDataFrame
) -> TileWithTruth:
    """Segment one tile and measure each of its masks against the ground truth."""
    image, _ = scene.read(tile.window)
    found = segmenter.propose(image).at_tile(tile.row, tile.col)
    candidates = found.take(np.argsort(found.column("ordinal"), kind="stable"))
    masks = to_polygons(candidates, scene, grid, {})
    there = with_area(truth.clip(scene.window_polygon(tile.window))).reset_index(drop=True)
    pairs = match(masks, there, at_least=0.01)
    best = np.argsort(pairs.iou, kind="stable")  # if a mask fits several, the best comes last
    number = np.full(len(masks), -1)
    number[pairs.predicted[best]] = pairs.reference[best]
    kind = np.where(number < 0, "nothing", there["kind"].to_numpy(object)[number])
    masks = masks.assign(true_iou=pairs.true_iou(), kind=kind, object=number)
    return TileWithTruth(scene, tile, candidates, masks, there)


def comebacks(proposals: TileWithTruth, pred_iou_thresh: float) -> pd.DataFrame:
    """List the masks that a higher stability threshold brings back, largest gain first.

    Each row has the threshold `at` which the mask returns, its `row` among the masks, the row of
    the `rival` that suppressed it one step before, and the scores and true IoU of both.
    """
    selector = Selector(proposals.candidates)
    settings = [Thresholds(pred_iou_thresh, step) for step in STEPS]
    kept = [set(selector.rows(thresholds).tolist()) for thresholds in settings]
    rows = []
    for i in range(1, len(settings)):
        for row in sorted(kept[i] - kept[i - 1]):
            rival = selector.rival(row, settings[i - 1])
            rows.append((settings[i].stability_score_thresh, row, rival))
    table = pd.DataFrame(rows, columns=["at", "row", "rival"])
    masks = proposals.masks
    for name, of in (("", "row"), ("rival_", "rival")):
        for score in ("confidence", "stability", "true_iou"):
            table[name + score] = masks[score].to_numpy()[table[of]].round(3)
    table["kind"] = masks["kind"].to_numpy()[table["row"]]
    gain = table["true_iou"] - table["rival_true_iou"]
    return table.iloc[np.argsort(-gain, kind="stable")].reset_index(drop=True)


# ------------------------------------------------------------------------------------- seams


def seam_lines(run: Run) -> BaseGeometry:
    """Return the lines at which the cores of a run's tiles meet."""
    cores = run.tiles.geometry
    lines: BaseGeometry = cores.boundary.union_all().difference(cores.union_all().boundary)
    return lines


def window_edges(run: Run) -> BaseGeometry:
    """Return the edges of the windows of a run's tiles, without the edge of its raster."""
    (scene,) = run.scenes
    grid = TileGrid(scene.width, scene.height, run.job.tile_size, run.job.overlap)
    windows = tile_windows(scene, list(grid)).boundary.union_all()
    outer = scene.window_polygon(scene.window).boundary.buffer(scene.pixel_m)
    edges: BaseGeometry = windows.difference(outer)
    return edges


def seam_table(runs: Mapping[str, Run], truth: gpd.GeoDataFrame, cut: str) -> pd.DataFrame:
    """Compare runs, one row for each.

    `end with a tile` counts the polygons with more than 10 m of outline along the edges of tile
    windows inside the raster. `recall on seams` is for the objects that the seams of the run `cut`
    cross, `recall elsewhere` for all others; every row uses the same objects. The IoU must be 0.75:
    three quarters of a field is not the field.
    """
    crossed = truth.intersects(seam_lines(runs[cut])).to_numpy()
    rows = {}
    for name, run in runs.items():
        found = match(run.layer, truth).best_iou() >= 0.75
        near = window_edges(run).buffer(run.scenes[0].pixel_m)
        along = run.layer.boundary.intersection(near).length
        rows[name] = {
            "tiles": len(run.tiles),
            "polygons": len(run.layer),
            "end with a tile": int((along > 10).sum()),
            "recall on seams": found[crossed].mean().round(2),
            "recall elsewhere": found[~crossed].mean().round(2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def lost_on_seam(runs: Sequence[Run], truth: gpd.GeoDataFrame) -> BaseGeometry:
    """Return the object that the second run cuts worst, among those that the others find."""
    whole, cut, merged = (match(run.layer, truth).best_iou() for run in runs)
    best = int(np.argmax(np.minimum(whole, merged) - cut))
    found: BaseGeometry = truth.geometry.iloc[best]
    return found


# --------------------------------------------------------------------------- simplification


def simplified(layer: gpd.GeoDataFrame, metres: float, *, planar: bool = False) -> gpd.GeoDataFrame:
    """Clean a layer of exact polygons of nothing but their corners."""
    return clean(layer, Cleaning(min_area_px=0, simplify_m=metres, planar=planar))


def simplify_table(layer: gpd.GeoDataFrame, tolerances: Sequence[float]) -> pd.DataFrame:
    """Compare exact polygons with simplified ones, one row for each tolerance in metres.

    `area error` is the mean change of a polygon's area, `IoU` the mean with the exact polygon.
    """
    exact = layer.geometry.to_numpy()
    rows = {}
    for metres in tolerances:
        shapes = simplified(layer, metres).geometry.to_numpy()
        error = np.abs(shapely.area(shapes) / shapely.area(exact) - 1)
        vertices = shapely.get_num_coordinates(shapes).sum()
        rows[f"{metres:g} m"] = {
            "vertices": int(vertices),
            "of all": f"{vertices / shapely.get_num_coordinates(exact).sum():.0%}",
            "area error": f"{error.mean():.2%}",
            "IoU": round(float(iou_of(shapes, exact).mean()), 4),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def coverage_table(layers: Mapping[str, gpd.GeoDataFrame]) -> pd.DataFrame:
    """Measure the overlaps and gaps of layers, one row for each.

    The first layer is the exact one: a gap is a hole between polygons where it has none.
    """
    exact = next(iter(layers.values())).union_all()
    rows = {}
    for name, layer in layers.items():
        gaps = gaps_between(layer, exact)
        rows[name] = {
            "overlaps, m²": round(abs(float(layer.area.sum() - layer.union_all().area)), 1),
            "gaps": len(gaps),
            "gaps, m²": round(float(gaps.area.sum()), 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def gaps_between(layer: gpd.GeoDataFrame, exact: BaseGeometry) -> gpd.GeoSeries:
    """Return the holes of a layer inside the area that it should cover."""
    rings, part = shapely.get_rings(shapely.get_parts(layer.union_all()), return_index=True)
    holes = gpd.GeoSeries(shapely.polygons(rings[1:][part[1:] == part[:-1]]), crs=layer.crs)
    return holes[holes.difference(exact).area < 1e-6 * holes.area]


# ------------------------------------------------------------------------------------ advice


@dataclass(frozen=True, eq=False)
class Trial:
    """Advice from some tiles of a run, and its score on the other tiles.

    `table` has the thresholds, and the F1 on the other tiles, for the default, the advised and the
    best possible setting.
    """

    advice: Advice
    labelled: tuple[str, ...]  # names of tiles
    table: pd.DataFrame


def try_advice(run: Run, reference: gpd.GeoDataFrame) -> Trial:
    """Advise from every third tile, as if only these were labelled; score it on the others."""
    planes = tile_planes(run, reference, run.tiles["tile"])
    names = tuple(planes)[::3]
    advice = advise([planes[name] for name in names], run.job.thresholds)
    others = replace(
        advice, plane=pool_planes([plane for name, plane in planes.items() if name not in names])
    )
    rows = {
        "default": others.at(advice.current),
        "advised": others.at(advice.advised),
        "best possible": best_thresholds(others.plane),
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    counts = ["n_predicted", "n_matched", "n_reference"]
    return Trial(advice, names, table.astype(dict.fromkeys(counts, int))[[*AXES, *counts, "f1"]])


# ------------------------------------------------------------------------------------ classes


def label_tiles(
    run: Run, wanted: gpd.GeoDataFrame, tiles: Sequence[str], folder: Path
) -> tuple[Path, Path]:
    """Write what a person would label in some tiles: the wanted objects there, and the area.

    Returns the two files, as `examples` and `labelled_area` take them.
    """
    cores = run.tiles[run.tiles["tile"].isin(set(tiles))]
    area = shapely.union_all(cores.geometry.to_numpy())
    there = lies_in(wanted.to_crs(run.tiles.crs).geometry.to_numpy(), area)
    folder.mkdir(parents=True, exist_ok=True)
    labels = wanted.to_crs(run.tiles.crs)[there][["geometry"]].assign(class_id=1)
    labels.to_parquet(folder / "labels.parquet")
    cores[["geometry"]].to_file(folder / "labelled.gpkg")
    return folder / "labels.parquet", folder / "labelled.gpkg"


def on_other_tiles(
    runs: Mapping[str, Run], wanted: gpd.GeoDataFrame, tiles: Sequence[str]
) -> pd.DataFrame:
    """Compare layers with the wanted objects in the tiles that nobody has labelled.

    For each run: the polygons there, how many are right (IoU of 0.5), how many objects there are,
    F1, and the minutes that a review takes against drawing all of them (`share_of_drawing`).
    """
    rows = {}
    for name, run in runs.items():
        others = run.tiles[~run.tiles["tile"].isin(set(tiles))]
        area = shapely.union_all(others.geometry.to_numpy())
        truth = wanted.to_crs(run.tiles.crs)
        layer, truth = (
            frame[lies_in(frame.geometry.to_numpy(), area)] for frame in (run.layer, truth)
        )
        matched = match(layer, truth).n_matched(0.5)
        cost = review_cost(layer, truth)
        rows[name] = {
            "polygons": len(layer), "right": matched, "objects": len(truth),
            "f1": 2 * matched / max(1, len(layer) + len(truth)),
            "review_minutes": cost.seconds / 60, "share_of_drawing": cost.ratio,
        }  # fmt: skip
    counts = dict.fromkeys(("polygons", "right", "objects"), int)
    return pd.DataFrame.from_dict(rows, orient="index").astype(counts)
