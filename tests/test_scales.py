"""Objects larger than a tile are found whole at a coarser scale, and all others as before."""

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from known_objects import TRANSFORM, AtOnce, candidates_of, scene_of
from known_runs import equal_layers
from rasterio.windows import Window

from workbench import Job, read_run, run
from workbench.candidates.table import Rules
from workbench.errors import JobError, RunFailedError
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.overlap import iou_of
from workbench.polygons.seams import merge_seams
from workbench.raster.open import open_scene
from workbench.raster.scene import raster_of
from workbench.raster.tiles import TileGrid, tile_windows
from workbench.runs import choose
from workbench.runs.finish import finish
from workbench.runs.plan import pending, plan_tiles, prepare
from workbench.runs.segment import segment

FIELD = (60, 60, 300, 330)  # x0, y0, x1, y1: larger than a tile of 96 px
HUT = (140, 150, 170, 176)  # in the field, in another band
HOUSE = (330, 40, 370, 70)
SHED = (200, 350, 240, 380)


class Bright(AtOnce):
    """Returns what is bright in the first band or in the second; worse where it is cut."""

    calls = 0

    def propose(self, image, watch=None):
        type(self).calls += 1
        masks = []
        for band in (0, 1):
            n, parts = cv2.connectedComponents((image[..., band] > 127).astype(np.uint8))
            masks += [parts == i for i in range(1, n)]
        scores = [0.94 - 0.01 * (m[0].any() + m[-1].any() + m[:, 0].any()) for m in masks]
        return candidates_of(masks, scores, Rules(*image.shape[:2]))


@pytest.fixture
def raster(tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "segmenter_for", lambda job, before: Bright())
    bands = np.zeros((3, 400, 400), np.uint8)
    for x0, y0, x1, y1 in (FIELD, HOUSE, SHED):
        bands[0, y0:y1, x0:x1] = 255
    x0, y0, x1, y1 = HUT
    bands[1, y0:y1, x0:x1] = 255
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=400, height=400, count=3, dtype="uint8",
        crs="EPSG:32633", transform=TRANSFORM, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(bands)
    return path


def job_for(raster, folder, **parameters):
    return Job.create(
        **{
            "source": str(raster), "out_dir": str(folder), "tile_size": 96, "overlap": 0.25,
            "min_area_px": 0, "scales": [1, 4],
        } | parameters
    )  # fmt: skip


def best(layer, pixels):
    """The best IoU of a label with a box in pixels."""
    (x0, y0), (x1, y1) = TRANSFORM @ pixels[:2], TRANSFORM @ pixels[2:]
    truth = np.full(len(layer), shapely.box(x0, y1, x1, y0))
    return iou_of(layer.geometry.to_numpy(), truth).max()


def test_a_field_larger_than_a_tile_is_one_label(raster, tmp_path):
    fine = run(job_for(raster, tmp_path / "fine", scales=[1])).layer
    assert best(fine, FIELD) < 0.9
    both = run(job_for(raster, tmp_path / "both")).layer
    assert len(both) == 4
    assert best(both, FIELD) > 0.95
    # what a tile sees whole is as sharp as before, to the bit
    for small in (HUT, HOUSE, SHED):
        assert best(both, small) > 0.98
    same = both[both["source_tile"].str.fullmatch(r"scene/r\d+c\d+")]
    assert len(same) == 3
    assert all((fine.geometry.geom_equals_exact(shape, 0)).any() for shape in same.geometry)
    (large,) = both[~both.index.isin(same.index)].itertuples()
    assert large.source == "scene"
    assert large.source_tile.startswith("scene/4x/r")
    # pixels are those of the working grid
    assert large.area_px == pytest.approx(240 * 270, rel=0.03)


def test_the_ledger_has_the_tiles_of_all_scales(raster, tmp_path):
    result = run(job_for(raster, tmp_path / "run"))
    grid = TileGrid(400, 400, 96, 0.25)
    assert len(result.tiles) == len(grid)
    assert result.coarse["tile"].tolist() == ["scene/4x/r0c0"]  # 100 px: one tile
    assert result.coarse["n_polygons"].tolist() == [1]
    assert result.ledger["n_polygons"].sum() == len(result.layer)
    assert "tiles at a coarser scale" in result.summary.index
    again = read_run(tmp_path / "run")
    assert [scene.name for scene in again.scenes] == ["scene"]
    assert again.ledger.equals(result.ledger)
    assert again.tiles.equals(result.tiles)
    in_qgis = gpd.read_file(tmp_path / "run" / "prelabels.gpkg", layer="tiles")
    assert len(in_qgis) == len(grid)  # their cores partition the scene


