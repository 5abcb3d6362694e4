"""Small runs with known objects, and what tests ask about them."""

import time
from collections.abc import Callable

import pytest
from known_objects import KnownObjects, objects, write_labels

from workbench import Job, run
from workbench.runs.folder import LOCK, OWNER

EXACT = {
    "model": "classic", "tile_size": 96, "overlap": 0.25, "min_area_px": 0, "simplify_m": 0,
    "max_area_share": None, "duplicate_iou": None, "overlaps": "all",
}  # fmt: skip


def use_known_objects(monkeypatch):
    """Let all jobs use known objects, whatever `model` says."""

    def segmenter(job, before):
        return KnownObjects(job.rules)

    monkeypatch.setattr("workbench.runs.choose.segmenter_for", segmenter)


def job_for(raster, folder, **parameters):
    """A job that changes no pixel of what is found, but for the given parameters."""
    source = raster if isinstance(raster, list) else str(raster)
    return Job.create(source=source, out_dir=str(folder), **{**EXACT, **parameters})


def run_known_objects(raster, folder, **parameters):
    """Run `job_for` with known objects, whatever `model` says."""
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(job_for(raster, folder, **parameters))


def run_of_15_tiles(folder):
    """A run in `folder`, as `run` has returned it."""
    raster = write_labels(folder / "scene.tif", objects((230, 330), 1))
    return run_known_objects(raster, folder / "run")


def equal_layers(one, other):
    """Whether two layers agree in every row, column and vertex."""
    return one.drop(columns="geometry").equals(other.drop(columns="geometry")) and bool(
        one.geometry.geom_equals_exact(other.geometry, 0).all()
    )


def files_in(folder):
    """All files in a folder, at any depth, except those of the lock; none if there is no folder."""
    return [p for p in folder.rglob("*") if p.is_file() and p.name not in (LOCK, OWNER)]


def left_over(folder):
    """Hidden files in a folder, at any depth, except those of the lock."""
    return [p for p in folder.rglob(".*") if p.name not in (LOCK, OWNER)]


def counted_calls(monkeypatch):
    """A list that grows with every tile that is computed."""
    calls, propose = [], KnownObjects.propose
    monkeypatch.setattr(KnownObjects, "propose", lambda *args: calls.append(1) or propose(*args))
    return calls


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)
