"""What the widgets share: one job, its area, and memory for cells that run again."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import geopandas as gpd
import ipywidgets as widgets
import pytest
from known_runs import until
from shapely.geometry import box, mapping

import workbench
from workbench import Job
from workbench.candidates.store import TileRecord
from workbench.errors import ExamplesError, JobError, SceneError
from workbench.learning.features import FEATURES
from workbench.learning.verdicts import VERDICTS, read_verdicts
from workbench.raster.crs import to_lonlat
from workbench.tuning.process import Stopped, TileDone
from workbench.widgets import cells
from workbench.widgets.cells import CellWidget, open_job, session_of_cell
from workbench.widgets.saved import KEPT, UNREADABLE
from workbench.widgets.session import Session


@pytest.fixture
def job(raster, tmp_path):
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), tile_size=128, interactive=True
    )


def part_of(session, share):
    """GeoJSON of the left part of the scene."""
    left, bottom, right, top = session.scenes[0].bounds
    x = left + share * (right - left)
    lon, lat = to_lonlat(session.scenes[0].crs, [left, x], [bottom, top])
    return json.loads(json.dumps(mapping(box(lon[0], lat[0], lon[1], lat[1]))))


def test_the_area_follows_the_aoi_and_a_bad_one_is_a_sentence(job):
    session = Session(job)
    whole = session.area.n_tiles
    seen = []
    session.observe(lambda change: seen.append(change["name"]), ["area", "problem"])
    session.change(aoi=part_of(session, 0.2))
    assert 0 < session.area.n_tiles < whole
    assert session.area.aoi.area > 0
    session.change(aoi=mapping(box(0, 0, 1, 1)))
    assert session.area is None
    assert "does not intersect" in session.problem
    session.change(aoi=None)
    assert session.area.n_tiles == whole
    assert session.problem == ""
    assert {"area", "problem"} <= set(seen)


def test_a_bad_value_changes_nothing(job):
    session = Session(job)
    with pytest.raises(JobError, match="pred_iou_thresh"):
        session.change(pred_iou_thresh=2)
    assert session.job == job


def test_thresholds_leave_the_area_alone(job):
    session = Session(job)
    area = session.area
    session.change(pred_iou_thresh=0.9, planar=True)
    assert session.area is area
    assert session.job.planar


def test_a_timed_tile_makes_a_forecast(job):
    session = Session(job)
    session._hear(TileDone(TileRecord("scene", 0, 0, "empty", seconds=4.0), None, stored=True))
    assert session.forecast.seconds_per_tile is None
    session._hear(TileDone(TileRecord("scene", 0, 0, "empty", seconds=4.0), None, stored=False))
    assert session.forecast.seconds_per_tile == 4.0


def test_a_cell_that_runs_again_keeps_what_was_done_by_hand(job, monkeypatch):
    monkeypatch.setattr(cells, "_cell", lambda: "cell-1")
    monkeypatch.setattr(cells, "_of_cells", {})
    first = session_of_cell(job)
    first.change(pred_iou_thresh=0.95, min_area_px=20, planar=True)
    first.judged = {("scene", 0, 0, 1): True}
    again = session_of_cell(job.changed(min_area_px=77))
    assert again.job.pred_iou_thresh == 0.95
    assert again.job.planar
    assert again.job.min_area_px == 77  # the notebook's own change counts more
    assert again.judged == first.judged
    # other tiles: what was known of the candidates is of no use
    assert session_of_cell(job.changed(tile_size=96)).judged == {}
    monkeypatch.setattr(cells, "_cell", lambda: "cell-2")
    other = job.changed(out_dir=f"{job.out_dir}-2")
    assert session_of_cell(other).job == other


def test_another_source_begins_with_what_the_cell_says(job, raster, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_cell", lambda: "cell-1")
    monkeypatch.setattr(cells, "_of_cells", {})
    first = session_of_cell(job)
    first.change(pred_iou_thresh=0.95, min_area_px=20, aoi=part_of(first, 0.2))
    first.judged = {("scene", 0, 0, 1): True}
    other = job.changed(source=str(shutil.copy(raster, tmp_path / "other.tif")))
    second = session_of_cell(other)
    assert second.job == other
    assert second.judged == {}
    assert second.area.n_tiles > first.area.n_tiles
    second.change(pred_iou_thresh=0.7)
    assert session_of_cell(other).job.pred_iou_thresh == 0.7


class Shown:
    """A panel that knows whether it was closed."""

    def __init__(self, session):
        self.session, self.widget, self.closed = session, widgets.HTML(), False

    def tell(self, text):
        pass

    def close(self):
        self.closed = True


def test_a_panel_replaces_only_its_own_kind_in_its_own_cell(job, monkeypatch):
    class Other(CellWidget):
        pass

    monkeypatch.setattr(cells, "_cell", lambda: "cell-1")
    monkeypatch.setattr(cells, "_shown_in_cells", {})
    one, another = (SimpleNamespace(job=job.changed(interactive=True)) for _ in range(2))
    first, other = CellWidget(one, Shown), Other(one, Shown)
    panel = first.panel
    assert CellWidget(one, Shown).panel is panel  # the same session: nothing is made or lost
    second = CellWidget(another, Shown)
    assert second.panel is not panel
    assert panel.closed
    assert panel.widget.comm is None
    assert not other.panel.closed
    monkeypatch.setattr(cells, "_cell", lambda: "cell-2")
    assert CellWidget(one, Shown).panel is not other.panel
    assert not second.panel.closed


def test_in_a_batch_run_there_is_no_panel(job):
    shown = CellWidget(SimpleNamespace(job=job.changed(interactive=False)), pytest.fail)
    assert shown.panel is None
    assert shown._repr_mimebundle_() == {"text/plain": ""}


def assigned(function):
    """The names of the attributes that a method assigns to `self`."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name) and node.value.id == "self"
    }  # fmt: skip


