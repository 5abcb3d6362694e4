"""No silent white pictures: what is no data, what becomes black and white, and what is refused."""

import json

import numpy as np
import pytest
import rasterio
from made_rasters import HEIGHT, RECTANGLES, WIDTH, rotated, three_rectangles, whole, write
from rasterio.enums import Resampling
from rasterio.shutil import copy

from workbench.errors import SceneError
from workbench.raster.open import open_scene
from workbench.runs.record import SceneRecord

RNG = np.random.default_rng(3)
LEFT = np.s_[:, :, :20]  # 8 % of the pixels


def measured(low, high, dtype):
    """Three rectangles as measurements between two values."""
    noisy = three_rectangles() + RNG.uniform(-4, 4, (3, HEIGHT, WIDTH))
    return (low + (noisy + 4) / 264 * (high - low)).astype(dtype)


def assert_a_picture(scene, filled):
    """The fill is invalid, and the rectangles are seen in their colours."""
    rgb, valid = whole(scene)
    assert not valid[:, :20].any() if filled else valid.all()
    assert valid[:, 20:].all()
    for colour, (column, row, width, height) in RECTANGLES.items():
        inside = rgb[row + 2 : row + height - 2, max(column, 20) + 2 : column + width - 2]
        middle = np.median(inside.reshape(-1, 3), axis=0)
        assert np.abs(middle - colour).max() < 40
    scene.close()


FILLS = {
    "reflectance, -9999": (0, 1, np.float32, -9999),
    "reflectance, -3.4e38": (0, 1, np.float32, np.finfo(np.float32).min),
    "netCDF's own": (200, 320, np.float32, 9.969209968386869e36),
    "doubles, 1e20": (-5, 40, np.float64, 1e20),
    "heights, -32768": (-20, 4000, np.int16, -32768),
    "reflectance × 10000, -9999": (0, 9000, np.int16, -9999),
    "backscatter, -999": (-25, 5, np.float32, -999),
    "12 bits, 65535": (0, 4095, np.uint16, 65535),
    "thermal, 0": (28_000, 31_000, np.uint16, 0),
}


@pytest.mark.parametrize("kind", FILLS)
def test_a_fill_that_is_not_declared_is_found(tmp_path, kind):
    low, high, dtype, fill = FILLS[kind]
    image = measured(low, high, dtype)
    image[LEFT] = fill
    scene = open_scene(write(tmp_path / "a.tif", image))
    assert scene.nodata == fill
    assert_a_picture(scene, filled=True)
    # it is kept in run.yaml, and a run of an earlier version has none
    again = SceneRecord.model_validate(json.loads(json.dumps(scene.describe()))).scene()
    assert again == scene
    warped = open_scene(tmp_path / "a.tif", resolution_m=0.5 / 1.0001)
    assert warped.warped
    _, valid = whole(warped)
    assert not valid[:, :19].any()
    assert valid[:-1, 21:-1].all()


def test_a_fill_in_one_band_does_not_spoil_the_stretch(tmp_path):
    image = measured(0, 1, np.float32)
    image[0, :, :20] = -9999
    assert_a_picture(open_scene(write(tmp_path / "a.tif", image)), filled=False)
    image[1, :, :20] = 65535
    assert_a_picture(open_scene(write(tmp_path / "a.tif", image)), filled=False)


@pytest.mark.parametrize("grid", ["as it is", "turned"])
@pytest.mark.parametrize("tag", [-3.4e38, -3.4028234663852886e38, -3.40282e38])
def test_a_nodata_tag_may_differ_in_its_last_digits(tmp_path, tag, grid):
    image = measured(0, 1, np.float32)
    image[LEFT] = np.finfo(np.float32).min
    place = {"transform": rotated(90)} if grid == "turned" else {}
    scene = open_scene(write(tmp_path / "a.tif", image, nodata=tag, **place))
    assert scene.nodata is None  # GDAL knows
    rgb, valid = whole(scene)
    assert valid.mean() == pytest.approx(220 / 240, abs=0.01)
    assert rgb[valid].std() > 40


