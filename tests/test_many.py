"""Runs of many rasters: what is done once a run, and not once a raster."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from known_objects import TRANSFORM, write_labels
from known_runs import job_for

from workbench import run
from workbench.candidates.store import CandidateStore
from workbench.layer.files import read_layer

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
