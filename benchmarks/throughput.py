"""Time SAM's automatic masks side by side: the official generator, and this project's engine.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --models tiny vit_b vit_h --device cuda --tiles 8
    python benchmarks/throughput.py --models tiny --ways best fp32 --rasters RASTER …

Every row is a process of its own on the same tiles, prompts and thresholds: painted tiles, or the
upper left corner of each raster. Weights that do not come with the package are random, which cost
the same time; the threshold of each model lets a tenth of its proposals pass, as on usual imagery.
On a CPU the stages of the engine are those of a run with one thread, so they add up to more than a
tile takes. The row `bf16` on a CPU says how far that arithmetic moves the masks, and nothing of its
speed.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.utils.flop_counter import FlopCounterMode

from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.segmenters.sam import MODELS, SamSegmenter, encoder, load_model, resolve_device
from workbench.segmenters.sam.device import DTYPES, resolve_precision
from workbench.segmenters.sam.network import SegmentAnything
from workbench.segmenters.sam.tiny import Tiny
from workbench.segmenters.weights import Embedded

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator  # isort: skip
from segment_anything.modeling import Sam  # isort: skip

TILE_PX = 1024
SURVIVING = 0.1
MIDDLE = 0.5  # median of random weights' scores, once moved: the official filter wants > 0
BEST_BATCH = {"cpu": 4, "cuda": 256}  # of the official generator, the quickest of a few
WAYS = {
    "published": "official, as published",
    "best": "official, best setting",
    "fp32": "engine, fp32",
    "bf16": "engine, bf16",
    "compiled": "engine, encoder compiled",
}
# a stage takes the time of these functions; where they call each other, of the outermost; the
# engine's RLEs are made in a thread of their own
OFFICIAL_STAGES = {
    "encoder": {("predictor.py", "set_image")},
    "decoder": {
        ("prompt_encoder.py", "forward"),
        ("mask_decoder.py", "forward"),
        ("tiny.py", "forward"),
    },
    "masks": {
        ("sam.py", "postprocess_masks"),
        ("amg.py", "calculate_stability_score"),
        ("amg.py", "batched_mask_to_box"),
    },
    "RLE": {
        ("amg.py", "mask_to_rle_pytorch"),
        ("amg.py", "coco_encode_rle"),
        ("amg.py", "rle_to_mask"),
    },
}
ENGINE_STAGES = {
    "encoder": {
        ("network.py", "scaled"),
        ("network.py", "look"),
        ("sam2.py", "look"),
        ("tiny.py", "look"),
    },
    "decoder": {
        ("loaded.py", "prompts"),
        ("sam2.py", "_embedded"),
        ("network.py", "_embedded"),
        ("tiny.py", "__call__"),
        ("tiny.py", "drawn"),
        ("decoder.py", "__call__"),
        ("decoder.py", "_upscale"),
    },
    "masks": {("loaded.py", "measure"), ("segmenter.py", "_passing")},
}
Masks = list[dict[str, Any]]  # COCO's RLEs of one tile, with SAM's scores


@dataclass(frozen=True)
class Setting:
    """What all rows of a model share."""

    model: str
    device: str
    points_per_side: int
    tiles: str  # a .npy file, (n, TILE_PX, TILE_PX, 3) uint8
    threshold: float = -np.inf  # of the predicted IoU
    shift: float = 0.0  # of random weights' predicted IoUs

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def random(self) -> bool:
        """Whether the weights are."""
        return not isinstance(MODELS[self.model].weights, Embedded)

    @property
    def box_nms_thresh(self) -> float:
        """SAM's, but random weights give masks that are all alike, of which one would be left."""
        return 1.0 if self.random else 0.7

    @property
    def first_sam(self) -> bool:
        """Whether the official generator can run it."""
        return MODELS[self.model].network_of in (SegmentAnything, Tiny)

    def build(self) -> Sam:
        """Load the weights that are shipped; build others at random."""
        if not self.random:
            return load_model(self.model, MODELS[self.model].weights.fetch())
        torch.manual_seed(0)
        sam = MODELS[self.model].build()
        if self.first_sam:
            with torch.no_grad():
                sam.mask_decoder.iou_prediction_head.layers[-1].bias += self.shift
        return sam.eval()

    def engine(self, precision: str = "fp32") -> SamSegmenter:
        """Set up this project's engine, with the threshold as its floor."""
        return SamSegmenter(
            self.build,
            self.model,
            "",
            self.points_per_side,
            Rules(1024, 1024, self.threshold, 0.0, self.box_nms_thresh),
            device=self.device,
            precision=precision,
            network_of=MODELS[self.model].network_of,
        )

    def images(self) -> NDArray[np.uint8]:
        """Read the tiles."""
        images: NDArray[np.uint8] = np.load(self.tiles)
        return images