@pytest.mark.parametrize("room", ["widgets", "tuning"])
def test_an_object_is_complete_once_it_is_made(room):
    made, methods, bases = {}, {}, {}
    for path in sorted((Path(workbench.__file__).parent / room).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            functions = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
            traits = {
                target.id
                for node in kind.body if isinstance(node, ast.Assign | ast.AnnAssign)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name)
            }  # fmt: skip
            name = kind.name
            made[name] = traits.union(*(assigned(f) for f in functions if f.name == "__init__"))
            methods[name] = {f"{path.name}: {name}.{f.name}": assigned(f) for f in functions}
            bases[name] = [ast.unparse(base) for base in kind.bases]
    for name in made:
        known = made[name].union(*(made.get(base, ()) for base in bases[name]))
        for method, names in methods[name].items():
            assert names <= known, f"{method} makes {names - known}"


# ---- nothing that was done is lost ----------------------------------------------------------


def closed(session):
    """What is in the run folder once a session has ended."""
    session.close()
    return json.loads((session.folder / KEPT).read_text())


def test_everything_done_by_hand_comes_back_after_a_restart(job):
    first = Session(job)
    first.change(aoi=part_of(first, 0.5))
    first.change(pred_iou_thresh=0.95, min_area_px=20, planar=True)
    first.other = first.job
    first.change(pred_iou_thresh=0.93)
    first.tiles = frozenset({("scene", 0, 0), ("scene", 0, 1)})
    first.judged = {("scene", 0, 0, 1): True, ("scene", 0, 1, 7): False}
    closed(first)
    again = Session(job)
    files = {name: getattr(again, name) for name in ("verdicts", "by_hand", "exemplars")}
    assert again.state == dataclasses.replace(first.state, **files)
    assert again.area.n_tiles == first.area.n_tiles
    again.close()


def test_session_json_is_written_as_changes_are_made(job):
    session = Session(job)
    assert not (session.folder / KEPT).exists()  # nothing was done yet
    session.change(pred_iou_thresh=0.95)
    until(lambda: (session.folder / KEPT).exists(), 10)
    assert json.loads((session.folder / KEPT).read_text())["changed"] == {"pred_iou_thresh": 0.95}
    session.close()


def test_a_batch_run_neither_reads_nor_writes_it(job):
    first = Session(job)
    first.change(pred_iou_thresh=0.95)
    closed(first)
    batch = Session(job.changed(interactive=False))
    assert batch.job.pred_iou_thresh is None
    batch.change(pred_iou_thresh=0.9)
    assert closed(batch)["changed"] == {"pred_iou_thresh": 0.95}