def test_a_scale_is_added_without_computing_a_tile_again(raster, tmp_path):
    folder = tmp_path / "run"
    run(job_for(raster, folder, scales=[1]))
    Bright.calls = 0
    added = run(job_for(raster, folder))
    assert Bright.calls == 1
    assert equal_layers(added.layer, run(job_for(raster, tmp_path / "fresh")).layer)
    Bright.calls = 0
    without = run(job_for(raster, folder, scales=[1]))
    assert Bright.calls == 0
    assert without.coarse.empty
    assert without.layer["source_tile"].str.fullmatch(r"scene/r\d+c\d+").all()


def test_c5_rethresholding_equals_a_fresh_run(raster, tmp_path):
    run(job_for(raster, tmp_path / "run"))
    stricter = {"pred_iou_thresh": 0.925, "overlaps": "one", "simplify_m": 0}
    again = run(job_for(raster, tmp_path / "run", **stricter)).layer
    assert equal_layers(again, run(job_for(raster, tmp_path / "fresh", **stricter)).layer)


def test_c3_the_order_of_tiles_and_an_interrupt_do_not_matter(raster, tmp_path, monkeypatch):
    expected = run(job_for(raster, tmp_path / "whole", scales=[1, 2, 4])).layer
    job = job_for(raster, tmp_path / "parts", scales=[1, 2, 4])
    for _ in range(3):
        plan = prepare(job)
        tiles = segment(plan)
        for _ in range(9):
            next(tiles)
        tiles.close()
        plan.close()
    plan = prepare(job)
    assert {part.scene.scale for part, _ in pending(plan)} >= {2, 4}
    list(segment(plan))
    assert equal_layers(finish(plan).layer, expected)
    plan.close()


def test_polygons_and_windows_may_come_in_any_order(raster):
    job = job_for(raster, "unused", scales=[1, 2, 4])
    parts = plan_tiles(job, [open_scene(str(raster))], None).parts
    assert [part.scene.scale for part in parts] == [1, 2, 4]
    seen = [
        to_polygons(
            Bright().propose(part.scene.read(tile.window)[0]).at_tile(tile.row, tile.col),
            part.scene, part.grid, {},
        )
        for part in parts
        for tile in part.tiles
    ]  # fmt: skip
    windows = pd.concat([tile_windows(part.scene, list(part.tiles)) for part in parts])
    merged = pd.concat(merge_seams(seen, windows))
    mixed = [frame.sample(frac=1, random_state=5) for frame in reversed(seen)]
    again = pd.concat(merge_seams(mixed, windows.sample(frac=1, random_state=3)))
    assert equal_layers(again, merged)
    assert best(merged, FIELD) > 0.95


def test_an_aoi_selects_tiles_at_all_scales(raster, tmp_path):
    (x0, y0), (x1, y1) = TRANSFORM @ (70, 70), TRANSFORM @ (200, 200)
    gpd.GeoSeries([shapely.box(x0, y1, x1, y0)], crs="EPSG:32633").to_file(tmp_path / "aoi.gpkg")
    result = run(job_for(raster, tmp_path / "run", aoi=str(tmp_path / "aoi.gpkg")))
    assert 0 < len(result.tiles) < len(TileGrid(400, 400, 96, 0.25))
    assert len(result.coarse) == 1
    # the middle of the field lies in the AOI, its end beyond the tiles of the working grid
    assert best(result.layer, FIELD) > 0.95
    assert best(result.layer, HOUSE) == 0


def test_c6_a_failed_tile_of_a_coarser_scale_is_told(raster, tmp_path, monkeypatch):
    def fail(self, image, watch=None):
        if image.shape == (100, 100, 3):
            raise MemoryError("too large")
        return found(self, image)

    found = Bright.propose
    monkeypatch.setattr(Bright, "propose", fail)
    with pytest.raises(RunFailedError, match=r"the first is scene/4x/r0c0: MemoryError: too la"):
        run(job_for(raster, tmp_path / "run"))
    assert best(read_run(tmp_path / "run").layer, HOUSE) > 0.98
    monkeypatch.undo()


