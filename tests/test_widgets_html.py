"""What a file names is text in every widget, and never HTML."""

import ast
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from ipywidgets import HTML
from ipywidgets.widgets.widget import _instances
from known_objects import objects, write_labels
from odd_names import MARKUP, name_crs
from reviews import save_reviewed

import workbench
from workbench import Job, run
from workbench.candidates.store import TileRecord
from workbench.tuning.process import Finished, Planned, Stopped, TileDone
from workbench.widgets import AOIPicker, RunPanel, ThresholdTuner
from workbench.widgets.map import SceneMap
from workbench.widgets.safe_html import Markup, SafeHTML, paragraph, sentence, table
from workbench.widgets.session import Session

WIDGETS = Path(workbench.__file__).parent / "widgets"
OURS = {
    "b",
    "br",
    "code",
    "div",
    "li",
    "p",
    "pre",
    "span",
    "table",
    "tbody",
    "td",
    "th",
    "tr",
    "ul",
}


class Tags(HTMLParser):
    """The tags of a page, and the attributes that they have."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check_pages(least):
    """Whether every text on the page has only our own tags, and `least` show the hostile name."""
    pages = [widget.value for widget in _instances.values() if isinstance(widget, HTML)]
    for page in pages:
        told = Tags(page)
        assert told.tags <= OURS, page
        assert told.attributes <= {"style", "role", "class", "border"}, page
    assert sum("&lt;img" in page for page in pages) >= least


@pytest.fixture
def odd(tmp_path):
    """A raster whose name and CRS are HTML."""
    path = write_labels(tmp_path / f"{MARKUP}.tif", objects((230, 330), 1))
    return name_crs(path, MARKUP)


@pytest.fixture
def picker(odd, tmp_path, monkeypatch):
    folder = tmp_path / f"{MARKUP}run"
    job = Job.create(
        source=str(odd), out_dir=str(folder), tile_size=128, interactive=True, classes={1: MARKUP}
    )
    made = AOIPicker(job)
    monkeypatch.setattr(made.session, "compute", lambda tiles, listener: None)
    yield made
    made.close()


def test_the_name_of_a_crs_is_text(picker):
    scene_map = picker.panel.scene_map
    assert picker.session.scenes[0].crs.name == MARKUP
    assert "&lt;img" in scene_map.cursor.value
    assert Tags(scene_map.cursor.value).tags == {"span"}
    scene_map.map._handle_leaflet_event(
        None, {"event": "interaction", "type": "mousemove", "coordinates": [47.8, 15.0]}, []
    )
    assert re.search(r"E -?\d.*&lt;img", scene_map.cursor.value)
    assert Tags(scene_map.cursor.value).tags == {"span"}


def test_names_and_errors_are_text_in_tuner_and_run_panel(picker, tmp_path):
    session = picker.session
    name = session.scenes[0].name
    tuner = ThresholdTuner(picker)
    run_panel = RunPanel(tuner)
    tuner, panel = tuner.panel, run_panel.panel
    panel.start()
    failed = TileDone(TileRecord(name, 0, 0, "failed", error=MARKUP), None, stored=False)
    for hear in (tuner.tiles._hear, panel.hear):
        hear(Planned(4, 0))
        hear(failed)
        check_pages(3)
        hear(Stopped(f"{MARKUP} stopped"))
    assert "&lt;img src=x onerror=alert(1)&gt; stopped" in tuner.message.value
    assert "&lt;img src=x onerror=alert(1)&gt; stopped" in panel.message.value
    assert panel.failures.value.count("&lt;img") == 2
    panel.file.path.value = str(tmp_path / f"{MARKUP}.yaml")
    panel.file.save()
    assert "&lt;img" in panel.file.command.value
    for preset in (f"{MARKUP}", "none such"):
        tuner.settings.preset.value = preset
        tuner.settings._save_preset()
        tuner.settings._load_preset()
    (tmp_path / "presets" / f"{MARKUP}.yaml").write_text(f"model: '{MARKUP}'")
    tuner.settings.preset.value = MARKUP
    tuner.settings._load_preset()
    assert "&lt;img" in tuner.settings.message.value
    check_pages(5)
    session.change(aoi=f"{MARKUP}.gpkg")
    assert "&lt;img" in picker.panel.problem.value
    picker.panel.files.path.value = str(tmp_path / f"{MARKUP}.geojson")
    picker.panel.files.load()
    assert "&lt;img" in picker.panel.files.notice.value
    check_pages(6)


@pytest.mark.usefixtures("known_objects_only")
def test_names_are_text_in_the_result_of_a_run(picker):
    result = run(picker.session.job.changed(interactive=False))
    panel = RunPanel(ThresholdTuner(picker)).panel
    panel.start()
    panel.hear(Finished(result.folder, f"{MARKUP} failed"))
    assert "<table" in panel.result.value
    assert "&lt;img" in panel.result.value
    check_pages(4)
    save_reviewed(result.layer.assign(status="accepted"), result.folder / "prelabels.gpkg")
    panel.file.save()
    check_pages(4)


def test_damage_of_a_raster_is_text(odd, tmp_path):
    session = Session(Job.create(source=str(odd), out_dir=str(tmp_path / "run")))
    for scene in session.scenes:
        scene.close()
    odd.unlink()
    scene_map = SceneMap(session)
    end = time.monotonic() + 20
    while "cannot be read" not in scene_map.message.value and time.monotonic() < end:
        time.sleep(0.02)
    assert "&lt;img" in scene_map.message.value
    assert Tags(scene_map.message.value).tags == {"div"}
    scene_map.close()


def test_only_markup_is_html():
    text = SafeHTML(MARKUP)
    assert text.value == "&lt;img src=x onerror=alert(1)&gt;"
    text.value = sentence(MARKUP)
    assert Tags(text.value).tags == {"div"}
    text.value = paragraph(MARKUP)
    assert Tags(text.value).tags == {"div"}
    text.value = Markup("<b>{}</b>").format(MARKUP)
    assert text.value == "<b>&lt;img src=x onerror=alert(1)&gt;</b>"
    text.value = table(pd.DataFrame({"a": [MARKUP]}, index=[MARKUP]))
    assert "<img" not in text.value
    text.set_state({"value": MARKUP})  # as a browser would
    assert "<img" not in text.value


def names_called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(
                function, "id", ""
            )  # fmt: skip
            yield name, node


def test_one_module_makes_html_of_text():
    for path in sorted(WIDGETS.parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "widgets" not in text or path.name == "safe_html.py":
            continue
        tree = ast.parse(text)
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes & {"HTML", "HTMLMath", "description_allow_html"}, path.name
        for name, call in names_called(tree):
            assert name not in ("HTML", "HTMLMath"), path.name
            if name == "Markup":  # an f-string would put in what is not escaped
                assert isinstance(call.args[0], ast.Constant), f"{path.name}:{call.lineno}"


def test_the_javascript_sets_text_and_no_html():
    for path in WIDGETS.glob("*.js"):
        told = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", told), path
