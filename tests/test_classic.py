import time

import cv2
import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.features import shapes
from shapely.geometry import MultiPolygon, shape

from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds, prune, select
from workbench.candidates.table import SCHEMA, Rules
from workbench.evaluation.metrics import compare
from workbench.segmenters.classic import ClassicSegmenter
from workbench.segmenters.protocol import Segmenter

PARCELS = {
    "roof": np.s_[30:90, 40:120],
    "field": np.s_[100:180, 20:180],
    "pond": np.s_[30:80, 140:180],
}
COLOURS = {"roof": (190, 80, 60), "field": (120, 160, 70), "pond": (40, 60, 110)}


def three_rectangles(noise=4.0):
    image = np.full((200, 200, 3), (150, 130, 100), float)
    for name, where in PARCELS.items():
        image[where] = COLOURS[name]
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def candidates():
    return ClassicSegmenter(Rules(200, 200, 0.2, 0.2)).propose(three_rectangles())


def ious(candidates, truth):
    return np.array([(mask & truth).sum() / (mask | truth).sum() for mask in candidates.masks()])


@pytest.mark.parametrize("name", PARCELS)
def test_rectangles_are_found_and_survive_the_default_thresholds(name):
    truth = np.zeros((200, 200), bool)
    truth[PARCELS[name]] = True
    kept = select(ClassicSegmenter().propose(three_rectangles()), Thresholds())
    assert ious(kept, truth).max() > 0.95


def test_noise_alone_keeps_little():
    flat = three_rectangles()[:, :20].repeat(10, axis=1)[:200, :200]
    assert len(select(ClassicSegmenter().propose(flat), Thresholds())) < 10


def test_the_true_outline_scores_above_its_parts(candidates):
    truth = np.zeros((200, 200), bool)
    truth[PARCELS["field"]] = True
    iou = ious(candidates, truth)
    inside = np.array([(mask & ~truth).sum() == 0 for mask in candidates.masks()])
    parts = candidates.column("pred_iou")[inside & (iou < 0.5)]
    assert candidates.column("pred_iou")[iou.argmax()] > parts.max(initial=0)


def test_holes_are_kept():
    image = np.full((128, 128, 3), 180, np.uint8)
    image[20:108, 20:108] = 140
    image[50:78, 50:78] = 20  # unlike enough to merge last, so that ring and hole never unite
    ring = np.zeros((128, 128), bool)
    ring[20:108, 20:108] = True
    ring[50:78, 50:78] = False
    assert ious(ClassicSegmenter().propose(image), ring).max() > 0.95


def test_columns_describe_the_masks(candidates):
    assert len(candidates) > 20
    for i, mask in enumerate(candidates.masks()):
        ys, xs = np.nonzero(mask)
        assert candidates.boxes[i].tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        assert candidates.column("area_px")[i] == mask.sum() >= 30
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:, 1:]
        point = int(candidates.column("point_y")[i]), int(candidates.column("point_x")[i])
        assert depth[point] == depth.max()


def test_masks_are_encoded_as_everywhere_else(candidates):
    masks = np.stack(list(candidates.masks()))
    assert candidates.table.column("rle").to_pylist() == encode_masks(masks)


def test_the_table_follows_its_rules():
    segmenter = ClassicSegmenter(Rules(200, 200, 0.6, 0.7, 0.8, 0.75))
    candidates = segmenter.propose(three_rectangles()[:150])
    rules = candidates.rules
    assert (rules.height, rules.width) == (150, 200)
    assert (rules.pred_iou_floor, rules.stability_floor) == (0.6, 0.7)
    assert (rules.box_nms_thresh, rules.crop_nms_thresh) == (0.8, 0.75)
    assert candidates.table.schema == SCHEMA
    assert candidates.column("pred_iou").min() > 0.6
    assert candidates.column("stability_score").min() >= np.float32(0.7)
    assert max(candidates.column(n).max() for n in ("pred_iou", "stability_score")) <= 1
    assert not candidates.column("tile_row").any()
    assert not candidates.column("tile_col").any()
    assert np.unique(candidates.crop_boxes, axis=0).tolist() == [[0, 0, 200, 150]]
    assert (np.diff(candidates.column("ordinal")) > 0).all()
    assert prune(candidates).table.equals(candidates.table)