def test_candidates_of_another_model_are_not_judged_anew(job):
    first = Session(job)
    first.tiles = frozenset({("scene", 0, 0)})
    first.judged = {("scene", 0, 0, 1): True}
    closed(first)
    again = Session(job.changed(tile_size=96))
    assert (again.tiles, again.judged) == (frozenset(), {})
    again.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"version": 2, "given": {}}', "version"),
        ('{"version": 1, "given": {}, "tiles": [["s", "x", 1]]}', "tiles"),
        ('{"version": 1, "given": {}, "changed": {"pred_iou_thresh": 7}}', "pred_iou_thresh"),
        ('{"version": 1, "given": {}, "changed": {"rm": "-rf"}}', "rm"),
        ('{"version": 1, "given": {}, "more": 1}', "more"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_not_ours_is_one_sentence_and_set_aside(job, content, reason):
    folder = Path(job.out_dir)
    folder.mkdir()
    (folder / KEPT).write_text(content)
    session = Session(job)
    assert session.job == job
    assert "holds no session that this version can read" in session.notice
    assert reason in session.notice
    assert "\n" not in session.notice
    assert (folder / UNREADABLE).read_text() == content
    session.change(planar=True)
    assert closed(session)["changed"] == {"planar": True}


def test_a_file_may_not_name_a_scheduler_or_another_source(job):
    folder = Path(job.out_dir)
    folder.mkdir()
    evil = {"scheduler": "tcp://evil:1", "source": "/etc/passwd", "out_dir": "/", "planar": True}
    given = {**job.parameters(), "scheduler": None}
    (folder / KEPT).write_text(json.dumps({"version": 1, "given": given, "changed": evil}))
    session = Session(job)
    assert session.job == job.changed(planar=True)
    session.close()


def test_undo_and_redo_go_over_area_sliders_tiles_and_judgements(job):
    session = Session(job)
    states = [session.state]

    def do(**changes):
        for name, value in changes.items():
            setattr(session, name, value)
        states.append(session.state)

    session.change(aoi=part_of(session, 0.5))
    states.append(session.state)
    session.change(pred_iou_thresh=0.95)
    states.append(session.state)
    do(tiles=frozenset({("scene", 0, 0)}))
    do(judged={("scene", 0, 0, 1): True})
    do(other=session.job)
    for state in reversed(states[:-1]):
        session.undo()
        assert session.state == state
    assert session.area.aoi is None
    session.undo()  # nothing is left
    for state in states[1:]:
        session.redo()
        assert session.state == state
    session.undo()
    session.change(planar=True)  # what was taken back is gone now
    assert session.history.future == ()
    session.close()


def test_a_verdict_and_what_the_job_learns_from_are_one_step(job, tmp_path):
    session = Session(job)
    frames = [described(session, n) for n in range(2)]
    none = session.verdicts
    session.say(none.with_verdict(frames[0], 1))
    one = session.verdicts
    session.say(one.with_verdict(frames[1], 0))
    assert session.job.examples == [str(session.folder / VERDICTS)]
    session.undo()
    assert session.verdicts is one
    assert session.job.examples is None
    assert len(read_verdicts(session.folder / VERDICTS, session.scenes[0].crs)) == 1
    session.undo()
    assert session.verdicts is none
    session.redo()
    session.redo()
    assert len(read_verdicts(session.folder / VERDICTS, session.scenes[0].crs)) == 2
    session.close()


def described(session, ordinal):
    """A candidate as the tuner describes it when a person says its class."""
    left, bottom = session.scenes[0].bounds[:2]
    shape = box(left + 9 * ordinal, bottom, left + 9 * ordinal + 8, bottom + 8)
    columns = {"source": "scene", "tile": "scene/r0c0", "ordinal": ordinal}
    columns |= dict.fromkeys(FEATURES, 0.5)
    return gpd.GeoDataFrame([columns], geometry=[shape], crs=session.scenes[0].crs)


def test_another_window_is_noticed_and_nothing_is_written_over(job):
    one, two = Session(job), Session(job)
    one.change(planar=True)
    one.say(one.verdicts.with_verdict(described(one, 0), 1))
    one._keeper.flush()
    two.change(min_area_px=20)
    two._keeper.flush()
    assert "Another window" in two.notice
    assert json.loads((one.folder / KEPT).read_text())["changed"] == {"planar": True}
    with pytest.raises(ExamplesError, match="another window"):
        two.say(two.verdicts.with_verdict(described(two, 1), 1))
    assert len(read_verdicts(one.folder / VERDICTS, one.scenes[0].crs)) == 1
    assert one.notice == ""
    for session in (one, two):
        session.close()


def test_a_job_that_was_opened_comes_back_after_a_restart(job, raster, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_cell", lambda: "cell-1")
    monkeypatch.setattr(cells, "_of_cells", {})
    monkeypatch.setattr(cells, "_shown_in_cells", {})
    first = session_of_cell(job)
    first.change(planar=True)
    shown = CellWidget(first, Shown)
    copy = str(shutil.copy(raster, tmp_path / "other.tif"))
    second = open_job(first, job.changed(source=copy, out_dir=str(tmp_path / "run2")))
    assert shown.session is second
    assert shown.panel.session is second
    assert second.scenes[0].name == "other"
    assert not second.job.planar
    second.change(min_area_px=20)
    closed(second)
    again = Session(job)
    assert again.job == second.job
    assert again.folder == tmp_path / "run2"
    back = open_job(again, None)
    assert back.scenes[0].name == "scene"
    assert back.job.planar  # what was done there is there
    with pytest.raises(SceneError):
        open_job(back, job.changed(source=str(tmp_path / "nowhere.tif")))
    assert Session(job.changed(source=copy)).job.source == copy  # the cell has the last word
    back.close()


def test_a_run_that_ended_with_its_kernel_is_remembered(job):
    first = Session(job)
    first._background = SimpleNamespace(
        busy=False, start=lambda work: None, close=lambda: None, cancel=lambda: None
    )
    first.compute(None, lambda event: None)
    assert json.loads((first.folder / KEPT).read_text())["running"]
    again = Session(job)  # as after a crash
    assert again.interrupted
    first._hear(Stopped())
    again.close()
