"""Prompts from a vector file: what is read, what is refused, and the windows around features."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from made_rasters import write

from workbench.errors import JobError
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.raster.tiles import TileGrid
from workbench.runs.job import Job
from workbench.runs.plan import prepare
from workbench.runs.prompt_windows import MARGIN, AskedPrompts, ask
from workbench.runs.prompts import OUTSIDE, PromptFeatures, read_prompts
from workbench.runs.tile_stream import ScenePlan

UTM = 32633
X, Y = 500_000.0, 5_000_000.0  # the scene's corner


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """1,000 × 800 pixels of 0.5 m."""
    path = tmp_path / "ortho.tif"
    image = np.full((3, 800, 1000), 90, np.uint8)
    write(path, image, f"EPSG:{UTM}", Affine(0.5, 0, X, 0, -0.5, Y))
    return open_scene(str(path))


def at(column: float, row: float, width: float = 0, height: float = 0) -> shapely.Geometry:
    """A point, or a box with its middle there; scene pixels."""
    x, y = X + column / 2, Y - row / 2
    if not width:
        return shapely.Point(x, y)
    return shapely.box(x - width / 4, y - height / 4, x + width / 4, y + height / 4)


def saved(path: Path, shapes: list, crs: int | None = UTM, **columns: list) -> Path:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def prompts_of(shapes: list) -> PromptFeatures:
    return PromptFeatures(
        gpd.GeoDataFrame(geometry=shapes, crs=UTM), np.full(len(shapes), "", object)
    )


def windows(scene: Scene, shapes: list, side: int, overlap: float = 0.25) -> AskedPrompts:
    grid = TileGrid(scene.width, scene.height, side, overlap)
    return ask(prompts_of(shapes), [ScenePlan(scene, grid, tuple(grid))], side, with_boxes=True)


def test_attributes_and_rows_of_the_file_are_kept(scene: Scene, tmp_path: Path) -> None:
    shapes = [at(5000, 5000, 10, 10), at(100, 100, 40, 20), None, at(600, 500, 30, 30)]
    path = saved(tmp_path / "roofs.gpkg", shapes, owner=["a", "b", "c", "d"])
    prompts = read_prompts(path, [scene])
    assert prompts.frame["owner"].tolist() == ["a", "b", "c", "d"]
    assert prompts.frame.index.tolist() == [1, 2, 3, 4]  # of a GeoPackage, from 1
    assert prompts.asked.tolist() == [1, 3]
    assert prompts.why_not.tolist() == [OUTSIDE, "", "no shape", ""]


def test_prompts_in_another_crs_come_to_the_scene(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "degrees.gpkg"
    gpd.GeoSeries([at(100, 100)], crs=UTM).to_crs(4326).to_file(path)
    (point,) = read_prompts(path, [scene]).shapes
    assert point.distance(at(100, 100)) < 1e-3


def test_numbers_that_are_not_unique_are_counted_anew(scene: Scene, tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[at(9, 9), at(90, 90)], crs=UTM, index=[5, 5])
    frame.to_parquet(tmp_path / "trees.parquet")
    assert read_prompts(tmp_path / "trees.parquet", [scene]).frame.index.tolist() == [0, 1]


def test_columns_of_the_file_do_not_hide_those_of_the_layer() -> None:
    frame = gpd.GeoDataFrame(
        {"ID": [1], "class_id": [2], "status": ["x"], "prompt_status": ["y"], "flat": [True],
         "roof": [{"kind": "tin"}]},
        geometry=[at(9, 9)], crs=UTM,
    )  # fmt: skip
    columns = PromptFeatures(frame, np.array([""], object)).attributes()
    assert list(columns) == ["prompt_ID", "prompt_status", "prompt_prompt_status", "flat", "roof"]
    assert columns["flat"].dtype == "boolean"
    assert columns["roof"].tolist() == ["{'kind': 'tin'}"]


def test_a_bow_tie_is_mended(scene: Scene, tmp_path: Path) -> None:
    x, y = X + 100, Y - 100
    bow = shapely.Polygon([(x, y), (x + 9, y + 9), (x + 9, y), (x, y + 9)])
    prompts = read_prompts(saved(tmp_path / "bow.gpkg", [bow]), [scene])
    assert shapely.is_valid(prompts.shapes).all()
    assert len(prompts.asked) == 1


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "damaged": (lambda path: path.write_bytes(b"SQLite format 3\0"), "cannot be read"),
    "empty": (lambda path: saved(path, []), "no features with a shape"),
    "no shapes": (lambda path: saved(path, [None, shapely.Point()]), "no features with a shape"),
    "no area": (
        lambda path: saved(path, [shapely.Polygon([(9, 9), (12, 12), (9, 9)])]),
        "no features with a shape in .*enclose no area",
    ),
    "no CRS": (lambda path: saved(path, [at(9, 9)], crs=None), "has no CRS.*ogr2ogr -a_srs"),
    "3D": (lambda path: saved(path, [shapely.Point(X, Y, 3)]), "3D.*-dim XY"),
    "lines": (
        lambda path: saved(path, [shapely.LineString([(X, Y), (X + 9, Y - 9)])]),
        "LineString.*only points, or only",
    ),
    "mixed": (lambda path: saved(path, [at(9, 9), at(50, 50, 9, 9)]), "mixes points and polygons"),
    "outside": (
        lambda path: saved(path, [at(5000, 5000, 9, 9)]),
        r"no feature inside ortho\.tif: its bounds are \(.*the raster's are \(.*Check the CRS",
    ),
    "unknown class": (
        lambda path: saved(path, [at(9, 9)], class_id=[7]),
        r"has class_id 7, which is not one of classes \{1: 'object'\}.*Add it",
    ),
    "class in words": (
        lambda path: saved(path, [at(9, 9)], class_id=["roof"]),
        "has class_id 'roof', which is not a whole number",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore:.*crs.*:UserWarning", "ignore::RuntimeWarning")
def test_bad_prompts_are_one_clear_error_before_anything_is_written(
    kind: str, scene: Scene, tmp_path: Path
) -> None:
    make, message = BAD[kind]
    path = tmp_path / "prompts.gpkg"
    make(path)
    job = Job.create(source=scene.source, prompts=str(path), out_dir=str(tmp_path / "run"))
    wanted = rf"^Parameter `prompts`: .*prompts\.gpkg[ :].*{message}"
    with pytest.raises(JobError, match=re.compile(wanted, re.DOTALL)) as raised:
        prepare(job)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompts": "a.gpkg", "planar": True}, "planar cuts overlapping labels"),
        ({"prompts": "a.gpkg", "scheduler": "tcp://1.2.3.4:5"}, "answered by one process"),
        ({"prompts": "a.gpkg", "refresh": True}, "refresh does not keep"),
        ({"grid": False}, "grid is false and there are no prompts"),
        ({"grid": False, "prompts": "a.gpkg", "examples": "b.gpkg"}, "examples teach"),
    ],
)
def test_what_does_not_go_together_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job.create(**parameters)


@pytest.mark.parametrize(
    ("parameters", "by_grid"),
    [
        ({}, True),
        ({"prompts": "a.gpkg"}, False),
        ({"prompts": "a.gpkg", "grid": True}, True),
        ({"prompts": "a.gpkg", "examples": "b.gpkg"}, True),
        ({"prompts": "a.gpkg", "grid": "auto"}, False),
        ({"prompts": "a.gpkg", "grid": "true"}, True),
    ],
)
def test_the_grid_is_used_without_prompts_or_if_it_is_asked_for(
    parameters: dict, by_grid: bool
) -> None:
    assert Job.create(**parameters).uses_grid is by_grid


def test_windows_hold_their_features_clear_of_the_edge(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform((0, 0, 4, 4), (1000, 800, 60, 60), (200, 4))
    asked = windows(scene, [at(*place) for place in places], 256)
    rows = []
    for part in asked.windows.values():
        window = part.tile.window
        assert (window.width, window.height) == (256, 256)
        assert 0 <= window.col_off <= 1000 - 256
        assert 0 <= window.row_off <= 800 - 256
        boxes = part.boxes + np.tile((window.col_off, window.row_off), 2)
        # nothing but the scene's edge is nearer than the margin
        clear = np.hstack([part.boxes[:, :2], 256 - part.boxes[:, 2:]]) >= 256 * MARGIN - 1
        at_end = np.hstack([boxes[:, :2] < 30, boxes[:, 2:] > (970, 770)])
        assert (clear | at_end).all()
        middle = part.points + (window.col_off, window.row_off)
        np.testing.assert_allclose(middle, places[part.features, :2], atol=2e-3)
        rows += part.features.tolist()
    assert sorted(rows) == list(range(200))


def test_a_lone_feature_is_in_the_middle_of_its_window(scene: Scene) -> None:
    (part,) = windows(scene, [at(500, 400, 40, 20)], 256).windows.values()
    np.testing.assert_allclose(part.points, [[128, 128]], atol=1)


def test_features_of_a_tile_share_its_window(scene: Scene) -> None:
    """What a tile's core holds fits into one window, so it is seen once."""
    grid = TileGrid(scene.width, scene.height, 400, 0.2)
    tile = grid.tile(0, 1)
    rng = np.random.default_rng(0)
    core = tile.core
    low = (core.col_off + 15, core.row_off + 15)
    places = rng.uniform(low, np.add(low, (core.width - 30, core.height - 30)), (50, 2))
    asked = windows(scene, [at(*place, 20, 20) for place in places], 400, 0.2)
    assert len(asked.windows) == 1
    assert asked.homes == {("ortho", 0, 1)}


