"""A full disk is one clear error at every file, and loses nothing."""

import pytest
from full_disk import (
    NotPermittedError,
    is_identical,
    is_well_told,
    largest_file,
    pages_of,
    small_disk,
    starve,
)
from known_runs import equal_layers, files_in, job_for

from workbench import run
from workbench.errors import OutputError
from workbench.runs import segment as pipeline

pytestmark = pytest.mark.usefixtures("known_objects_only")


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk") as folder:
            yield folder
    except NotPermittedError as error:
        pytest.skip(str(error))


def test_a_full_disk_is_told_at_every_file_and_loses_nothing(raster, tmp_path, disk, monkeypatch):
    monkeypatch.setattr(pipeline, "FLUSH_TILES", 8)
    undisturbed = run(job_for(raster, tmp_path / "undisturbed"))
    job = job_for(raster, disk / "run")
    pages = pages_of(undisturbed)
    chunks = [name for name in pages if name.startswith("candidates/")]
    assert len(chunks) == 2
    # the other files in benchmarks/faults.py
    for step in (chunks[1], "prelabels.gpkg", "prelabels.geojson", "tiles.parquet", "review.qgz",
                 "report.html"):  # fmt: skip
        starved = starve(job, disk, step, pages[step])
        assert is_well_told(starved), (step, str(starved.error), sorted(starved.there))
        assert is_identical(starved, undisturbed), step


def test_a_limit_of_the_user_is_told_like_a_full_disk(raster, tmp_path):
    undisturbed = run(job_for(raster, tmp_path / "undisturbed"))
    job = job_for(raster, tmp_path / "run")
    for size, words in [
        (300, r"run\.yaml cannot be written: its disk is full .*Free some space"),
        (4000, r"scene-r0c0.* cannot be written: its disk is full"),
        (100_000, r"gpkg cannot be written: .*Check space, quota"),  # GDAL does not know why
    ]:
        with largest_file(size), pytest.raises(OutputError, match=words):
            run(job)
        there = files_in(tmp_path / "run")
        assert not [path for path in there if path.name[0] == "." or path.suffix == ".gpkg"]
    assert equal_layers(run(job).layer, undisturbed.layer)
