"""Take every figure that a GPU is owed, in ten minutes: go on later with the same command.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick        # does it run? says nothing of a GPU
    python benchmarks/gpu.py --only vit_b training

Each step is a process of its own. Its result is kept in `gpu.json` in the folder, and `gpu.md` is
written anew after each: milliseconds a tile and memory of each model, against the official
generator, bf16 against fp32, the compiled encoder, the speed of training `tiny`, and the tests
marked `gpu`. A step that failed is tried again by the next call; `--again` does all anew. Weights
that do not come with the package are random, which cost the same time (see `throughput.py`).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import WAYS, Setting, draw, elsewhere, matches

from workbench._support.files import atomic_path
from workbench.segmenters.sam import MODELS, resolve_device

ROOT = Path(__file__).parent.parent
OFFICIAL, COMPARED = ("published", "best"), "fp32"
GOALS = {"vit_b": 15.0, "vit_h": 26.0}  # ms a tile, end to end, on a card like an H200
FASTER, MATCHED = 30.0, 0.98  # than the official generator; masks of bf16 that fp32 has, too
ORDER = ("vit_b", "vit_h", "tiny", "mobile_sam", "sam2.1_tiny", "vit_l", "edgetam")
STEPS_TIMED = (1, 51, 151)  # of the training; until the first, scenes are made
TRIAL_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Step:
    """One figure: a name, and what takes it."""

    name: str
    take: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Where results are kept, and how much is done."""

    folder: Path
    device: str
    quick: bool

    @property
    def path(self) -> Path:
        """The results."""
        return self.folder / "gpu.json"

    @property
    def on_cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.startswith("cuda")

    def results(self) -> dict[str, dict[str, Any]]:
        """The results so far, by step."""
        if not self.path.is_file():
            return {}
        held: dict[str, dict[str, Any]] = json.loads(self.path.read_text())
        return held

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Add a result, and write the page anew."""
        results = self.results() | {name: result}
        for path, text in (
            (self.path, json.dumps(results, indent=1)),
            (self.folder / "gpu.md", page(results)),
        ):
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------- the steps


def steps(bench: Bench) -> Iterator[Step]:
    """Yield what is to be done, the most wanted first."""
    yield Step("machine", partial(machine, bench))
    ready = [model for model in ORDER if MODELS[model].is_ready]
    for model in ready[2:3] if bench.quick else ready:
        yield Step(f"{model} calibrate", partial(calibrate, bench, model))
        for way in ways_of(bench, model):
            yield Step(f"{model} {way}", partial(timed, bench, model, way))
    yield Step("tests", tests)
    yield Step("training", partial(training, bench))


def ways_of(bench: Bench, model: str) -> list[str]:
    """Which ways to the masks a model has, the engine's first."""
    ways = [COMPARED, "best"] if bench.quick else [COMPARED, "bf16", "compiled", *OFFICIAL]
    both = (COMPARED, "bf16")  # the others are for the first SAM and its decoder
    if not setting(bench, model).first_sam:
        return [way for way in ways if way in both]
    # most of what `tiny` calls its encoder is no network
    return [way for way in ways if way != "compiled" or model != "tiny"]


def setting(bench: Bench, model: str) -> Setting:
    """What all ways of a model share; painted tiles, made when first needed."""
    tiles = bench.folder / "tiles.npy"
    if not tiles.is_file():
        draw(str(tiles), [], 1 if bench.quick else 8)
    return Setting(model, bench.device, 4 if bench.quick else 32, str(tiles))


def machine(bench: Bench) -> dict[str, Any]:
    """Say what this was measured on."""
    name = torch.cuda.get_device_name(bench.device) if bench.on_cuda else platform.machine()
    return {
        "name": name,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "date": str(date.today()),
        "quick": bench.quick,
    }


def calibrate(bench: Bench, model: str) -> dict[str, Any]:
    """Find the threshold that a tenth of the masks pass."""
    return elsewhere("calibrate", setting(bench, model))


def timed(bench: Bench, model: str, way: str) -> dict[str, Any]:
    """Time one way to the masks of a model; the masks are kept beside, to compare them."""
    found = bench.results()[f"{model} calibrate"]
    given = replace(setting(bench, model), threshold=found["threshold"], shift=found["shift"])
    row = elsewhere(way, given)
    masks = bench.folder / "masks"
    masks.mkdir(exist_ok=True)
    (masks / f"{model} {way}.json").write_text(json.dumps(row.pop("masks")))
    other = masks / f"{model} {COMPARED}.json"
    if way != COMPARED and other.is_file():
        pairs = matches(json.loads((masks / f"{model} {way}.json").read_text()),
                        json.loads(other.read_text()))[:, 0]  # fmt: skip
        limit = 0.9 if way == "bf16" else 0.99
        row["matched"] = float(np.mean(pairs >= limit)) if len(pairs) else None
    return row


