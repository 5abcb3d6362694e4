"""Pictures of a review: what became of the pre-labels, and where better thresholds are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench._support.palette import ADVISED, CHANGE_CHART_COLORS, CHANGE_MAP_COLORS
from workbench.evaluation.advice import AXES, Advice
from workbench.layer.report.map import MAP_PX, draw_map_by
from workbench.review.changes import CHANGES, Change
from workbench.runs.result import Run

_MAX_CLASSES = 12  # bars that fit
_JUDGED: tuple[Change, ...] = ("accepted", "edited", "rejected", "deleted")


def summary_of(told: pd.DataFrame) -> pd.DataFrame:
    """Count what the review did: one row for each kind of change, and the IoU of shapes."""
    counts = told["change"].value_counts()
    rows: dict[str, str] = {change: f"{counts.get(change, 0):,}" for change in CHANGES}
    kept, judged = _kept(told)
    rows["kept of those reviewed"] = f"{kept / judged:.0%}" if judged else "–"
    iou = told.loc[told["reshaped"] & told["iou"].notna(), "iou"]
    rows["reshaped"] = f"{len(iou):,}"
    rows["IoU of reshaped ones to their pre-labels, median"] = (
        f"{iou.median():.2f}" if len(iou) else "–"
    )
    return pd.DataFrame({"value": rows})


def _kept(told: pd.DataFrame) -> tuple[int, int]:
    """Count the pre-labels that are kept, and those that are reviewed."""
    good = told["change"].isin(["accepted", "edited"])
    return int(good.sum()), int(told["change"].isin(_JUDGED).sum())


def draw_changes(told: pd.DataFrame, classes: Mapping[int, str]) -> Figure:
    """Draw what the review made of the pre-labels: in all, by confidence, by class, and IoU."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 4])
    _bar_of_all(figure.add_subplot(grid[0, :]), told)
    lower = grid[1, :].subgridspec(1, 3, width_ratios=[1.5, 1, 1])
    judged = told[told["change"].isin(_JUDGED)]
    _by_confidence(figure.add_subplot(lower[0]), judged)
    _by_class(figure.add_subplot(lower[1]), judged, classes)
    _ious(figure.add_subplot(lower[2]), told)
    return figure


def draw_change_map(told: pd.DataFrame, labels: gpd.GeoDataFrame, run: Run) -> Figure:
    """Draw on the imagery what the review made of each label, and earlier shapes as dotted lines.

    `told` is what `changes` says of `labels`. The area of the run is a dashed outline. If there are
    several scenes, the one with the most changes is shown. Raises `SceneError` if its raster cannot
    be read.
    """
    there, gone = told[told["row"] >= 0], told[told["row"] < 0]
    old = run.layer.set_index("id").geometry
    shapes = [*labels.geometry.iloc[there["row"]], *old.reindex(gone["id"])]
    drawn = gpd.GeoDataFrame(
        {"change": [*there["change"], *gone["change"]]}, geometry=shapes, crs=run.layer.crs
    )
    drawn = drawn[~drawn.geometry.is_empty]
    frames = gpd.GeoSeries([s.window_polygon(s.window) for s in run.scenes], crs=drawn.crs)
    work = drawn[drawn["change"] != "unreviewed"]
    place = int(np.argmax([work.intersects(frame).sum() for frame in frames]))
    scene, n = run.scenes[place], len(run.scenes)
    before = old.reindex(told["id"][told["reshaped"]])
    aoi = None if run.aoi is None else gpd.GeoDataFrame(geometry=[run.aoi], crs=drawn.crs)
    return draw_map_by(
        "change",
        CHANGE_MAP_COLORS,
        *scene.overview(MAP_PX),
        drawn[drawn.intersects(frames[place])],
        hollow=("unreviewed", "rejected", "deleted"),
        before=before[before.intersects(frames[place])],
        aoi=aoi,
        title=f"{scene.name} (1 of {n} rasters)" if n > 1 else scene.name,
    )


def _bar_of_all(axes: Axes, told: pd.DataFrame) -> None:
    counts = told["change"].value_counts()
    left, total = 0, max(1, len(told))
    for change in CHANGES:
        n = int(counts.get(change, 0))
        if not n:
            continue
        axes.barh([0], [n], left=left, color=CHANGE_CHART_COLORS[change], edgecolor="white",
                  label=f"{change} {n:,}")  # fmt: skip
        if n > total / 30:
            axes.text(left + n / 2, 0, f"{n:,}", ha="center", va="center", fontsize=12,
                      color="black" if change in ("edited", "unreviewed") else "white")  # fmt: skip
        left += n
    axes.set_axis_off()
    axes.set_xlim(0, total)
    kept, judged = _kept(told)
    share = f" · {kept / judged:.0%} of {judged:,} reviewed pre-labels kept" if judged else ""
    axes.set_title(f"{len(told):,} labels{share}", loc="left", fontsize=13)
    if len(told):
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0.08), ncols=6, frameon=False, fontsize=9)


def _stacked(axes: Axes, table: pd.DataFrame, labels: list[str]) -> None:
    """Draw one bar of shares for each row of counts, with the number of labels above it."""
    totals = table.sum(axis=1).to_numpy()
    bottom = np.zeros(len(table))
    for change in _JUDGED:
        share = table[change].to_numpy() / np.maximum(totals, 1)
        axes.bar(range(len(table)), share, bottom=bottom, color=CHANGE_CHART_COLORS[change],
                 width=0.85, edgecolor="white")  # fmt: skip
        bottom += share
    for x, n in enumerate(totals):
        axes.text(x, 1.01, f"{n:,}", ha="center", va="bottom", fontsize=8, color="#555555")
    axes.set_xticks(
        range(len(table)), labels=labels, rotation=45, ha="right", fontsize=8, parse_math=False
    )
    axes.set_yticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"], fontsize=8)
    axes.set_ylim(0, 1.08)
    _plain(axes)


