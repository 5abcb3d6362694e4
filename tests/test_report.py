"""The static map, the summary and the page, as a person sees them."""

import io
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import geopandas as gpd
import matplotlib.image
import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
from affine import Affine
from numpy.typing import NDArray

from workbench._support.palette import CONFIDENCE_CLASSES, NO_SCORE_COLOR
from workbench.layer.report.map import ShownLayer, draw_map, figure_png
from workbench.layer.report.page import write_report
from workbench.layer.report.tally import Tally, summary_table
from workbench.layer.schema import as_layer, as_tiles

UTM = pyproj.CRS.from_epsg(32636)
LEFT, TOP, SIDE = 452_000.0, 35_000.0, 200
TRANSFORM = Affine(1, 0, LEFT, 0, -1, TOP)
GREY = np.full((SIDE, SIDE, 3), 90, np.uint8)
VALID = np.ones((SIDE, SIDE), bool)


def square(x: float, y: float, side: float) -> shapely.Polygon:
    return shapely.box(LEFT + x, TOP - y - side, LEFT + x + side, TOP - y)


def labels(shapes: list[Any], confidence: list[float], crs: pyproj.CRS = UTM) -> gpd.GeoDataFrame:
    rows = {
        "id": [f"scene/r0c0/{n}" for n in range(len(shapes))],
        "confidence": np.array(confidence, np.float64),
        "stability": 0.95,
        "area_m2": shapely.area(shapes),
        "area_px": 100,
        "source_tile": "scene/r0c0",
        "source": "scene",
        "n_tiles": 1,
        "at_edge": False,
    }
    return as_layer(gpd.GeoDataFrame(rows, geometry=shapes, crs=crs))


def tiles(*status: str, crs: pyproj.CRS = UTM) -> gpd.GeoDataFrame:
    rows = {
        "tile": [f"scene/r0c{n}" for n in range(len(status))],
        "source": "scene",
        "tile_row": 0,
        "tile_col": range(len(status)),
        "status": list(status),
        "error": ["<block> 3 & 4" if s == "failed" else "" for s in status],
        "n_candidates": [1000 if s == "ok" else 0 for s in status],
        "n_polygons": 0,
        "seconds": 40.0,
    }
    width = SIDE / len(status)
    cores = [
        shapely.box(LEFT + n * width, TOP - SIDE, LEFT + (n + 1) * width, TOP)
        for n in range(len(status))
    ]
    return as_tiles(gpd.GeoDataFrame(rows, geometry=cores, crs=crs))


def seen(figure: Any) -> Any:
    """Render, and return a function that gives the colour at metres right of, below the corner."""
    png = figure_png(figure, dpi=100)
    pixels = (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    axes = figure.axes[0]

    def at(x: float, y: float) -> NDArray[np.int_]:
        column, row = axes.transData.transform((LEFT + x, TOP - y))
        return pixels[round(pixels.shape[0] - row), round(column)]

    return at


def rgb(color: str) -> NDArray[np.int_]:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


# --------------------------------------------------------------------------------------- map


def test_map_shows_polygons_in_place_with_open_holes() -> None:
    ring = square(20, 20, 80).difference(square(40, 40, 40))
    # a polygon is the same whichever way its rings run; matplotlib fills holes that run along
    along = [square(120, 20, 60).exterior, square(135, 35, 30).exterior]
    other = shapely.Polygon(along[0], [along[1]])
    at = seen(draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(labels([ring, other], [0.97, 0.5]))))
    for x, y in ((60, 60), (150, 50), (10, 10), (100, 150)):
        assert np.abs(at(x, y) - 90).max() <= 3, (x, y)  # the hole and outside: bare imagery
    highest, lowest = rgb(CONFIDENCE_CLASSES[-1][1]), rgb(CONFIDENCE_CLASSES[0][1])
    assert np.abs(at(30, 60) - (0.82 * 90 + 0.18 * highest)).max() <= 4
    assert np.abs(at(128, 50) - (0.82 * 90 + 0.18 * lowest)).max() <= 4


def test_map_draws_polygons_without_a_score() -> None:
    at = seen(
        draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(labels([square(50, 50, 60)], [np.nan])))
    )
    assert np.abs(at(80, 80) - (0.82 * 90 + 0.18 * rgb(NO_SCORE_COLOR))).max() <= 4