def tests() -> dict[str, Any]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "tests/test_sam_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    return {"said": done.stdout.strip().splitlines()[-1]}


def training(bench: Bench) -> dict[str, Any]:
    """Time steps of training `tiny`, the making of scenes left out."""
    at = []
    marks = TRIAL_STEPS if bench.quick else STEPS_TIMED
    for until in marks:
        command = [sys.executable, str(ROOT / "training" / "train.py"), "--until", str(until)]
        command += ["--folder", str(bench.folder / "training"), "--device", bench.device]
        command += ["--pool", str(bench.folder / "pool"), *(["--trial"] if bench.quick else [])]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        at.append(time.perf_counter() - start)
    # both calls load and save, so their difference is that of their steps
    more = (marks[2] - marks[1]) - (marks[1] - marks[0])
    return {"steps_per_s": more / max(at[2] - at[1], 1e-9)}


# ----------------------------------------------------------------------------------- the page


def page(results: dict[str, dict[str, Any]]) -> str:
    """Make the page of the results so far."""
    on = results.get("machine", {})
    quick = ", **quick: no measurement**" if on.get("quick") else ""
    lines = [
        f"{on.get('date')}, {on.get('name')}, {on.get('cores')} CPU cores, "
        f"torch {on.get('torch')}{quick}",
        "",
        "| model | way | ms a tile | goal | times as fast | GB | masks of fp32 kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        model, _, way = name.partition(" ")
        if "ms" in row:
            figures = " | ".join(cells(results, model, way, row))
            lines.append(f"| {model} | {WAYS[way]} | {figures} |")
    if "training" in results:
        speed = said(results["training"], "steps_per_s")
        lines += ["", f"Training `tiny`: {speed} steps a second."]
    if "tests" in results:
        lines += ["", f"Tests marked `gpu`: {said(results['tests'], 'said')}"]
    failed = [name for name, row in results.items() if "failed" in row]
    if failed:
        lines += ["", f"Failed: {', '.join(failed)}"]
    return "\n".join(lines) + "\n"


def cells(
    results: dict[str, dict[str, Any]], model: str, way: str, row: dict[str, Any]
) -> list[str]:
    """The figures of one row, each with its goal."""
    goal = GOALS.get(model) if way == "bf16" else None
    ratios = [
        f"{results[f'{model} {other}']['ms'] / row['ms']:.1f} × {other}"
        for other in OFFICIAL
        if way not in OFFICIAL and "ms" in results.get(f"{model} {other}", {})
    ]
    matched = row.get("matched")
    return [
        f"{row['ms']:.1f}",
        "" if goal is None else f"{goal:.0f}: {'held' if row['ms'] <= goal else 'missed'}",
        ", ".join(ratios) + (f" (goal {FASTER:.0f})" if ratios else ""),
        f"{row['gb']:.2f}",
        "" if matched is None else f"{100 * matched:.1f} %" + (
            f" (goal {100 * MATCHED:.0f})" if way == "bf16" else ""),
    ]  # fmt: skip


def said(row: dict[str, Any], name: str) -> str:
    """A figure, or that it could not be taken."""
    value = row.get(name, "failed")
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Take what is still missing, until the time is up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="no step begins after these")
    parser.add_argument("--only", nargs="+", default=[""], help="steps whose names begin so")
    parser.add_argument("--quick", action="store_true", help="one model, 4 × 4 prompts")
    parser.add_argument("--again", action="store_true", help="do what is done already, too")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.folder, resolve_device(given.device), given.quick)
    began = time.monotonic()
    for step in steps(bench):
        wanted = step.name == "machine" or step.name.startswith(tuple(given.only))
        held = bench.results().get(step.name, {"failed": "not yet"})
        if not wanted or ("failed" not in held and not given.again):
            continue
        if time.monotonic() - began > 60 * given.minutes:
            print(f"The time is up before {step.name}: run the same command again.")
            break
        start = time.monotonic()
        try:
            result = step.take()
        except (subprocess.CalledProcessError, RuntimeError, KeyError) as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        bench.keep(step.name, result | {"took_s": round(time.monotonic() - start, 1)})
        print(f"{step.name}: {result.get('failed', 'done')}", flush=True)
    print(page(bench.results()))


if __name__ == "__main__":
    main()
