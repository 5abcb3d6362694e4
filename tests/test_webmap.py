import base64
import io

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from made_rasters import GRIDS, NORTH_UP, three_rectangles, write
from PIL import Image

from workbench.raster.open import open_scene
from workbench.tuning.webmap import degrees_from_web, mosaic, outlines, web_bounds, web_from_degrees


def picture(scene, bounds, max_px):
    """A scene that is whole, alone."""
    return mosaic([scene], bounds, max_px, pytest.fail)


def overview(scene):
    """All of a scene at its own resolution."""
    return picture(scene, web_bounds(scene), max(scene.width, scene.height))


MARKS = [(31, 22), (200, 40), (15, 140), (228, 151)]  # column, row


def pixels(image):
    """RGBA of a picture."""
    kind, content = image.url.split(";base64,")
    assert kind in ("data:image/jpeg", "data:image/webp")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


def pixel_size(image):
    """Width and height of a pixel in EPSG:3857."""
    (south, west), (north, east) = image.bounds
    height, width = pixels(image).shape[:2]
    left, bottom = web_from_degrees(west, south)
    right, top = web_from_degrees(east, north)
    return (right - left) / width, (top - bottom) / height


def colour_at(image, x, y):
    """RGBA where EPSG:3857 is x, y."""
    (_, west), (north, _) = image.bounds
    left, top = web_from_degrees(west, north)
    wide, tall = pixel_size(image)
    return pixels(image)[int((top - y) / tall), int((x - left) / wide)]


def around(scene, shrink=1.0):
    left, bottom, right, top = web_bounds(scene)
    x, y, dx, dy = (left + right) / 2, (bottom + top) / 2, (right - left) / 2, (top - bottom) / 2
    return x - dx * shrink, y - dy * shrink, x + dx * shrink, y + dy * shrink


# ---- imagery --------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["north-up", "web mercator", "geographic", "rotated by 30°"])
@pytest.mark.parametrize("max_px", [1000, 300, 80])
def test_marked_pixels_land_where_their_coordinates_say(tmp_path, grid, max_px):
    crs, transform = GRIDS[grid]
    to_web = pyproj.Transformer.from_crs(crs, 3857, always_xy=True)
    for column, row in MARKS:
        raster = np.full((3, 160, 240), 30, np.uint8)
        raster[:, row - 3 : row + 4, column - 3 : column + 4] = 255
        scene = open_scene(write(tmp_path / "a.tif", raster, crs, transform))
        image = picture(scene, web_bounds(scene), max_px)
        rgba = pixels(image)
        bright = np.clip(rgba[..., 0].astype(float) - 60, 0, None) * (rgba[..., 3] == 255)
        down, across = np.mgrid[: bright.shape[0], : bright.shape[1]] + 0.5
        (_, west), (north, _) = image.bounds
        left, top = web_from_degrees(west, north)
        wide, tall = pixel_size(image)
        found = (
            left + (across * bright).sum() / bright.sum() * wide,
            top - (down * bright).sum() / bright.sum() * tall,
        )
        expected = to_web.transform(*(transform @ (column + 0.5, row + 0.5)))
        off = np.subtract(found, expected) / [wide, tall]
        assert np.abs(off).max() < 0.5, (column, row)


def test_a_window_has_the_screens_pixels_and_ends_with_the_scene(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles()))
    left, bottom, right, top = around(scene, shrink=0.5)
    image = picture(scene, (left, bottom, right, top), 500)
    assert pixels(image).shape[1] == 500
    assert image.url.startswith("data:image/jpeg")  # nothing is transparent
    wide = 10 * (right - left)
    image = picture(scene, (left - wide, bottom, right, top), 800)
    size = pixel_size(image)
    assert size == pytest.approx(((right - left + wide) / 800,) * 2)
    (south, west), (north, east) = image.bounds
    scene_left, _, _, _ = web_bounds(scene)
    assert web_from_degrees(west, south)[0] == pytest.approx(scene_left, abs=size[0])
    assert web_from_degrees(east, north) == pytest.approx((right, top), abs=size[0])


def test_nothing_to_see_is_no_picture(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles()))
    left, bottom, right, top = web_bounds(scene)
    assert picture(scene, (left - 300, bottom, left - 100, top), 300) is None
    assert picture(scene, (right + 1, top + 1, right + 2, top + 2), 300) is None
    empty = write(tmp_path / "b.tif", np.zeros((3, 160, 240), np.uint8), nodata=0)
    assert overview(open_scene(empty)) is None


