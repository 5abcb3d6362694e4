import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rasters import GRIDS, HEIGHT, WIDTH, rotated, three_rectangles, whole, write
from rasterio.windows import Window

from workbench.errors import SceneError
from workbench.raster.open import open_scene
from workbench.raster.scene import Stretch


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), raw=st.lists(st.floats(-1e7, 1e7)))
@settings(max_examples=50)
def test_a_stretch_is_monotonic_and_clipped(low, span, raw):
    stretch = Stretch((low,) * 3, (low + span,) * 3)
    values = np.sort(np.array([low, low + span, *raw]))
    stretched = stretch.apply(np.tile(values, (3, 1)))
    assert (np.diff(stretched.astype(int)) >= 0).all()
    assert stretched[0][values <= low].max() == 0
    assert stretched[0][values >= low + span].min() == 255


# ---- masks and palettes ---------------------------------------------------------------------


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


# ---- windows --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("grid", ["north-up", "rotated by 30°"])
def test_a_view_is_a_window_at_another_size(tmp_path, grid):
    crs, transform = GRIDS[grid]
    scene = open_scene(write(tmp_path / "a.tif", three_rectangles(), crs, transform))
    window = Window(30, 20, 120, 60)
    rgb, valid = scene.read(window)
    same, same_valid = scene.view(window, (60, 120))
    assert (same == rgb).all()
    assert (same_valid == valid).all()
    larger, _ = scene.view(window, (180, 360))  # pixels look like pixels
    assert (larger == rgb.repeat(3, axis=0).repeat(3, axis=1)).all()
    smaller, _ = scene.view(window, (20, 40))
    seen = valid.reshape(20, 3, 40, 3).all(axis=(1, 3))
    mean = rgb.reshape(20, 3, 40, 3, 3).mean(axis=(1, 3))
    assert np.abs(smaller[seen] - mean[seen]).max() <= 1


def test_a_view_may_lie_between_pixels_and_reach_out_of_the_scene(tmp_path):
    step = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    step[:, :, 42:] = 200
    scene = open_scene(write(tmp_path / "a.tif", step))
    rgb, valid = scene.view(Window(36.5, 3.25, 64, 32), (8, 16))
    assert valid.all()
    # a pixel of the view is four of the scene: the second one reaches from 40.5 to 44.5
    assert np.abs(rgb[3, :4, 0] - np.array([0, 200 * 2.5 / 4, 200, 200])).max() <= 1
    wide, wide_valid = scene.view(Window(-40, -20, WIDTH + 60, HEIGHT + 60), (110, 150))
    inside = (slice(10, 90), slice(20, 140))
    assert wide_valid[inside].all()
    assert wide_valid.sum() == 80 * 120
    assert (wide[inside] == scene.view(scene.window, (80, 120))[0]).all()
    assert not wide[~wide_valid].any()
    far, far_valid = scene.view(Window(900, -900.5, 50, 50), (10, 10))
    assert not far.any()
    assert not far_valid.any()


def test_a_view_of_16_bits_is_stretched_and_keeps_nodata(tmp_path):
    deep = three_rectangles().astype(np.uint16) * 20
    deep[:, :, : WIDTH // 2] = 0
    scene = open_scene(write(tmp_path / "a.tif", deep, nodata=0))
    whole_rgb, whole_valid = whole(scene)
    rgb, valid = scene.view(scene.window, (HEIGHT // 2, WIDTH // 2))
    assert (valid == whole_valid[::2, ::2]).all()
    assert np.abs(rgb[3::9, 3::9].astype(int) - whole_rgb[6::18, 6::18]).mean() < 5
    assert (scene.overview(WIDTH // 2)[0] == rgb).all()


def test_a_view_shows_what_can_be_read_and_tells_of_the_rest(tmp_path):
    path = write(
        tmp_path / "a.tif", np.random.default_rng(0).integers(1, 255, (3, 256, 256), np.uint8),
        tiled=True, blockxsize=64, blockysize=64, compress="deflate",
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    scene, told = open_scene(path), []
    _, valid = scene.view(scene.window, (128, 128), told.append)
    assert 0.5 < valid.mean() < 1
    (problem,) = told
    assert "a.tif" in problem
    assert "damaged" in problem
    assert (scene.overview(128)[1] == valid).all()
    scene.close()
    path.unlink()
    with pytest.raises(SceneError, match=r"a\.tif any more: it was moved"):
        scene.view(scene.window, (10, 10))


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


def test_a_new_raster_under_an_old_name_is_read_anew(tmp_path):
    for value in (10, 20):
        scene = open_scene(write(tmp_path / "a.tif", np.full((3, 8, 8), value, np.uint8)))
        assert (whole(scene)[0] == value).all()


# ---- real rasters ---------------------------------------------------------------------------


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