# --------------------------------------------------------------------- each in its own process


def calibrate(setting: Setting) -> dict[str, float]:
    """Find the threshold, and how much arithmetic a tile is at which speed."""
    image = setting.images()[0]
    few = replace(setting, points_per_side=8)
    engine = few.engine()
    engine.rules = replace(engine.rules, box_nms_thresh=1.0)
    every = engine.propose(image).column("pred_iou")
    shift = MIDDLE - float(np.median(every)) if setting.random and setting.first_sam else 0.0
    threshold = float(np.quantile(every, 1 - SURVIVING)) + shift
    if MODELS[setting.model].network_of is not SegmentAnything:
        return {"threshold": threshold, "shift": shift, "encoder": np.nan, "decoder": np.nan}
    segmenter = replace(few, threshold=threshold, shift=shift).engine()
    speed = matmul_speed(segmenter)
    segmenter.threads = 1  # nothing is counted in other threads
    segmenter.load()
    encode, ours = encoder.encode, FlopCounterMode(display=False)

    def counted(network: Any, pixels: torch.Tensor) -> torch.Tensor:
        with ours:
            return encode(network, pixels)

    encoder.encode = counted  # type: ignore[assignment]
    with FlopCounterMode(display=False) as whole:
        segmenter.propose(image)
    # the counter does not know all kernels of attention: of the encoder, count the official one
    with torch.device("meta"):
        official = MODELS[setting.model].build().to("meta").image_encoder
    with FlopCounterMode(display=False) as theirs:
        official(torch.zeros(1, 3, official.img_size, official.img_size, device="meta"))
    prompts = (setting.points_per_side / few.points_per_side) ** 2
    decoder = (whole.get_total_flops() - ours.get_total_flops()) * prompts
    return {
        "threshold": threshold,
        "shift": shift,
        "encoder": 1000 * theirs.get_total_flops() / speed,
        "decoder": 1000 * decoder / speed,
    }


def matmul_speed(segmenter: SamSegmenter) -> float:
    """Return the FLOP/s of a large matrix product in the precision of the run."""
    side = 2048 if segmenter.device == "cpu" else 8192
    dtype = DTYPES.get(segmenter.precision, torch.float32)
    a = torch.ones((side, side), dtype=dtype, device=segmenter.device)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def masker(name: str, setting: Setting) -> Callable[[NDArray[np.uint8]], tuple[list[Masks], float]]:
    """Return what makes the masks of tiles, and says how long a thread beside the network took."""
    if name not in ("published", "best"):
        if name == "compiled":
            encoder.encode = torch.compile(encoder.encode, mode="reduce-overhead")
        segmenter = setting.engine("bf16" if name == "bf16" else "fp32")
        segmenter.load()

        def finished(rest: Callable[[], Candidates]) -> tuple[Candidates, float]:
            start = time.perf_counter()
            return rest(), time.perf_counter() - start

        def ours(images: NDArray[np.uint8]) -> tuple[list[Masks], float]:
            with ThreadPoolExecutor(1) as host:  # as `workbench.runs.tile_stream` does
                work = [host.submit(finished, segmenter.begin(image)) for image in images]
            found = [one.result() for one in work]
            return [kept(candidates, setting.threshold) for candidates, _ in found], sum(
                seconds for _, seconds in found
            )

        return ours
    settings: dict[str, Any] = {}
    precision: AbstractContextManager[object] = nullcontext()
    if name == "best":
        settings = {
            "points_per_batch": BEST_BATCH.get(setting.device_type, 64),
            "output_mode": "coco_rle",
        }
        dtype = DTYPES.get(resolve_precision("auto", setting.device))
        if dtype is not None:
            precision = torch.autocast(setting.device_type, dtype)
    generator = SamAutomaticMaskGenerator(
        setting.build().to(setting.device),
        points_per_side=setting.points_per_side,
        pred_iou_thresh=setting.threshold,
        stability_score_thresh=0.0,
        box_nms_thresh=setting.box_nms_thresh,
        **settings,
    )

    def theirs(images: NDArray[np.uint8]) -> tuple[list[Masks], float]:
        with precision:
            found = [generator.generate(image) for image in images]
        return [
            [
                described(
                    text(mask["segmentation"]), mask["predicted_iou"], mask["stability_score"]
                )
                for mask in tile
            ]
            for tile in found
        ], 0.0

    return theirs


