"""What happens to a run when everything around it goes wrong: each fault for real, as a table.

    python benchmarks/faults.py [--only kill disk …]

Takes a quarter of an hour. Prints a row for each fault as soon as it is known. Only root can mount
the small disk that fills up; elsewhere its row says so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))

from bad_server import bad_server, write_cloud_raster
from damage import break_block, flip_bytes, write_in_blocks
from full_disk import (
    NotPermittedError,
    is_identical,
    is_well_told,
    pages_of,
    small_disk,
    starve,
)
from hostile import Trap, as_text, check, damaged, geojson, job_files, ours, write_aois
from kills import Resumed, Undisturbed, begin, kill_after, kill_at_step, resume, undisturbed
from known_objects import KnownObjects, objects, write_labels
from known_runs import (
    counted_calls,
    equal_layers,
    files_in,
    job_for,
    until,
    use_known_objects,
)
from made_rasters import write
from notebook import notebook
from range_server import serve
from strange import MORE
from test_gone import reviewed
from test_many import small_rasters, spoil
from test_sam_memory import segmenter_of
from test_signed import texts
from test_stretch import FILLS, measured

from workbench import Job, run
from workbench.errors import (
    CheckpointError,
    JobError,
    RunFailedError,
    RunFolderError,
    SceneError,
)
from workbench.layer.files import read_layer
from workbench.raster import sources
from workbench.raster.aoi import load_aoi
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene
from workbench.review.workflow import review
from workbench.runs.folder import store_in
from workbench.samples.demo import make_sample, write_sample
from workbench.segmenters.sam.checkpoints import MODELS

KILLS = 30
TIMES = 20
FUZZ = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def known_raster(folder: Path) -> Path:
    """A raster of known objects, in 15 small tiles."""
    return write_labels(folder / "scene.tif", objects((230, 330), 1))


@contextmanager
def known_objects() -> Iterator[pytest.MonkeyPatch]:
    """Let all runs find known objects."""
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        yield patch


def _to_be_killed(folder: Path) -> tuple[Job, Undisturbed]:
    raster = write_sample(make_sample(768, 7), folder)
    job = job_for(
        raster, folder / "undisturbed", model="classic", tile_size=320, min_area_px=100
    )  # fmt: skip
    return job, undisturbed(job)


def _ended(ends: list[Resumed]) -> str:
    return (
        f"{sum(end.identical for end in ends)} of {len(ends)} resumed to the identical layer, "
        f"{sum(len(end.orphans) for end in ends)} orphaned files, slowest resume "
        f"{max(end.seconds for end in ends):.1f} s"
    )


def kill(folder: Path) -> str:
    """Kill runs at random moments."""
    job, expected = _to_be_killed(folder)
    rng = random.Random(1)
    ends = []
    for number in range(KILLS):
        moment = rng.uniform(0, expected.seconds)
        killed = job.changed(out_dir=str(folder / f"run{number}"))
        while not kill_after(killed, moment):
            moment *= 0.9  # it was done by then
        ends.append(resume(killed, expected.result))
    return (
        f"runs of {len(expected.result.tiles)} tiles, {len(expected.result.layer)} polygons and "
        f"{expected.seconds:.0f} s: {_ended(ends)}"
    )


def kill_at_names(folder: Path) -> str:
    """Kill runs right before each file takes its name."""
    job, expected = _to_be_killed(folder)
    renames = dict.fromkeys(step for step in expected.steps if step.startswith("os.rename "))
    ends = []
    for number, step in enumerate(renames):
        killed = job.changed(out_dir=str(folder / f"run{number}"))
        assert kill_at_step(killed, step), step
        ends.append(resume(killed, expected.result))
    return f"{len(renames)} files: {_ended(ends)}"


def disk(folder: Path) -> str:
    """Fill a small disk at each file of a run."""
    with known_objects() as patch:
        patch.setattr("workbench.runs.segment.FLUSH_TILES", 8)
        raster = known_raster(folder)
        expected = run(job_for(raster, folder / "undisturbed"))
        try:
            with small_disk(folder / "disk") as small:
                ends = [
                    starve(job_for(raster, small / "run"), small, step, pages)
                    for step, pages in pages_of(expected).items()
                ]
                identical = sum(is_identical(end, expected) for end in ends)
        except NotPermittedError as error:
            return f"not tried: {error}"
    return (
        f"{sum(is_well_told(end) for end in ends)} of {len(ends)} files: an error that names the "
        f"file and what to do, nothing half written; {identical} of {len(ends)} resumed to the "
        "identical layer"
    )


def memory(folder: Path) -> str:
    """Let a device hold 4 prompts where batches have 12."""
    batches = []

    def segmenter(job: Job, before: dict) -> object:
        batches.append(before.get("points_per_batch", 12))
        return segmenter_of(4, batches[-1], [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.runs.choose.segmenter_for", segmenter)
        job = job_for(known_raster(folder), folder / "run", tile_size=192)
        done = run(job)
        run(job)
    record = yaml.safe_load((folder / "run" / "run.yaml").read_text(encoding="utf-8"))
    failed = (done.tiles["status"] == "failed").sum()
    return (
        f"simulated: {failed} of {len(done.tiles)} tiles failed; `run.yaml` notes: "
        f"“{record['notes'][0]}”; the next run began with {batches[1]}"
    )


def blocks(folder: Path) -> str:
    """Make one block of a raster unreadable."""
    with known_objects() as patch:
        raster = write_in_blocks(folder / "scene.tif", objects((400, 500), 1))
        break_block(raster, 2, 3)
        reads: list[int] = []
        read = Scene.read
        patch.setattr(Scene, "read", lambda *args: reads.append(1) or read(*args))
        job = job_for(raster, folder / "run")
        told = []
        for _ in range(2):
            with suppress(RunFailedError):
                run(job)
            told.append(len(reads) - sum(told))
        ledger = read_layer(folder / "run" / "prelabels.gpkg")
        status = store_in(folder / "run").ledger().values()
    failed = sum(record.status == "failed" for record, _ in status)
    return (
        f"{failed} of {told[0]} tiles failed, layer of {len(ledger)} polygons and report written, "
        f"run failed; the second run read {told[1]} tiles"
    )


def candidates(folder: Path) -> str:
    """Change each byte of a file of candidates, one at a time, and cut it short."""
    with known_objects() as patch:
        patch.setattr("workbench.runs.segment.FLUSH_TILES", 8)
        job = job_for(known_raster(folder), folder / "run")
        before = run(job).layer
        path = files_in(folder / "run" / "candidates")[0]
        flips = flip_bytes(path, 1)
        whole, again = path.read_bytes(), 0
        for share in (0.0, 0.3, 0.6, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            again += equal_layers(run(job).layer, before)
    return (
        f"each of {flips.tried:,} bytes changed in turn: {flips.detected:,} noticed, the others "
        f"change nothing that is read, {flips.misread} misread; cut at 4 lengths: {again} of 4 "
        "redone to the identical layer"
    )


def two_runs(folder: Path) -> str:
    """Start runs in a folder while another process writes it."""
    raster = write_labels(folder / "scene.tif", objects((600, 800), 1))
    job = job_for(raster, folder / "run", model="classic", tile_size=128, overlap=0.5)
    first = begin(job)
    until((folder / "run" / "run.yaml").exists)
    first.send_signal(signal.SIGSTOP)
    refused = sum(f"process {first.pid} on" in _refusal(job) for _ in range(3))
    first.kill()
    first.communicate()
    n = len(run(job).tiles)
    return (
        f"{refused} of 3 refused, with the process and the machine that hold the folder; once that "
        f"was killed, the next run completed the {n} tiles"
    )


def changed(folder: Path) -> str:
    """Change the checkpoint and the raster between runs."""
    raster = write_labels(folder / "scene.tif", objects((96, 96), 1))
    weights = torch.load(MODELS["tiny"].weights.fetch(), weights_only=True)
    mine = folder / "mine.pth"
    torch.save(weights, mine)
    job = job_for(
        raster, folder / "run", model="tiny", checkpoint=str(mine), points_per_side=2
    )  # fmt: skip
    run(job)
    name = next(iter(weights))
    torch.save({**weights, name: weights[name] + 0.001}, mine)
    told = [_refusal(job)]
    torch.save(weights, mine)
    write_labels(raster, objects((96, 96), 2))
    told.append(_refusal(job))
    wanted = ("sha256", "another content")
    said = [want for want, words in zip(wanted, told, strict=True) if want in words]
    return f"{len(said)} of 2 refused; they name: {', '.join(said)}"


def _refusal(job: Job) -> str:
    try:
        run(job)
    except RunFolderError as error:
        return str(error)
    return ""


def network(folder: Path) -> str:
    """Read a remote raster over a network that fails now and then, and lose a part of it."""
    write_cloud_raster(folder / "scene.tif", objects((400, 500), 1))
    same, failures = 0, 0
    faults = ("close", "half", "reset", "stall", "503")
    with known_objects() as patch, bad_server(folder) as server:
        patch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "2")
        expected = run(job_for(folder / "scene.tif", folder / "undisturbed"))
        for fault in faults:
            server.asked.clear()
            server.fail_now_and_then(fault)
            url = f"{server.url}/scene.tif"
            sources.forget(url)  # or the rest of it would come from GDAL's memory
            same += equal_layers(run(job_for(url, folder / fault)).layer, expected.layer)
            failures += sum(failed is not None for _, _, failed in server.asked)
        size = (folder / "scene.tif").stat().st_size
        server.fail_within(size - 15_000, size, "close")
        sources.forget(url)
        job = job_for(url, folder / "run")
        computed: list[int] = []
        propose = KnownObjects.propose
        patch.setattr(KnownObjects, "propose", lambda *args: computed.append(1) or propose(*args))
        patch.setattr(sources, "RETRY_SECONDS", (0.1, 0.4, 1.6))
        start = time.monotonic()
        with suppress(RunFailedError):
            run(job)
        waited = time.monotonic() - start
        first = len(computed)
        server.fault = lambda first, last: None
        after = run(job)
        same_after = equal_layers(after.layer, expected.layer)
    n = len(expected.tiles)
    return (
        f"no answer, half of one, reset, silence, 503: {same} of {len(faults)} runs identical over "
        f"{failures} failures; a part that stayed away: {n - first} of {n} tiles failed (with "
        f"tenths of the usual patience after {waited:.0f} s), the next run computed "
        f"{len(computed) - first} and its layer was {'identical' if same_after else 'not it'}"
    )


def interrupt(folder: Path) -> str:
    """Press Jupyter's stop button at ten moments of a run, and in the middle of SAM."""
    raster = write_sample(make_sample(1024, 7), folder)
    job = job_for(raster, folder / "run", model="classic", tile_size=256, min_area_px=100)
    sam = job_for(raster, folder / "sam", model="tiny", tile_size=1024)
    stops, ends = [], []
    with notebook() as kernel:
        kernel.run(job_for(raster, folder / "first", model="classic", tile_size=256))  # imports
        start = time.monotonic()
        kernel.run(job.changed(out_dir=str(folder / "timed")))
        whole = time.monotonic() - start
        for number in range(10):
            begun = time.monotonic()
            kernel.begin(job.changed(out_dir=str(folder / f"run{number}")))
            moment = begun + whole * (number + 0.5) / 10
            stops.append(kernel.interrupt_when(lambda until=moment: time.monotonic() > until))
        kernel.begin(sam)
        begun = time.monotonic()
        stops.append(
            kernel.interrupt_when(
                lambda: (folder / "sam" / "run.yaml").exists() and time.monotonic() > begun + 3
            )
        )
        for number in range(10):
            kernel.run(job.changed(out_dir=str(folder / f"run{number}")))
            ends.append(read_layer(folder / f"run{number}" / "prelabels.gpkg"))
    expected = read_layer(folder / "timed" / "prelabels.gpkg")
    stopped = sum(stop.error == "KeyboardInterrupt" for stop in stops)
    done = sum(stop.error == "" for stop in stops)  # in its last moments there is nothing to stop
    return (
        f"{stopped + done} of {len(stops)} cells ended, the slowest after "
        f"{max(stop.seconds for stop in stops):.1f} s: {stopped} stopped, {done} just done; "
        f"{sum(equal_layers(end, expected) for end in ends)} of 10 went on in the same kernel to "
        "the identical layer"
    )


