import importlib.util

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_objects import UTM, write_labels
from known_runs import job_for, use_known_objects
from rasterio.features import rasterize
from shapely import affinity

import workbench
from workbench.errors import JobError
from workbench.layer.files import read_layer
from workbench.polygons.overlap import HOLDS, common_area, iou_of
from workbench.polygons.regularize import LEAST_IOU, regularized
from workbench.raster.crs import ground_area_m2
from workbench.runs.job import Job

pytest.importorskip("buildingregulariser", reason="needs the extra `regularize`")
PIXEL = 0.5


def jagged(width, height, angle=20.0, x=0.0, y=0.0):
    """A turned rectangle along the edges of pixels of half a metre, as masks have it."""
    exact = affinity.rotate(shapely.box(x, y, x + width, y + height), angle)
    left, bottom, right, top = np.floor(exact.bounds)
    xs, ys = np.meshgrid(np.arange(left, right + 1, PIXEL), np.arange(bottom, top + 1, PIXEL))
    inside = shapely.contains_xy(exact, xs + PIXEL / 2, ys + PIXEL / 2)
    xs, ys = xs[inside], ys[inside]
    return shapely.union_all(shapely.box(xs, ys, xs + PIXEL, ys + PIXEL)), exact


def frame(*shapes, class_id=1, crs=UTM):
    multi = np.array(
        [shapely.MultiPolygon([s] if s.geom_type == "Polygon" else s) for s in shapes], object
    )
    area = shapely.area(multi)
    return gpd.GeoDataFrame(
        {
            "source": "scene",
            "ordinal": np.arange(len(multi)),
            "class_id": pd.array(np.broadcast_to(class_id, len(multi)), dtype="Int64"),
            "area_px": np.rint(area / PIXEL**2).astype(np.int64),
            "area_m2": ground_area_m2(multi, crs),
        },
        geometry=multi,
        crs=crs,
    )  # fmt: skip


def corners(geometry):
    return int(shapely.get_num_coordinates(geometry) - shapely.get_num_geometries(geometry))


