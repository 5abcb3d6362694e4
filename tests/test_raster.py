import functools
import http.server
import json
import pickle
import re
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from workbench.crs import is_metric
from workbench.errors import SceneError
from workbench.raster import Scene, Stretch, find_sources, open_scene

# ---- rasters of three rectangles ------------------------------------------------------------

WIDTH, HEIGHT = 240, 160
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 40_000)
BACKGROUND = (40, 50, 60)
RECTANGLES = {  # colour: column, row, width, height
    (250, 20, 30): (20, 15, 60, 30),
    (20, 240, 40): (150, 20, 40, 70),
    (30, 60, 230): (60, 100, 90, 40),
}


def three_rectangles() -> NDArray[np.uint8]:
    """`(3, HEIGHT, WIDTH)`."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = BACKGROUND
    for colour, (column, row, width, height) in RECTANGLES.items():
        image[row : row + height, column : column + width] = colour
    return image.transpose(2, 0, 1)


def write(
    path: Path,
    image: NDArray,
    crs: str | None = "EPSG:32636",
    transform: Affine | None = NORTH_UP,
    colours: tuple[str, ...] | None = None,
    gcps: list[GroundControlPoint] | None = None,
    mask: NDArray | None = None,
    palette: dict[int, tuple[int, ...]] | None = None,
    **profile: object,
) -> Path:
    image = np.atleast_3d(image.T).T if image.ndim == 2 else image
    count, height, width = image.shape
    place = {"crs": crs} if gcps is None else {"gcps": gcps, "crs": crs}
    if transform is not None and gcps is None:
        place["transform"] = transform
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count,
            dtype=image.dtype, **place, **profile,
        ) as target,
    ):  # fmt: skip
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if palette:
            target.write_colormap(1, palette)
        target.write(image)
        if mask is not None:
            target.write_mask(mask)
    return path


def whole(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return scene.read(scene.window)


def assert_rectangles_in_place(scene: Scene, source_crs: str, transform: Affine) -> None:
    """Each rectangle has its place (to 0.15 px) and its size (to 2 %) on the scene's map."""
    to_scene = pyproj.Transformer.from_crs(source_crs, scene.crs, always_xy=True)
    rgb, valid = whole(scene)
    # the area that one source pixel takes on the scene's map
    corners = transform @ (np.array([0, 1, 1, 0]) * WIDTH, np.array([0, 0, 1, 1]) * HEIGHT)
    footprint = shapely.Polygon(np.transpose(to_scene.transform(*corners)))
    cell = footprint.area / (WIDTH * HEIGHT)
    pixel = abs(scene.transform.a * scene.transform.e)
    assert valid.sum() * pixel == pytest.approx(footprint.area, rel=0.03)
    rows, columns = np.mgrid[: scene.height, : scene.width] + 0.5
    for colour, (column, row, width, height) in RECTANGLES.items():
        # how much of each pixel is the rectangle: bilinear resampling mixes at the edges
        towards = np.subtract(colour, BACKGROUND)
        share = np.clip((rgb - np.array(BACKGROUND)) @ towards / (towards @ towards), 0, 1)
        assert share.sum() * pixel == pytest.approx(width * height * cell, rel=0.02)
        centre = scene.transform @ (
            (columns * share).sum() / share.sum(),
            (rows * share).sum() / share.sum(),
        )
        expected = to_scene.transform(*(transform @ (column + width / 2, row + height / 2)))
        assert np.hypot(*np.subtract(centre, expected)) < 0.15 * np.sqrt(pixel)


def rotated(degrees: float) -> Affine:
    return Affine.translation(500_000, 40_000) @ Affine.rotation(degrees) @ Affine.scale(0.5, -0.5)


GEOGRAPHIC = Affine(4.5e-6, 0, 10.0, 0, -4.5e-6, 52.0)
GRIDS = {
    "north-up": ("EPSG:32636", NORTH_UP),
    "south-up": ("EPSG:32636", Affine(0.5, 0, 500_000, 0, 0.5, 40_000)),
    "mirrored": ("EPSG:32636", Affine(-0.5, 0, 500_000, 0, -0.5, 40_000)),
    "rotated by 30°": ("EPSG:32636", rotated(30)),
    "rotated by 90°": ("EPSG:32636", rotated(90)),
    "rotated by 200°": ("EPSG:32636", rotated(200)),
    "sheared": ("EPSG:32636", rotated(10) @ Affine.shear(15)),
    "geographic": ("EPSG:4326", GEOGRAPHIC),
    "geographic, south-up": ("EPSG:4326", Affine(4.5e-6, 0, 10.0, 0, 4.5e-6, 52.0)),
    "geographic, rotated": (
        "EPSG:4326",
        Affine.translation(36.0, 0.5) @ Affine.rotation(25) @ Affine.scale(4.5e-6, -4.5e-6),
    ),
    "feet": ("EPSG:2263", Affine(1.5, 0, 984_000, 0, -1.5, 200_000)),
    "southern": ("EPSG:4326", Affine(4.5e-6, 0, 115.2, 0, -4.5e-6, -8.6)),
    "web mercator": ("EPSG:3857", Affine(0.8, 0, 1_113_000, 0, -0.8, 8_399_000)),
    "Swiss": ("EPSG:2056", Affine(0.5, 0, 2_690_000, 0, -0.5, 1_234_000)),
    "Dutch, south-up": ("EPSG:28992", Affine(0.25, 0, 127_000, 0, 0.25, 428_000)),
    "NAD27, geographic": ("EPSG:4267", Affine(4.5e-6, 0, -90, 0, -4.5e-6, 40)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_rectangles_of_any_grid_land_in_their_place(tmp_path, grid):
    crs, transform = GRIDS[grid]
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles(), crs, transform))
    assert is_metric(scene.crs)
    assert scene.transform.a > 0
    assert scene.transform.e < 0
    assert scene.transform.b == scene.transform.d == 0
    assert_rectangles_in_place(scene, crs, transform)