def hostile(folder: Path) -> str:
    """Fuzz jobs and areas, and hand in code."""
    raster, tried = known_raster(folder), {"jobs": 0, "GeoJSON areas": 0, "damaged vector files": 0}
    sprung = folder / "sprung"
    weights = torch.load(MODELS["tiny"].weights.fetch(), weights_only=True)
    torch.save({**weights, "trap": Trap(sprung)}, folder / "evil.pth")
    evil = str(folder / "evil.pth")
    refused = 0
    with suppress(CheckpointError):
        refused += 1
        run(job_for(raster, folder / "evil", model="tiny", checkpoint=evil))
        refused -= 1
    (folder / "job.yaml").write_text(f"source: !!python/object/apply:os.mkdir ['{sprung}']")
    with suppress(JobError):
        refused += 1
        Job.from_yaml(folder / "job.yaml")
        refused -= 1

    @FUZZ
    @given(job_files())
    def jobs(content: bytes) -> None:
        tried["jobs"] += 1
        (folder / "job.yaml").write_bytes(content)
        ours(check, folder / "job.yaml", raster, folder / "run")

    @FUZZ
    @given(geojson)
    def areas(area: object) -> None:
        tried["GeoJSON areas"] += 1
        ours(load_aoi, area)
        (folder / "area.geojson").write_text(as_text(area), encoding="utf-8")
        ours(load_aoi, str(folder / "area.geojson"))

    with known_objects():
        jobs()
    areas()
    for path in write_aois(folder):
        whole = path.read_bytes()
        for seed in range(400):
            tried["damaged vector files"] += 1
            path.write_bytes(damaged(whole, seed))
            ours(load_aoi, str(path))
    return (
        f"{refused} of 2 with code in them refused, {'no code run' if not sprung.exists() else '!'}"
        f"; {', '.join(f'{n:,} {what}' for what, n in tried.items())}: no error but ours"
    )


