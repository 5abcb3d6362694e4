"""Maps of a run and of a review: polygons over imagery, as figures that need no pyplot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from affine import Affine
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from workbench._support.palette import (
    FAILED,
    LINE,
    LINE_RIM,
    NO_SCORE_COLOR,
    Classes,
    confidence_classes,
    confidence_labels,
)
from workbench.layer.report.tally import class_of, count_by_confidence
from workbench.raster.crs import crs_short, ground_scale

_FILL = 0.18  # opacity of a polygon on the imagery
# fonts of Linux, Windows and macOS with Chinese, Japanese and Korean
_WIDE_FONTS = (
    "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "PingFang SC", "Hiragino Sans",
)  # fmt: skip
_MAP_INCHES, _DPI = 8.0, 150
MAP_PX = round(_MAP_INCHES * _DPI)  # the longer side of the imagery in the PNG of a map
_MAX_NAME = 60  # characters


@dataclass(frozen=True)
class Shown:
    """The polygons of a map, which may be too many for memory.

    `batches` gives frames with `confidence`; it is called once for each drawing. `counts` is
    `count_by_confidence` of all of them in `classes`.
    """

    batches: Callable[[], Iterable[gpd.GeoDataFrame]]
    counts: NDArray[np.int64]
    crs: pyproj.CRS
    classes: Classes

    @classmethod
    def of(cls, layer: gpd.GeoDataFrame) -> Self:
        """Show a layer that is in memory."""
        confidence = layer["confidence"].to_numpy(np.float64)
        classes = confidence_classes(confidence)
        return cls(lambda: [layer], count_by_confidence(confidence, classes), layer.crs, classes)


def draw_map(
    rgb: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    transform: Affine,
    shown: Shown,
    *,
    tiles: gpd.GeoDataFrame | None = None,
    aoi: gpd.GeoDataFrame | None = None,
    title: str = "",
) -> Figure:
    """Draw imagery with polygons on top, in the colours of their confidence.

    `rgb` is `(h, w, 3)`, `valid` `(h, w)`. `transform` maps its pixels, north up, to the CRS of
    `shown`; `aoi` may have another CRS. Tiles are thin lines, failed ones are hatched. Places
    without valid pixels are hatched in grey. The figure is not part of pyplot's state: show
    `figure_png` of it, which takes the polygons batch by batch.
    """
    n = int(shown.counts.sum())
    figure, axes = _imagery(
        rgb, valid, transform, shown.crs, title, f"{n:,} polygon{'' if n == 1 else 's'}"
    )
    if tiles is not None:
        _draw_tiles(axes, tiles)
    _draw_aoi(axes, aoi, shown.crs)
    axes.add_artist(_Polygons(shown))
    _legend(figure, axes, shown)
    return figure


def _draw_aoi(axes: Axes, aoi: gpd.GeoDataFrame | None, crs: pyproj.CRS) -> None:
    if aoi is not None and len(aoi):
        _draw_outlines(axes, aoi.to_crs(crs), LINE_RIM, linewidth=2.5, alpha=0.6)
        _draw_outlines(axes, aoi.to_crs(crs), LINE, linewidth=1.5, linestyle=(0, (5, 3)))


def draw_map_by(
    column: str,
    colors: Mapping[str, str],
    rgb: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    transform: Affine,
    layer: gpd.GeoDataFrame,
    *,
    hollow: Collection[str] = (),
    before: gpd.GeoSeries | None = None,
    aoi: gpd.GeoDataFrame | None = None,
    title: str = "",
) -> Figure:
    """Draw imagery with the polygons of `layer` in the colours of the values of a column.

    Otherwise as `draw_map`. Later values of `colors` lie on top, `hollow` ones are only outlines,
    and the legend counts each value. The shapes in `before` are dotted lines.
    """
    counts = layer[column].value_counts()
    figure, axes = _imagery(rgb, valid, transform, layer.crs, title, "")
    for value, color in colors.items():
        here = layer.geometry[layer[column] == value]
        fill = 0.0 if value in hollow else _FILL
        for draw in (_rims, partial(_polygons, colors=np.full(len(here), color), fill=fill)):
            axes.add_collection(draw(_outlines(here), _line_width(len(layer))), autolim=False)
    _draw_aoi(axes, aoi, layer.crs)
    handles: list[Artist] = [
        Patch(
            facecolor=to_rgba(color, 0.0 if value in hollow else 2 * _FILL),
            edgecolor=color,
            label=f"{value} ({counts[value]:,})",
        )
        for value, color in colors.items()
        if value in counts
    ]
    if before is not None and len(before):
        for color, style in ((LINE_RIM, "solid"), (LINE, ":")):
            _draw_outlines(axes, before.to_frame("geometry"), color, linewidth=1, linestyle=style)
        handles.append(Line2D([], [], color="black", linestyle=":", label="its shape before"))
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    return figure


def _imagery(
    rgb: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    transform: Affine,
    crs: pyproj.CRS,
    title: str,
    count: str,
) -> tuple[Figure, Axes]:
    """Start a map: imagery, coordinates, scale bar and title."""
    height, width = valid.shape
    left, top = transform @ (0, 0)
    right, bottom = transform @ (width, height)
    figure = Figure(figsize=_figure_size((right - left) / (top - bottom)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        _with_hatch(rgb, valid),
        extent=(left, right, bottom, top),
        interpolation="antialiased",
    )
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    _label_axes(axes, crs)
    _scale_bar(axes, crs)
    axes.set_title(
        " · ".join(filter(None, (_short(title), count))), loc="left", fontsize=11, parse_math=False
    )
    return figure, axes


def _short(name: str) -> str:
    """Put a name on one line, and cut one that would leave no room for the map."""
    name = " ".join(name.split())
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def figure_png(figure: Figure, dpi: int = _DPI) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes.

    Characters that the usual font lacks are drawn in one of `_WIDE_FONTS` if one is installed, else
    as boxes.
    """
    wide = [name for name in _WIDE_FONTS if name in set(get_font_names())]
    for text in figure.findobj(Text):
        text.set_fontfamily(["sans-serif", *wide])
    buffer = io.BytesIO()
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        canvas.draw()  # `savefig` would draw all polygons once more, for the layout alone
    no_name: dict[str, Any] = {"Software": None}
    imsave(buffer, canvas.buffer_rgba(), format="png", dpi=dpi, metadata=no_name)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------- map


