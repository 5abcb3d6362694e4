"""Run the whole job on labelled rasters and print quality, speed and memory, one row for each.

    python benchmarks/scenes.py RASTER=REFERENCE [RASTER=REFERENCE …] [--set NAME=VALUE …]

Each run is a process of its own, so that its peak memory is its own. Recall and precision are one
to one at IoU 0.5 and 0.75; precision counts only what is labelled as right, so it is low where
the reference holds one class of many.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas as gpd

from workbench import Job, run
from workbench.evaluation.metrics import compare

HEADER = """\
| raster | Mpx | polygons | R@0.5 | R@0.75 | P@0.5 | s per Mpx | of it in tiles | peak MB |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Read the command line and run one process for each raster."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="RASTER=REFERENCE")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    if os.environ.get("BENCHMARK_ROW"):
        print(row(arguments.pairs[0], dict(item.split("=", 1) for item in arguments.set)))
        return
    print(f"{os.cpu_count()} cores\n\n{HEADER}", flush=True)
    for pair in arguments.pairs:
        subprocess.run(
            [sys.executable, __file__, pair, "--set", *arguments.set],
            check=True,
            env={**os.environ, "BENCHMARK_ROW": "1"},
            stderr=subprocess.DEVNULL,
        )


def row(pair: str, parameters: dict[str, str]) -> str:
    """Run one job in a temporary folder and sum it up as a table row."""
    raster, reference = pair.split("=", 1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = run(Job.create(source=raster, out_dir=folder, **parameters))
        seconds = time.perf_counter() - start
        layer = result.layer  # read while its folder is there
    quality = compare(layer, gpd.read_file(reference))
    megapixels = sum(scene.width * scene.height for scene in result.scenes) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return (
        f"| {Path(raster).stem} | {megapixels:.2f} | {len(layer)} "
        f"| {quality.recall(0.5):.2f} | {quality.recall(0.75):.2f} | {quality.precision(0.5):.2f} "
        f"| {seconds / megapixels:.1f} | {result.tiles['seconds'].sum() / megapixels:.1f} "
        f"| {peak} |"
    )


if __name__ == "__main__":
    main()