def _by_confidence(axes: Axes, judged: pd.DataFrame) -> None:
    axes.set_title("by confidence", loc="left", fontsize=11)
    scores = judged["confidence"].dropna()
    if scores.empty:
        _nothing(axes)
        return
    edges = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(scores.min(), scores.max())
    bins = np.clip(np.digitize(judged["confidence"], edges) - 1, 0, len(edges) - 2)
    table = pd.crosstab(bins, judged["change"]).reindex(
        index=range(len(edges) - 1), columns=list(_JUDGED), fill_value=0
    )
    filled = table.sum(axis=1).to_numpy() > 0
    names = [f"{a:.3g} – {b:.3g}" for a, b in pairwise(edges)]
    _stacked(axes, table[filled], [n for n, here in zip(names, filled, strict=True) if here])


def _by_class(axes: Axes, judged: pd.DataFrame, classes: Mapping[int, str]) -> None:
    axes.set_title("by class", loc="left", fontsize=11)
    if judged.empty:
        _nothing(axes)
        return
    numbers = judged["class_id"].astype("Int64")
    if len(classes) == 1:  # no other class is possible
        numbers = numbers.fillna(next(iter(classes)))
    names = numbers.map(lambda n: classes.get(n, f"class {n}"), na_action="ignore")
    names = names.astype(object).where(numbers.notna(), "no class")
    table = pd.crosstab(names, judged["change"]).reindex(columns=list(_JUDGED), fill_value=0)
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    if len(table) > _MAX_CLASSES:
        rest = table[_MAX_CLASSES - 1 :]
        others = rest.sum().to_frame(f"{len(rest)} others").T
        table = pd.concat([table[: _MAX_CLASSES - 1], others])
    _stacked(axes, table, [str(name)[:18] for name in table.index])


def _ious(axes: Axes, told: pd.DataFrame) -> None:
    axes.set_title("IoU of reshaped labels", loc="left", fontsize=11)
    iou = told.loc[told["reshaped"] & told["iou"].notna(), "iou"]
    if iou.empty:
        _nothing(axes)
        return
    axes.hist(
        iou,
        bins=np.linspace(0, 1, 21).tolist(),
        color=CHANGE_CHART_COLORS["edited"],
        edgecolor="white",
    )
    axes.axvline(iou.median(), color="#333333", linewidth=1.2)
    right = iou.median() > 0.6
    axes.text(iou.median() + (-0.02 if right else 0.02), axes.get_ylim()[1] * 0.97,
              f"median {iou.median():.2f}", ha="right" if right else "left", va="top",
              fontsize=9)  # fmt: skip
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=8)
    _plain(axes)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing yet", ha="center", color="#888888", transform=axes.transAxes)
    axes.set_axis_off()


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_advice(advice: Advice) -> Figure:
    """Draw F1, precision and recall over the plane, with the current and the advised point.

    Dotted cells: the labels cannot tell them from the best one.
    """
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[1.5, 1, 1], sharey=True)
    for axes, name in zip(panels, ("f1", "precision", "recall"), strict=True):
        _plane(figure, axes, advice, name)
    panels[0].set_ylabel("stability_score_thresh")
    figure.suptitle(
        f"{advice}\nfrom {advice.n_reference:,} labels in {advice.n_tiles} tiles; in brackets: 90 "
        "% of the resamples of tiles",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    return figure


def _plane(figure: Figure, axes: Axes, advice: Advice, name: str) -> None:
    table = advice.plane.pivot(index=AXES[1], columns=AXES[0], values=name)
    x, y = table.columns.to_numpy(float), table.index.to_numpy(float)
    image = axes.pcolormesh(np.arange(len(x) + 1), np.arange(len(y) + 1), table.to_numpy(),
                            cmap="viridis", vmin=0)  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    if name == "f1":
        good = advice.plane.pivot(index=AXES[1], columns=AXES[0], values="as_good").to_numpy(bool)
        rows, cols = np.nonzero(good)
        axes.scatter(cols + 0.5, rows + 0.5, s=5, color="white", label="not shown to be worse")
    for thresholds, marker, size, label in (
        (advice.current, "o", 110, "current"),
        (advice.advised, "*", 260, "advised"),
    ):
        axes.scatter(
            np.abs(x - thresholds.pred_iou_thresh).argmin() + 0.5,
            np.abs(y - thresholds.stability_score_thresh).argmin() + 0.5,
            marker=marker,
            s=size,
            facecolor=ADVISED,
            edgecolor="white",
            linewidth=1.5,
            label=label,
            zorder=3,
        )
    # cells have one size, though the steps are finer where scores crowd
    axes.set_xticks(np.arange(len(x))[::2] + 0.5, labels=[f"{v:g}" for v in x[::2]], rotation=90)
    axes.set_yticks(np.arange(len(y))[::2] + 0.5, labels=[f"{v:g}" for v in y[::2]])
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("pred_iou_thresh")
    axes.set_title("F1" if name == "f1" else name, loc="left", fontsize=11)
    if name == "f1":
        axes.legend(loc="lower left", fontsize=8, facecolor="#333333", labelcolor="white")
