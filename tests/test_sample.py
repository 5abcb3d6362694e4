from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from workbench.errors import SceneError
from workbench.samples import demo as sample
from workbench.samples.appearance import Appearance, Palette
from workbench.samples.demo import Sample, make_sample, sample_scene, write_sample

# one colour per surface, no light but the sun's shadows, no camera
FLAT = Appearance(
    grain=0, mottle=0, patches=0, rows=0, relief=0, unevenness=0, vignetting=0, blur_px=0, noise=0
)  # fmt: skip
KINDS = {"parcel", "garden", "forest", "water", "driveway", "road", "vehicle"}
KINDS |= {"building", "roof_side", "hedge", "tree"}


@pytest.fixture(scope="module")
def village() -> Sample:
    """The demo scene at half its resolution."""
    return make_sample((768, 1024), sample.DEMO_SEED, resolution_m=0.6)


def equal(one: Sample, other: Sample) -> bool:
    return (
        np.array_equal(one.rgb, other.rgb)
        and np.array_equal(one.labels, other.labels)
        and one.objects.equals(other.objects)
    )


def test_the_same_arguments_give_the_same_bits_and_another_seed_does_not():
    np.random.seed(1)  # noqa: NPY002 - the global dice must not matter
    one = make_sample((120, 200), 7)
    np.random.seed(2)  # noqa: NPY002
    assert equal(one, make_sample((120, 200), 7))
    assert not np.array_equal(one.rgb, make_sample((120, 200), 8).rgb)


@pytest.mark.parametrize("size", [1, 64, (65, 130), (300, 40)])
@pytest.mark.parametrize("resolution_m", [0.1, 0.3, 1.0])
def test_any_size_and_resolution(size: int | tuple[int, int], resolution_m: float):
    scene = make_sample(size, 3, resolution_m=resolution_m)
    shape = (size, size) if isinstance(size, int) else size
    assert scene.rgb.shape == (*shape, 3)
    assert scene.rgb.dtype == np.uint8
    assert scene.labels.shape == shape
    assert list(scene.objects.columns) == ["kind", "part_of", "geometry"]
    assert scene.objects.crs == scene.crs
    assert scene.transform.a == -scene.transform.e == resolution_m


@pytest.mark.parametrize(("size", "resolution_m"), [(0, 0.3), ((10, -1), 0.3), (64, 0), (64, -1)])
def test_an_impossible_size_is_refused(size: int | tuple[int, int], resolution_m: float):
    with pytest.raises(SceneError, match="No sample scene of"):
        make_sample(size, resolution_m=resolution_m)


def test_every_kind_of_object_is_there(village: Sample):
    assert set(village.objects.kind) == KINDS


def test_polygons_are_valid_and_inside_the_picture(village: Sample):
    objects = village.objects
    assert objects.geometry.geom_type.eq("Polygon").all()
    assert objects.is_valid.all()
    assert objects.area.min() >= sample.MIN_AREA_PX * 0.6**2 * 0.999
    height, width = village.labels.shape
    edges = rasterio.transform.array_bounds(height, width, village.transform)
    assert np.allclose(objects.total_bounds, edges, atol=1e-6)


def test_a_field_has_a_hole_where_its_pond_lies(village: Sample):
    ponds = village.objects[village.objects.kind == "water"]
    fields = village.objects[village.objects.kind == "parcel"]
    filled = shapely.polygons(shapely.get_exterior_ring(fields.geometry.array))
    spot = ponds.geometry.representative_point().iloc[0]
    assert any(shapely.contains(filled, spot) & ~fields.contains(spot).to_numpy())


def test_polygons_burnt_back_are_the_labels(village: Sample):
    numbered = zip(village.objects.geometry, range(len(village.objects)), strict=True)
    burnt = rasterize(
        numbered, village.labels.shape, fill=-1, transform=village.transform, dtype="int32"
    )
    assert np.array_equal(burnt, village.labels)


def test_the_picture_changes_exactly_where_the_labels_change():
    scene = make_sample(400, 5, appearance=FLAT)
    bright, labels = scene.rgb.astype(int), scene.labels
    for axis in (0, 1):
        step = np.abs(np.diff(bright, axis=axis)).sum(axis=2)
        border = np.diff(labels, axis=axis) != 0
        on = step[border].mean()
        for shift in (-1, 1):
            assert on > 3 * step[np.roll(border, shift, axis) & ~border].mean()