def kept(candidates: Candidates, threshold: float) -> Masks:
    """Describe what the official generator keeps."""
    table = select(candidates, Thresholds(threshold, 0.0)).table
    return [
        described(row["rle"].decode(), row["pred_iou"], row["stability_score"])
        for row in table.select(["rle", "pred_iou", "stability_score"]).to_pylist()
    ]


def text(mask: Any) -> str:
    """Return the counts of a mask, given as pixels or as COCO's RLE."""
    if isinstance(mask, dict):
        return str(mask["counts"])
    return str(coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"], "ascii")


def described(counts: str, iou: float, stability: float) -> dict[str, Any]:
    """Make of a mask what JSON can hold."""
    size = [TILE_PX, TILE_PX]
    return {"size": size, "counts": counts, "iou": float(iou), "stability": float(stability)}


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Time one way to the masks."""
    masks_of = masker(name, setting)
    images = setting.images()
    on_cuda = setting.device_type == "cuda"
    if on_cuda:  # kernels are compiled and memory is pooled at first
        masks_of(images[:1])
        torch.cuda.reset_peak_memory_stats()
    profile = cProfile.Profile()
    start, worked = time.perf_counter(), time.process_time()
    with profile:
        masks, beside = masks_of(images)
        if on_cuda:
            torch.cuda.synchronize()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    memory = torch.cuda.max_memory_allocated() if on_cuda else peak_memory()
    return {
        "ms": 1000 * seconds / len(images),
        "cpu": 1000 * worked / len(images),  # of all threads: what other programs take is not in it
        "stages": {stage: ms / len(images) for stage, ms in stages(profile, name, beside).items()},
        "gb": memory / 1e9,
        "masks": masks,
    }


def peak_memory() -> int:
    """Return the most bytes that this process has had, imports included.

    Not `ru_maxrss`, which begins with what the process had that started this one.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def stages(profile: cProfile.Profile, name: str, beside: float) -> dict[str, float]:
    """Return the milliseconds of each stage, `beside` seconds of them in a thread of their own."""
    places = OFFICIAL_STAGES if name in ("published", "best") else ENGINE_STAGES
    found = dict.fromkeys(places, 0.0) | {"RLE": 1000 * beside}
    for place, (*_, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for stage, functions in places.items():
            if named(place) in functions:
                outer = [spent[3] for by, spent in callers.items() if named(by) not in functions]
                found[stage] += 1000 * sum(outer)
    return found


def named(place: tuple[str, int, str]) -> tuple[str, str]:
    """Say which function of which module this is."""
    return Path(place[0]).name, place[2]


# ------------------------------------------------------------------------------------- tables


def draw(path: str, rasters: list[str], n: int) -> None:
    """Paint tiles, or cut them from rasters, into a file."""
    from workbench.raster.open import open_scene
    from workbench.raster.tiles import TileGrid
    from workbench.samples.demo import DEMO_RESOLUTION_M, DEMO_SEED, make_sample

    seeds = range(DEMO_SEED, DEMO_SEED + n)
    if rasters:
        scenes = [open_scene(raster) for raster in rasters]
        grids = [TileGrid(scene.width, scene.height, TILE_PX, 0.0) for scene in scenes]
        pairs = zip(scenes, grids, strict=True)
        tiles = [scene.read(grid.tile(0, 0).window)[0] for scene, grid in pairs]
    else:
        tiles = [make_sample(TILE_PX, seed, resolution_m=DEMO_RESOLUTION_M).rgb for seed in seeds]
    np.save(path, np.stack(tiles))


def elsewhere(step: str, setting: Setting, **environment: str) -> dict[str, Any]:
    """Run a step in a new process, whose peak memory is its own."""
    command = [sys.executable, __file__, "--step", step, "--setting", json.dumps(asdict(setting))]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def matches(masks: list[Masks], reference: list[Masks]) -> NDArray[np.float64]:
    """Return for each mask of the reference its best IoU, and how its two scores differ there."""
    rows: list[tuple[float, float, float]] = []
    for ours, theirs in zip(masks, reference, strict=True):
        iou = np.asarray(coco.iou(theirs, ours, [0] * len(ours))) if ours and theirs else None
        for i, mask in enumerate(theirs):
            if iou is None:
                rows.append((0.0, np.nan, np.nan))
                continue
            best = ours[int(iou[i].argmax())]
            scores = (abs(mask[score] - best[score]) for score in ("iou", "stability"))
            rows.append((float(iou[i].max()), *scores))
    return np.array(rows).reshape(-1, 3)


def table(setting: Setting, ways: list[str]) -> None:
    """Print the rows of one model, each against the first."""
    floor = elsewhere("calibrate", setting)
    setting = replace(setting, threshold=floor["threshold"], shift=floor["shift"])
    rows: dict[str, dict[str, Any]] = {}
    for name in ways:
        row = rows[name] = elsewhere(name, setting)
        if setting.device_type == "cuda":
            # else a function's time would be that of launching its kernels
            row["stages"] = elsewhere(name, setting, CUDA_LAUNCH_BLOCKING="1")["stages"]
        first, whole = rows[ways[0]], row["ms"]
        if setting.device == "cpu" and name not in ("published", "best"):
            # with more threads the prompts are in threads that no profile sees
            alone = elsewhere(name, setting, OMP_NUM_THREADS="1")
            row["stages"], whole = alone["stages"], alone["ms"]
        other = whole - sum(row["stages"].values())
        share = [
            f"{row['stages'][stage]:.0f} ({100 * floor[stage] / row['stages'][stage]:.0f} %)"
            for stage in ("encoder", "decoder")
        ]
        equal = matches(row["masks"], first["masks"])[:, 0]
        print(
            f"| {setting.model} | {setting.points_per_side}² | {WAYS[name]} | {row['ms']:.0f} "
            f"| {first['ms'] / row['ms']:.1f} | {first['cpu'] / row['cpu']:.1f} "
            f"| {share[0]} | {share[1]} "
            f"| {row['stages']['masks']:.0f} | {row['stages']['RLE']:.0f} | {max(other, 0):.0f} "
            f"| {row['gb']:.2f} | {row['gb'] / first['gb']:.2f} "
            f"| {100 * (equal >= 0.99).mean():.2f} % of {len(equal)} |",
            flush=True,
        )
    if {"fp32", "bf16"} <= set(rows):
        pairs = matches(rows["bf16"]["masks"], rows["fp32"]["masks"])
        agree = pairs[pairs[:, 0] >= 0.9]
        mean, most = agree.mean(axis=0), agree.max(axis=0)
        print(
            f"\n{setting.model}, bf16 against fp32: {100 * len(agree) / len(pairs):.1f} % of "
            f"{len(pairs)} masks matched at IoU ≥ 0.9, their mean IoU {mean[0]:.4f}; predicted IoU "
            f"differs by {mean[1]:.4f} (at most {most[1]:.4f}), stability by {mean[2]:.4f} "
            f"({most[2]:.4f})\n"
        )


def ways_for(setting: Setting) -> list[str]:
    """The usual rows of a model: the official generator knows the first SAM only."""
    ways = [*WAYS][: 4 if setting.device_type == "cuda" else 3]
    return ways if setting.first_sam else ways[2:]


def main() -> None:
    """Print one table for all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["tiny", "vit_b"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="rows, the first to compare")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=1, help="how many are painted")
    parser.add_argument("--rasters", nargs="+", default=[], help="cut the tiles from these")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        setting = Setting(**json.loads(given.setting))
        step = calibrate(setting) if given.step == "calibrate" else measure(given.step, setting)
        print(json.dumps(step))
        return
    device = resolve_device(given.device)
    on_cuda = device.startswith("cuda")
    machine = torch.cuda.get_device_name(device) if on_cuda else platform.machine()
    threads = torch.get_num_threads()
    print(f"{date.today()}, {machine}, {threads} threads, torch {torch.__version__}")
    print(
        "\n| model | prompts | way | ms per tile | times faster | in CPU time | encoder (floor) "
        "| decoder (floor) | masks | RLE | other | peak GB | of the first "
        "| masks of the first matched at IoU ≥ 0.99 |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        tiles = str(Path(folder) / "tiles.npy")
        draw(tiles, given.rasters, given.tiles)
        for model in given.models:
            setting = Setting(model, device, given.points_per_side, tiles)
            table(setting, given.ways or ways_for(setting))


if __name__ == "__main__":
    main()
