"""Pictures of the tour: large type, few colours, a sentence below each."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import from_bounds
from shapely.geometry.base import BaseGeometry

from workbench.candidates.select import Thresholds
from workbench.evaluation.matching import match
from workbench.evaluation.metrics import calibration
from workbench.layer.report.map import figure_png
from workbench.raster.scene import Scene
from workbench.runs.result import Run
from workbench.teaching.measures import TileWithTruth, Trial, gaps_between, seam_lines, simplified

# differ for colour-blind people, and from fields, roofs and roads
TRUTH, MASK, RIVAL, BACK = "#ffffff", "#00e5ff", "#ff8a00", "#ff2fd0"
SEAM = "#ffe600"
_STABILITY_OFFSET = 1.0  # in logits, as in SamAutomaticMaskGenerator


class Plate(Figure):
    """A row of panels with a sentence about what to see; a notebook displays it by itself.

    `aspect` is the height of a panel divided by its width. The row is no wider than the column of a
    notebook on a small laptop, so that type is as large as the text around it, and no higher than
    its screen.
    """

    def __init__(self, caption: str, panels: int, aspect: float = 1.0) -> None:
        width = 11 if panels > 1 else 8
        text = textwrap.fill(caption, 10 * width)
        height = width / panels * aspect + 0.3 + 0.25 * (1 + text.count("\n"))
        super().__init__(figsize=(width, height), layout="constrained")
        self.supxlabel(text, fontsize=13, ha="left", x=0.01)
        self.panels: Sequence[Axes] = self.subplots(1, panels, squeeze=False)[0]

    def _repr_png_(self) -> bytes:
        return figure_png(self, dpi=90)


# --------------------------------------------------------------------------- prompts, masks


def draw_prompt(predictor: Any, proposals: TileWithTruth, x: float, y: float) -> Plate:
    """Ask SAM what is at a pixel of the tile, and draw three masks side by side, small to large.

    `predictor` is a `SamPredictor` that has been given the tile. A model that offers more shows
    those of its masks that hold the pixel and have the highest scores.
    """
    masks, scores, _ = predictor.predict(np.array([[x, y]]), np.array([1]))
    misses = ~masks[:, int(y), int(x)]
    best = np.sort(np.lexsort((-scores, misses))[:3])
    masks, scores = masks[best], scores[best]
    transform = proposals.scene.window_transform(proposals.tile.window)
    at = shapely.Point(transform @ (x + 0.5, y + 0.5))
    here = proposals.truth[proposals.truth.intersects(at)]
    objects = [rasterize([shape], masks[0].shape, transform=transform, dtype="uint8").view(bool)
               for shape in here.geometry]  # fmt: skip
    kinds = [kind.replace("_", " ") for kind in here["kind"]]
    names = " and ".join(kinds) or "nothing that is labelled"
    plate = Plate(
        f"One prompt (✕) and SAM's three answers. The true object here: {names}.", len(masks)
    )
    place = here.union_all() if len(here) else at.buffer(30)
    for axes, mask, score in zip(plate.panels, masks, scores, strict=True):
        _imagery(axes, proposals.scene, _around(place, 1.0))
        _fill(axes, mask, transform, MASK)
        _dashed(axes, here)
        axes.plot(at.x, at.y, "x", color="black", markersize=15, markeredgewidth=5)
        axes.plot(at.x, at.y, "x", color="white", markersize=13, markeredgewidth=2.5)
        true, kind = max(
            ((_iou(mask, one), kind) for one, kind in zip(objects, kinds, strict=True)),
            default=(0.0, "nothing"),
        )
        _title(axes, f"predicted {score:.2f}, true {true:.2f} ({kind})")
    return plate


def draw_stability(predictor: Any, proposals: TileWithTruth, rows: list[int]) -> Plate:
    """Draw masks cut a little tighter and a little looser; stability is the share in common."""
    plate = Plate(
        "Each mask cut at a logit of +1 (orange) and of −1 (adds the blue part). A stable mask "
        "hardly changes.",
        len(rows),
    )
    transform = proposals.scene.window_transform(proposals.tile.window)
    points = proposals.candidates
    for axes, row in zip(plate.panels, rows, strict=True):
        prompt = np.array([[points.column("point_x")[row], points.column("point_y")[row]]])
        logits, _, _ = predictor.predict(prompt, np.array([1]), return_logits=True)
        mine = logits[int(points.column("ordinal")[row]) % len(logits)]
        tight, loose = mine > _STABILITY_OFFSET, mine > -_STABILITY_OFFSET
        mask = proposals.masks.iloc[row]
        _imagery(axes, proposals.scene, _around(mask.geometry, 0.1))
        _fill(axes, loose, transform, "#2d7dff", alpha=0.65)
        _fill(axes, tight, transform, RIVAL, alpha=0.85)
        _title(axes, f"{tight.sum():,} of {loose.sum():,} px: stability "
               f"{tight.sum() / loose.sum():.2f}")  # fmt: skip
    return plate


def draw_scores(masks: gpd.GeoDataFrame) -> Plate:
    """Draw both scores of all masks against their true IoU, with the mean of each tenth."""
    plate = Plate(
        f"{len(masks):,} masks of one tile against the ground truth. Large points: the mean of "
        "each tenth of the axis. On the dashed line, score and true IoU are equal.",
        2,
    )
    for axes, name, column in zip(
        plate.panels, ("predicted IoU", "stability"), ("confidence", "stability"), strict=True
    ):
        told = calibration(masks[column], masks["true_iou"].to_numpy())
        axes.plot([0, 1], [0, 1], color="#666666", linestyle="--", linewidth=1.5)
        axes.scatter(masks[column], masks["true_iou"], s=14, color=MASK, edgecolor="#00728a",
                     linewidth=0.4)  # fmt: skip
        bins = told.bins[told.bins["n"] >= 5]
        axes.plot(bins["mean_score"], bins["mean_true_iou"], "o-", color="#b3005e", markersize=11,
                  linewidth=2.5)  # fmt: skip
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel=name, ylabel="true IoU")
        _plain(axes)
        _title(axes, f"off by {told.mean_gap:.2f}, rank correlation {told.spearman:.2f}")
    return plate


def draw_comeback(proposals: TileWithTruth, case: pd.Series) -> Plate:
    """Draw one of `comebacks` just below its threshold and at it."""
    mask, rival = (proposals.masks.iloc[[int(case[name])]] for name in ("row", "rival"))
    plate = Plate(
        "Dashed: the true object. Left: the orange mask has the higher predicted IoU and "
        "suppresses the pink one. Right: it fails the stricter threshold, so the pink one is kept.",
        2,
    )
    both = shapely.union_all([*mask.geometry, *rival.geometry])
    for axes, shown, color, score, at in zip(
        plate.panels, (rival, mask), (RIVAL, BACK), ("rival_", ""),
        (case["at"] - 0.01, case["at"]), strict=True,
    ):  # fmt: skip
        _imagery(axes, proposals.scene, _around(both, 0.1))
        _shapes(axes, shown, color)
        _dashed(axes, proposals.truth.loc[mask["object"]])
        _title(axes, f"at {at:.2f}: predicted {case[score + 'confidence']:.3f}, stability "
               f"{case[score + 'stability']:.3f}, true {case[score + 'true_iou']:.2f}")  # fmt: skip
    return plate


def draw_kept(proposals: TileWithTruth, pred_iou_thresh: float, stability: float) -> Plate:
    """Draw the masks that two thresholds keep, and mark those that a lower stability drops."""
    now = proposals.kept(Thresholds(pred_iou_thresh, round(stability, 2)))
    before = proposals.kept(Thresholds(pred_iou_thresh, max(round(stability - 0.05, 2), 0)))
    back = np.setdiff1d(now, before)
    masks = proposals.masks
    plate = Plate(
        f"Stability {stability:.2f} keeps {len(now)} masks (blue). {len(back)} of them (pink) are "
        f"not kept at {stability - 0.05:.2f}.",
        1,
    )
    (axes,) = plate.panels
    window = proposals.scene.window_polygon(proposals.tile.window)
    _imagery(axes, proposals.scene, window.bounds)
    _shapes(axes, masks.iloc[np.setdiff1d(now, back)], MASK)
    _shapes(axes, masks.iloc[back], BACK)
    return plate


# -------------------------------------------------------------------------------- seams


def draw_seams(runs: Mapping[str, Run], place: BaseGeometry) -> Plate:
    """Draw an object in several runs, each polygon on it in its own colour."""
    plate = Plate(
        "Yellow: where tiles meet. White: one object. Each colour is one polygon: cut into pieces "
        "without overlap, whole again with it.",
        len(runs),
    )
    frame = _around(place, 0.25)
    for axes, (name, run) in zip(plate.panels, runs.items(), strict=True):
        _imagery(axes, run.scenes[0], frame)
        shared = run.layer.intersection(place).area
        here = run.layer[shared > place.area / 20]
        here = here.iloc[np.argsort(-here.area)]
        colors = np.array([MASK, BACK, "#76ff03", "#7c4dff", RIVAL, "#00695c"])
        if len(here):
            _shapes(axes, here, colors[np.arange(len(here)) % len(colors)], alpha=0.35)
        _dashed(axes, gpd.GeoDataFrame(geometry=[place]))
        lines = seam_lines(run)
        if not lines.is_empty:
            gpd.GeoSeries([lines]).plot(ax=axes, color=SEAM, linewidth=2.5, linestyle="--",
                                        aspect=None)  # fmt: skip
        _frame(axes, frame)
        _title(axes, name)
    return plate


# --------------------------------------------------------------- simplification, coverage


def draw_simplified(scene: Scene, exact: gpd.GeoDataFrame, metres: float) -> Plate:
    """Draw the outline of one polygon as it is and simplified, with its corners."""
    frame = _around(exact.union_all(), 0.1)
    plate = Plate(
        "Left: along the edges of pixels, like the mask. Right: simplified with a tolerance of "
        f"{metres:g} m. Dots are corners.",
        2,
    )
    for axes, tolerance in zip(plate.panels, (0.0, metres), strict=True):
        shape = simplified(exact, tolerance)
        _imagery(axes, scene, frame)
        _shapes(axes, shape, MASK, alpha=0.2)
        x, y = shapely.get_coordinates(shape.geometry.to_numpy()).T
        axes.plot(x, y, "o", color=RIVAL, markersize=8 if tolerance else 5)
        name = f"{tolerance:g} m" if tolerance else "exact"
        _title(axes, f"{name}: {len(x) - 1:,} corners, {shape.area.sum():.1f} m²")
    return plate


def draw_coverage(layers: Mapping[str, gpd.GeoDataFrame]) -> Plate:
    """Draw the overlaps and gaps of layers, around the largest gap of the second one.

    The first layer is the exact one, which defines the gaps; it is not drawn.
    """
    (_, exact), *others = layers.items()
    area = exact.union_all()
    plate = Plate(
        "Orange: in two polygons at once. Black: in none, but it was in one before. If neighbours "
        "are simplified together, they share every corner, so neither can happen.",
        len(others),
    )
    gaps = gaps_between(others[0][1], area)
    frame = _around(gaps.iloc[int(gaps.area.to_numpy().argmax())].buffer(40), 0)
    for axes, (name, layer) in zip(plate.panels, others, strict=True):
        _shapes(axes, layer, "#9aa7b1", alpha=0.3)
        shapes = layer.geometry.to_numpy()
        i, j = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        twice = gpd.GeoSeries(shapely.intersection(shapes[i[i < j]], shapes[j[i < j]]))
        for faults, color in ((twice[twice.area > 0], RIVAL), (gaps_between(layer, area), "black")):
            if len(faults):
                faults.plot(ax=axes, facecolor=color, edgecolor=color, linewidth=1.5, aspect=None)
        _frame(axes, frame)
        _title(axes, name)
    return plate


# -------------------------------------------------------------------------------- advice


def draw_trial(trial: Trial, before: Run, after: Run, reference: gpd.GeoDataFrame) -> Plate:
    """Draw the layers at the default and at the advised thresholds, with the labelled tiles."""
    titles = []
    for run, name in ((before, "default"), (after, "advised")):
        at = trial.table.loc[name]
        titles.append(
            f"{name} {at['pred_iou_thresh']:.2f}, {at['stability_score_thresh']:.2f}: "
            f"{len(run.layer)} polygons, F1 {at['f1']:.2f}"
        )
    return _compared(dict(zip(titles, (before, after), strict=True)), reference, trial.labelled)


def draw_taught(
    runs: Mapping[str, Run],
    reference: gpd.GeoDataFrame,
    labelled: Sequence[str],
    table: pd.DataFrame,
) -> Plate:
    """Draw the layers of some runs; `table` is that of `on_other_tiles`."""
    titles = [
        f"{name}: {len(run.layer)} polygons, F1 {table['f1'][name]:.2f}"
        for name, run in runs.items()
    ]
    return _compared(dict(zip(titles, runs.values(), strict=True)), reference, labelled)


def _compared(
    runs: Mapping[str, Run], reference: gpd.GeoDataFrame, labelled: Sequence[str]
) -> Plate:
    """Draw layers beside each other, by their titles."""
    tiles = next(iter(runs.values())).tiles
    left, bottom, right, top = tiles.total_bounds
    plate = Plate(
        f"White: the {len(reference)} wanted objects. Blue: polygons that match one. Orange: all "
        "other polygons. Yellow: the labelled tiles. F1 is measured on the other tiles.",
        len(runs),
        (top - bottom) / (right - left),
    )
    known = tiles[tiles["tile"].isin(set(labelled))]
    for axes, (title, run) in zip(plate.panels, runs.items(), strict=True):
        matches = match(run.layer, reference).true_iou() >= 0.5
        _imagery(axes, run.scenes[0], run.tiles.total_bounds)
        _shapes(axes, known, SEAM, alpha=0.15)
        _shapes(axes, run.layer[~matches], RIVAL, alpha=0.1)
        _shapes(axes, run.layer[matches], MASK, alpha=0.45)
        _dashed(axes, reference)
        _title(axes, title)
    return plate


# --------------------------------------------------------------------------------- parts


def _around(place: BaseGeometry, more: float) -> tuple[float, float, float, float]:
    """Return the bounds of a square around a place, with a margin as a share of its size."""
    left, bottom, right, top = place.bounds
    x, y, reach = (left + right) / 2, (bottom + top) / 2, max(right - left, top - bottom) / 2
    reach *= 1 + 2 * more
    return x - reach, y - reach, x + reach, y + reach


def _imagery(axes: Axes, scene: Scene, bounds: Any) -> None:
    """Show the imagery within some map bounds."""
    window = from_bounds(*bounds, scene.transform).round_offsets().round_lengths()
    window = window.intersection(scene.window)
    rgb, _ = scene.read(window)
    left, bottom, right, top = scene.window_polygon(window).bounds
    axes.imshow(rgb, extent=(left, right, bottom, top))
    _frame(axes, (left, bottom, right, top))


def _frame(axes: Axes, bounds: Any) -> None:
    left, bottom, right, top = bounds
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axes.set(xlabel="", ylabel="")  # which geopandas writes


def _shapes(axes: Axes, layer: gpd.GeoDataFrame, color: Any, *, alpha: float = 0.3) -> None:
    """Fill shapes lightly and draw their outlines."""
    if len(layer):
        layer.plot(ax=axes, facecolor=color, edgecolor="none", alpha=alpha, aspect=None)
        layer.plot(ax=axes, facecolor="none", edgecolor=color, linewidth=2, aspect=None)
        axes.set(xlabel="", ylabel="")


def _dashed(axes: Axes, objects: gpd.GeoDataFrame) -> None:
    """Draw the outlines of true objects."""
    if len(objects):
        line = (0, (3, 2))
        objects.boundary.plot(ax=axes, color=TRUTH, linewidth=2, linestyle=line, aspect=None)
        axes.set(xlabel="", ylabel="")


def _fill(
    axes: Axes, mask: NDArray[np.bool_], transform: Any, color: str, *, alpha: float = 0.5
) -> None:
    """Draw a mask `(h, w)` of pixels on the map."""
    (left, top), (right, bottom) = transform @ (0, 0), transform @ mask.shape[::-1]
    shown = np.ma.masked_where(~mask, np.ones(mask.shape))
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(shown, extent=(left, right, bottom, top), cmap=ListedColormap([color]),
                alpha=alpha, interpolation="nearest")  # fmt: skip
    axes.set(xlim=limits[0], ylim=limits[1])


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=13)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=12)
    axes.xaxis.label.set_fontsize(14)
    axes.yaxis.label.set_fontsize(14)
