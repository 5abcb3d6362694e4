"""Choosing files, opening them in place of the cell's, and links to those of a run."""

import json
import shutil
from pathlib import Path

import pytest
from test_widgets_overlay import in_javascript

from workbench import Job
from workbench._support import notebook
from workbench.errors import SceneError
from workbench.widgets import AOIPicker, cells
from workbench.widgets.file_browser import FileBrowser


def test_a_folder_is_entered_and_a_file_is_chosen(tmp_path):
    (tmp_path / "rasters").mkdir()
    (tmp_path / "rasters" / "ortho.tif").touch()
    (tmp_path / "area.gpkg").touch()
    (tmp_path / ".hidden").touch()
    browser = FileBrowser(tmp_path, "")
    assert browser.chosen is None
    browser.browse.value = True
    assert [name for _, name in browser.list.options] == ["..", "rasters", "area.gpkg"]
    browser.list.value = "rasters"
    assert browser.chosen == tmp_path / "rasters"
    browser.list.value = "ortho.tif"
    assert browser.path.value == str(tmp_path / "rasters" / "ortho.tif")
    browser.list.value = ".."
    assert browser.chosen == tmp_path
    browser.browse.value = False
    browser.path.value = str(tmp_path / "rasters" / "gone.tif")
    browser.browse.value = True  # in the nearest folder that there is
    assert [name for _, name in browser.list.options] == ["..", "ortho.tif"]


@pytest.fixture
def job(raster, tmp_path):
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), tile_size=128, interactive=True
    )


def test_a_raster_a_job_file_and_a_run_folder_can_be_opened(job, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "_cell", lambda: "area")
    monkeypatch.setattr(cells, "_of_cells", {})
    monkeypatch.setattr(cells, "_shown_in_cells", {})
    monkeypatch.chdir(tmp_path)
    picker = AOIPicker(job)
    frame = picker.frame

    def open_path(path):
        picker.panel.files.path.value = str(path)
        picker.panel.files.open()

    open_path(tmp_path / "nothing.tif")
    assert "nothing.tif" in picker.panel.files.notice.value
    assert picker.session.scenes[0].name == "scene"  # nothing was changed
    copy = shutil.copy(job.source, tmp_path / "other.tif")
    open_path(copy)
    assert picker.session.scenes[0].name == "other"
    assert picker.session.folder == tmp_path / "runs" / "other"
    assert picker.frame is frame  # what the page shows
    assert frame.children == (picker.panel.widget,)
    saved = tmp_path / "mine.yaml"
    saved.write_text(job.changed(planar=True, out_dir=str(tmp_path / "run3")).to_yaml())
    open_path(saved)
    assert picker.job.planar
    assert picker.session.folder == tmp_path / "run3"
    folder = tmp_path / "old run"
    folder.mkdir()
    (folder / "job.yaml").write_text(job.changed(min_area_px=33).to_yaml())
    open_path(folder)
    assert picker.job.min_area_px == 33
    assert picker.session.folder == folder
    picker.panel.files.go_back()
    assert picker.job == job
    picker.close()


def test_an_area_that_misses_the_scene_changes_nothing_and_says_where_it_lies(tmp_path, job):
    picker = AOIPicker(job)
    panel = picker.panel
    area = {
        "type": "Polygon", "coordinates": [[[16, 49], [16.1, 49], [16.1, 49.1], [16, 49]]],
    }  # fmt: skip
    (tmp_path / "far.geojson").write_text(json.dumps(area))
    panel.files.path.value = str(tmp_path / "far.geojson")
    before = panel.session.state
    panel.files.load()
    assert panel.session.job == before.job
    assert panel.session.area is not None
    assert "far.geojson does not touch the raster" in panel.files.notice.value
    assert "km to the north-east" in panel.files.notice.value
    assert "49.05000° N, 16.05000° E" in panel.files.notice.value
    picker.close()


def test_a_file_is_found_on_the_server_that_shows_it(tmp_path):
    cases = [
        ("/home/ann/work/runs/a/report.html", "~/work", "/home/ann"),
        ("/home/ann/work/runs/a/report.html", "/home/ann/work/", "/home/ann"),
        ("/data/runs/a/report.html", "~", "/home/ann"),
        ("/home/ann/workshop/report.html", "~/work", "/home/ann"),
    ]
    code = f"return {json.dumps(cases)}.map((one) => module.pathOnServer(...one))"
    inside = "runs/a/report.html"
    assert in_javascript("links.js", code, tmp_path) == [inside, inside, None, None]


def test_the_list_sorts_both_ways_and_what_has_no_value_comes_last(tmp_path):
    code = (
        "const value = [0.5, NaN, 0.9, 0.5]; const of = (row) => value[row];"
        "return [module.sorted([0, 1, 2, 3], of, false), module.sorted([0, 1, 2, 3], of, true)]"
    )
    assert in_javascript("object_list.js", code, tmp_path) == [[0, 3, 2, 1], [2, 0, 3, 1]]


class Shell:
    """What a kernel does with an error."""

    def __init__(self):
        self.sent = []

    def _showtraceback(self, kind, error, lines):
        self.sent.append((kind, lines))


def test_an_error_of_ours_is_one_red_sentence_with_its_traceback_folded(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    shell = Shell()
    try:
        raise SceneError("<b>ortho.tif</b>: no such file.")
    except SceneError as error:
        told = notebook._show_in_short(shell, SceneError, error, error.__traceback__)
    ((kind, lines),) = shell.sent
    assert kind is SceneError
    assert lines == told == ["\x1b[1;31m<b>ortho.tif</b>: no such file.\x1b[0m"]
    (folded,) = shown
    assert "Traceback" in folded["text/html"]
    assert "<b>" not in folded["text/html"]


def test_in_a_batch_errors_are_shown_in_full(monkeypatch):
    monkeypatch.setattr(notebook, "_kernel_allows_input", lambda: False)
    monkeypatch.setenv("JPY_SESSION_NAME", str(Path("a.ipynb")))
    asked = []
    monkeypatch.setattr(notebook, "show_errors_in_short", lambda: asked.append(1))
    monkeypatch.setattr("workbench.runs.parameters.show_errors_in_short", lambda: asked.append(1))
    Job.from_notebook({"planar": True, "interactive": False})
    assert asked == []