@pytest.mark.parametrize(
    ("grid", "crs"),
    [
        *((grid, "EPSG:3857") for grid in GRIDS if grid != "web mercator"),
        ("geographic", "EPSG:3035"),
        ("Swiss", "EPSG:32632"),
        ("Dutch, south-up", "EPSG:25831"),
        ("web mercator", "EPSG:25832"),
        ("north-up", "EPSG:32736"),
    ],
)
def test_a_chosen_crs_moves_nothing(tmp_path, grid, crs):
    source_crs, transform = GRIDS[grid]
    path = write(tmp_path / "a.tif", three_rectangles(), source_crs, transform)
    scene = open_scene(path, crs=crs)
    assert scene.crs == pyproj.CRS(crs)
    assert_rectangles_in_place(scene, source_crs, transform)


def test_a_crs_outside_the_area_it_is_made_for(tmp_path):
    transform = Affine(4.5e-6, 0, 11.5, 0, -4.5e-6, 48.1)
    path = write(tmp_path / "munich.tif", three_rectangles(), "EPSG:4326", transform)
    assert "made for Liechtenstein; Switzerland" in refusal(path, crs="EPSG:2056")
    # no datum shift, no doubt: a neighbouring UTM zone is common practice
    assert_rectangles_in_place(open_scene(path, crs="EPSG:32633"), "EPSG:4326", transform)
    assert_rectangles_in_place(
        open_scene(path, crs="EPSG:32633", resolution_m=0.4), "EPSG:4326", transform
    )


@pytest.mark.parametrize("resolution_m", [None, 0.3])
@pytest.mark.parametrize("crs", ["EPSG:32636", "EPSG:4326"])
def test_control_points_place_the_rectangles(tmp_path, crs, resolution_m):
    scale = 0.5 if crs == "EPSG:32636" else 4.5e-6
    origin = (500_000, 40_000) if crs == "EPSG:32636" else (32.6, 0.35)
    transform = Affine.translation(*origin) @ Affine.rotation(20) @ Affine.scale(scale, -scale)
    pixels = [(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT), (100, 70)]
    gcps = [GroundControlPoint(r, c, *(transform @ (c, r))) for c, r in pixels]
    path = write(tmp_path / "a.tif", three_rectangles(), crs, gcps=gcps)
    scene = open_scene(path, resolution_m=resolution_m)
    assert scene.crs == pyproj.CRS("EPSG:32636")
    assert_rectangles_in_place(scene, crs, transform)


@pytest.mark.parametrize("grid", ["north-up", "rotated by 30°", "geographic", "web mercator"])
@pytest.mark.parametrize("resolution_m", [0.25, 0.7])
def test_resolution_is_in_ground_metres(tmp_path, grid, resolution_m):
    crs, transform = GRIDS[grid]
    path = write(tmp_path / "a.tif", three_rectangles(), crs, transform)
    scene = open_scene(path, resolution_m=resolution_m)
    assert scene.pixel_m == pytest.approx(resolution_m, rel=1e-4)
    assert scene.transform.a == -scene.transform.e
    assert_rectangles_in_place(scene, crs, transform)


# ---- masks ----------------------------------------------------------------------------------

HALF = np.where(np.arange(WIDTH) < WIDTH // 2, 0, 255).astype(np.uint8) * np.ones(
    (HEIGHT, 1), np.uint8
)


def masked_rasters(folder: Path) -> dict[str, Path]:
    """The left half of each is invalid, for one reason or another."""
    image = three_rectangles()
    left = HALF == 0
    nan = np.where(left, np.nan, image).astype(np.float32)
    rgba = ("red", "green", "blue", "alpha")
    wide = np.concatenate([image.astype(np.uint16), HALF[None].astype(np.uint16)])
    return {
        "nodata": write(folder / "nodata.tif", np.where(left, 0, image).astype(np.uint8), nodata=0),
        "nan nodata": write(folder / "nan.tif", nan, nodata=np.nan),
        "undeclared nan": write(folder / "undeclared.tif", nan),
        "alpha": write(folder / "alpha.tif", np.concatenate([image, HALF[None]]), colours=rgba),
        "16-bit alpha of 255": write(folder / "alpha255.tif", wide, colours=rgba),
        "internal mask": write(folder / "mask.tif", image, mask=HALF),
        "negative nodata": write(
            folder / "negative.tif", np.where(left, -9999, image.astype(np.int16)), nodata=-9999
        ),
    }