def test_map_hatches_what_is_not_valid() -> None:
    valid = VALID.copy()
    valid[:, 100:] = False
    at = seen(draw_map(GREY, valid, TRANSFORM, ShownLayer.of(labels([], []))))
    assert np.abs(at(50, 50) - 90).max() <= 2
    shades = {int(at(150, y)[0]) for y in range(40, 160)}
    assert min(shades) >= 215
    assert len(shades) > 1


def test_map_of_nothing_says_so() -> None:
    figure = draw_map(
        GREY, VALID, TRANSFORM, ShownLayer.of(labels([], [])), tiles=tiles("empty"), title="Plot 7"
    )
    assert figure.axes[0].get_title(loc="left") == "Plot 7 · 0 polygons"
    assert figure_png(figure).startswith(b"\x89PNG")


def test_a_long_title_leaves_room_for_the_map() -> None:
    figure = draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(labels([], [])), title="x" * 250)
    figure_png(figure, dpi=30)  # matplotlib warns when there is no room
    assert figure.axes[0].get_title(loc="left").endswith("x… · 0 polygons")


def test_scale_bar_is_in_ground_metres() -> None:
    # at 60° N a metre of web mercator is half a metre of ground
    mercator = pyproj.CRS.from_epsg(3857)
    x, y = pyproj.Transformer.from_crs(4326, mercator, always_xy=True).transform(25, 60)
    transform = Affine(1, 0, x, 0, -1, y)
    figure = draw_map(GREY, VALID, transform, ShownLayer.of(labels([], [], mercator)))
    (text,) = [t.get_text() for t in figure.axes[0].texts]
    assert text == "20 m"
    length = np.ptp(figure.axes[0].lines[0].get_xdata())
    assert length == pytest.approx(20 / 0.5, rel=0.01)


def test_map_marks_failed_tiles_and_the_aoi() -> None:
    aoi = gpd.GeoDataFrame(geometry=[square(20, 20, 150)], crs=UTM).to_crs(4326)
    figure = draw_map(
        GREY, VALID, TRANSFORM, ShownLayer.of(labels([], [])), tiles=tiles("ok", "failed"), aoi=aoi
    )
    at = seen(figure)
    reddish = [at(x, 190) for x in range(110, 190)]
    assert np.mean([p[0] - p[2] for p in reddish]) > 10
    assert any(at(x, 20).min() > 200 for x in range(30, 160))  # the AOI's dashes


def test_equal_maps_are_equal_files() -> None:
    layer = labels([square(50, 50, 60)], [0.9])
    first, again = (
        figure_png(draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(layer))) for _ in range(2)
    )
    assert first == again


def test_drawing_needs_no_pyplot() -> None:
    # which would keep every figure of a long run in memory
    code = "import sys, workbench.layer.report.map; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_time_of_a_map_grows_no_faster_than_its_polygons() -> None:
    rng = np.random.default_rng(0)
    shapes = [shapely.Point(x, y).buffer(1) for x, y in rng.uniform(5, 195, (20_000, 2))]
    layer = labels(
        list(shapely.transform(shapes, lambda xy: xy + [LEFT, TOP - SIDE])), [0.9] * 20_000
    )

    def seconds(layer: gpd.GeoDataFrame) -> float:
        started = time.process_time()
        figure_png(draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(layer)))
        return time.process_time() - started

    seconds(layer[:10])  # loads fonts
    assert seconds(layer) < 15 * seconds(layer[:2000])


def test_a_layer_in_batches_has_the_same_map_and_summary() -> None:
    rng = np.random.default_rng(0)  # many overlap
    shapes = [square(x, y, 40) for x, y in rng.uniform(0, 160, (30, 2))]
    layer = labels(shapes, rng.uniform(0.6, 1, 30).tolist())
    layer["source"] = ["left"] * 12 + ["scene"] * 18
    both = gpd.GeoDataFrame(pd.concat([tiles("ok"), tiles("ok").assign(source="left")]))
    batches = [layer[:0], layer[:5], layer[5:20], layer[20:]]
    tally = Tally(both)
    for batch in batches:
        tally.add(batch)
    whole = ShownLayer.of(layer)
    parts = ShownLayer(lambda: iter(batches), tally.by_confidence("left"), UTM, tally.classes)
    parts = replace(parts, counts=parts.counts + tally.by_confidence("scene"))
    one, other = (
        figure_png(draw_map(GREY, VALID, TRANSFORM, shown, tiles=both)) for shown in (whole, parts)
    )
    assert one == other
    assert tally.summary().equals(summary_table(layer, both))
    assert len(tally.numbers) == 30