def angles_off_square(polygon):
    """By how many degrees each corner misses a right angle."""
    points = np.array(polygon.exterior.coords)[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turn = np.degrees(
        np.arctan2(
            before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(axis=1)
        )
    )
    return np.abs(np.abs(turn) - 90)


@pytest.mark.parametrize("angle", [5, 20, 45, 70])
def test_a_jagged_rectangle_becomes_a_rectangle(angle):
    rough, exact = jagged(16, 9, angle)
    before = frame(rough)
    after = regularized(before, True)
    (shape,) = after.geometry
    assert corners(shape) == 4 < corners(before.geometry[0])
    assert angles_off_square(shape.geoms[0]).max() < 0.1
    assert iou_of(np.array([shape]), np.array([exact]))[0] > LEAST_IOU
    assert after["area_m2"].tolist() == pytest.approx(ground_area_m2(np.array([shape]), UTM))
    assert after["area_m2"][0] != before["area_m2"][0]
    assert after.drop(columns=["geometry", "area_m2"]).equals(
        before.drop(columns=["geometry", "area_m2"])
    )


def test_parts_and_holes_stay_one_row():
    one, _ = jagged(14, 10)
    other, _ = jagged(10, 8, x=30)
    hole, _ = jagged(6, 4, x=4, y=3)
    before = frame(shapely.MultiPolygon([one.difference(hole), other]), jagged(12, 9, y=40)[0])
    after = regularized(before, True)
    assert after["ordinal"].tolist() == [0, 1]
    assert shapely.get_num_geometries(after.geometry.to_numpy()).tolist() == [2, 1]
    assert sum(len(part.interiors) for part in after.geometry[0].geoms) == 1
    assert after.geometry.is_valid.all()
    assert corners(after.geometry[0]) < corners(before.geometry[0]) / 3


def test_what_squaring_would_spoil_stays():
    disc = shapely.Point(0, 0).buffer(8)
    star = shapely.Polygon(
        [(40 + r * np.cos(a), r * np.sin(a))
         for a, r in zip(np.linspace(0, 2 * np.pi, 14, endpoint=False), [9, 3] * 7, strict=True)]
    )  # fmt: skip
    before = frame(disc, star)
    after = regularized(before, True)
    assert after.geometry.geom_equals_exact(before.geometry, 0).all()


def test_no_shape_differs_by_more_than_the_floor():
    rng = np.random.default_rng(3)
    shapes = []
    for i in range(40):
        points = rng.uniform(0, 12, (8, 2)) + [20 * i, 0]
        shapes.append(shapely.MultiPoint(points).convex_hull)
    before = frame(*shapes)
    after = regularized(before, True)
    changed = ~after.geometry.geom_equals_exact(before.geometry, 0).to_numpy()
    likeness = iou_of(before.geometry.to_numpy(), after.geometry.to_numpy())
    assert changed.any()
    assert (likeness >= LEAST_IOU).all()
    assert after.geometry.is_valid.all()


def test_no_pair_overlaps_more_than_before():
    columns = ((0, 3), (12.5, 8), (25, 0), (37, 12))
    shapes = [jagged(12, 8, angle, x, y)[0] for x, angle in columns for y in (0, 8.5, 17)]
    before = frame(*shapes)
    after = regularized(before, True)
    alone = pd.concat(regularized(before[i : i + 1], True) for i in range(len(before)))

    def grown(layer):
        one, other = np.triu_indices(len(layer), 1)
        was, now = before.geometry.to_numpy(), layer.geometry.to_numpy()
        more = common_area(now[one], now[other]) - common_area(was[one], was[other])
        return int((more > 1e-6).sum())

    assert grown(alone) > 0  # else this test would say nothing
    assert grown(after) == 0
    assert not after.geometry.geom_equals_exact(before.geometry, 0).all()


def test_a_part_on_its_whole_is_squared():
    before = frame(jagged(40, 24)[0], jagged(12, 9, x=10, y=8)[0])
    after = regularized(before, True)
    assert not after.geometry.geom_equals_exact(before.geometry, 0).any()


def test_a_squared_part_sticks_out_no_further_than_a_review_accepts():
    whole = shapely.Polygon([(0, 0), (60, 0), (0, 30)])  # squaring would spoil it
    part = shapely.box(22, 9.5, 30, 17.5).intersection(whole)  # without one corner
    alone = regularized(frame(part), True).geometry[0]
    assert alone.difference(whole).area > (1 - HOLDS) * alone.area
    before = frame(whole, part)
    after = regularized(before, True)
    assert after.geometry.geom_equals_exact(before.geometry, 0).all()


def test_a_list_squares_its_classes_only():
    before = frame(jagged(16, 9)[0], jagged(16, 9, y=30)[0], class_id=[1, 2])
    before.loc[1, "class_id"] = pd.NA
    after = regularized(before, [1, 3])
    assert after.geometry.geom_equals_exact(before.geometry, 0).tolist() == [False, True]
    assert regularized(before, [2]).geometry.geom_equals_exact(before.geometry, 0).all()


def test_empty_stays_empty():
    before = frame(jagged(16, 9)[0])[:0]
    after = regularized(before, True)
    assert len(after) == 0
    assert after.dtypes.equals(before.dtypes)
    assert after.crs == before.crs


@pytest.mark.parametrize(
    ("given", "meant"),
    [("true", True), (True, True), ("null", None), (False, None), ([], None), ("[1]", [1])],
)
def test_the_parameter_is_taken_as_meant(given, meant):
    assert Job.create(regularize=given, default_class=1).regularize == meant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regularize": 1, "default_class": 1}, r"list of class ids expected, for example \[1\]"),
        ({"regularize": [7]}, "class 7, which is not one of classes"),
        ({"regularize": [1]}, "no polygon will have one of them: set default_class or examples"),
    ],
)
def test_bad_values_are_refused(given, message):
    with pytest.raises(JobError, match=message):
        Job.create(**given)


def test_a_run_squares_its_layer(tmp_path, monkeypatch):
    use_known_objects(monkeypatch)
    house = affinity.rotate(shapely.box(30, 30, 80, 60), 20)
    raster = write_labels(tmp_path / "a.tif", rasterize([(house, 1)], (96, 96)).astype(int))
    plain = workbench.run(job_for(raster, tmp_path / "plain"))
    square = workbench.run(job_for(raster, tmp_path / "square", regularize=True))
    before = read_layer(plain.folder / "prelabels.gpkg")
    after = read_layer(square.folder / "prelabels.gpkg")
    assert after["id"].tolist() == before["id"].tolist() != []
    assert corners(after.geometry[0]) < corners(before.geometry[0])


def test_without_the_library_a_run_ends_before_it_starts(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *more: None if name == "buildingregulariser" else find(name, *more),
    )  # fmt: skip
    with pytest.raises(JobError, match=r'pip install "sam-workbench\[regularize\]"'):
        workbench.run(Job.create(regularize=True, out_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
