"""Write the table of docs/models.md: what each model can do, and what it costs.

    python docs/models.py             # all that can be read from the models themselves
    python docs/models.py --time      # and how long a tile takes here, kept in models.json

A tile is 1024 × 1024 pixels with 32 × 32 prompts. Its time is the CPU time that one thread takes
for the image encoder and for 64 prompts of a picture of noise, scaled up and divided among the
cores. Weights are random, which costs the same. The time of `tiny` depends on the picture: it gets
a tile of the sample scene and its own weights, and is timed by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from workbench import open_scene
from workbench._support.cores import usable_cores
from workbench.candidates.table import Rules
from workbench.samples.demo import sample_scene
from workbench.segmenters.defaults import defaults_of
from workbench.segmenters.sam import (
    MODELS,
    Download,
    Embedded,
    ManualDownload,
    SamSegmenter,
    sam_segmenter,
)
from workbench.segmenters.sam.network import InputFrame

PAGE, TIMES = (Path(__file__).with_name(name) for name in ("models.md", "models.json"))
START, END = "<!-- made by docs/models.py -->\n", "<!-- end -->"
TILE_PX, PROMPTS, TIMED_SIDE = 1024, 1024, 8
SURVIVING = 0.1  # of the masks, as on usual imagery
EXTRA = {"mobile_sam": "timm", "edgetam": "transformers, timm"}


def table() -> str:
    """A row for each model."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    lines = [
        f"| `model` | prompts | million weights | download | licence | extra `models` | s a tile "
        f"({times['machine']}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in MODELS.items():
        with torch.device("meta"):
            built = model.build()
        size = sum(weight.numel() for weight in built.parameters()) / 1e6
        weights = model.weights
        download = "comes with it"
        if isinstance(weights, Download):
            download = f"{weights.megabytes or '?'} MB"
        elif isinstance(weights, ManualDownload):
            download = f"{weights.megabytes} MB, by hand"
        boxes = "points, boxes" if defaults_of(name).takes_boxes else "points"
        needs = EXTRA.get(name, "transformers" if name.startswith(("sam2", "sam_hq")) else "–")
        seconds = times["seconds"].get(name)
        lines.append(
            f"| `{name}` | {boxes} | {size:.0f} | {download} | {model.licence} | {needs} "
            f"| {'–' if seconds is None else seconds} |"
        )
    lines.append(sam3())
    return "\n".join(lines) + "\n"


def sam3() -> str:
    """The row of SAM 3, which looks for concepts and has no grid."""
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        size = sum(weight.numel() for weight in Sam3Model(Sam3Config()).parameters()) / 1e6
    megabytes = "3450 MB, by hand"  # as its page says
    return (
        f"| `sam3` | words, exemplars | {size:.0f} | {megabytes} | SAM License | transformers | – |"
    )


def pages() -> dict[Path, str]:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return {PAGE: before + START + table() + END + rest.split(END)[1]}


def seconds_of(name: str) -> float:
    """Time a tile of one model."""
    entry = MODELS[name]
    if isinstance(entry.weights, Embedded):
        return seconds_of_tile(sam_segmenter(name))
    torch.manual_seed(0)
    model = entry.build().eval()
    image = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)

    def segmenter(points_per_side: int, floor: float) -> SamSegmenter:
        rules = Rules(TILE_PX, TILE_PX, floor, 0.0, box_nms_thresh=1.0)
        return SamSegmenter(
            lambda: model,
            name,
            "",
            points_per_side,
            rules,
            threads=1,
            network_of=entry.network_of,
        )

    first = segmenter(4, -np.inf)
    scores = first.propose(image).column("pred_iou")
    timed = segmenter(TIMED_SIDE, float(np.quantile(scores, 1 - SURVIVING)))
    timed.load()
    pixels = InputFrame(timed.loaded.network.side, (TILE_PX, TILE_PX)).scaled(image)

    def look() -> None:
        with torch.inference_mode():
            timed.loaded.network.look(torch.from_numpy(pixels).permute(2, 0, 1)[None])

    encoded, whole = spent(look), spent(lambda: timed.propose(image))
    return (encoded + (whole - encoded) * PROMPTS / TIMED_SIDE**2) / usable_cores()


def seconds_of_tile(segmenter: SamSegmenter) -> float:
    """Time a tile of the sample scene by the clock."""
    image, _ = open_scene(str(sample_scene())).read(Window(0, 0, TILE_PX, TILE_PX))
    segmenter.propose(image)  # the first tile waits for imports, too
    start = time.perf_counter()
    segmenter.propose(image)
    return time.perf_counter() - start


def spent(work: Callable[[], object]) -> float:
    """Seconds of CPU time: what other programs take is not in it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", nargs="*", metavar="MODEL", help="all, or these")
    given = parser.parse_args()
    if given.time is not None:
        held = json.loads(TIMES.read_text(encoding="utf-8"))
        held["machine"] = f"{usable_cores()} cores, {date.today()}"
        for name in given.time or MODELS:
            held["seconds"][name] = round(seconds_of(name))
            print(name, held["seconds"][name], flush=True)
            TIMES.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