def test_invalid_pixels_are_transparent_and_valid_ones_are_not(tmp_path):
    raster = three_rectangles()
    raster[:, :, :100] = 0
    scene = open_scene(write(tmp_path / "a.tif", raster, "EPSG:3857", nodata=0))
    rgba = pixels(overview(scene))
    assert rgba.shape == (160, 240, 4)
    assert not rgba[:, :99, 3].any()
    assert (rgba[:, 101:, 3] == 255).all()
    assert rgba[50, 170, :3] == pytest.approx([20, 240, 40], abs=25)  # its colours, about


# at the edge of a UTM zone: turned by 3° on the web map, with all of its own pixels valid
TURNED = ("EPSG:32633", Affine(0.5, 0, 760_000, 0, -0.5, 5_800_000))


@pytest.mark.parametrize("grid", [TURNED, GRIDS["rotated by 30°"]], ids=["turned", "rotated"])
@pytest.mark.parametrize(("shrink", "max_px"), [(1.6, 400), (1.0, 300), (3.0, 500)])
def test_edges_are_transparent_beyond_the_raster_and_opaque_within(tmp_path, grid, shrink, max_px):
    crs, transform = grid
    light = np.full((3, 160, 240), 200, np.uint8)
    scene = open_scene(write(tmp_path / "a.tif", light, crs, transform))
    image = picture(scene, around(scene, shrink), max_px)
    rgba = pixels(image)
    corners = transform @ (np.array([0, 240, 240, 0]), np.array([0, 0, 160, 160]))
    outline = gpd.GeoSeries([shapely.Polygon(np.transpose(corners))], crs=crs)
    raster = outline.segmentize(np.ptp(corners[0]) / 50).to_crs(3857)[0]
    (_, west), (north, _) = image.bounds
    left, top = web_from_degrees(west, north)
    wide, tall = pixel_size(image)
    down, across = np.mgrid[: rgba.shape[0], : rgba.shape[1]] + 0.5
    centres = shapely.points(left + across * wide, top - down * tall)
    within = shapely.contains(raster, centres)
    web_left, _, web_right, _ = web_bounds(scene)
    # bilinear, twice: pixels of the scene and of the picture
    clear = shapely.distance(raster.exterior, centres) > 2 * max(
        wide, (web_right - web_left) / scene.width
    )
    assert (within & clear).any()
    assert (~within & clear).any()
    assert (rgba[within & clear, 3] == 255).all()
    assert rgba[within & clear, :3].astype(int) == pytest.approx(
        200, abs=4
    )  # nothing dark is mixed in
    assert (rgba[~within & clear, 3] == 0).all()
    half = (rgba[..., 3] > 0) & (rgba[..., 3] < 255)
    assert half.sum() < 3 * (rgba.shape[0] + rgba.shape[1])  # a line along the edges