@pytest.mark.parametrize("kind", ["as it is", "warped"])
def test_every_kind_of_mask_gives_the_same_validity(tmp_path, kind):
    for name, path in masked_rasters(tmp_path).items():
        scene = open_scene(path) if kind == "as it is" else open_scene(path, crs="EPSG:3857")
        rgb, valid = whole(scene)
        right = np.zeros_like(valid)
        right[:, scene.width // 2 :] = True
        if kind == "as it is":
            assert (valid == right).all(), name
        else:  # a pixel at the warped edges
            assert (valid != right).mean() < 0.03, name
        assert (rgb[~valid] == 0).all(), name
        assert rgb[valid].any(), name


def test_resampling_spreads_no_nan_that_is_not_declared_as_nodata(tmp_path):
    image = np.where(HALF == 0, np.nan, three_rectangles()).astype(np.float32)
    declared = write(tmp_path / "a.tif", image, transform=rotated(20), nodata=np.nan)
    undeclared = write(tmp_path / "b.tif", image, transform=rotated(20))
    assert (whole(open_scene(declared))[1] == whole(open_scene(undeclared))[1]).all()


def test_a_white_roof_is_not_nodata_because_one_band_is_255(tmp_path):
    image = three_rectangles()
    image[0, 50:60, 50:60] = 255  # one band only: a red roof
    image[:, 80:90, 80:90] = 255
    expected = np.ones((HEIGHT, WIDTH), np.bool_)
    expected[80:90, 80:90] = False
    path = write(tmp_path / "a.tif", image, nodata=255)
    assert (whole(open_scene(path))[1] == expected).all()
    rgb, valid = whole(open_scene(path, resolution_m=0.5 / 1.0001))  # resampled, hardly moved
    assert valid[51:59, 51:59].all()
    assert (rgb[51:59, 51:59, 0] == 255).all()
    assert not valid[82:88, 82:88].any()


def test_only_the_chosen_bands_decide_what_is_nodata(tmp_path):
    image = np.concatenate([three_rectangles(), np.full((1, HEIGHT, WIDTH), 7, np.uint8)])
    image[:3, :20] = 0
    path = write(tmp_path / "a.tif", image, nodata=0, photometric="minisblack")
    for crs in (None, "EPSG:3857"):
        assert not whole(open_scene(path, crs=crs))[1][2:18].any()
        assert whole(open_scene(path, crs=crs, bands=(4, 1, 2)))[1][2:18, 5:-5].all()


def test_a_nodata_value_that_the_type_cannot_hold_masks_nothing(tmp_path):
    image = three_rectangles()
    image[:, :40] = 0
    path = write(tmp_path / "a.tif", image)
    text = (
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>EPSG:32636</SRS>'
        "<GeoTransform>500000, 0.5, 0, 40000, 0, 0.5</GeoTransform>"  # south-up: it is warped
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>-9999</NoDataValue>'
            f"<SimpleSource><SourceFilename>{path}</SourceFilename>"
            f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    (tmp_path / "a.vrt").write_text(text)
    assert whole(open_scene(tmp_path / "a.vrt"))[1].all()


@pytest.mark.parametrize("crs", [None, "EPSG:3857"])
def test_near_infrared_tagged_as_alpha_is_no_mask(tmp_path, crs):
    rng = np.random.default_rng(0)
    infrared = rng.integers(30, 250, (1, HEIGHT, WIDTH), np.uint8)
    infrared[:, :40] = 0  # water
    image = np.concatenate([three_rectangles(), infrared])
    path = write(tmp_path / "a.tif", image, colours=("red", "green", "blue", "alpha"))
    scene = open_scene(path, crs=crs)
    assert scene.alpha is None
    assert scene.bands == (1, 2, 3)
    assert whole(scene)[1][5:-5, 5:-5].all()
    # and it can be looked at like any band
    assert open_scene(path, bands=(4, 1, 2), crs=crs).bands == (4, 1, 2)


# ---- bands, palettes, stretches ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        (("red", "green", "blue"), (1, 2, 3)),
        (("blue", "green", "red", "alpha"), (3, 2, 1)),
        (("gray",), (1, 1, 1)),
        (("gray", "alpha"), (1, 1, 1)),
        (("alpha", "gray"), (2, 2, 2)),
        (("gray", "undefined"), (1, 1, 1)),
        (("gray", "undefined", "undefined", "undefined"), (1, 2, 3)),
        (("alpha", "undefined", "undefined", "undefined"), (2, 3, 4)),
        (("gray",) + ("undefined",) * 7, (1, 2, 3)),
    ],
)
def test_bands_follow_the_colour_interpretation(tmp_path, colours, expected):
    image = np.full((len(colours), 20, 30), 100, np.uint8)
    for band, colour in enumerate(colours):
        image[band] = 255 if colour == "alpha" else 10 * (band + 1)
    scene = open_scene(write(tmp_path / "a.tif", image, colours=colours))
    assert scene.bands == expected
    rgb, valid = whole(scene)
    assert valid.all()
    assert rgb[0, 0].tolist() == [10 * band for band in expected]


def test_a_palette_becomes_its_colours(tmp_path):
    index = np.zeros((1, 20, 30), np.uint8)
    index[0, :, 10:20], index[0, :, 20:] = 1, 2
    palette = {0: (200, 30, 40, 255), 1: (10, 220, 50, 255), 2: (60, 70, 210, 255)}
    path = write(tmp_path / "a.tif", index, palette=palette, transform=GRIDS["south-up"][1])
    rgb, valid = whole(open_scene(path))
    assert valid.all()
    # warped by the nearest neighbour: no mixed colours
    assert np.unique(rgb.reshape(-1, 3), axis=0).tolist() == sorted(
        list(colour[:3]) for colour in palette.values()
    )
    assert np.unique(open_scene(path).overview(7)[0].reshape(-1, 3), axis=0).shape[0] == 3


