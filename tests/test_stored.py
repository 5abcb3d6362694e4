"""Stored tiles come back at once, without PyTorch and without the process that computes."""

import shutil
import subprocess
import sys
from contextlib import closing

import pytest

from workbench import Job
from workbench.runs.choose import key_before_loading, segmenter_for
from workbench.runs.plan import prepare
from workbench.runs.record import plain, read_record, write_record
from workbench.runs.segment import segment
from workbench.samples.demo import sample_scene
from workbench.segmenters.sam import MODELS
from workbench.tuning.process import Background
from workbench.widgets import AOIPicker, ThresholdTuner
from workbench.widgets.session import Session

TILES = frozenset({("sample", 0, 0), ("sample", 1, 1)})


def job_in(folder):
    return Job.create(
        source=str(sample_scene()), out_dir=str(folder), tile_size=256, model="tiny",
        points_per_side=8, pred_iou_thresh=0.5, stability_score_thresh=0.5, min_area_px=0,
        interactive=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A run folder that has stored two tiles, and their candidates by the tile's index."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    with closing(prepare(job_in(folder), None, TILES)) as plan, closing(segment(plan)) as tiles:
        return folder, {tile.record.index: tile.candidates for tile in tiles}


@pytest.fixture
def job(computed, tmp_path):
    shutil.copytree(computed[0], tmp_path / "run")
    return job_in(tmp_path / "run")


@pytest.fixture
def stored(computed):
    return computed[1]


def without_process(monkeypatch):
    """No process is started; what it is asked to do is listed."""
    asked = []
    monkeypatch.setattr(Background, "_send", lambda _, message: asked.append(message))
    return asked


def test_a_restarted_tuner_shows_stored_tiles_before_any_process_answers(job, stored, monkeypatch):
    with closing(Session(job)) as before:
        before.tiles = TILES
    asked = without_process(monkeypatch)
    tuner = ThresholdTuner(AOIPicker(job))
    back = {sample.record.index: sample for sample in tuner.session.samples}
    assert {index: len(sample.candidates) for index, sample in back.items()} == {
        index: len(found) for index, found in stored.items()
    }
    assert all(sample.whole for sample in back.values())
    assert len(tuner.panel.view.kept) > 0
    assert tuner.panel.tiles.widget.layout.display == "none"  # no progress: nothing is computed
    assert asked == []
    missing = ("sample", 0, 1)
    tuner.panel.tiles.clear()
    tuner.panel.tiles.compute({*TILES, missing})
    assert {sample.record.index for sample in tuner.session.samples} == TILES
    (work,) = asked
    assert work.tiles == {missing}
    tuner.close()


def test_they_are_read_without_torch(job, stored, tmp_path):
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    code = (
        "import sys; from workbench import Job; from workbench.widgets.session import Session"
        f"\nsession = Session(Job.from_yaml({str(tmp_path / 'job.yaml')!r}))"
        f"\nback = session.read_stored({set(TILES)!r})"
        "\nprint(sorted(len(one.candidates) for one in back), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split("\n")[0] == f"{sorted(map(len, stored.values()))} False"


@pytest.mark.parametrize(
    "change",
    [{"model": "vit_b"}, {"points_per_side": 5}, {"overlap": 0.5}, {"resume": False}],
    ids=lambda change: next(iter(change)),
)
def test_tiles_of_another_job_are_left_to_the_process(job, change):
    with closing(Session(job.changed(**change))) as session:
        assert session.read_stored(TILES) == []


def test_tiles_of_other_weights_are_left_to_the_process(job, tmp_path):
    record = read_record(tmp_path / "run")
    segmenter = record.segmenter | {"weights_sha256": "0" * 64}
    write_record(tmp_path / "run", record.model_copy(update={"segmenter": segmenter}))
    with closing(Session(job)) as session:
        assert session.read_stored(TILES) == []


def test_a_damaged_record_is_left_to_the_process(job, tmp_path):
    with closing(Session(job)) as session:
        (tmp_path / "run" / "run.yaml").write_text("nothing: that a run writes")
        assert session.read_stored(TILES) == []


@pytest.mark.parametrize("model", ["classic", *(name for name in MODELS if "hq" not in name)])
def test_the_key_is_known_before_the_network_is_loaded(model):
    job = Job.create(model=model, points_per_side=12, crop_n_layers=1)
    there = plain(segmenter_for(job, {}).key)
    assert plain(key_before_loading(job, there)) == there
    chosen = job.changed(device="cpu", precision="fp32")
    assert plain(key_before_loading(chosen, there)) == plain(segmenter_for(chosen, there).key)


def test_where_the_key_cannot_be_known_it_is_not_guessed(tmp_path):
    job = Job.create(model="tiny")
    there = segmenter_for(job, {}).key
    assert key_before_loading(job, {}) is None
    assert key_before_loading(job.changed(model="vit_b"), there) is None
    assert key_before_loading(job.changed(checkpoint=str(tmp_path / "own.pth")), there) is None
    assert key_before_loading(job.changed(scheduler="tcp://127.0.0.1:1"), there) is None
