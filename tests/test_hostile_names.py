"""Names that files bring along are shown as they are, whatever they hold, and never run."""

import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pyproj
import pytest
from test_qgis import BOUNDS, has_qgis, named, raster_of, seen_by_qgis, tile_layer, write_raster
from test_report import GREY, TRANSFORM, VALID, Page, labels, report, square, tiles

from workbench.layer.files import write_layer
from workbench.layer.qgis import styles, write_project
from workbench.layer.qgis.expressions import column, html, is_one_of, text
from workbench.layer.report.map import ShownLayer, draw_map, figure_png

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</title></style><script>alert(1)</script>",
    '\'; "quoted" \\back\\slash',
    "two\nlines",
    "]]> <!-- & &amp; -->",
    "[% 1 + 1 %] {{ 7 * 7 }} {% raw %}",
    "$\\frac{$ %s {0}",
    "x" * 300,
]
CLASSES = dict(enumerate(HOSTILE, start=1))
# what a GeoTIFF's WKT may call its CRS
WKT = pyproj.CRS.from_epsg(32636).to_wkt("WKT1_GDAL").replace("WGS 84 / UTM zone 36N", "NAME", 1)
WKT = WKT.replace(',AUTHORITY["EPSG","32636"]', "")


def named_crs(name: str) -> pyproj.CRS:
    # pyproj takes a WKT with braces for JSON, so no file brings one along
    return pyproj.CRS.from_wkt(WKT.replace("NAME", name.translate({123: 40, 125: 41, 34: '""'})))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_report_shows_names_and_runs_none(tmp_path: Path, name: str) -> None:
    failed = tiles("failed", "ok")
    failed["tile"], failed["error"] = name, name
    content = report(
        tmp_path, title=name, tiles=failed, parameters={name: name, "classes": {1: name}},
        tables={name: {name: name}},
    )  # fmt: skip
    page = Page(content)
    assert not {"script", "img src=x"} & set(content.split("<"))
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    shown = "".join(page.text)
    # title, heading, tile, its error, name and value of a parameter, heading, name, value
    assert shown.count(name) >= 8
    assert str({1: name}) in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_the_map_shows_names_and_takes_them_for_no_formula(name: str) -> None:
    layer = labels([square(50, 50, 60)], [0.9], named_crs(name))
    figure = draw_map(GREY, VALID, TRANSFORM, ShownLayer.of(layer), title=name)
    assert figure_png(figure, dpi=40).startswith(b"\x89PNG")  # warns where there is no room
    assert "\n" not in figure.axes[0].get_title(loc="left")


def hand_off(folder: Path) -> tuple[Path, list[str]]:
    layer = labels([square(50, 50, 60)], [0.9], named_crs(HOSTILE[0]))
    layer["source"], layer["class_id"] = HOSTILE[0], 1
    crs, here = layer.crs, tile_layer(layer.crs).assign(tile=HOSTILE[:2], error=HOSTILE[2:4])
    write_layer([layer], lambda _: here, folder, styles=lambda: styles(CLASSES))
    raster = write_raster(folder / "ortho.tif")
    rasters = [raster_of(raster.with_name(f"{n}.tif")) for n in range(len(HOSTILE))]
    for n, each in enumerate(rasters):
        Path(each.source).write_bytes(raster.read_bytes())
        object.__setattr__(each, "name", HOSTILE[n])
    project = folder / "review.qgz"
    write_project(
        project, gpkg=folder / "prelabels.gpkg", rasters=rasters, crs=crs, bounds=BOUNDS,
        classes=CLASSES, title=HOSTILE[0], tiles=here,
    )  # fmt: skip
    return project, [each.name for each in rasters]


def values_of_the_class(root: ET.Element) -> list[str]:
    for field in root.iter("field"):
        if field.get("name") == "class_id" and field.find("editWidget") is not None:
            return [o.get("name", "") for o in field.iter("Option") if o.get("type") == "QString"]
    raise AssertionError("no field class_id")


def test_names_come_back_from_the_project_as_they_were(tmp_path: Path) -> None:
    project, names = hand_off(tmp_path)
    with zipfile.ZipFile(project) as archive:
        root = ET.fromstring(archive.read("review.qgs"))
    layers = [e.text for e in root.iterfind("projectlayers/maplayer/layername")]
    assert [name for name in layers if not name.startswith(("prelabels", "tiles"))] == names
    assert root.get("projectname") == root.findtext("title") == HOSTILE[0]
    assert values_of_the_class(root) == [f"{n} – {name}" for n, name in CLASSES.items()]
    assert [mark.get("name") for mark in root.iter("Bookmark")] == HOSTILE[:2]
    assert HOSTILE[0] in {e.text for e in root.iter("description")}
    # actions and map tips hold no name at all
    code = [e.get("action", "") for e in root.iter("actionsetting")]
    tips = [e.text or "" for e in root.iter("mapTip")]
    assert not [name for name in HOSTILE for held in (*code, *tips) if name in held]


def test_the_geojson_gives_names_back(tmp_path: Path) -> None:
    hand_off(tmp_path)
    (feature,) = json.loads((tmp_path / "prelabels.geojson").read_text("utf-8"))["features"]
    assert feature["properties"]["source"] == HOSTILE[0]


def test_real_qgis_shows_names_as_they_are(tmp_path: Path) -> None:
    if not has_qgis():
        pytest.skip("no QGIS")
    project, names = hand_off(tmp_path)
    report: dict[str, Any] = seen_by_qgis(project, "--no-picture")
    assert {layer["name"] for layer in report["layers"]} >= set(names)
    assert named(report, "prelabels")["form"]["open_on_new"]
    assert report["project"]["bookmarks"] == HOSTILE[:2]


def test_expressions_quote_what_they_hold() -> None:
    assert column('a "b"') == '"a ""b"""'
    assert text("l'a\\b\n\t") == "'l''a\\\\b\\n\\t'"
    assert is_one_of("s", "a'") == "\"s\" = 'a'''"
    assert is_one_of("s", "a", "b") == "\"s\" in ('a', 'b')"
    assert html('"x"').startswith("replace(replace(replace(")