def fills(folder: Path) -> str:
    """Fill the edge of rasters with values that no tag declares, or that a tag misses."""
    seen = 0
    for number, (low, high, dtype, fill) in enumerate(FILLS.values()):
        image = measured(low, high, dtype)
        image[:, :, :20] = fill
        scene = open_scene(write(folder / f"{number}.tif", image))
        rgb, valid = scene.read(scene.window)
        seen += not valid[:, :20].any() and valid[:, 20:].all() and rgb[valid].std() > 40
    for number, tag in enumerate((-3.4e38, -3.40282e38)):
        image = measured(0, 1, np.float32)
        image[:, :, :20] = np.finfo(np.float32).min
        scene = open_scene(write(folder / f"tag{number}.tif", image, nodata=tag))
        rgb, valid = scene.read(scene.window)
        seen += not valid[:, :20].any() and rgb[valid].std() > 40
    hidden = measured(0, 1, np.float32)
    hidden[:, :, :20] = np.random.default_rng(1).uniform(-1e4, -9e3, hidden[:, :, :20].shape)
    refused = 0
    with suppress(SceneError):
        refused = 1
        open_scene(write(folder / "hidden.tif", hidden))
        refused = 0
    return (
        f"{seen} of {len(FILLS) + 2} kinds of fill left out, and the rest a picture; a fill that "
        f"is another number in each pixel: {refused} of 1 refused"
    )