def test_large_features_are_seen_with_larger_pixels(scene: Scene) -> None:
    asked = windows(scene, [at(150, 200, 20, 20), at(400, 400, 500, 300)], 256)
    scales = {part.scene.scale: part for part in asked.parts}
    assert sorted(scales) == [1, 4]
    (tile,) = scales[4].tiles
    window = asked.windows[scales[4].index(tile)]
    assert window.features.tolist() == [1]
    corner = window.tile.window.col_off, window.tile.window.row_off
    np.testing.assert_allclose(window.points + corner, [[100, 100]], atol=1e-2)
    np.testing.assert_allclose(window.boxes[0, 2:] - window.boxes[0, :2], (125, 75), atol=1e-2)


def test_points_have_no_boxes(scene: Scene) -> None:
    (part,) = windows(scene, [at(100, 120)], 256).windows.values()
    assert part.boxes is None


def test_a_window_keeps_its_name_while_its_features_do(scene: Scene) -> None:
    """So a store knows its answers again, when the file has changed elsewhere."""
    near, far = at(100, 120, 20, 20), at(800, 700, 20, 20)
    before = set(windows(scene, [near, far], 256).windows)
    assert before == set(windows(scene, [far, near], 256).windows)
    after = set(windows(scene, [near, at(801, 700, 20, 20)], 256).windows)
    assert len(before & after) == 1


