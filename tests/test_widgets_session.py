"""What the widgets share: one job, its area, and memory for cells that run again."""

import ast
import shutil
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
from shapely.geometry import box, mapping

import workbench
from workbench import Job
from workbench.candidates.store import TileRecord
from workbench.errors import JobError
from workbench.raster.crs import to_lonlat
from workbench.tuning.process import TileDone
from workbench.widgets import cells
from workbench.widgets.cells import CellWidget, session_of_cell
from workbench.widgets.session import Session


@pytest.fixture
def job(raster, tmp_path):
    return Job.create(source=str(raster), out_dir=str(tmp_path / "run"), tile_size=128)


def part_of(session, share):
    """GeoJSON of the left part of the scene."""
    left, bottom, right, top = session.scenes[0].bounds
    x = left + share * (right - left)
    lon, lat = to_lonlat(session.scenes[0].crs, [left, x], [bottom, top])
    return mapping(box(lon[0], lat[0], lon[1], lat[1]))


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
    assert session_of_cell(job).job == job


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
            made = traits.union(*(assigned(f) for f in functions if f.name == "__init__"))
            for function in functions:
                late = assigned(function) - made
                assert not late, f"{path.name}: {kind.name}.{function.name} makes {late}"
