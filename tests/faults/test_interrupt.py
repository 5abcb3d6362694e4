"""Jupyter's stop button: the cell ends at once, and the run goes on later where it was."""

from known_objects import objects, write_labels
from known_runs import equal_layers, job_for, left_over
from notebook import notebook

from workbench import run
from workbench.layer.files import read_layer

LIMIT_SECONDS = 5


def test_a_stopped_cell_ends_at_once_and_its_run_goes_on_later(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", objects((300, 400), 1))
    folder = tmp_path / "run"
    job = job_for(
        raster, folder, model="classic", tile_size=128, overlap=0.5, min_area_px=20
    )  # fmt: skip
    in_a_tile = job_for(raster, tmp_path / "sam", model="tiny", tile_size=400)
    with notebook() as kernel:
        kernel.begin(job)
        stopped = kernel.interrupt_when((folder / "run.yaml").exists)
        assert stopped.error == "KeyboardInterrupt", stopped.traceback
        assert stopped.seconds < LIMIT_SECONDS
        assert not (folder / ".owner").exists()
        kernel.begin(job)
        stopped = kernel.interrupt_when(lambda: list(folder.glob("*prelabels*")))
        assert stopped.error in ("KeyboardInterrupt", "")  # it may just have been done
        assert stopped.seconds < LIMIT_SECONDS
        assert kernel.run(job) == ""
        # SAM is in the middle of its only tile
        kernel.begin(in_a_tile)
        stopped = kernel.interrupt_when((tmp_path / "sam" / "run.yaml").exists)
        assert stopped.error == "KeyboardInterrupt", stopped.traceback
        assert stopped.seconds < LIMIT_SECONDS
        assert not (tmp_path / "sam" / ".owner").exists()
    expected = run(job.changed(out_dir=str(tmp_path / "undisturbed")))
    assert equal_layers(read_layer(folder / "prelabels.gpkg"), expected.layer)
    assert len(expected.layer)
    assert not left_over(folder)