def _figure_size(aspect: float) -> tuple[float, float]:
    """Return inches for a map of this width / height, with room for title and legend."""
    side = _MAP_INCHES
    width, height = (side, side / aspect) if aspect >= 1 else (side * aspect, side)
    return max(width, 3.0) + 1.8, max(height, 2.0) + 0.8


def _with_hatch(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Hatch invalid pixels in light grey, with lines that are visible at any image size.

    Returns RGBA, because matplotlib would turn RGB into RGBA of double precision.
    """
    height, width = valid.shape
    period = max(2, max(height, width) // 60)
    row, column = np.ogrid[:height, :width]
    stripe = (row + column) % period < period // 2
    hatch = np.where(stripe, np.uint8(222), np.uint8(238))
    drawn = np.full((height, width, 4), 255, np.uint8)
    drawn[..., :3] = np.where(valid[..., None], rgb, hatch[..., None])
    return drawn


class _Polygons(Artist):
    """All polygons in the colours of their confidence; memory holds a batch of them."""

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self.set_in_layout(False)
        self._shown, self._width = shown, _line_width(int(shown.counts.sum()))

    def draw(self, renderer: RendererBase) -> None:
        """Draw all rims below all colours, so that no rim lies on a neighbour's colour.

        The colours are collected on a canvas of their own, because each batch is there only once.
        """
        assert self.axes is not None  # it has been added to a map
        assert isinstance(renderer, RendererAgg)  # `figure_png` has no other
        above = RendererAgg(renderer.width, renderer.height, renderer.dpi)
        classes = self._shown.classes
        palette = np.array([*(color for _, color in classes), NO_SCORE_COLOR])
        for batch in self._shown.batches():
            outlines = _outlines(batch.geometry)
            colors = palette[class_of(batch["confidence"].to_numpy(np.float64), classes)]
            for drawn, canvas in (
                (_rims(outlines, self._width), renderer),
                (_polygons(outlines, self._width, colors=colors, fill=_FILL), above),
            ):
                self.axes.add_collection(drawn, autolim=False)
                drawn.draw(canvas)
                drawn.remove()
        renderer.draw_image(renderer.new_gc(), 0, 0, np.asarray(above.buffer_rgba())[::-1])


def _line_width(n: int) -> float:
    """Return thinner lines for thousands of polygons, which would hide the imagery."""
    return float(np.clip(30 / np.sqrt(max(n, 1)), 0.35, 1.2))


def _rims(outlines: list[Outline], width: float) -> PathCollection:
    """Draw dark rims, so that the lines of polygons show on bright ground."""
    return PathCollection(
        outlines, facecolors="none", edgecolors=to_rgba(LINE_RIM, 0.5), linewidths=2 * width
    )


def _polygons(
    outlines: list[Outline], width: float, *, colors: NDArray[np.str_], fill: float
) -> PathCollection:
    """Draw polygons, each in its colour; `colors` is `(n,)`."""
    edges = to_rgba_array(colors)
    return PathCollection(
        outlines, facecolors=edges * [1, 1, 1, fill], edgecolors=edges, linewidths=width
    )


def _outlines(geometry: gpd.GeoSeries) -> list[Outline]:
    """Make one path of each (multi)polygon; rings are turned so that holes stay open."""
    # matplotlib leaves a hole open only if it runs against its exterior
    shapes = shapely.orient_polygons(np.asarray(geometry.array))
    coordinates, owner = shapely.get_coordinates(shapes, return_index=True)
    sizes = shapely.get_num_coordinates(shapely.get_rings(shapely.get_parts(shapes)))
    codes = np.full(len(coordinates), Outline.LINETO, Outline.code_type)
    ends = np.cumsum(sizes)
    codes[ends - sizes] = Outline.MOVETO
    codes[ends - 1] = Outline.CLOSEPOLY
    cuts = np.searchsorted(owner, np.arange(len(shapes) + 1))
    return [Outline(coordinates[a:b], codes[a:b]) for a, b in pairwise(cuts)]


def _draw_tiles(axes: Axes, tiles: gpd.GeoDataFrame) -> None:
    _draw_outlines(axes, tiles, LINE, linewidth=0.6, alpha=0.6)
    failed = tiles[tiles["status"] == "failed"]
    if len(failed):
        axes.add_collection(
            PathCollection(
                _outlines(failed.geometry),
                facecolors=to_rgba(FAILED, 0.15),
                edgecolors=FAILED,
                linewidths=1.2,
                hatch="xx",
            ),
            autolim=False,
        )


def _draw_outlines(
    axes: Axes,
    shapes: gpd.GeoDataFrame,
    color: str,
    *,
    linewidth: float,
    alpha: float = 1.0,
    linestyle: Any = "solid",
) -> None:
    outlines = PathCollection(
        _outlines(shapes.geometry),
        facecolors="none",
        edgecolors=color,
        linewidths=linewidth,
        alpha=alpha,
        linestyles=[linestyle],
    )
    axes.add_collection(outlines, autolim=False)


def _label_axes(axes: Axes, crs: pyproj.CRS) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))  # 452000, not 2e2 + 4.52e5
    low, high = axes.get_ylim()
    clear = low + 0.06 * (high - low)  # no tick in the corner, where the x axis has a label
    axes.set_yticks([tick for tick in axes.get_yticks() if clear < tick <= high])
    axes.tick_params(labelsize=8)
    for label in axes.get_yticklabels():
        label.set(rotation=90, va="center")
    axes.set_xlabel(f"{_short(crs_short(crs))}, map units", fontsize=8, parse_math=False)


def _scale_bar(axes: Axes, crs: pyproj.CRS) -> None:
    """Draw a bar of a round length in ground metres, which are not map units in EPSG:3857."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    scale = float(ground_scale(crs, (left + right) / 2, (bottom + top) / 2)[0])
    if not np.isfinite(scale):
        return
    longest = (right - left) * scale / 4
    power = 10.0 ** np.floor(np.log10(longest))
    metres = max(step * power for step in (1, 2, 5) if step * power <= longest)
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    x, y = left + (right - left) * 0.03, bottom + (top - bottom) * 0.03
    ends = [x, x + metres / scale]
    axes.plot(ends, [y, y], color="black", linewidth=5, solid_capstyle="butt", alpha=0.7)
    axes.plot(ends, [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 5),
        textcoords="offset points",
        color="white",
        fontsize=9,
        bbox={"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5},
    )


def _legend(figure: Figure, axes: Axes, shown: Shown) -> None:
    """Name the classes of confidence, in the same colours as in QGIS."""
    colors = [color for _, color in shown.classes]
    norm = BoundaryNorm(range(len(colors) + 1), len(colors))
    bar = figure.colorbar(
        ScalarMappable(norm, ListedColormap(colors)), ax=axes, shrink=0.6, aspect=12, pad=0.02
    )
    counts = shown.counts[: len(colors)]  # the last: without a confidence
    labels = [
        f"{label}\n({count:,})"
        for label, count in zip(confidence_labels(shown.classes), counts, strict=True)
    ]
    bar.set_ticks([i + 0.5 for i in range(len(colors))], labels=labels, fontsize=8)
    bar.ax.tick_params(length=0)
    bar.ax.set_title("confidence", fontsize=9, loc="left")