def many(folder: Path) -> str:
    """Run 1,000 rasters, of which 20 cannot be read."""
    with known_objects():
        rasters = small_rasters(folder / "rasters", 1000)
        spoil(rasters[::50])
        told = ""
        start = time.monotonic()
        try:
            run(job_for(str(folder / "rasters"), folder / "run"))
        except RunFailedError as error:
            told = str(error)
        seconds = time.monotonic() - start
    ledger = gpd.read_parquet(folder / "run" / "tiles.parquet")
    left_out = ledger[ledger["status"] == "failed"]
    causes = set(left_out["error"].str.split(" ", n=1).str[1])
    return (
        f"{(ledger['status'] == 'ok').sum()} done, {len(left_out)} in the ledger with "
        f"{len(causes)} causes, in {seconds:.0f} s; the run failed and said “{told[:50]}…”"
    )


def signature(folder: Path) -> str:
    """Let the signature of a remote raster expire, and continue with a fresh one."""
    (folder / "served").mkdir()
    write_cloud_raster(folder / "served" / "scene.tif", objects((230, 330), 1))
    with known_objects() as patch, serve(folder / "served", folder / "log") as server:
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setattr(sources, "RETRY_SECONDS", ())
        url = f"{server.url}/scene.tif"
        (folder / "log.signature").write_text("old0secret")
        first = run(job_for(f"{url}?sig=old0secret", folder / "run"))
        first.scenes[0].close()
        sources.forget(f"{url}?sig=old0secret")
        (folder / "log.signature").write_text("new0secret")
        expired = first.scenes[0].problem() or ""
        calls = counted_calls(patch)
        same = equal_layers(
            run(job_for(f"{url}?sig=new0secret", folder / "run")).layer, first.layer
        )
    leaks = [path for path, content in texts(folder / "run") if b"0secret" in content]
    return (
        f"told: “{expired.removeprefix(url)[:48]}…”; with a fresh one {len(calls)} tiles "
        f"computed, layer {'identical' if same else 'not it'}; {len(leaks)} files hold a signature"
    )


