"""Runs of many rasters: what is done once a run, and not once a raster."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import yaml
from known_objects import TRANSFORM, write_labels
from known_runs import job_for

from workbench import run
from workbench.candidates.store import CandidateStore
from workbench.errors import RunFailedError, SceneError
from workbench.layer.files import read_layer
from workbench.runs.result import read_run

pytestmark = pytest.mark.usefixtures("known_objects_only")


def small_rasters(folder, n):
    """Rasters of one tile with one object each, side by side."""
    labels = np.zeros((96, 96), int)
    labels[20:40, 20:40] = 1
    folder.mkdir()
    return [
        str(
            write_labels(folder / f"{i}.tif", labels, TRANSFORM @ TRANSFORM.translation(200 * i, 0))
        )
        for i in range(n)
    ]


def test_the_run_folder_is_looked_through_as_often_for_many_rasters_as_for_few(
    tmp_path, monkeypatch
):
    rasters = small_rasters(tmp_path / "rasters", 12)
    counts = {}
    ledger, read = CandidateStore.ledger, Path.read_text

    def counted_ledger(store):
        counts["ledger"] += 1
        return ledger(store)

    def counted_read(path, *args, **options):
        counts["run.yaml"] += path.name == "run.yaml"
        return read(path, *args, **options)

    monkeypatch.setattr(CandidateStore, "ledger", counted_ledger)
    monkeypatch.setattr(Path, "read_text", counted_read)
    seen = []
    for n in (3, 12):
        counts.update({"ledger": 0, "run.yaml": 0})
        run(job_for(rasters[:n], tmp_path / f"run{n}"))
        seen.append(dict(counts))
    assert seen[0] == seen[1]
    assert seen[1]["run.yaml"] <= 1


def test_a_raster_whose_name_begins_with_a_dot_is_labelled(tmp_path):
    (raster,) = small_rasters(tmp_path / "rasters", 1)
    hidden = Path(raster).rename(tmp_path / ".ortho.tif")
    layer = run(job_for(hidden, tmp_path / "run")).layer
    assert layer["source"].tolist() == ["ortho"]
    assert len(read_layer(tmp_path / "run" / "prelabels.gpkg")) == 1
    # a run of an earlier version, or of an edited record, may have named the scene so
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    record["scenes"][0]["name"] = ".ortho"
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(record))
    assert run(job_for(hidden, tmp_path / "run")).layer["source"].tolist() == [".ortho"]


def spoil(paths):
    """Make rasters unreadable, each in another way."""
    ways = [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no raster"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
    ]
    for number, path in enumerate(paths):
        ways[number % len(ways)](Path(path))


def test_bad_rasters_among_many_are_told_and_the_others_done(tmp_path, capsys):
    rasters = small_rasters(tmp_path / "rasters", 30)
    bad = rasters[::7]  # the first, too
    spoil(bad)
    job = job_for(str(tmp_path / "rasters"), tmp_path / "run")
    with pytest.raises(RunFailedError, match=r"5 of 30 rasters cannot be read and were left out"):
        run(job)
    assert (
        "25 rasters (5 more cannot be read and are left out), 25 tiles" in capsys.readouterr().err
    )
    ledger = gpd.read_parquet(tmp_path / "run" / "tiles.parquet")
    failed = ledger[ledger["status"] == "failed"]
    assert set(failed["source"]) == set(bad)
    causes = {"is empty (0 bytes)", "cannot be read as a raster", "Git LFS pointer"}
    assert {c for c in causes for error in failed["error"] if c in error} == causes
    assert (ledger["status"] == "ok").sum() == 25
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Rasters left out" in report
    assert all(path in report for path in bad)
    made = read_run(tmp_path / "run")
    assert len(made.layer) == 25
    assert len(made.tiles) == 25
    # once they are mended, only they are computed
    mended = small_rasters(tmp_path / "again", 30)
    for path in bad:
        Path(mended[rasters.index(path)]).replace(path)
    again = run(job)
    assert len(again.layer) == 30


def test_without_any_readable_raster_nothing_is_written(tmp_path):
    rasters = small_rasters(tmp_path / "rasters", 3)
    spoil(rasters)
    with pytest.raises(SceneError, match=r"None of 3 rasters can be read. The first: .*is empty"):
        run(job_for(rasters, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(SceneError, match="is empty"):
        run(job_for(rasters[:1], tmp_path / "run"))


def test_a_parameter_that_no_raster_can_take_stops_the_run(tmp_path):
    rasters = small_rasters(tmp_path / "rasters", 3)
    with pytest.raises(SceneError, match="crs: "):
        run(job_for(rasters, tmp_path / "run", crs="EPSG:2056"))


def test_a_run_says_early_what_the_rest_takes(tmp_path, capsys):
    run(job_for(small_rasters(tmp_path / "rasters", 12), tmp_path / "run"))
    assert "after 10 tiles, left: 2 tiles · about" in capsys.readouterr().err
