"""The project and the styles, as real QGIS sees them, and as far as XML alone can tell."""

import ast
import json
import os
import subprocess
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from workbench import Job, run
from workbench._support.palette import CONFIDENCE_CLASSES, confidence_labels
from workbench.layer.files import LayerFiles, read_layer, write_layer
from workbench.layer.qgis import (
    AREA,
    ProjectRaster,
    scene_raster,
    styles,
    write_project,
)
from workbench.layer.schema import LABELS, as_layer
from workbench.raster.open import open_scene

UTM = pyproj.CRS.from_epsg(32636)
LEFT, TOP, SIDE = 452_000.0, 35_000.0, 200.0
BOUNDS = (LEFT, TOP - SIDE, LEFT + SIDE, TOP)
CLASSES = {1: "roof", 2: 'tin "roof" & <annex>', 3: "l'école \x07"}
NO_QGIS = "no QGIS: apt-get install --no-install-recommends python3-qgis qgis-providers"
SYSTEM_PYTHON = "/usr/bin/python3"  # QGIS's bindings live beside Debian's Python


@lru_cache
def has_qgis() -> bool:
    try:
        probe = subprocess.run([SYSTEM_PYTHON, "-c", "import qgis.core"], capture_output=True)
    except OSError:
        return False
    return probe.returncode == 0


def seen_by_qgis(path: Path, *options: str) -> dict[str, Any]:
    """Open a file in real, headless QGIS and return what it saw."""
    return run_in_qgis("qgis_verify.py", path, *options)


