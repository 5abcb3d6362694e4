"""The tuner as a tool: its keys, its layout, and that nothing which was done is lost."""

import contextlib
import json

import pytest
from lab import jupyterlab, open_notebook, prelabel_notebook
from playwright.sync_api import TimeoutError
from test_prelabel import EXPECTED_COMPLAINTS, button, map_of, place_of_a_polygon, slider, undo

from workbench.samples.demo import sample_scene

SMALL = {"width": 1024, "height": 768}
LARGE = {"width": 1920, "height": 1080}
KEYS = (
    *"abcdefghijklmnopqrstuvwxyz0123456789", *"-=[];',./`", "Enter", "Escape", "Backspace",
    "Delete", "Insert", "Home", "End", "PageUp", "PageDown", "ArrowUp", "ArrowDown", "ArrowLeft",
    "ArrowRight", "Space", "F2", "F4", "F8",
)  # fmt: skip


# the old kernel's widgets, and those that JupyterLab does not wait for when a page is loaded again
OF_RESTARTS = ("Connection lost", "Failed to initialize model", "widget model not found")


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool") / "work"
    folder.mkdir()
    with jupyterlab(folder) as lab:
        yield lab


@pytest.fixture(scope="module")
def opened(chromium, lab):
    """The notebook on a small screen with JupyterLab's file browser open, run for all steps."""
    path = prelabel_notebook(
        lab.folder, source=str(sample_scene()), out_dir=str(lab.folder / "run"), tile_size=512,
        min_area_px=50, pred_iou_thresh=0.8, stability_score_thresh=0.8,
    )  # fmt: skip
    with open_notebook(chromium, lab, path, SMALL) as notebook:
        notebook.run_all()
        notebook.ask("tuner.panel.n_tiles.value = 2; tuner.panel.propose()")
        notebook.until("len(tuner.session.samples) == 2 and not tuner.session.busy", seconds=120)
        yield notebook
        unexpected = [
            text for text in notebook.complaints
            if not any(known in text for known in (*EXPECTED_COMPLAINTS, *OF_RESTARTS))
        ]  # fmt: skip
        assert unexpected == []


def cells(notebook):
    """The type, the code and whether it is folded of each cell, if the notebook is in front."""
    return notebook.page.evaluate(
        "window.jupyterapp.shell.currentWidget.title.label === 'prelabel.ipynb' && "
        "window.jupyterapp.shell.currentWidget.content.widgets.map("
        "c => [c.model.type, c.model.sharedModel.getSource(), c.inputHidden, c.outputHidden])"
    )


def click_even_disabled(notebook, button):
    """Click a button as a mouse does, which asks nobody whether the button is enabled."""
    button.hover()  # waits until it stands still and nothing covers it
    notebook.page.mouse.down()
    notebook.page.mouse.up()


def box_of(notebook, selector):
    return notebook.page.locator(selector).first.bounding_box()


def test_1_on_a_small_screen_the_map_has_room_and_the_controls_go_under_it(opened):
    assert opened.page.locator("#jp-left-stack").is_visible()
    tuner = box_of(opened, ".sam-workbench-tuner")
    view = map_of(opened, 1).bounding_box()
    side = box_of(opened, ".sam-workbench-tuner .sam-workbench-side")
    assert view["width"] > 500
    assert view["width"] > 0.9 * tuner["width"]
    assert side["y"] > view["y"] + view["height"]
    assert map_of(opened, 0).bounding_box()["width"] > 500
    opened.picture("tool-1-small-area")
    map_of(opened, 1)
    opened.picture("tool-1-small-tuner")
    wide = opened.page.evaluate(
        "[...document.querySelectorAll('.sam-workbench-panel, .sam-workbench-panel *')].filter("
        "e => e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflowX === 'auto')"
        ".map(e => e.className)"
    )
    assert wide == []  # nothing has to be scrolled sideways


def test_2_no_key_reaches_the_notebook(opened):
    page, before = opened.page, cells(opened)
    opened.ask("import dataclasses; state = tuner.session.state")
    places = {
        "a button": lambda: button(opened, "Good").click(),
        "the map": lambda: map_of(opened, 1).click(position={"x": 60, "y": 200}),
        "a slider": lambda: slider(opened, "predicted IoU"),
        "empty room": lambda: page.locator(".sam-workbench-tuner .sam-workbench-side").first.click(
            position={"x": 1, "y": 1}
        ),
        "a button that is then disabled": lambda: click_even_disabled(opened, undo(opened)),
    }  # fmt: skip
    for where, go in places.items():
        for modifier in ("", "Shift+", "Control+"):
            opened.until("not tuner.session.busy")
            go()
            for key in KEYS:
                if modifier == "Control+" and key in "wtnsfpr":
                    continue  # of the browser, or meant for JupyterLab
                page.keyboard.press(modifier + key)
                if page.locator(".sam-workbench-keys").count():
                    page.keyboard.press("Escape")
                if page.evaluate("Boolean(document.fullscreenElement)"):
                    page.evaluate("document.exitFullscreen()")
            assert cells(opened) == before, (where, modifier)
            assert page.locator(".jp-Dialog").count() == 0, (where, modifier)
            assert page.locator("#jp-left-stack").is_visible(), (where, modifier)
    button(opened, "Explain").click()
    # the keys have said and undone much
    opened.ask("tuner.session._become(dataclasses.replace(tuner.session.history, now=state))")
    opened.until("len(tuner.session.samples) == 2 and not tuner.session.busy")
    # Ctrl+A has not selected the text of the whole page
    assert page.evaluate("document.getSelection().toString().length") == 0
    # and they have moved the map
    map_of(opened, 1).get_by_title("the whole area, or the whole raster").click()
    page.wait_for_timeout(1200)