def test_eight_bits_are_taken_as_they_are(tmp_path):
    image = three_rectangles()
    scene = open_scene(write(tmp_path / "a.tif", image))
    assert scene.stretch is None
    assert (whole(scene)[0] == image.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_the_stretch_runs_from_percentile_2_to_98_of_the_valid_pixels(tmp_path, dtype):
    ramp = np.arange(200 * 100).reshape(1, 200, 100) % 10_000 + 1000
    ramp = np.concatenate([ramp, ramp // 2, ramp * 2]).astype(dtype)
    ramp[:, :10] = -9999 if dtype != "uint16" else 0
    scene = open_scene(write(tmp_path / "a.tif", ramp, nodata=float(ramp[0, 0, 0])))
    assert scene.stretch is not None
    limits = np.percentile(ramp[:, 10:].reshape(3, -1), (2, 98), axis=1)
    np.testing.assert_allclose([scene.stretch.low, scene.stretch.high], limits)
    rgb, valid = whole(scene)
    assert not valid[:10].any()
    assert valid[10:].all()
    assert (rgb[valid].min(), rgb[valid].max()) == (0, 255)
    assert 120 < rgb[valid].mean() < 135


def test_given_percentiles_and_given_limits(tmp_path):
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, axis=0)
    path = write(tmp_path / "a.tif", image)
    by_percentile = open_scene(path, stretch=(10, 90))
    assert by_percentile.stretch is not None
    np.testing.assert_allclose(by_percentile.stretch.low, 25.5)
    frozen = open_scene(path, stretch=Stretch((0, 0, 0), (51, 102, 255)))
    assert whole(frozen)[0][0, 10].tolist() == [50, 25, 10]


def test_constant_data_is_grey_not_a_division_by_zero(tmp_path):
    image = np.full((3, 20, 30), 10_000, np.uint16)
    assert (whole(open_scene(write(tmp_path / "a.tif", image)))[0] == 128).all()
    image[0, 5, 5] = 10_400  # too little for a percentile, but all there is
    rgb, _ = whole(open_scene(write(tmp_path / "b.tif", image)))
    assert (rgb[5, 5, 0], rgb[0, 0, 0]) == (255, 0)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), raw=st.lists(st.floats(-1e7, 1e7)))
@settings(max_examples=50)
def test_a_stretch_is_monotonic_and_clipped(low, span, raw):
    stretch = Stretch((low,) * 3, (low + span,) * 3)
    values = np.sort(np.array([low, low + span, *raw]))
    stretched = stretch.apply(np.tile(values, (3, 1)))
    assert (np.diff(stretched.astype(int)) >= 0).all()
    assert stretched[0][values <= low].max() == 0
    assert stretched[0][values >= low + span].min() == 255


# ---- windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["north-up", "rotated by 30°"])
def test_windows_may_reach_out_of_the_scene(tmp_path, grid):
    crs, transform = GRIDS[grid]
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles(), crs, transform))
    rgb, valid = whole(scene)
    wide, wide_valid = scene.read(Window(-30, -20, scene.width + 70, scene.height + 50))
    inside = (slice(20, 20 + scene.height), slice(30, 30 + scene.width))
    assert (wide[inside] == rgb).all()
    assert (wide_valid[inside] == valid).all()
    assert wide_valid.sum() == valid.sum()
    assert (wide.sum(axis=2) > 0).sum() == (rgb.sum(axis=2) > 0).sum()
    far, far_valid = scene.read(Window(5000, -5000, 16, 8))
    assert far.shape == (8, 16, 3)
    assert not far.any()
    assert not far_valid.any()


@pytest.mark.parametrize("grid", ["north-up", "rotated by 30°", "geographic"])
def test_a_scene_is_the_same_in_pieces(tmp_path, grid):
    crs, transform = GRIDS[grid]
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles(), crs, transform))
    rgb, valid = whole(scene)
    for left in range(0, scene.width, 70):
        for top in range(0, scene.height, 50):
            piece, piece_valid = scene.read(Window(left, top, 70, 50))
            there = (slice(top, top + 50), slice(left, left + 70))
            height, width = valid[there].shape
            assert (piece[:height, :width] == rgb[there]).all()
            assert (piece_valid[:height, :width] == valid[there]).all()


def test_geometry_of_windows_and_overviews(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles()))
    assert scene.bounds == (500_000, 39_920, 500_120, 40_000)
    assert scene.pixel_m == pytest.approx(0.5, rel=1e-3)
    window = Window(20, 15, 60, 30)
    assert scene.window_polygon(window).bounds == (500_010, 39_977.5, 500_040, 39_992.5)
    assert scene.window_transform(window) @ (0, 0) == (500_010, 39_992.5)
    rgb, valid, transform = scene.overview(60)
    assert rgb.shape == (40, 60, 3)
    assert valid.all()
    assert transform @ (60, 40) == (500_120, 39_920)
    assert rgb[7, 12].tolist() == [250, 20, 30]


def test_a_scene_travels_to_other_threads_and_processes(tmp_path):
    for grid in ("north-up", "geographic"):
        crs, transform = GRIDS[grid]
        scene = open_scene(write(tmp_path / "a.tif", three_rectangles(), crs, transform))
        rgb, valid = whole(scene)  # with its datasets open
        copy = pickle.loads(pickle.dumps(scene))
        assert copy == scene
        windows = [Window(i % 7 * 20, i % 5 * 20, 64, 48) for i in range(60)]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(copy.read, windows))
        padded = np.pad(rgb, ((0, 99), (0, 99), (0, 0)))
        for window, (part, _) in zip(windows, results, strict=True):
            rows, columns = window.toslices()
            assert (part == padded[rows, columns]).all()
        scene.close()
        scene.close()
        assert (whole(scene)[1] == valid).all()  # it opens again
        scene.close()