def outside(folder: Path) -> str:
    """Fuzz what comes from outside, many times as often as the tests do."""
    file = Path(__file__).parent.parent / "tests" / "faults" / "test_fuzz.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        [*command, f"--basetemp={folder}"], env=os.environ | {MORE: str(TIMES)}, check=False,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return f"{TIMES} times the tries of the tests: {done.stdout.strip().splitlines()[-1]}"


def moved(folder: Path) -> str:
    """Move a raster away between the run and its review."""
    with known_objects():
        raster = known_raster(folder)
        job = reviewed(run(job_for(raster, folder / "run")))
        raster.rename(folder / "elsewhere.tif")
        found = review(job)
    made = [path.name for path in (folder / "run" / "review").iterdir()]
    return (
        f"the review says first “{found.rasters.replace(str(raster), '…')[:56]}…”, and makes "
        f"{', '.join(sorted(made))}"
    )


FAULTS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "kill": (f"`kill -9` at {KILLS} random moments", kill),
    "names": ("`kill -9` right before a file takes its name", kill_at_names),
    "disk": ("disk full, at each file of a run", disk),
    "memory": ("GPU out of memory", memory),
    "blocks": ("unreadable block in the raster", blocks),
    "candidates": ("file of candidates damaged", candidates),
    "two": ("several runs in one folder", two_runs),
    "changed": ("raster or checkpoint changed", changed),
    "network": ("network drops", network),
    "interrupt": ("Jupyter's stop button", interrupt),
    "hostile": ("hostile inputs", hostile),
    "outside": ("rasters, tables, catalogues, records and sessions of any content", outside),
    "fills": ("values for “no data” that no tag declares", fills),
    "many": ("20 unreadable rasters among 1,000", many),
    "signature": ("signature of a remote raster expired", signature),
    "moved": ("raster moved before the review", moved),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    print("| fault | what was seen |\n|---|---|")
    for name in parser.parse_args().only:
        title, experiment = FAULTS[name]
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {title} | {experiment(Path(folder))} |", flush=True)


if __name__ == "__main__":
    main()