def test_3_a_question_mark_lists_the_keys(opened):
    button(opened, "Explain").click()
    opened.page.keyboard.press("?")
    listed = opened.page.locator(".sam-workbench-keys")
    assert "undo" in listed.inner_text()
    assert "this class; again takes it back" in listed.inner_text()
    opened.picture("tool-2-keys")
    opened.page.keyboard.press("Escape")
    assert listed.count() == 0


def test_4_ctrl_z_and_ctrl_shift_z_go_over_sliders_judgements_and_area(opened):
    page = opened.page
    start = opened.ask("print(len(tuner.session.history.past))")
    opened.ask("before = tuner.session.state")
    slider(opened, "predicted IoU")
    page.keyboard.press("ArrowRight")
    opened.until("len(tuner.session.history.past)", str(int(start) + 1))
    button(opened, "Good").click()
    page.mouse.click(*place_of_a_polygon(opened))
    opened.until("len(tuner.session.judged) > len(before.judged)")
    opened.ask(
        "l, b, r, t = picker.session.scenes[0].bounds\n"
        "from workbench.raster.crs import to_lonlat; import shapely, json\n"
        "x, y = to_lonlat(picker.session.scenes[0].crs, [l, (l + 9 * r) / 10], [b, t])\n"
        "part = shapely.box(x[0], y[0], x[1], y[1])\n"
        "from workbench.widgets.drawn_area import drawn_feature\n"
        "picker.panel.control.data = [drawn_feature(part)]"
    )
    opened.until("picker.session.job.aoi is not None")
    opened.ask("after = tuner.session.state")
    button(opened, "Explain").click()
    for _ in range(3):
        page.keyboard.press("Control+z")
    opened.until("tuner.session.state == before")
    opened.until("picker.panel.control.data", "[]")
    for _ in range(3):
        page.keyboard.press("Control+Shift+Z")
    opened.until("tuner.session.state == after")
    opened.until("len(picker.panel.control.data)", "1")


def test_5_the_answer_stands_beside_the_click(opened):
    button(opened, "Explain").click()
    x, y = place_of_a_polygon(opened)
    opened.page.mouse.click(x, y)
    opened.until("'kept' in tuner.panel.verdicts.text.value")
    answer = opened.page.locator(".sam-workbench-answer").first
    answer.wait_for(state="visible")
    opened.page.wait_for_timeout(400)
    box = answer.bounding_box()
    assert min(abs(box["y"] - y), abs(box["y"] + box["height"] - y)) < 40
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= SMALL["height"]
    opened.picture("tool-3-answer")


def test_6_the_list_sorts_points_out_and_goes_there(opened):
    page = opened.page
    listed = page.locator(".sam-workbench-list").first
    listed.locator("summary").click()
    rows = listed.locator("tbody tr")
    rows.first.wait_for()
    shown = int(page.locator("canvas.sam-workbench-polygons").first.get_attribute("data-shown"))
    assert 0 < rows.count() <= shown

    def column(n):
        texts = listed.locator(f"tbody tr td:nth-child({n})").all_inner_texts()
        return [float(text) for text in texts]

    assert column(2) == sorted(column(2))
    listed.get_by_role("button", name="confidence").click()
    assert column(2) == sorted(column(2), reverse=True)
    listed.get_by_role("button", name="stability").click()
    assert column(3) == sorted(column(3))
    rows.nth(2).hover()
    place = int(rows.nth(2).get_attribute("data-row"))
    rows.nth(2).click()
    opened.until(
        "tuner.panel.teaching.target", opened.ask(f"print(tuner.panel.drawn.row_at({place}))")
    )
    map_of(opened, 1)
    page.wait_for_timeout(1200)
    opened.picture("tool-4-list")
    map_of(opened, 1).evaluate("view => view.scrollIntoView({ block: 'end' })")
    page.wait_for_timeout(300)
    x, y = place_of_a_polygon(opened)
    box = map_of(opened, 1).bounding_box()
    if box["x"] < x < box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"]:
        page.mouse.move(x - 2, y)
        page.mouse.move(x, y, steps=3)
        listed.locator("tr.pointed").first.wait_for(state="attached", timeout=5000)
    listed.locator("summary").click()


def test_7_full_screen_gives_the_map_the_room(opened):
    before = map_of(opened, 1).bounding_box()
    opened.page.locator(".sam-workbench-tuner").get_by_role("button", name="Full screen").click()
    opened.page.wait_for_function("Boolean(document.fullscreenElement)")
    opened.page.wait_for_timeout(1500)
    after = map_of(opened, 1).bounding_box()
    opened.picture("tool-5-full-screen")
    assert after["width"] > before["width"]
    opened.page.keyboard.press("f")
    opened.page.wait_for_function("!document.fullscreenElement")