def test_a_higher_floor_keeps_the_rows_above_it(candidates):
    thresholds = Thresholds(0.7, 0.8)
    high = ClassicSegmenter(Rules(200, 200, 0.7, 0.8)).propose(three_rectangles())
    masks = [select(c, thresholds).table.column("rle").to_pylist() for c in (candidates, high)]
    assert masks[0] == masks[1] != []


def test_the_key_covers_every_parameter():
    segmenter: Segmenter = ClassicSegmenter()
    keys = [segmenter.key] + [
        ClassicSegmenter(Rules(200, 200, **{name: 0.6})).key
        for name in ("pred_iou_floor", "stability_floor", "box_nms_thresh", "crop_nms_thresh")
    ]
    keys.append(ClassicSegmenter(min_region_px=31).key)
    assert len({tuple(key.items()) for key in keys}) == len(keys)
    assert segmenter.key["model"] == "classic"


def test_bits_do_not_depend_on_threads():
    threads = cv2.getNumThreads()
    try:
        tables = []
        for n in (1, 2):
            cv2.setNumThreads(n)
            tables.append(ClassicSegmenter().propose(three_rectangles()).table)
    finally:
        cv2.setNumThreads(threads)
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_tile_of_one_colour_has_no_candidates(value):
    candidates = ClassicSegmenter().propose(np.full((64, 96, 3), value, np.uint8))
    assert len(candidates) == 0
    assert candidates.table.schema == SCHEMA
    assert len(select(candidates, Thresholds())) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2), (7, 3), (48, 48)])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_tiny_tiles_do_not_fail(size, floor):
    candidates = ClassicSegmenter(Rules(*size, floor, floor), min_region_px=1).propose(noise(*size))
    for mask in candidates.masks():
        assert mask.shape == size
        assert mask.any()


def test_a_regular_pattern_takes_no_longer_than_imagery():
    rows, columns = np.mgrid[:512, :512] // 8
    image = np.repeat(((rows + columns) % 2 * 200).astype(np.uint8)[..., None], 3, axis=2)
    started = time.process_time()
    ClassicSegmenter().propose(image)
    assert time.process_time() - started < 20  # 1 s, or minutes where pairs of regions explode


def test_a_black_collar_does_not_fail():
    image = three_rectangles()
    image[np.add.outer(np.arange(200), np.arange(200)) < 150] = 0
    image[:, 190:] = 0
    truth = np.zeros((200, 200), bool)
    truth[PARCELS["field"]] = True
    truth &= image.any(axis=2)
    assert ious(ClassicSegmenter().propose(image), truth).max() > 0.9


@pytest.mark.parametrize(
    ("raster", "reference", "recall", "fewest", "most"),
    [
        ("kampala/kampala_z20_a.tif", "kampala/kampala_a_buildings.geojson", 0.6, 200, 700),
        (
            "naip_fields/naip_fields_41.1864_-88.1872.tif",
            "naip_fields/naip_fields_41.1864_-88.1872.geojson",
            0.6,
            50,
            200,
        ),
    ],
)
def test_default_thresholds_keep_a_sensible_set(data_dir, raster, reference, recall, fewest, most):
    with rasterio.open(data_dir / raster) as source:
        image = np.ascontiguousarray(source.read([1, 2, 3]).transpose(1, 2, 0))
        transform, crs = source.transform, source.crs
    kept = select(ClassicSegmenter().propose(image), Thresholds())
    polygons = []
    for mask, (x0, y0, x1, y1) in zip(kept.masks(), kept.boxes.tolist(), strict=True):
        window = mask[y0 : y1 + 1, x0 : x1 + 1]
        to_map = transform @ rasterio.Affine.translation(x0, y0)
        parts = shapes(window.astype(np.uint8), window, transform=to_map)
        polygons.append(MultiPolygon([shape(part) for part, _ in parts]))
    layer = gpd.GeoDataFrame(geometry=polygons, crs=crs)
    assert fewest < len(layer) < most
    assert compare(layer, gpd.read_file(data_dir / reference)).recall(0.5) > recall