def test_labels_of_one_raster_follow_each_other(raster, tmp_path):
    for name in ("scene-2.tif", "scene0.tif"):
        with rasterio.open(raster) as file:
            profile = file.profile | {"transform": TRANSFORM @ Affine.translation(2000, 0)}
            if name == "scene0.tif":
                profile["transform"] = TRANSFORM @ Affine.translation(4000, 0)
            with rasterio.open(tmp_path / name, "w", **profile) as copy:
                copy.write(file.read())
    layer = run(job_for(str(tmp_path / "*.tif"), tmp_path / "run")).layer
    assert layer["source"].value_counts().to_dict() == {"scene": 4, "scene-2": 4, "scene0": 4}
    assert (layer["source"] != layer["source"].shift()).sum() == 3


def test_a_scene_that_one_tile_shows_is_not_segmented_again(raster):
    scene = open_scene(str(raster))
    job = job_for(raster, "unused", tile_size=384, scales=[1, 4])
    assert plan_tiles(job, [scene], None).n_tiles == 1


def test_cleaning_acts_in_ground_units_and_in_pixels_of_the_working_grid():
    slope = np.tri(90, 90, dtype=bool)  # a staircase of large pixels, of 2 m
    scene, grid = scene_of(400, 400).coarser(4), TileGrid(100, 100, 100)
    slope = np.pad(slope, ((0, 10), (0, 10)))
    polygons = to_polygons(candidates_of([slope], [0.9], Rules(100, 100)), scene, grid, {})
    assert polygons["area_px"].tolist() == [16 * slope.sum()]

    def corners(**how):
        (shape,) = clean(polygons, Cleaning(min_area_px=0, **how)).geometry
        return shapely.get_num_coordinates(shape)

    assert corners(simplify_m=0) > 180
    assert corners() < 10
    assert corners(simplify_m=0.5) > 180  # metres are metres
    assert len(clean(polygons, Cleaning(min_area_px=int(16 * slope.sum()), simplify_m=0))) == 1
    assert len(clean(polygons, Cleaning(min_area_px=int(16 * slope.sum()) + 1))) == 0


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_a_coarser_scene_shows_the_mean_of_its_pixels(tmp_path, crs):
    bands = np.random.default_rng(1).integers(0, 255, (3, 50, 60)).repeat(4, 1).repeat(4, 2)
    transform = TRANSFORM if crs == "EPSG:32633" else Affine(1e-5, 0, 15, 0, -1e-5, 48)
    with rasterio.open(
        tmp_path / "r.tif", "w", driver="GTiff", width=240, height=200, count=3, dtype="uint8",
        crs=crs, transform=transform, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(bands.astype(np.uint8))
    fine = open_scene(str(tmp_path / "r.tif"))
    scene = fine.coarser(4)
    assert scene.bounds[0] == fine.bounds[0]
    assert scene.bounds[3] == fine.bounds[3]
    assert scene.pixel_m == pytest.approx(4 * fine.pixel_m, rel=1e-4)
    rgb, valid = scene.read(scene.window)
    all_of_it, _ = fine.read(Window(0, 0, 4 * scene.width, 4 * scene.height))
    blocks = all_of_it.reshape(scene.height, 4, scene.width, 4, 3).mean((1, 3))
    inner = np.s_[2:-2, 2:-2]
    assert valid[inner].all()
    assert np.corrcoef(rgb[inner].ravel(), blocks[inner].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    "scales", [4, 0, [], [4], [0, 1], [1, -4], [1, 4, 4], [1, 2.5], "x", [1, 2, 3, 4, 5], [1, 999],
               None, [True]],
)  # fmt: skip
def test_bad_scales_are_refused(scales):
    with pytest.raises(JobError, match=r"`scales`: .*for example \[1, 4\]"):
        Job.create(scales=scales)


def test_scales_are_taken_as_meant():
    assert Job.create(scales="1, 4").scales == [1, 4]
    assert Job.create(scales="[4, 1]").scales == [1, 4]
    assert raster_of("scene/4x") == raster_of("scene") == "scene"
