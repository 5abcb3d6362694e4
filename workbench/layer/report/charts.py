"""Charts of a finished run, for its report."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from workbench._support.palette import TILE_CHART_COLORS

_PANEL = 4.0  # inches: three side by side on a screen, one below the other on a phone


def tile_maps(tiles: gpd.GeoDataFrame) -> dict[str, Figure]:
    """Draw the tiles of the first raster three times: by status, candidates and seconds."""
    here = tiles[tiles["source"] == tiles["source"].iloc[0]]
    figures = {}
    figure, axes = _panel()
    colors = ListedColormap(list(TILE_CHART_COLORS.values()))
    codes = here["status"].map({name: i for i, name in enumerate(TILE_CHART_COLORS)})
    here.assign(code=codes).plot(
        "code", ax=axes, cmap=colors, vmin=-0.5, vmax=len(TILE_CHART_COLORS) - 0.5, **_EDGES
    )
    counts = here["status"].value_counts()
    axes.legend(
        handles=[
            Patch(color=color, label=f"{name} ({counts[name]:,})")
            for name, color in TILE_CHART_COLORS.items()
            if name in counts
        ],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
    )
    figures["Status"] = figure
    for title, column in (("Candidates", "n_candidates"), ("Seconds", "seconds")):
        figure, axes = _panel()
        bar = {"orientation": "horizontal", "shrink": 0.7, "pad": 0.02}
        here.plot(column, ax=axes, cmap="viridis", vmin=0, legend=True, legend_kwds=bar, **_EDGES)
        figures[title] = figure
    for title, figure in figures.items():
        figure.axes[0].set_title(title, loc="left", fontsize=11)
        figure.axes[0].set_axis_off()
    return figures


def distributions(
    layer: pd.DataFrame, pred_iou_thresh: float, stability_score_thresh: float
) -> dict[str, Figure]:
    """Draw histograms of the two scores with their thresholds, and of the area (log scale)."""
    figures = {}
    for title, column, threshold in (
        ("Confidence (predicted IoU)", "confidence", pred_iou_thresh),
        ("Stability", "stability", stability_score_thresh),
    ):
        figure, axes = _panel()
        scores = layer[column].dropna()
        low = min(threshold, float(scores.min()) if len(scores) else 1.0)
        axes.hist(
            scores, bins=np.linspace(low, max(1.0, scores.max() if len(scores) else 1), 26).tolist()
        )
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
        figures[title] = _labelled(figure, axes, title, "dashed: the threshold")
    figure, axes = _panel()
    area = layer["area_m2"][layer["area_m2"] > 0]
    if len(area):
        axes.hist(area, bins=np.geomspace(area.min(), area.max() * 1.001, 26).tolist())
    axes.set_xscale("log")
    figures["Area"] = _labelled(figure, axes, "Area", "ground m², logarithmic")
    return figures


_EDGES = {"edgecolor": "white", "linewidth": 0.4}


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_PANEL, _PANEL * 0.85), layout="constrained")
    return figure, figure.add_subplot()


def _labelled(figure: Figure, axes: Axes, title: str, note: str) -> Figure:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(note, fontsize=8)
    axes.set_ylabel("polygons", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