def test_many_scenes_do_not_pile_up_open_files(tmp_path):
    scenes = [
        open_scene(write(tmp_path / f"{i}.tif", np.full((3, 8, 8), i, np.uint8))) for i in range(40)
    ]
    for i, scene in enumerate(scenes):
        assert (whole(scene)[0] == i).all()
    open_files = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert sum(path.parent == tmp_path for path in open_files) <= 10
    for scene in scenes:
        scene.close()


def test_what_was_decided_can_be_written_down(tmp_path):
    image = three_rectangles().astype(np.uint16) * 9
    scene = open_scene(write(tmp_path / "a.tif", image))
    decided = scene.describe()
    assert yaml.safe_load(yaml.safe_dump(decided)) == json.loads(json.dumps(decided)) == decided
    stretch = decided["stretch"]
    again = open_scene(scene.source, stretch=Stretch(tuple(stretch["low"]), tuple(stretch["high"])))
    assert again == scene


def test_the_fingerprint_follows_the_content_not_the_sidecars(tmp_path):
    image = three_rectangles()
    path = write(tmp_path / "a.tif", image)
    before = open_scene(path).fingerprint
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert open_scene(path).fingerprint == before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert open_scene(write(elsewhere / "a.tif", image)).fingerprint == before
    image[0, 100, 100] += 1
    assert open_scene(write(path, image)).fingerprint != before


def test_a_new_raster_under_an_old_name_is_read_anew(tmp_path):
    for value in (10, 20):
        scene = open_scene(write(tmp_path / "a.tif", np.full((3, 8, 8), value, np.uint8)))
        assert (whole(scene)[0] == value).all()


# ---- naming sources -----------------------------------------------------------------------------


def test_sources_by_path_list_glob_and_directory(tmp_path):
    for name in ("b.tif", "a.tif", "c.TIF", "deep/d.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, np.zeros((3, 8, 8), np.uint8))
    for name in ("a.tif.msk", "a.tif.ovr", "a.tfw", "notes.txt", "quicklook.png", "all.vrt"):
        (tmp_path / name).touch()
    a, b, c = (str(tmp_path / name) for name in ("a.tif", "b.tif", "c.TIF"))
    assert find_sources(a) == [a]
    assert find_sources(tmp_path / "a.tif") == [a]
    assert find_sources([b, a, b]) == [b, a]
    assert find_sources(str(tmp_path)) == [a, b, c]
    assert find_sources(f"{tmp_path}/a.t*") == [a]
    assert find_sources(f"{tmp_path}/**/*.tif") == [a, b, str(tmp_path / "deep/d.tif")]
    assert find_sources([str(tmp_path / "deep"), a]) == [str(tmp_path / "deep/d.tif"), a]
    assert find_sources(f"{tmp_path}/all.vrt") == [f"{tmp_path}/all.vrt"]


def test_a_directory_shows_pictures_with_a_world_file_and_lone_vrts(tmp_path):
    (tmp_path / "map.jpg").touch()
    (tmp_path / "map.jgw").touch()
    (tmp_path / "photo.jpg").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "map.jpg")]
    (tmp_path / "map.jpg").unlink()
    (tmp_path / "all.vrt").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "all.vrt")]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    path = write(tmp_path / "scene [1] & <2>.tif", three_rectangles(), "EPSG:4326", GEOGRAPHIC)
    assert find_sources(str(path)) == [str(path)]
    assert_rectangles_in_place(open_scene(path), "EPSG:4326", GEOGRAPHIC)


def test_urls_and_gdal_names_stay_as_they_are():
    for name in ("https://example.org/a.tif", "s3://bucket/a*.tif", "/vsizip/a.zip/a.tif"):
        assert find_sources(name) == [name]


@pytest.mark.parametrize("pattern", ["*.tif", "missing.tif", ""])
def test_nothing_found_is_an_error_that_names_it(tmp_path, pattern):
    with pytest.raises(SceneError, match=re.escape(str(tmp_path / pattern))):
        find_sources(str(tmp_path / pattern))