def run_in_qgis(script: str, path: Path, *options: str) -> dict[str, Any]:
    """Run a script beside this file with QGIS's Python and return the JSON that it prints."""
    if not has_qgis():
        pytest.skip(NO_QGIS)
    verifier = Path(__file__).with_name(script)
    # the variables of a virtual environment's Python would mislead the system's
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PROJ"))}
    environment |= {"QT_QPA_PLATFORM": "offscreen", "GDAL_PAM_ENABLED": "NO"}
    command = [SYSTEM_PYTHON, str(verifier), str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def square(x: float, y: float, side: float) -> shapely.Polygon:
    """A square with its upper left corner x, y metres right of and below the scene's."""
    return shapely.box(LEFT + x, TOP - y - side, LEFT + x + side, TOP - y)


def label_layer(crs: pyproj.CRS = UTM) -> gpd.GeoDataFrame:
    shapes = [
        square(10, 10, 60).difference(square(30, 30, 20)),
        shapely.MultiPolygon([square(90, 10, 30), square(130, 20, 15)]),
        square(20, 110, 50),
        square(120, 120, 40),
        square(170, 170, 25),
    ]
    return as_layer(
        gpd.GeoDataFrame(
            {
                "id": [f"scene/r0c0/{n}" for n in range(5)],
                "class_id": [1, None, 2, 3, None],
                "status": ["unreviewed", "accepted", "rejected", "unreviewed", "edited"],
                "confidence": [0.97, 0.9, 0.65, 0.85, np.nan],
                "stability": [0.99, 0.98, 0.93, 0.95, np.nan],
                "area_m2": shapely.area(shapes),
                "area_px": [3200, 1125, 2500, 1600, 0],
                "source_tile": "scene/r0c0",
                "source": "scene",
                "n_tiles": 1,
                "at_edge": [False, False, False, False, True],
            },
            geometry=shapes,
            crs=crs,
        )
    )


def tile_layer(crs: pyproj.CRS = UTM) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(
        {
            "tile": ["scene/r0c0", "scene/r0c1"],
            "source": "scene",
            "tile_row": 0,
            "tile_col": [0, 1],
            "status": ["ok", "failed"],
            "error": ["", "block 3: read error"],
            "n_candidates": [40, 0],
            "n_polygons": [5, 0],
            "seconds": [1.5, 0.1],
        },
        geometry=[
            shapely.box(LEFT, TOP - SIDE, LEFT + 110, TOP),
            shapely.box(LEFT + 110, TOP - SIDE, LEFT + SIDE, TOP),
        ],
        crs=crs,
    )


def write_raster(path: Path, bands: int = 3, dtype: str = "uint8", **profile: Any) -> Path:
    rng = np.random.default_rng(3)
    top = 255 if dtype == "uint8" else 3000
    values = rng.integers(top // 4, top // 2, (bands, 200, 200)).astype(dtype)
    where = {"crs": UTM, "transform": Affine(1, 0, LEFT, 0, -1, TOP)}
    with rasterio.open(
        path, "w", driver="GTiff", width=200, height=200, count=bands, dtype=dtype,
        **(where | profile),
    ) as file:  # fmt: skip
        file.write(values)
    return path


def raster_of(path: Path | str) -> ProjectRaster:
    return ProjectRaster(path, "ortho", UTM, (1, 2, 3))


def hand_off(
    folder: Path,
    *rasters: ProjectRaster,
    layer: gpd.GeoDataFrame | None = None,
    planar: bool = False,
    aoi: shapely.Geometry | None = None,
) -> tuple[LayerFiles, Path]:
    layer = label_layer() if layer is None else layer
    files = write_layer(
        [layer], lambda _: tile_layer(), folder, styles=lambda: styles(CLASSES, planar)
    )
    project = folder / "review.qgz"
    write_project(project, gpkg=files.gpkg, rasters=rasters, crs=UTM, bounds=BOUNDS,
                  classes=CLASSES, title="A & B <run>", tiles=tile_layer(),
                  aoi=aoi, planar=planar)  # fmt: skip
    return files, project


def project_xml(project: Path) -> ET.Element:
    with zipfile.ZipFile(project) as archive:
        (name,) = archive.namelist()
        return ET.fromstring(archive.read(name))


def named(report: dict[str, Any], name: str) -> dict[str, Any]:
    (layer,) = [layer for layer in report["layers"] if layer["name"] == name]
    return layer


# --------------------------------------------------------------------------------- real QGIS


def test_project_opens_in_qgis_without_a_problem(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "ortho.tif")
    _, project = hand_off(tmp_path / "run", raster_of(raster))
    report = seen_by_qgis(project, "--edit", "--topology")
    assert report["problems"] == []
    assert report["input_unchanged"]
    seen = report["project"]
    assert seen["crs"] == "EPSG:32636"
    assert seen["title"] == "A & B <run>"
    assert seen["layer_order"] == ["prelabels", "tiles", "ortho"]
    assert seen["view_extent"] == list(BOUNDS)
    assert not seen["topological_editing"]
    snapping = seen["snapping"]
    assert (snapping["enabled"], snapping["mode"], snapping["units"]) == (
        True,
        "advanced",
        "pixels",
    )
    assert snapping["layers"]["prelabels"]["type"] == ["vertex", "segment"]
    assert snapping["layers"]["prelabels"]["tolerance"] == 12
    assert not snapping["layers"]["tiles"]["enabled"]
    assert report["picture"]["drawn"]["ortho"] > 0.5
    assert report["picture"]["drawn"]["prelabels"] > 0.01  # outlines only
    assert not list(tmp_path.rglob("*.aux.xml"))


def test_qgis_outlines_the_area_of_the_run(tmp_path: Path) -> None:
    raster = raster_of(write_raster(tmp_path / "ortho.tif"))
    ring = square(20, 20, 150).difference(square(80, 80, 20))
    aoi = shapely.MultiPolygon([ring, square(180, 180, 10)])
    _, project = hand_off(tmp_path / "run", raster, aoi=aoi)
    report = seen_by_qgis(project, "--edit", "--topology")
    assert report["problems"] == []
    assert report["project"]["layer_order"] == [AREA, "prelabels", "tiles", "ortho"]
    area = named(report, AREA)
    assert (area["valid"], area["crs"]) == (True, "EPSG:32636")
    assert 0.005 < report["picture"]["drawn"][AREA] < 0.1  # an outline, which hides nothing
    again = hand_off(tmp_path / "again", raster, aoi=aoi)[1]
    assert again.read_bytes() == project.read_bytes()


def test_qgis_draws_every_polygon_by_its_confidence(tmp_path: Path) -> None:
    _, project = hand_off(tmp_path, raster_of(write_raster(tmp_path / "ortho.tif")))
    labels = named(seen_by_qgis(project, "--no-picture"), LABELS)
    assert labels["geometry"] == "MultiPolygon"
    assert labels["spatial_index"]
    assert labels["renderer"]["invisible_features"] == 0
    counts = {row["label"]: row["features"] for row in labels["renderer"]["classes"]}
    # 0.9 opens its class
    assert counts == {
        "0.95 and above": 1,
        "0.9 – 0.95": 1,
        "0.8 – 0.9": 1,
        "0.7 – 0.8": 0,
        "below 0.7": 1,
        "no score": 1,
    }


def test_qgis_form_offers_the_classes_and_keeps_the_scores(tmp_path: Path) -> None:
    _, project = hand_off(tmp_path, raster_of(write_raster(tmp_path / "ortho.tif")))
    report = seen_by_qgis(project, "--no-picture", "--edit")
    fields = {field["name"]: field for field in named(report, LABELS)["fields"]}
    assert fields["class_id"]["choices"] == {
        "1 – roof": "1",
        '2 – tin "roof" & <annex>': "2",
        "3 – l'école ": "3",
    }
    assert set(fields["status"]["choices"].values()) == {
        "unreviewed",
        "accepted",
        "rejected",
        "edited",
    }
    assert fields["confidence"]["widget"] == "Range"
    assert fields["confidence"]["config"]["Style"] == "SpinBox"
    assert [n for n, field in fields.items() if field["editable"]] == ["class_id", "status"]
    edited = report["editing"][LABELS]
    assert edited["saved"]
    # reshaping a polygon changes its area and says so, and nothing else
    assert list(edited["changed_by_reshape"]) == ["status", "area_m2"]
    assert edited["changed_by_reshape"]["status"] == ["unreviewed", "edited"]
    assert edited["changed_by_reshape"]["area_m2"][1] == pytest.approx(
        edited["planar_area_after_reshape"], rel=2e-3
    )
    drawn = edited["new_feature"]
    assert drawn["id"].startswith("drawn/")
    assert len(drawn["id"]) > 30
    assert drawn["status"] == "edited"
    assert drawn["confidence"] is None
    assert (drawn["source_tile"], drawn["source"]) == ("scene/r0c0", "scene")
    assert fields["class_id"]["reuse_last"]
    assert not fields["status"]["reuse_last"]


def test_qgis_finds_the_style_in_the_geopackage_and_beside_the_geojson(tmp_path: Path) -> None:
    files, _ = hand_off(tmp_path, raster_of(write_raster(tmp_path / "ortho.tif")))
    for path in (files.gpkg, files.geojson):
        report = seen_by_qgis(path)
        assert report["problems"] == []
        labels = named(report, LABELS)
        assert labels["renderer"]["type"] == "graduatedSymbol", path
        widgets = {field["name"]: field["widget"] for field in labels["fields"]}
        assert widgets["class_id"] == "ValueMap", path
        assert widgets["confidence"] == "Range", path
    tiles = named(seen_by_qgis(files.gpkg, "--layer", "tiles"), "tiles")
    assert tiles["renderer"]["type"] == "categorizedSymbol"


def test_qgis_opens_a_project_without_polygons(tmp_path: Path) -> None:
    raster = raster_of(write_raster(tmp_path / "ortho.tif"))
    _, project = hand_off(tmp_path, raster, layer=label_layer().iloc[:0])
    report = seen_by_qgis(project)
    assert report["problems"] == ["prelabels: leaves no trace in the picture"]
    labels = named(report, LABELS)
    assert (labels["features"], labels["crs"]) == (0, "EPSG:32636")
    assert labels["geometry"] == "MultiPolygon"
    assert len(labels["fields"]) == 13


def test_qgis_shows_a_raster_of_another_crs_in_its_place(tmp_path: Path) -> None:
    lonlat = pyproj.CRS.from_epsg(4326)
    to_lonlat = pyproj.Transformer.from_crs(UTM, lonlat, always_xy=True)
    west, north = to_lonlat.transform(LEFT, TOP)
    transform = Affine(9e-6, 0, west, 0, -9e-6, north)
    path = write_raster(tmp_path / "ortho.tif", crs=lonlat, transform=transform)
    raster = replace(raster_of(path), crs=lonlat)
    report = seen_by_qgis(hand_off(tmp_path, raster)[1])
    assert report["problems"] == []
    assert named(report, "ortho")["crs"] == "EPSG:4326"
    assert report["picture"]["drawn"]["ortho"] > 0.5


@pytest.mark.parametrize(
    ("bands", "dtype", "expected"),
    [
        (3, "uint8", "multibandcolor"),
        (4, "uint16", "multibandcolor"),
        (1, "float32", "singlebandgray"),
    ],
)
def test_qgis_shows_a_scene_as_the_model_saw_it(
    tmp_path: Path, bands: int, dtype: str, expected: str
) -> None:
    path = write_raster(tmp_path / "ortho.tif", bands, dtype)
    scene = open_scene(path)
    raster = scene_raster(scene)
    assert raster.crs == UTM
    assert (raster.stretch is None) == (dtype == "uint8")
    report = seen_by_qgis(hand_off(tmp_path, raster)[1])
    assert report["problems"] == []
    assert named(report, scene.name)["renderer"]["type"] == expected


def test_qgis_offers_all_that_a_reviewer_needs(tmp_path: Path) -> None:
    _, project = hand_off(tmp_path, raster_of(write_raster(tmp_path / "ortho.tif")))
    report = seen_by_qgis(project, "--no-picture")
    assert report["problems"] == []
    labels = named(report, LABELS)
    assert labels["current_style"] == "Confidence"
    assert sorted(labels["styles"]) == ["Class", "Confidence", "Status"]
    assert sorted(labels["stored_styles"]) == ["Class", "Confidence", "Status"]
    one = [a["name"] for a in labels["actions"] if a["scopes"] == ["Canvas", "Feature"]]
    assert one == ["Accept", "Reject", "Reopen"]
    assert [a["name"] for a in labels["actions"] if a["scopes"] == ["Layer"]] == [
        *(f"{verb} selected labels" for verb in one),
        "Zoom to each label: on or off",
    ]
    assert all(action["runnable"] for action in labels["actions"])
    assert labels["actions"][0]["default_on_canvas"]
    assert labels["actions"][0]["scopes"] == ["Canvas", "Feature"]
    review = labels["form"]["tree"][0]
    assert (labels["form"]["open_on_new"], review["name"]) == (True, "Review")
    assert review["children"][:2] == ["field:class_id", "field:status"]
    assert "action:Accept" in review["children"]
    assert labels["table_sort"] == 'coalesce("class_score", "confidence")'
    assert len(labels["row_styles"]) == 2
    assert "To review" in labels["saved_filters"]
    assert labels["map_tip"]
    assert labels["edit_checks"] == ["QgsIsValidCheck"]
    assert report["project"]["bookmarks"] == ["scene/r0c0", "scene/r0c1"]
    assert len(report["project"]["topology_rules"]) == 2
    assert report["project"]["avoid_overlap"]["layers"] == []


def test_qgis_keeps_a_planar_layer_planar(tmp_path: Path) -> None:
    raster = raster_of(write_raster(tmp_path / "ortho.tif"))
    _, project = hand_off(tmp_path, raster, planar=True)
    report = seen_by_qgis(project, "--no-picture")
    assert report["problems"] == []
    assert report["project"]["avoid_overlap"] == {"mode": 2, "layers": ["prelabels"]}
    assert named(report, LABELS)["edit_checks"] == ["QgsIsValidCheck", "QgsGeometryOverlapCheck"]
    assert len(report["project"]["topology_rules"]) == 4


@pytest.mark.parametrize("planar", [True, False])
def test_qgis_reports_overlaps_where_there_may_be_none(tmp_path: Path, planar: bool) -> None:
    layer = label_layer()
    layer.loc[3, "geometry"] = shapely.MultiPolygon([square(60, 140, 40)])  # reaches into 2
    _, project = hand_off(tmp_path, layer=layer, planar=planar)
    report = seen_by_qgis(project, "--topology", "--no-picture")
    assert report["topology"][LABELS]["overlaps"] == 1
    problems = [text for text in report["problems"] if "topology" in text]
    assert [text[:19] for text in problems] == ["prelabels: topology"] * planar


def test_a_review_in_qgis_loses_nothing(tmp_path: Path) -> None:
    files, project = hand_off(tmp_path, raster_of(write_raster(tmp_path / "ortho.tif")))
    before = read_layer(files.gpkg).set_index("id")
    seen = run_in_qgis("qgis_review.py", project)
    assert seen["saved"], seen["errors"]
    # by confidence: 0.85, then 0.97 of those that nobody has seen
    went_to = ["scene/r0c0/0", "scene/r0c0/0", None, "scene/r0c0/4", "scene/r0c0/0"]
    assert seen["went_to"] == [*went_to, "scene/r0c0/0"]  # the last in the GeoJSON
    assert seen["drawn_in_each_style"] == {"Class": True, "Confidence": True, "Status": True}
    with_class, (level, title, text), again = seen["said"]
    assert (level, title) == (1, "No class")
    assert "default_class" in text
    assert with_class is again is None  # said once
    assert seen["map_tip"].startswith('<b>2 – tin "roof" &amp; &lt;annex&gt;</b>')
    assert "<img" not in seen["strange_tip"]
    assert "&lt;img src=x onerror=alert(1)&gt;" in seen["strange_tip"]
    after = read_layer(files.gpkg)
    drawn = after[~after["id"].isin(before.index)]
    after = after.set_index("id")
    kept = [f"scene/r0c0/{n}" for n in (0, 1, 2, 3)]
    assert sorted(after.index) == sorted([*kept, *drawn["id"]])  # 4 is deleted
    status = after["status"].to_dict()
    # 3 is accepted, 0 rejected and reopened, then reshaped; 1 stays; 2 gets another class
    assert [status[id] for id in kept] == ["edited", "accepted", "rejected", "accepted"]
    assert after.loc[kept[2], "class_id"] == 1
    for id in kept[1:]:
        assert after.geometry[id].equals_exact(before.geometry[id], 0)
    unchanged = [
        "confidence",
        "stability",
        "area_px",
        "source_tile",
        "source",
        "n_tiles",
        "at_edge",
    ]
    assert after.loc[kept, unchanged].equals(before.loc[kept, unchanged])
    reshaped = after.loc[kept[0]]
    assert after.geometry[kept[0]].area == pytest.approx(before.geometry[kept[0]].area - 100)
    assert reshaped["area_m2"] == pytest.approx(after.geometry[kept[0]].area, rel=2e-3)
    assert len(drawn) == 1
    new = drawn.iloc[0]
    assert (new["status"], new["class_id"], new["source_tile"]) == ("edited", 3, "scene/r0c1")
    assert new.geometry.area == pytest.approx(225)
    assert not list(tmp_path.glob("*-wal"))


@pytest.mark.parametrize(
    ("name", "planar"), [("kampala/kampala_z19_a.tif", False), ("trees_neon/SJER_477.tif", True)]
)
def test_project_of_a_real_scene_is_ready_for_review(
    data_dir: Path, tmp_path: Path, name: str, planar: bool
) -> None:
    if not has_qgis():
        pytest.skip(NO_QGIS)
    made = run(
        Job.create(
            source=str(data_dir / name),
            out_dir=str(tmp_path / "run"),
            model="classic",
            planar=planar,
        )
    )
    assert len(made.layer) > 5
    options = ("--topology", "--edit")
    report = seen_by_qgis(tmp_path / "run" / "review.qgz", *options)
    assert report["problems"] == []
    assert report["picture"]["drawn"][Path(name).stem] > 0.5
    assert report["project"]["avoid_overlap"]["layers"] == (["prelabels"] if planar else [])


# ---------------------------------------------------------------------------- the XML itself


def test_project_moves_with_its_folder(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "ortho.tif")
    _, project = hand_off(tmp_path / "runs" / "a", raster_of(raster))
    sources = {e.text for e in project_xml(project).iter("datasource")}
    assert sources == {
        "./prelabels.gpkg|layername=prelabels",
        "./prelabels.gpkg|layername=tiles",
        "../../ortho.tif",
    }


def test_project_keeps_a_remote_raster_as_it_is(tmp_path: Path) -> None:
    url = "/vsicurl/https://example.org/a&b.tif"
    _, project = hand_off(tmp_path, raster_of(url))
    assert url in {e.text for e in project_xml(project).iter("datasource")}


def test_project_puts_many_rasters_in_a_group(tmp_path: Path) -> None:
    rasters = [replace(raster_of(tmp_path / f"{n}.tif"), name=f"tile {n}") for n in range(3)]
    _, project = hand_off(tmp_path, *rasters)
    tree = project_xml(project).find("layer-tree-group")
    assert tree is not None
    names = ["prelabels", "tiles", "prelabels as saved", "imagery"]
    assert [node.get("name") for node in tree] == names
    assert [node.get("name") for node in tree[3]] == ["tile 0", "tile 1", "tile 2"]
    ids = [node.text for node in project_xml(project).iterfind("projectlayers/maplayer/id")]
    assert len(set(ids)) == 6


def test_equal_runs_give_equal_projects(tmp_path: Path) -> None:
    written = [
        hand_off(tmp_path / name, raster_of(tmp_path / name / "a.tif"))[1] for name in ("x", "y")
    ]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_legend_names_each_class_of_confidence() -> None:
    labels = confidence_labels(CONFIDENCE_CLASSES)
    assert len(labels) == len(CONFIDENCE_CLASSES)
    assert labels[0] == "below 0.7"


def test_the_code_of_the_buttons_is_python_that_old_qgis_reads() -> None:
    (labels, _) = styles({1: "roof", 2: "road"}).values()
    root = ET.fromstring(labels["Confidence"].partition("\n")[2])
    code = {e.get("name"): e.get("action", "") for e in root.iter("actionsetting")}
    assert list(code)[:3] == ["Accept", "Reject", "Reopen"]
    for name, status in (("Accept", "accepted"), ("Reject", "rejected"), ("Reopen", "unreviewed")):
        filled = code[name].replace("[% @layer_id %]", "layer").replace("[% $id %]", "7")
        assert "[%" not in filled
        (*_, call) = ast.parse(filled, feature_version=(3, 9)).body
        assert ast.unparse(call).startswith(f"review('layer', '7', '{status}'")
    # with one class there is nothing to ask
    assert "classes_matter=True" in code["Accept"].splitlines()[-1]
    assert "classes_matter=True" not in styles({1: "roof"})["prelabels"]["Confidence"]


def test_learned_classes_come_first_and_in_the_colours_that_were_chosen():
    looks = styles({1: "roof", 2: "road"}, learned={1: "#123456", 2: "#ffffff"})["prelabels"]
    assert list(looks) == ["Class", "Confidence", "Status"]
    assert "18,52,86," in looks["Class"]
    assert next(iter(styles({1: "roof"})["prelabels"])) == "Confidence"