def test_no_two_objects_share_ground_except_wholes_and_their_parts(village: Sample):
    objects = village.objects
    a, b = objects.sindex.query(objects.geometry, predicate="intersects")
    apart = (a < b) & (objects.part_of.to_numpy()[b] != a)
    shared = shapely.intersection(
        objects.geometry.array[a[apart]], objects.geometry.array[b[apart]]
    )
    assert shapely.area(shared).max() < 1e-4


def test_parts_come_after_their_wholes_and_lie_in_them(village: Sample):
    objects = village.objects
    parts = objects[objects.part_of >= 0]
    wholes = objects.iloc[parts.part_of]
    assert (parts.part_of.to_numpy() < parts.index).all()
    kinds = set(zip(parts.kind, wholes.kind, strict=True))
    assert kinds == {("roof_side", "building"), ("tree", "forest")}
    outside = shapely.difference(parts.geometry.array, wholes.geometry.array)
    assert shapely.area(outside).max() < 1e-4


def test_objects_keep_their_size_in_metres():
    for resolution_m in (0.2, 0.5):
        scene = make_sample(round(240 / resolution_m), 2, resolution_m=resolution_m)
        boxes = scene.objects.geometry.minimum_rotated_rectangle().area
        vehicles = boxes[scene.objects.kind == "vehicle"]
        assert 7 < vehicles.median() < 11


def test_colours_and_light_leave_the_ground_truth_alone():
    wild = Appearance(
        palette=Palette(crop=((200, 40, 200),), crown=((240, 30, 30),)),
        grain=3, contrast=1.5, gamma=0.7, sun_elevation_deg=20, blur_px=3, jpeg_quality=30,
    )  # fmt: skip
    usual, other = make_sample(200, 4), make_sample(200, 4, appearance=wild)
    assert np.array_equal(usual.labels, other.labels)
    assert usual.objects.equals(other.objects)
    assert not np.array_equal(usual.rgb, other.rgb)


@pytest.mark.parametrize(("azimuth", "shady"), [(180, (-1, 0)), (0, (1, 0)), (90, (0, -1))])
def test_shadows_fall_away_from_the_sun(azimuth: float, shady: tuple[int, int]):
    look = Appearance(**{**FLAT.__dict__, "sun_azimuth_deg": azimuth})
    scene = make_sample(500, 5, appearance=look)
    houses = np.flatnonzero(scene.objects.kind.isin(["building", "roof_side"]))
    roof, gardens = np.isin(scene.labels, houses), np.flatnonzero(scene.objects.kind == "garden")
    lawn, bright = np.isin(scene.labels, gardens), scene.rgb.mean(axis=2)

    def beside_roofs(rows: int, columns: int) -> float:
        moved = np.roll(roof, (4 * rows, 4 * columns), (0, 1))
        return float(bright[moved & lawn].mean())

    assert beside_roofs(*shady) < 0.8 * beside_roofs(-shady[0], -shady[1])


def test_what_is_written_can_be_read_back(tmp_path: Path):
    scene = make_sample((300, 500), 1, resolution_m=0.25)
    path = write_sample(scene, tmp_path / "new")
    assert path == tmp_path / "new" / "sample.tif"
    with rasterio.open(path) as raster:
        assert np.array_equal(raster.read().transpose(1, 2, 0), scene.rgb)
        assert raster.crs.to_epsg() == scene.crs.to_epsg()
        assert raster.transform == scene.transform
        assert raster.block_shapes == [(256, 256)] * 3
        assert raster.overviews(1)
    objects = gpd.read_file(tmp_path / "new" / "sample_objects.gpkg", layer="objects")
    assert objects.crs == scene.crs
    assert list(objects.kind) == list(scene.objects.kind)
    assert list(objects.part_of) == list(scene.objects.part_of)
    assert objects.geometry.geom_equals_exact(scene.objects.geometry, 1e-6).all()
    assert {p.name for p in path.parent.iterdir()} == {"sample.tif", "sample_objects.gpkg"}


def test_the_demo_scene_is_made_once(tmp_path: Path):
    path = sample_scene(tmp_path)
    made = path.stat().st_mtime_ns
    assert sample_scene(tmp_path) == path
    assert path.stat().st_mtime_ns == made
    objects = gpd.read_file(tmp_path / "sample_objects.gpkg")
    assert len(objects) >= 300
    bounds = objects.bounds
    extent = np.maximum(bounds.maxx - bounds.minx, bounds.maxy - bounds.miny)
    longer_than_a_tile = objects.kind[extent / sample.DEMO_RESOLUTION_M > 1024]
    assert {"road", "parcel"} <= set(longer_than_a_tile)


def test_the_demo_scene_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sample, "DEMO_SIZE", (64, 64))
    path = sample_scene()
    assert path.is_relative_to(tmp_path)
    assert path.exists()
