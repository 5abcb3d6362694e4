"""After a run: a raster that is gone is told by its cause, and what needs no raster goes on."""

import numpy as np
import pytest
from known_runs import job_for
from range_server import serve
from reviews import save_reviewed
from test_signed import sign

from workbench import run
from workbench.errors import SceneError
from workbench.layer import qgis
from workbench.raster import sources
from workbench.raster.open import open_scene
from workbench.review.job import ReviewJob
from workbench.review.workflow import review
from workbench.runs.result import Run

pytestmark = pytest.mark.usefixtures("known_objects_only")


def reviewed(made):
    (made.folder / "prelabels.gpkg").unlink()
    status = np.where(np.arange(len(made.layer)) % 3, "accepted", "rejected")
    save_reviewed(made.layer.assign(status=status), made.folder / "prelabels.gpkg")
    return ReviewJob.create(run_dir=str(made.folder), chip_size=32)


def test_a_review_says_first_that_the_raster_was_moved_and_goes_on(raster, tmp_path):
    made = run(job_for(raster, tmp_path / "run"))
    job = reviewed(made)
    assert review(job).rasters == ""
    raster.rename(tmp_path / "elsewhere.tif")
    found = review(job)
    assert found.rasters.startswith(f"There is no file {raster} any more: it was moved")
    assert found.changes.text.startswith(f"No map: There is no file {raster} any more")
    assert len(found.changes.pictures) == 1
    assert found.changes.table is not None
    assert (made.folder / "review" / "issues.gpkg").exists()
    assert found.thresholds.text


def test_a_review_says_first_that_a_signature_has_expired(raster, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "RETRY_SECONDS", ())
    with serve(raster.parent, tmp_path / "requests.log") as server:
        query = sign(tmp_path, "old0secret")
        url = f"{server.url}/{raster.name}"
        made = run(job_for(f"{url}?{query}", tmp_path / "run"))
        job = reviewed(made)
        made.scenes[0].close()
        sources.forget(f"{url}?{query}")
        sign(tmp_path, "new0secret")
        monkeypatch.setenv(sources.SIGNED_URLS, f"{url}?{query}")
        found = review(job)
        assert "0secret" not in found.rasters
        assert (
            f"{url} does not answer without a valid signature or login (HTTP 403)" in found.rasters
        )
        assert "WORKBENCH_SIGNED_URLS" in found.rasters
        monkeypatch.setenv(sources.SIGNED_URLS, f"{url}?{sign(tmp_path, 'new0secret')}")
        assert review(job).rasters == ""


def test_a_tile_of_a_raster_that_is_gone_says_that_it_is_gone(raster):
    scene = open_scene(raster)
    raster.unlink()
    for read in (lambda: scene.read(scene.window), scene.overview):
        with pytest.raises(SceneError, match=r"no file .* any more: it was moved"):
            read()


@pytest.mark.parametrize("what", ["project", "picture", "raster in it"])
def test_what_cannot_be_made_takes_nothing_else_with_it(
    raster, tmp_path, monkeypatch, caplog, what
):
    def fail(*_, **__):
        raise ValueError("no way")

    where, name = {
        "project": (qgis, "write_project"),
        "picture": (Run, "picture"),
        "raster in it": (qgis, "scene_raster"),
    }[what]
    monkeypatch.setattr(where, name, fail)
    made = run(job_for(raster, tmp_path / "run"))
    assert len(made.layer)
    for name in ("prelabels.gpkg", "prelabels.geojson", "tiles.parquet", "report.html"):
        assert (made.folder / name).exists()
    assert (made.folder / "review.qgz").exists() is (what != "project")
    report = (made.folder / "report.html").read_text()
    assert "Not made" in report
    assert "no way" in report
    assert "could not be made: no way" in caplog.text