def test_a_feature_on_the_edge_of_two_rasters_is_asked_for_once(
    scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "next.tif"
    image = np.full((3, 800, 1000), 90, np.uint8)
    write(path, image, f"EPSG:{UTM}", Affine(0.5, 0, X + 500, 0, -0.5, Y))
    parts = [ScenePlan(one, TileGrid(1000, 800, 256), ()) for one in (scene, open_scene(str(path)))]
    asked = ask(prompts_of([at(1000, 100), at(1010, 100)]), parts, 256, with_boxes=False)
    features = [window.features.tolist() for window in asked.windows.values()]
    assert sorted(features) == [[0], [1]]
    assert {home[0] for home in asked.homes} == {"ortho", "next"}


def test_a_million_prompts_are_planned_in_a_minute(tmp_path: Path) -> None:
    """How much that is to do is said before the first window."""
    scene = Scene(
        "nowhere.tif", "land", pyproj.CRS.from_epsg(UTM), Affine(0.5, 0, X, 0, -0.5, Y),
        100_000, 100_000, (1, 2, 3), None, None, False, "-",
    )  # fmt: skip
    places = np.random.default_rng(0).uniform(20, 99_980, (1_000_000, 2))
    x, y = X + places[:, 0] / 2, Y - places[:, 1] / 2
    boxes = shapely.box(x - 5, y - 5, x + 5, y + 5)
    start = time.process_time()
    grid = TileGrid(scene.width, scene.height)
    frame = gpd.GeoDataFrame(geometry=boxes, crs=UTM)
    asked = ask(
        PromptFeatures(frame, np.full(len(frame), "", object)),
        [ScenePlan(scene, grid, ())],
        1024,
        with_boxes=True,
    )
    assert time.process_time() - start < 60
    assert sum(len(window.features) for window in asked.windows.values()) == len(frame)
    assert len(asked.windows) < 1.1 * len(grid)