def test_a_value_that_means_no_data_can_be_named(tmp_path):
    image = three_rectangles()
    image[LEFT] = 0
    path = write(tmp_path / "a.tif", image)
    assert whole(open_scene(path))[1].all()
    for place in ({}, {"resolution_m": 0.5 / 1.0001}):
        _, valid = whole(open_scene(path, nodata=0, **place))
        assert not valid[:, :19].any()
        assert valid[1:-1, 21:-1].all()
    # besides the file's own mask, alpha and nodata
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:40] = 0
    rgba = np.concatenate([image, mask[None]])
    others = [
        write(tmp_path / "m.tif", image, mask=mask),
        write(tmp_path / "r.tif", rgba, colours=("red", "green", "blue", "alpha")),
        write(tmp_path / "n.tif", np.where(mask == 0, 77, image).astype(np.uint8), nodata=77),
        write(tmp_path / "f.tif", np.where(mask == 0, np.nan, image).astype(np.float32)),
    ]
    for path in others:
        for place in ({}, {"resolution_m": 0.5 / 1.0001}):
            scene = open_scene(path, nodata=0, **place)
            _, valid = whole(scene)
            assert not valid[:, :19].any(), path
            assert not valid[:39].any(), path
            assert valid[41:-1, 21:-1].all(), path
            scene.close()


@pytest.mark.parametrize(
    "values",
    [
        np.where(RNG.uniform(size=(HEIGHT, WIDTH)) < 0.1, 0, 500),  # a mask is no fill
        np.maximum(RNG.normal(0, 300, (HEIGHT, WIDTH)), 0),  # many zeros, and all from there on
        np.minimum(RNG.exponential(9000, (HEIGHT, WIDTH)), 65535),  # bright ones are saturated
        RNG.integers(0, 12, (HEIGHT, WIDTH)) * 50,  # classes
        # a ground of some hundreds, and roofs of which a third is saturated
        np.where(
            RNG.uniform(size=(HEIGHT, WIDTH)) < 0.01,
            np.minimum(RNG.normal(60_000, 9000, (HEIGHT, WIDTH)), 65_535),
            RNG.normal(700, 90, (HEIGHT, WIDTH)),
        ),
    ],
)
def test_what_is_measured_is_no_fill(tmp_path, values):
    scene = open_scene(write(tmp_path / "a.tif", values.astype(np.uint16)))
    assert scene.nodata is None
    assert whole(scene)[1].all()


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("said", [True, False])
def test_fewer_bits_than_a_byte_are_stretched_to_one(tmp_path, bits, said):
    image = three_rectangles()[:1] >> (8 - bits)
    scene = open_scene(write(tmp_path / "a.tif", image, **({"nbits": bits} if said else {})))
    rgb, valid = whole(scene)
    assert valid.all()
    assert (rgb[..., 0] == np.rint(image[0] * (255 / (2**bits - 1)))).all()
    scene.close()


def test_a_dark_byte_raster_with_one_bright_place_is_left_alone(tmp_path):
    image = three_rectangles() // 8
    image[:, 100, 100] = 200
    assert open_scene(write(tmp_path / "a.tif", image)).stretch is None


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("bands", [1, 3])
def test_an_8_bit_picture_of_nearly_one_colour_is_refused(tmp_path, level, bands):
    """Reflectance times 255 with one bright roof, or the reverse."""
    image = np.full((bands, HEIGHT, WIDTH), level, np.uint8)
    image[:, 5:15, 5:35] = RNG.integers(0, 256, (bands, 10, 30))
    path = write(tmp_path / "a.tif", image)
    message = refusal(path)
    assert f"of the pixels have one colour ({level}, {level}, {level})" in message
    assert "its values run from " in message
    assert "as `nodata`" in message
    assert "set `stretch` to [0, 100]" in message
    assert whole(open_scene(path, stretch=(0, 100)))[1].all()
    _, valid = whole(open_scene(path, nodata=level))
    assert 200 < valid.sum() <= 300


