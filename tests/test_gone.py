"""After a run: a raster that is gone is told by its cause, and what needs no raster goes on."""

from contextlib import closing

import geopandas as gpd
import numpy as np
import pytest
import shapely
from known_runs import job_for
from matplotlib.backends.backend_agg import FigureCanvasAgg
from range_server import serve
from reviews import save_reviewed
from test_signed import sign

from workbench import run
from workbench.errors import SceneError
from workbench.evaluation.against import AgainstReference
from workbench.layer import files, qgis
from workbench.layer.report import charts, tally
from workbench.layer.report.tally import Topology
from workbench.raster import sources
from workbench.raster.open import open_scene
from workbench.review.job import ReviewJob
from workbench.review.workflow import review
from workbench.runs import by_products
from workbench.runs.finish import finish
from workbench.runs.plan import prepare
from workbench.runs.result import Run
from workbench.runs.segment import segment

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


@pytest.mark.parametrize(
    ("where", "name", "lost"),
    [
        (qgis, "write_project", "review.qgz"),
        (qgis, "scene_raster", None),
        (Run, "picture", None),
        (charts, "tile_maps", None),
        (charts, "distributions", None),
        (FigureCanvasAgg, "draw", None),  # of the picture and of all charts
        (by_products, "seams", None),
        (AgainstReference, "add", None),
        (AgainstReference, "rows", None),
        (Topology, "add", None),
        (Topology, "table", None),
        (tally._Coverage, "add", None),
        (tally._Coverage, "share", None),
        (files._GeoJSON, "_add", "prelabels.geojson"),
        (by_products, "write_format", "prelabels.fgb"),
    ],
)
def test_what_cannot_be_made_takes_nothing_else_with_it(
    raster, tmp_path, monkeypatch, caplog, where, name, lost
):
    def fail(*_, **__):
        raise ValueError("no way")

    gpd.GeoDataFrame(geometry=[shapely.box(500_000, 100, 500_010, 110)], crs=32633).to_file(
        tmp_path / "truth.gpkg"
    )
    job = job_for(
        raster, tmp_path / "run", formats="flatgeobuf", reference=str(tmp_path / "truth.gpkg")
    )
    made = run(job)
    monkeypatch.setattr(where, name, fail)
    made = run(job)
    assert len(made.layer)
    kept = ("prelabels.gpkg", "prelabels.parquet", "prelabels.qml", "tiles.parquet", "report.html")
    others = ("prelabels.geojson", "prelabels.fgb", "review.qgz")
    for name in (*kept, *others):
        # what is there of an earlier layer would be taken for this one's; a project only links
        assert (made.folder / name).exists() is (name != lost or name == "review.qgz")
    report = (made.folder / "report.html").read_text()
    assert "Not made" in report
    assert "no way" in report
    assert "could not be made: no way" in caplog.text
    assert not list(made.folder.glob(".tmp*"))


def test_a_reference_that_is_gone_at_the_end_costs_only_its_table(raster, tmp_path, monkeypatch):
    truth = tmp_path / "truth.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(500_000, 100, 500_010, 110)], crs=32633).to_file(truth)
    with closing(prepare(job_for(raster, tmp_path / "run", reference=str(truth)))) as plan:
        list(segment(plan))
        truth.unlink()
        made = finish(plan)
    assert len(made.layer)
    assert "truth.gpkg: no such file" in (made.folder / "report.html").read_text()