@pytest.mark.parametrize("max_px", [60, 240, 900])
def test_a_part_of_a_raster_with_a_hole_is_opaque_up_to_the_edges_of_the_screen(tmp_path, max_px):
    raster = np.full((3, 160, 240), 200, np.uint8)
    raster[:, 70:90, 100:140] = 0
    scene = open_scene(write(tmp_path / "a.tif", raster, *TURNED, nodata=0))
    rgba = pixels(picture(scene, around(scene, 0.6), max_px)).astype(int)
    edges = np.ones(rgba.shape[:2], bool)
    edges[1:-1, 1:-1] = False
    assert (rgba[edges, 3] == 255).all()
    assert rgba[edges, :3] == pytest.approx(200, abs=4)
    assert rgba[rgba.shape[0] // 2, rgba.shape[1] // 2, 3] == 0


def test_16_bits_are_stretched(tmp_path):
    deep = three_rectangles().astype(np.uint16) * 9 + 300
    scene = open_scene(write(tmp_path / "a.tif", deep, "EPSG:3857", photometric="RGB"))
    rgba = pixels(overview(scene))
    assert rgba[..., :3].max() > 230
    assert rgba[..., :3].min() < 30


def test_a_mosaic_has_no_gap_where_scenes_meet(tmp_path):
    grey = np.full((3, 160, 240), 150, np.uint8)
    here = open_scene(write(tmp_path / "a.tif", grey))
    beside = NORTH_UP @ Affine.translation(240, 0)
    there = open_scene(write(tmp_path / "b.tif", grey, transform=beside))
    for max_px in (100, 731):
        left, bottom, _, top = web_bounds(here)
        _, _, right, _ = web_bounds(there)
        dx, dy = (right - left) / 10, (top - bottom) / 10
        bounds = (left + dx, bottom + dy, right - dx, top - dy)
        problems = []
        rgba = pixels(mosaic([here, there], bounds, max_px, problems.append))
        assert rgba.shape[1] == max_px
        assert rgba[..., 3].min() > 250
        assert rgba[..., :3] == pytest.approx(150, abs=3)
        assert not problems


def test_the_first_scene_of_a_mosaic_is_on_top(tmp_path):
    scenes = [
        open_scene(write(tmp_path / f"{value}.tif", np.full((3, 160, 240), value, np.uint8)))
        for value in (50, 200)
    ]
    bounds = around(scenes[0])
    for order in (scenes, scenes[::-1]):
        image = mosaic(order, bounds, 300, pytest.fail)
        x, y = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
        assert colour_at(image, x, y)[0] == pytest.approx(int(order[0].name), abs=5)


def test_a_raster_that_is_gone_is_said_and_the_others_are_shown(tmp_path):
    here = open_scene(write(tmp_path / "a.tif", three_rectangles()))
    gone = open_scene(write(tmp_path / "b.tif", three_rectangles()))
    gone.close()
    (tmp_path / "b.tif").unlink()
    problems = []
    assert mosaic([gone, here], around(here), 300, problems.append) is not None
    (problem,) = problems
    assert "b.tif any more: it was moved, renamed or deleted" in problem


# ---- polygons -------------------------------------------------------------------------------


def rings_of(lines):
    """Each row's rings in EPSG:3857."""
    xy = lines.coords.astype(float) + lines.origin
    rings = np.split(xy, np.cumsum(lines.ring_sizes)[:-1].astype(int))
    ends = np.cumsum(lines.rings).astype(int)
    return [rings[end - n : end] for end, n in zip(ends, lines.rings.astype(int), strict=True)]


def test_outlines_are_the_polygons_to_a_centimetre():
    rng = np.random.default_rng(0)
    discs = shapely.buffer(shapely.points(rng.uniform(-3500, 3500, (40, 2)) + [5e5, 5.8e6]), 30)
    holed = shapely.difference(discs, shapely.buffer(shapely.centroid(discs), 10))
    pair = shapely.MultiPolygon([shapely.box(5e5, 5.8e6, 5e5 + 9, 5.8e6 + 9), holed[0]])
    frame = gpd.GeoSeries([*discs, *holed, pair, None, shapely.Polygon()], crs=32633)
    lines = outlines(frame)
    assert lines.coords.dtype == np.float32
    assert lines.rings.tolist() == [1] * 40 + [2] * 40 + [3, 0, 0]
    expected = frame.to_crs(3857)
    for rings, polygon in zip(rings_of(lines), expected, strict=True):
        assert sum(map(len, rings)) == shapely.get_num_coordinates(polygon) - len(rings)
        if rings:
            signed = [shapely.LinearRing(ring) for ring in rings]
            # non-zero filling leaves a hole open if it runs against its outer ring
            area = sum(
                r.is_ccw * 2 * shapely.Polygon(r).area - shapely.Polygon(r).area for r in signed
            )
            assert area == pytest.approx(polygon.area, rel=1e-4)
            found = np.concatenate(rings)
            near = shapely.distance(shapely.points(found), shapely.boundary(polygon))
            assert near.max() < 0.01


def test_no_polygons_give_empty_outlines():
    for nothing in (gpd.GeoSeries([], crs=32633), gpd.GeoSeries([None], crs=32633)):
        lines = outlines(nothing)
        assert lines.coords.shape == (0, 2)
        assert len(lines.ring_sizes) == 0
        assert lines.rings.tolist() == [0] * len(nothing)
    with pytest.raises(ValueError, match="polygons expected"):
        outlines(gpd.GeoSeries([shapely.Point(1, 2)], crs=32633))


def test_degrees_and_web_mercator_are_pyprojs():
    to_web = pyproj.Transformer.from_crs(4326, 3857, always_xy=True)
    for lon, lat in [(0.0, 0.0), (13.4, 52.5), (-179.9, -84.0), (151.2, -33.9)]:
        x, y = web_from_degrees(lon, lat)
        assert (x, y) == pytest.approx(to_web.transform(lon, lat), abs=1e-6)
        assert degrees_from_web(x, y) == pytest.approx((lon, lat), abs=1e-11)