def test_a_mask_and_one_colour_alone_are_no_lost_pictures(tmp_path):
    mask = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    mask[:, 5:7, 5:9] = 255
    assert open_scene(write(tmp_path / "a.tif", mask)).stretch is None
    assert open_scene(write(tmp_path / "b.tif", np.full_like(mask, 200))).stretch is None


@pytest.mark.parametrize("size", [600, 3000])
def test_overviews_of_another_file_do_not_decide_the_stretch(tmp_path, size):
    ramp = np.linspace(1000, 2000, size, dtype=np.uint16)
    path = write(tmp_path / "a.tif", np.broadcast_to(ramp, (1, size, size)), tiled=True)
    right = open_scene(path).stretch
    other = write(tmp_path / "other.tif", np.full((1, size, size), 60_000, np.uint16), tiled=True)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(other, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.nearest)
    (tmp_path / "other.tif.ovr").rename(tmp_path / "a.tif.ovr")
    assert open_scene(path).stretch == right
    assert right.low[0] == pytest.approx(1020, abs=20)
    assert right.high[0] == pytest.approx(1980, abs=20)


def test_statistics_in_the_metadata_do_not_decide_the_stretch(tmp_path):
    path = write(tmp_path / "a.tif", measured(0, 1, np.float32))
    right = open_scene(path).stretch
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, STATISTICS_MINIMUM=-9999, STATISTICS_MAXIMUM=9999)
    assert open_scene(path).stretch == right


def refusal(path, **options):
    with pytest.raises(SceneError) as caught:
        open_scene(path, **options)
    return str(caught.value)


def test_a_stretch_that_hides_nearly_everything_is_refused(tmp_path):
    image = measured(0, 1, np.float32)
    # a fill that is a little different in each pixel
    image[LEFT] = -9999 + RNG.uniform(-5, 5, image[LEFT].shape)
    message = refusal(write(tmp_path / "a.tif", image))
    assert str(tmp_path / "a.tif") in message
    assert "nearly all pixels would have the same grey" in message
    assert "Its values run from -1000" in message
    assert "as `nodata`" in message
    assert "`stretch`" in message
    assert_a_picture(open_scene(tmp_path / "a.tif", stretch=(9, 98)), filled=False)


def test_a_fill_of_many_values_is_refused(tmp_path):
    image = measured(0, 1, np.float32)
    image[LEFT] = RNG.uniform(-10_000, -9000, image[LEFT].shape)
    assert "nearly all pixels would have the same grey" in refusal(write(tmp_path / "a.tif", image))


@pytest.mark.parametrize("spread", [1, 2, 3])
def test_values_of_many_sizes_are_not_refused(tmp_path, spread):
    """Radar and lights at night: a few are far brighter than most."""
    values = RNG.lognormal(0, spread, (1, HEIGHT, WIDTH)).astype(np.float32)
    assert open_scene(write(tmp_path / "a.tif", values)).nodata is None


def test_percentiles_that_clip_most_pixels_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", measured(0, 1, np.float32))
    assert "of the pixels would be black or white" in refusal(path, stretch=(45, 55))


def test_a_lone_giant_does_not_make_the_picture_black(tmp_path):
    image = measured(0, 1, np.float32)
    image[:, 30:34, 40:44] = 1e6
    assert_a_picture(open_scene(write(tmp_path / "a.tif", image)), filled=False)


def test_a_large_raster_that_is_mostly_nodata_is_found_by_its_overviews(tmp_path):
    image = np.zeros((1, 3000, 3000), np.uint16)
    image[0, 1300:1400, 1300:1400] = RNG.integers(5000, 6000, (100, 100))
    path = write(tmp_path / "a.tif", image, nodata=0, tiled=True)
    copy(path, tmp_path / "cog.tif", driver="COG")
    stretch = open_scene(tmp_path / "cog.tif").stretch
    assert 5000 <= stretch.low[0] < 5400  # COGs smooth their overviews
    assert 5600 < stretch.high[0] <= 6000