def test_8_a_restarted_kernel_brings_all_back(opened):
    opened.ask(
        "tuner.panel.settings._keep(); tuner.session.change(min_area_px=77)\n"
        "tuner.session.judged = {tuner.panel.preview.key(int(tuner.panel.view.kept[0])): True}\n"
        "s = tuner.session.state"
    )
    what = (
        "import json; print(json.dumps([tuner.job.aoi, tuner.job.min_area_px,"
        " tuner.job.pred_iou_thresh, sorted(tuner.session.tiles),"
        " sorted(map(list, tuner.session.judged)), tuner.session.other is not None]))"
    )
    before = json.loads(opened.ask(what))
    assert before[0] is not None
    opened.page.wait_for_timeout(1000)
    opened.restart()
    opened.run_all()
    opened.until("'tuner' in globals() and len(tuner.session.samples) == 2", seconds=60)
    assert json.loads(opened.ask(what)) == before
    map_of(opened, 1)
    opened.page.wait_for_timeout(1500)
    opened.picture("tool-6-restarted")


def test_9_the_end_of_a_run_has_links_and_the_report_opens_in_jupyterlab(opened):
    run = button(opened, "Run here")
    run.scroll_into_view_if_needed()
    run.click()
    report = opened.page.locator(".sam-workbench-links").get_by_role("button", name="Report")
    report.wait_for(timeout=120_000)
    opened.picture("tool-7-links")
    report.click()
    opened.page.locator(".jp-HTMLViewer, .jp-HTMLContainer, iframe").first.wait_for(timeout=30_000)
    opened.page.wait_for_timeout(1500)
    opened.picture("tool-8-report")
    opened.page.evaluate("window.jupyterapp.shell.currentWidget.close()")


def test_9_a_page_that_is_loaded_again_shows_the_run_that_is_under_way(opened):
    page = opened.page
    opened.ask(
        "import shutil; shutil.rmtree(tuner.session.folder / 'candidates', ignore_errors=True)"
    )
    run = button(opened, "Run here")
    run.scroll_into_view_if_needed()
    run.click()
    opened.until("tuner.session.busy")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(500)
    panel = page.locator(".sam-workbench-run")
    for _ in range(3):
        page.reload()
        page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=90_000)
        with contextlib.suppress(TimeoutError):
            panel.wait_for(timeout=40_000)
            break  # else the kernel was too slow for JupyterLab, and a person tries again
    panel.get_by_role("button", name="Report").wait_for(timeout=120_000)
    opened.picture("tool-8b-reloaded")
    assert opened.ask("print(tuner.session.busy)") == "False"
    assert page.locator("canvas.sam-workbench-polygons").count() >= 1  # the maps are there, too


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_wide_screens_have_the_controls_beside_the_map(chromium, lab, theme):
    path = lab.folder / "prelabel.ipynb"
    with open_notebook(chromium, lab, path, LARGE) as notebook:
        notebook.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
        )
        notebook.run_all()
        notebook.until("'tuner' in globals() and len(tuner.session.samples) == 2", seconds=60)
        view = map_of(notebook, 1).bounding_box()
        side = box_of(notebook, ".sam-workbench-tuner .sam-workbench-side")
        name = theme.split()[-1].lower()
        notebook.page.wait_for_timeout(2500)
        notebook.picture(f"tool-9-wide-{name}")
        map_of(notebook, 0)
        notebook.page.wait_for_timeout(800)
        notebook.picture(f"tool-9-wide-{name}-area")
        assert notebook.barriers(".sam-workbench-panel") == []
        assert side["x"] > view["x"] + view["width"]
        assert view["width"] > 2 * side["width"]
        assert view["height"] > 500


@pytest.mark.parametrize(
    ("parameters", "told"),
    [({"source": "nowhere/ortho.tif"}, "ortho.tif"), ({"bands": [1, 2, 9]}, "band")],
)
def test_a_mistake_is_one_red_sentence_and_run_all_stops_in_sight_of_it(
    chromium, lab, parameters, told
):
    folder = lab.folder / told
    folder.mkdir()
    usual = {"source": str(sample_scene()), "out_dir": str(folder / "run")}
    path = prelabel_notebook(folder, **usual | parameters)
    with open_notebook(chromium, lab, path, SMALL) as notebook:
        page = notebook.page
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        error = page.locator(".jp-OutputArea-output[data-mime-type*=err]").first
        error.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        assert told in error.inner_text()
        assert "Traceback" not in error.inner_text()
        box = error.bounding_box()
        notebook.picture(f"tool-10-mistake-{told}")
        assert 0 <= box["y"] < SMALL["height"] - 20
        details = page.locator("details", has_text="Details").first
        assert not details.locator("pre").is_visible()
        details.locator("summary").click()
        assert "Traceback" in details.locator("pre").inner_text()
        assert notebook.ask("print('tuner' in globals())") == "False"
