"""What other thresholds cost once candidates are stored, against doing the work again.

    python benchmarks/rethreshold.py [--official POINTS_PER_SIDE]

A tile of 1,000 candidates of `classic` on the sample scene; a scene of 100 such tiles, which see
the same ground over and over (a mosaic whose period is the step of the tiles, so that overlaps
agree); and a blob of 400 px. `--official` also times the generator of `segment_anything` on one
tile (`vit_b` with random weights, which take the same time): minutes with its 32 points a side.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import shapely
from mosaic import write_mosaic
from pycocotools import mask as coco
from rasterio.features import shapes

from workbench import Job, run
from workbench.candidates.rle import decode_runs, encode_masks
from workbench.candidates.select import Thresholds, select
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning
from workbench.polygons.trace import trace
from workbench.runs import choose
from workbench.runs.plan import prepare
from workbench.runs.segment import segment
from workbench.runs.tile_stream import SegmentedTile
from workbench.samples.demo import make_sample, write_sample
from workbench.segmenters.classic import ClassicSegmenter
from workbench.tuning.preview import Preview

N_CANDIDATES, TILES_A_SIDE, TILE_PX, STEP_PX = 1000, 10, 1024, 832
PAIRS = [Thresholds(iou, stability) for iou in (0.6, 0.75, 0.9) for stability in (0.7, 0.9)]


def stored_scene(folder: Path) -> Job:
    """Store the candidates of a scene, the best 1,000 of each tile."""
    raster = write_sample(make_sample(STEP_PX, 7), folder)
    side = STEP_PX * (TILES_A_SIDE - 1) + TILE_PX
    mosaic = write_mosaic(raster, folder / "mosaic.vrt", side, side)
    known = {}

    class Repeated(ClassicSegmenter):
        def propose(self, image, watch=None):
            content = image.tobytes()
            if content not in known:
                found = super().propose(image, watch)
                best = np.argsort(-found.column("pred_iou"), kind="stable")[:N_CANDIDATES]
                known[content] = found.take(np.sort(best))
            return known[content]

    job = Job.create(source=str(mosaic), out_dir=str(folder / "run"))
    original = choose.ClassicSegmenter
    choose.ClassicSegmenter = Repeated
    try:
        for _ in segment(prepare(job)):
            pass
    finally:
        choose.ClassicSegmenter = original
    return job


def median_ms(work, n: int) -> float:
    """Median time of `n` calls after one that does not count."""
    work()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def tile_rows(job: Job, official_ms: float | None) -> list[tuple[str, float, str]]:
    """Other thresholds for one tile: seen before, and from its candidates alone."""
    plan = prepare(job)
    (part,) = plan.scenes
    tile = part.grid.tile(1, 1)
    [(candidates, [record])] = plan.store.read([part.index(tile)])
    preview = Preview([SegmentedTile(part, tile, candidates, record)])
    cleaning = Cleaning()
    while preview.prepare(cleaning, 200):
        pass

    def look():
        for thresholds in PAIRS:
            preview.look(thresholds, cleaning)

    def again():
        for thresholds in PAIRS:
            to_polygons(select(candidates, thresholds), part.scene, part.grid, {})

    def decoded():  # what the first version did: each mask decoded, then searched for its shape
        for mask in select(candidates, PAIRS[-1]).masks():
            image = mask.view(np.uint8)
            [shapely.geometry.shape(s) for s, _ in shapes(image, mask, connectivity=4)]

    warm, cold = median_ms(look, 20) / len(PAIRS), median_ms(again, 5) / len(PAIRS)
    plain = median_ms(decoded, 1)
    rows = [
        (f"tile of {len(candidates):,} candidates, live (kept polygons)", warm, ""),
        ("the same: select and polygons from the stored candidates", cold, ""),
        ("the same with `rasterio.features.shapes` on decoded masks", plain, ""),
    ]
    if official_ms is not None:
        rows.append(("the official generator on a tile, `vit_b`, CPU", official_ms, ""))
    return [(what, ms, f"{ms / warm:,.0f} ×") for what, ms, _ in rows]


def official(points_per_side: int) -> float:
    """Milliseconds of `SamAutomaticMaskGenerator` for one tile, as an article would call it."""
    from workbench.segmenters.sam import MODELS  # mends a torchvision without compiled operators

    model = MODELS["vit_b"].build().eval()
    import torch
    from segment_anything import SamAutomaticMaskGenerator

    image = make_sample(TILE_PX, 7).rgb
    start = time.perf_counter()
    with torch.inference_mode():
        SamAutomaticMaskGenerator(model, points_per_side).generate(image)
    return 1000 * (time.perf_counter() - start)


def blob_rows() -> list[tuple[str, float, str]]:
    """The exact polygon of one mask in a tile, from the run-length encoding that is stored."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:TILE_PX, :TILE_PX]
    noise = cv2.GaussianBlur(rng.normal(size=(TILE_PX, TILE_PX)), (0, 0), 12)
    mask = np.hypot(columns - 500, rows - 500) + 8 * noise / noise.std() < 200
    counts = encode_masks(mask[None])

    def ours():
        found = trace(decode_runs(counts, TILE_PX, TILE_PX))
        sizes = (found.ring_sizes, found.rings_per_part, found.parts_per_mask)
        ends = tuple(np.concatenate(([0], np.cumsum(n))) for n in sizes)
        kind = shapely.GeometryType.MULTIPOLYGON
        return shapely.from_ragged_array(kind, found.corners.astype(float), ends)

    def rasterio():
        image = coco.decode({"size": [TILE_PX, TILE_PX], "counts": counts[0]})[280:720, 280:720]
        return [
            shapely.geometry.shape(s) for s, _ in shapes(image, image.view(bool), connectivity=4)
        ]

    assert ours()[0].area == sum(s.area for s in rasterio()) == mask.sum()
    fast, slow = median_ms(ours, 200), median_ms(rasterio, 30)
    return [
        ("exact polygon of a 400 px blob, from its RLE", fast, "1 ×"),
        ("the same by decoding and `rasterio.features.shapes`", slow, f"{slow / fast:,.0f} ×"),
    ]


def scene_row(job: Job) -> tuple[str, float, str]:
    """The whole job with other thresholds, on a scene whose candidates are stored."""
    start = time.perf_counter()
    result = run(Job.create(**{**job.parameters(), "pred_iou_thresh": 0.84}))
    seconds = time.perf_counter() - start
    n = result.tiles["n_candidates"].sum()
    what = f"scene of {n:,} candidates to all its files ({len(result.layer):,} polygons)"
    return what, 1000 * seconds, ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=int, metavar="POINTS_PER_SIDE")
    given = parser.parse_args()
    official_ms = official(given.official) if given.official else None
    print("| what | ms | against the first of its kind |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        job = stored_scene(Path(name))
        for what, ms, ratio in [*tile_rows(job, official_ms), *blob_rows(), scene_row(job)]:
            print(f"| {what} | {ms:,.{0 if ms >= 100 else 2}f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
