"""Prompts from a vector file: what is read, what is refused, and the windows around features."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from made_rasters import write

from workbench.errors import JobError
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.runs.prompts import read_prompts, windows_around

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


def test_attributes_and_rows_of_the_file_are_kept(scene: Scene, tmp_path: Path) -> None:
    shapes = [at(5000, 5000, 10, 10), at(100, 100, 40, 20), None, at(600, 500, 30, 30)]
    path = saved(tmp_path / "roofs.gpkg", shapes, owner=["a", "b", "c", "d"])
    prompts = read_prompts(path, [scene])
    assert prompts["owner"].tolist() == ["b", "d"]
    assert prompts.index.tolist() == [2, 4]  # of a GeoPackage, from 1


def test_prompts_in_another_crs_come_to_the_scene(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "degrees.gpkg"
    gpd.GeoSeries([at(100, 100)], crs=UTM).to_crs(4326).to_file(path)
    (point,) = read_prompts(path, [scene]).geometry
    assert point.distance(at(100, 100)) < 1e-3


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "damaged": (lambda path: path.write_bytes(b"SQLite format 3\0"), "cannot be read"),
    "empty": (lambda path: saved(path, []), "no features with a shape"),
    "no shapes": (lambda path: saved(path, [None, shapely.Point()]), "no features with a shape"),
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
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore:.*crs.*:UserWarning", "ignore::RuntimeWarning")
def test_bad_prompts_are_one_clear_error(kind: str, scene: Scene, tmp_path: Path) -> None:
    make, message = BAD[kind]
    path = tmp_path / "prompts.gpkg"
    make(path)
    with pytest.raises(JobError, match=rf"Parameter `prompts`: .*prompts\.gpkg .*{message}"):
        read_prompts(path, [scene])


def test_windows_hold_their_features_clear_of_the_edge(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform((0, 0, 4, 4), (1000, 800, 60, 60), (200, 4))
    shapes = gpd.GeoSeries([at(*place) for place in places], crs=UTM)
    asked = []
    for part in windows_around(scene, shapes, 256):
        assert (part.window.width, part.window.height) == (256, 256)
        assert (part.boxes[:, :2] >= 32 - 1).all()
        assert (part.boxes[:, 2:] <= 256 - 32 + 1).all()
        middle = (part.boxes[:, :2] + part.boxes[:, 2:]) / 2
        np.testing.assert_allclose(part.points, middle, atol=1)
        corner = np.array([part.window.col_off, part.window.row_off])
        np.testing.assert_allclose(middle + corner, places[part.features, :2], atol=1e-6)
        asked += part.features.tolist()
    assert sorted(asked) == list(range(200))


def test_neighbours_share_a_window_and_large_features_have_their_own(scene: Scene) -> None:
    near = [at(column, 200, 20, 20) for column in (150, 180, 210)]
    shapes = gpd.GeoSeries([*near, at(250, 190, 180, 180), at(400, 400, 300, 300)], crs=UTM)
    parts = {tuple(part.features): part.window for part in windows_around(scene, shapes, 256)}
    assert {features: window.width for features, window in parts.items()} == {
        (0, 1, 2): 256,
        (3,): 256,
        (4,): 400,
    }
    assert (parts[4,].col_off, parts[4,].row_off) == (200, 200)


def test_points_have_no_boxes(scene: Scene) -> None:
    (part,) = windows_around(scene, gpd.GeoSeries([at(100, 120)], crs=UTM), 256)
    assert part.boxes is None
    corner = part.window.col_off, part.window.row_off
    np.testing.assert_allclose(part.points + corner, [[100, 120]], atol=1e-6)
