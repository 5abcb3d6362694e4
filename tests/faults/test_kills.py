"""A run that is killed at any moment goes on where it was, to the same layer."""

import pytest
from kills import kill_at_step, resume, undisturbed
from known_objects import objects, write_labels
from known_runs import job_for, left_over

from workbench import run
from workbench.layer.files import read_layer


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    raster = write_labels(folder / "scene.tif", objects((300, 400), 1))
    job = job_for(raster, folder / "run", model="classic", tile_size=128, min_area_px=20)
    return undisturbed(job)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_layer(expected, tmp_path):
    assert len(expected.result.layer) >= 3
    chunks = [step for step in expected.steps if step.startswith("os.rename candidates/")]
    assert len(chunks) > 3
    job = expected.result.job.changed(out_dir=str(tmp_path / "run"))
    for step in (
        "os.rename run.yaml",
        chunks[1],
        "os.rename prelabels.gpkg",
        "os.rename prelabels.geojson",
        "os.rename report.html",
    ):
        assert kill_at_step(job, step), step
        assert left_over(tmp_path / "run")  # it had no chance to clean up
    again = resume(job, expected.result)
    assert again.identical
    assert not again.orphans


def test_a_kill_while_another_threshold_is_written_leaves_the_old_layer_or_the_new(expected):
    old = expected.result
    stricter = old.job.changed(pred_iou_thresh=0.95)
    new = run(stricter.changed(out_dir=f"{old.folder}-new"))
    assert 0 < len(new.layer) < len(old.layer)
    for step, layer in (("os.rename prelabels.gpkg", old.layer), ("os.rename job.yaml", new.layer)):
        assert kill_at_step(stricter, step)
        assert len(read_layer(old.folder / "prelabels.gpkg")) == len(layer)
    again = resume(stricter, new)
    assert again.identical
    assert not again.orphans