def test_an_empty_list_of_sources_is_an_error():
    with pytest.raises(SceneError, match="empty"):
        find_sources([])


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Static files with byte ranges, which GDAL needs; counts what is asked for."""

    asked: list[str]

    def __init__(self, *args, asked: list[str], **options):
        self.asked = asked
        super().__init__(*args, **options)

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


def test_a_raster_at_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # rasterio keeps the GIL in some calls: a request from there would wait for our server for ever
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "5")
    crs, transform = GRIDS["geographic"]
    path = write(tmp_path / "remote.tif", three_rectangles(), crs, transform)
    asked: list[str] = []
    handler = functools.partial(RangeServer, directory=str(tmp_path), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/remote.tif"
            scene = open_scene(url)
            assert (scene.source, scene.name) == (url, "remote")
            assert (whole(scene)[0] == whole(open_scene(path))[0]).all()
            scene.close()
            # no listing, no sidecars
            assert set(asked) == {"/remote.tif"}
            assert "404" in refusal(url.replace("remote", "missing"))
        finally:
            server.shutdown()


# ---- refusals -----------------------------------------------------------------------------------


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(SceneError) as caught:
        open_scene(path, **options)
    return str(caught.value)


def test_bad_requests_name_the_parameter(tmp_path):
    path = write(tmp_path / "a.tif", three_rectangles())
    assert "no band 7" in refusal(path, bands=(1, 2, 7))
    assert "which has 3" in refusal(path, bands=(1, 2, 7))
    assert "no band 0" in refusal(path, bands=(0, 1, 2))
    assert "name three" in refusal(path, bands=(1, 2))
    assert "EPSG:32636" in refusal(path, crs="EPSG:4326")  # the way out
    assert "not projected in metres" in refusal(path, crs="EPSG:2263")
    assert "crs" in refusal(path, crs="EPSG:nonsense")
    assert "not on Earth" in refusal(path, crs="+proj=eqc +R=3396190 +units=m")
    assert "resolution_m" in refusal(path, resolution_m=0)
    assert "resolution_m" in refusal(path, resolution_m=1e-12)
    assert "stretch" in refusal(path, stretch=(98, 2))


def test_rasters_without_a_place_on_earth(tmp_path):
    image = three_rectangles()
    assert "has no CRS" in refusal(write(tmp_path / "a.tif", image, crs=None))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = write(tmp_path / "b.tif", image, transform=None)
    assert "has no transform" in refusal(path)
    local = 'LOCAL_CS["building site",UNIT["metre",1]]'
    message = refusal(write(tmp_path / "c.tif", image, crs=local))
    assert "building site" in message
    assert "local CRS" in message
    globe = Affine(1.5, 0, -180, 0, -1.125, 90)
    assert "too wide" in refusal(write(tmp_path / "d.tif", image, "EPSG:4326", globe))


def test_directories_and_other_files(tmp_path):
    assert "is a directory" in refusal(tmp_path)
    text = tmp_path / "a.tif"
    text.write_text("hello, this is no raster")
    assert "cannot be read as a raster" in refusal(text)


def test_nothing_reaches_stderr(tmp_path, capfd):
    text = tmp_path / "a.tif"
    text.write_text("hello, this is no raster")
    refusal(text)
    path = write(tmp_path / "b.tif", three_rectangles(), compress="deflate", blockysize=16)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SceneError):
        open_scene(path).read(Window(0, HEIGHT - 8, 8, 8))
    assert capfd.readouterr().err == ""


# ---- real rasters -------------------------------------------------------------------------------

REAL = {  # ground metres per pixel, smallest share of valid pixels, kept on its own grid
    "kampala/kampala_z21_a.tif": (0.0746, 1, True),
    "kampala/kampala_z20_a.tif": (0.149, 1, True),
    "kampala/kampala_z19_a.tif": (0.299, 1, True),
    "naip_fields/naip_fields_40.0558_-92.2733.tif": (0.993, 0.93, False),
    "naip_fields/naip_fields_40.2497_-91.9641.tif": (0.993, 0.93, False),
    "naip_fields/naip_fields_41.1864_-88.1872.tif": (0.993, 0.93, False),
    "naip_fields/naip_fields_41.4814_-88.8422.tif": (0.993, 0.93, False),
    "naip_fields/naip_fields_42.0180_-89.4462.tif": (0.993, 0.93, False),
    "naip_fields/naip_fields_42.6802_-89.8864.tif": (0.993, 0.93, False),
    "trees_neon/OSBS_029.tif": (0.1, 0.99, True),
    "trees_neon/SJER_477.tif": (0.0997, 0.99, True),
    "oam_tcd/5b90f92da0d7280005fab355_4310.tif": (0.0969, 1, True),
    "nl_rd/test_tiled.tif": (0.25, 1, True),
    "spacenet_atlanta/atlanta_pan_u16.tif": (0.5, 0.999, True),
    "unlabelled/pix4d_alpha_nodata.tif": (0.353, 0.87, True),
    "unlabelled/hro_colorado.tif": (0.15, 1, True),
    "unlabelled/hro_colorado_extmask.tif": (0.15, 0.96, True),
    "unlabelled/hro_colorado_intmask.tif": (0.15, 0.96, True),
    "unlabelled/swissimage_lv95.tif": (0.5, 1, True),
    "unlabelled/naip4band_ponds_5m.tif": (5, 0.99, True),
    "unlabelled/naip_airport_chip.tif": (0.601, 1, True),
    "unlabelled/cogeo.tif": (0.473, 1, True),
    "urban_trees/long_beach_2020_10.tif": (0.6, 1, True),
}


def test_the_table_of_real_rasters_is_complete(data_dir):
    found = {
        path.relative_to(data_dir).as_posix()
        for path in data_dir.glob("*/*.tif")
        if path.parent.name != "edge"
    }
    assert found == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_real_raster_becomes_a_scene(data_dir, name):
    ground_m, valid_share, kept = REAL[name]
    scene = open_scene(data_dir / name)
    assert is_metric(scene.crs)
    assert scene.transform.a > 0 > scene.transform.e
    assert scene.transform.b == scene.transform.d == 0
    assert scene.pixel_m == pytest.approx(ground_m, rel=0.015)
    rgb, valid = whole(scene)
    assert rgb.shape == (scene.height, scene.width, 3)
    assert rgb.dtype == np.uint8
    assert valid.shape == rgb.shape[:2]
    assert valid_share <= valid.mean()
    assert (rgb[~valid] == 0).all()
    assert rgb[valid].std() > 15  # a picture, not a grey or black sheet
    assert scene.warped is not kept
    with rasterio.open(data_dir / name) as source:
        if kept:
            assert scene.transform == source.transform
            assert scene.crs == pyproj.CRS(source.crs)
        if kept and source.dtypes[0] == "uint8":
            raw = source.read((1, 2, 3)).transpose(1, 2, 0)
            assert (rgb[valid] == raw[valid]).all()
    scene.close()


def test_geographic_imagery_agrees_with_its_source(data_dir):
    path = data_dir / "naip_fields/naip_fields_41.1864_-88.1872.tif"
    scene = open_scene(path)
    rgb, valid = whole(scene)
    rows, columns = np.mgrid[50 : scene.height - 50 : 7, 50 : scene.width - 50 : 7]
    x, y = scene.transform @ (columns + 0.5, rows + 0.5)
    with rasterio.open(path) as source:
        to_source = pyproj.Transformer.from_crs(scene.crs, source.crs, always_xy=True)
        across, down = ~source.transform @ to_source.transform(x, y)
        raw = source.read().transpose(1, 2, 0)
    expected = raw[np.floor(down).astype(int), np.floor(across).astype(int)].astype(float)
    got = rgb[rows, columns].astype(float)
    assert valid[rows, columns].all()
    assert np.abs(got - expected).mean() < 8
    # and a pixel further off it would not
    shifted = raw[np.floor(down).astype(int), np.floor(across).astype(int) + 2].astype(float)
    assert np.abs(got - shifted).mean() > 1.5 * np.abs(got - expected).mean()


def test_the_rotated_copy_agrees_with_the_original(data_dir):
    turned = open_scene(data_dir / "edge/kampala_rot30.tif")
    original = open_scene(data_dir / "kampala/kampala_z21_a.tif")
    assert turned.pixel_m == pytest.approx(original.pixel_m, rel=1e-3)
    rgb, valid = whole(turned)
    assert valid.mean() == pytest.approx(768**2 / 1049**2, abs=0.005)
    rows, columns = (index[::37] for index in np.nonzero(valid))
    x, y = turned.transform @ (columns + 0.5, rows + 0.5)
    across, down = (np.floor(v).astype(int) for v in ~original.transform @ (x, y))
    picture, _ = whole(original)

    def difference(dx: int, dy: int) -> float:
        there = picture[down + dy, across + dx].astype(int)
        return float(np.abs(rgb[rows, columns].astype(int) - there).mean())

    best = difference(0, 0)
    assert best < 12
    assert all(best < difference(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)


def test_internal_and_external_masks_agree(data_dir):
    inside = whole(open_scene(data_dir / "unlabelled/hro_colorado_intmask.tif"))
    beside = whole(open_scene(data_dir / "unlabelled/hro_colorado_extmask.tif"))
    assert (inside[1] == beside[1]).all()
    assert (inside[0] == beside[0]).all()
    assert 0.96 < inside[1].mean() < 0.98


def test_white_roofs_stay_valid_where_nodata_is_255(data_dir):
    path = data_dir / "trees_neon/OSBS_029.tif"
    _, valid = whole(open_scene(path))
    with rasterio.open(path) as source:
        raw = source.read()
    assert ((raw == 255).any(axis=0) & valid).any()
    assert (valid == ~(raw == 255).all(axis=0)).all()


def test_twelve_bits_look_like_the_original(data_dir):
    deep, deep_valid = whole(open_scene(data_dir / "edge/kampala_12bit.tif"))
    assert deep_valid.all()
    undone = Stretch((200,) * 3, (200 + 14 * 255,) * 3)
    scene = open_scene(data_dir / "edge/kampala_12bit.tif", stretch=undone)
    flat, _ = whole(scene)
    original = open_scene(data_dir / "kampala/kampala_z21_a.tif")
    column, row = ~original.transform @ (scene.transform @ (0, 0))
    there, _ = original.read(Window(round(column), round(row), 320, 320))
    assert (flat == there).all()  # its values are 14 × the original + 200
    correlation = np.corrcoef(deep.ravel(), there.ravel())[0, 1]
    assert correlation > 0.95
    assert deep.std() > there.std()


def test_overviews_of_large_files_are_read_from_overviews(data_dir):
    scene = open_scene(data_dir / "edge/cog_cmap.tif")
    rgb, valid, transform = scene.overview(512)
    assert max(valid.shape) == 512
    assert 0.5 < valid.mean() < 0.6
    with rasterio.open(data_dir / "edge/cog_cmap.tif") as source:
        palette = {colour[:3] for colour in source.colormap(1).values()}
    assert {tuple(colour) for colour in np.unique(rgb[valid], axis=0).tolist()} <= palette
    left, bottom, right, top = scene.bounds
    assert transform @ (0, 0) == (left, top)
    assert transform @ (valid.shape[1], valid.shape[0]) == pytest.approx((right, bottom))


READABLE = {  # alpha, bands, CRS, share of valid pixels
    "RGBA.uint16.tif": (4, (3, 2, 1), "EPSG:32612", 0.489),
    "all-nodata.tif": (None, (3, 2, 1), "EPSG:32628", 0),
    "alpha.tif": (4, (1, 2, 3), "EPSG:3857", 0.0155),
    "byte.tif": (None, (1, 1, 1), "EPSG:26711", 1),
    "green.tif": (None, (1, 2, 3), "EPSG:32733", 0.93),
    "goes.tif": (None, (1, 2, 3), None, 0.783),
    "test_esri_wkt.tif": (None, (1, 1, 1), "ESRI:102039", 1),
    "RGB.byte.tif": (None, (1, 2, 3), "EPSG:32618", 0.675),
    "RGB.byte.gcp.vrt": (None, (1, 2, 3), "EPSG:32610", 0.488),
    "cog_gcps.tif": (None, (1, 1, 1), "EPSG:32643", 0.713),
    "cog_cmap.tif": (None, (1, 1, 1), "EPSG:3857", 0.555),
    "cog_rgba.tif": (4, (1, 2, 3), "EPSG:26913", 0.887),
    "clp.tif": (2, (1, 1, 1), "EPSG:3857", 0.655),
    "dsm_float32.tif": (None, (1, 1, 1), "EPSG:26918", 1),
    "landsat_int16_albers.tif": (None, (1, 2, 3), None, 1),
    "kampala_rot30.tif": (None, (1, 2, 3), "EPSG:3857", 0.536),
    "kampala_12bit.tif": (None, (1, 2, 3), "EPSG:3857", 1),
    "kampala_tiny48.tif": (None, (1, 2, 3), "EPSG:3857", 1),
    "corrupt.tif": (None, (1, 2, 3), "EPSG:3857", 0.75),
    "truncated.tif": (None, (1, 2, 3), "EPSG:3857", 0.52),
}
REFUSED = {
    "rotated.tif": "has no CRS",
    "float_nan.tif": "has no CRS",
    "kampala_nocrs.tif": "has no CRS",
    "cog_hirise_mars.tif": "is not on Earth",
    "inverted_lat.tif": "too wide",
    "sar_complex64_rotated.tif": "magnitude",
    "header_only.tif": "cannot be read as a raster",
    "empty.tif": "is empty",
    "lfs_pointer.tif": "git lfs pull",
    "labels_wrong_crs.geojson": "cannot be read as a raster",
}


def test_the_tables_of_edge_cases_are_complete(data_dir):
    found = {path.name for path in (data_dir / "edge").iterdir()}
    assert found == READABLE.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_raster_is_read(data_dir, name):
    alpha, bands, crs, valid_share = READABLE[name]
    scene = open_scene(data_dir / "edge" / name)
    assert (scene.alpha, scene.bands) == (alpha, bands)
    assert is_metric(scene.crs)
    assert crs is None or scene.crs == pyproj.CRS(crs)
    rgb, valid, _ = scene.overview(1024)
    assert valid.mean() == pytest.approx(valid_share, abs=0.006)
    assert (rgb[~valid] == 0).all()
    assert scene.pixel_m > 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_hopeless_raster_is_refused_with_its_name_and_the_cause(data_dir, name):
    message = refusal(data_dir / "edge" / name)
    assert str(data_dir / "edge" / name) in message
    assert REFUSED[name] in message


def test_control_points_of_real_rasters_lead_to_the_right_place(data_dir):
    for name in ("cog_gcps.tif", "RGB.byte.gcp.vrt"):
        scene = open_scene(data_dir / "edge" / name)
        with rasterio.open(data_dir / "edge" / name) as source:
            gcps, crs = source.gcps
            inside = [p for p in gcps if p.col <= source.width and p.row <= source.height]
            to_scene = pyproj.Transformer.from_crs(crs, scene.crs, always_xy=True)
        left, bottom, right, top = scene.bounds
        margin = 30 * scene.transform.a  # the polynomial does not go through every point
        for point in inside:
            x, y = to_scene.transform(point.x, point.y)
            assert left - margin <= x <= right + margin
            assert bottom - margin <= y <= top + margin


def test_a_south_up_globe_is_read_in_a_crs_chosen_for_it(data_dir):
    scene = open_scene(data_dir / "edge/inverted_lat.tif", crs="EPSG:6933")
    assert scene.transform.e < 0
    left, _, right, _ = scene.bounds
    assert right - left == pytest.approx(2 * 17_367_530, rel=0.01)


@pytest.mark.parametrize("name", ["corrupt.tif", "truncated.tif"])
def test_a_damaged_raster_is_read_where_it_is_whole(data_dir, name):
    scene = open_scene(data_dir / "edge" / name)
    broken = Window(scene.width - 300, scene.height - 300, 256, 256)
    for _ in range(2):  # also when asked again
        with pytest.raises(SceneError, match=rf"{name}.*columns {broken.col_off}"):
            scene.read(broken)
    rgb, valid = scene.read(Window(0, 0, 200, 200))
    assert valid.all()
    assert rgb.std() > 15


def test_opening_a_huge_raster_reads_next_to_nothing(tmp_path):
    path, side = tmp_path / "huge.tif", 100_000
    transform = Affine(0.1, 0, 500_000, 0, -0.1, 40_000)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint16",
        crs="EPSG:32636", transform=transform, tiled=True, sparse_ok=True, bigtiff="yes",
    ) as target:  # fmt: skip
        # a gradient of blocks; the rest of the 20 GB is a hole in the file
        for corner in np.linspace(0, side - 512, 6).astype(int) // 256 * 256:
            block = np.full((512, 512), 1000 + corner // 100, np.uint16)
            target.write(block, 1, window=Window(corner, corner, 512, 512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene = open_scene(path)
    rgb, valid = scene.read(Window(side - 300, side - 300, 512, 512))
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 300
    assert scene.stretch is not None
    assert scene.stretch.high[0] > 1000
    assert rgb[:300, :300].any()
    assert valid.sum() == 300 * 300
    scene.close()
