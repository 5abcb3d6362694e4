import json
import resource
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import yaml
from affine import Affine
from made_rasters import (
    GRIDS,
    HEIGHT,
    WIDTH,
    assert_rectangles_in_place,
    three_rectangles,
    whole,
    write,
)
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from workbench.errors import SceneError
from workbench.raster.crs import is_metric
from workbench.raster.open import open_scene
from workbench.raster.scene import Stretch


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(SceneError) as caught:
        open_scene(path, **options)
    return str(caught.value)


def test_eight_bands_without_colours_are_read_as_named_or_the_first_three(tmp_path):
    values = np.stack([np.full((HEIGHT, WIDTH), 100 * band, np.uint16) for band in range(1, 9)])
    values[:, :5] = 0  # what the percentiles stretch from
    path = write(tmp_path / "eight.tif", values)
    assert open_scene(path).bands == (1, 2, 3)
    scene = open_scene(path, bands=(5, 3, 2))
    rgb, valid = whole(scene)
    assert scene.stretch.high == (500, 300, 200)
    assert valid.all()
    assert rgb[-1, -1].tolist() == [255, 255, 255]


# ---- the grid -------------------------------------------------------------------------------


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


def test_pixels_that_have_no_area_north_up_are_refused(tmp_path):
    transform = Affine(1e-9, 0.0, 500_000.0, 1.0, 1e9, 40_000.0)
    path = write(tmp_path / "a.tif", three_rectangles(), "EPSG:32636", transform)
    with pytest.raises(SceneError, match="covers no area on the map: north up it would have 0 ×"):
        open_scene(path)


@pytest.mark.parametrize("grid", ["north-up", "rotated by 30°", "geographic", "web mercator"])
@pytest.mark.parametrize("resolution_m", [0.25, 0.7])
def test_resolution_is_in_ground_metres(tmp_path, grid, resolution_m):
    crs, transform = GRIDS[grid]
    path = write(tmp_path / "a.tif", three_rectangles(), crs, transform)
    scene = open_scene(path, resolution_m=resolution_m)
    assert scene.pixel_m == pytest.approx(resolution_m, rel=1e-4)
    assert scene.transform.a == -scene.transform.e
    assert_rectangles_in_place(scene, crs, transform)


# ---- bands, alpha, stretch ------------------------------------------------------------------


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


# ---- what a scene says of itself ------------------------------------------------------------


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


# ---- refusals -------------------------------------------------------------------------------


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


# ---- real rasters ---------------------------------------------------------------------------


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
        if path.parent.name not in ("edge", "field", "train")  # these have tests of their own
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