# ----------------------------------------------------------------------------------- summary


def test_summary_counts_what_a_person_asks_for() -> None:
    shapes = [square(0, 0, 50), square(0, 0, 50), square(50, 50, 50)]
    table = summary_table(labels(shapes, [0.8, 0.9, 1.0]), tiles("ok", "ok", "nodata", "failed"))[
        "value"
    ]
    assert table["tiles"] == "4"
    assert table["tiles done"] == "2"
    assert table["tiles without valid pixels"] == "1"
    assert table["tiles failed"] == "1"
    assert "tiles without candidates" not in table
    assert table["candidates stored"] == "2,000"
    assert table["polygons"] == "3"
    assert table["area, median (largest)"] == "2,500 m² (2,500 m²)"
    assert table["confidence, median (quartiles)"] == "0.900 (0.850 – 0.950)"
    # twice the same square counts once: 5,000 m² of the 20,000 m² of the two finished tiles
    assert table["area covered"] == "25.0% of the tiles' area"
    assert table["time in tiles"] == "2 min 40 s"


def test_summary_of_nothing() -> None:
    table = summary_table(labels([], []), tiles("empty"))["value"]
    assert table["polygons"] == "0"
    assert table["tiles failed"] == "0"
    assert table["area, median (largest)"] == "–"
    assert table["confidence, median (quartiles)"] == "–"
    assert table["area covered"] == "0.0% of the tiles' area"
    unfinished = summary_table(labels([], []), tiles("failed"))["value"]
    assert unfinished["area covered"] == "–"


# -------------------------------------------------------------------------------------- page


class Page(HTMLParser):
    """Tags, in order, checked to be closed in the order in which they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src")]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report(folder: Path, **changes: Any) -> str:
    layer = labels([square(50, 50, 60)], [0.9])
    content = {
        "title": "Kampala <z20> & friends",
        "picture_png": figure_png(draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(layer)), dpi=30),
        "summary": summary_table(layer, tiles("ok")),
        "parameters": {"source": "a<b>&c.tif", "aoi": None, "classes": {1: '"roof"'}},
        "tiles": tiles("ok"),
    }
    path = folder / "report.html"
    write_report(path, **(content | changes))
    return path.read_text("utf-8")


def test_page_is_one_file_that_asks_nothing_of_the_network(tmp_path: Path) -> None:
    text = report(tmp_path)
    page = Page(text)
    assert not re.search(r"<script|https?://|@import|url\(", text)
    (picture,) = page.links
    assert picture.startswith("data:image/png;base64,")
    assert 'name="viewport"' in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_page_shows_values_as_they_are(tmp_path: Path) -> None:
    shown = Page(report(tmp_path)).text
    assert "Kampala <z20> & friends" in shown
    assert "a<b>&c.tif" in shown
    assert "{1: '\"roof\"'}" in shown
    assert "–" in shown
    assert "polygons" in shown


def test_page_links_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "review.qgz").touch()
    assert Page(report(tmp_path)).links[1:] == ["review.qgz"]


def test_page_lists_failed_tiles_first(tmp_path: Path) -> None:
    text = report(tmp_path, tiles=tiles("ok", *["failed"] * 60))
    shown = Page(text).text
    assert "60 of 61 tiles failed" in shown
    assert shown.count("<block> 3 & 4") == 50
    assert "… and 10 more, in tiles.parquet." in shown
    assert text.index("tiles failed") < text.index("<img")
    assert "failed</h2>" not in report(tmp_path, tiles=tiles("ok"))


def test_long_names_break_between_words_on_a_narrow_screen(tmp_path: Path) -> None:
    text = report(tmp_path, parameters={"stability_score_thresh": 0.92})
    assert "<th>stability_<wbr>score_<wbr>thresh</th>" in text
    assert "stability_score_thresh" in "".join(Page(text).text)
