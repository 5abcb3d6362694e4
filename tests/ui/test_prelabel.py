"""`prelabel.ipynb` in a real JupyterLab and a real browser, with mouse and keyboard."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from lab import jupyterlab, open_notebook, prelabel_notebook

from workbench.layer.files import read_layer
from workbench.samples.demo import sample_scene

POLYGONS = "canvas.sam-workbench-polygons"
# of the libraries, about themselves; and of the browser, about these tests' reading of pixels
EXPECTED_COMPLAINTS = (
    "Unsatisfied version", "willReadFrequently",
    "is taking too long to activate",  # a plugin of JupyterLab, on a busy machine
    "extensions/jupyter-leaflet",  # raised in there (`Object.keys`) once cells have run again
)  # fmt: skip


@pytest.fixture(scope="module", params=["/", "/user/alice/"], ids=["root", "hub"])
def opened(request, chromium, tmp_path_factory):
    """The notebook, opened and run once for all steps, which follow each other like a person's."""
    folder = tmp_path_factory.mktemp("lab") / "work"
    folder.mkdir()
    data = os.environ.get("WORKBENCH_TEST_DATA")
    source = Path(data).resolve() / "kampala/kampala_z20_a.tif" if data else sample_scene()
    path = prelabel_notebook(
        folder, source=str(source), out_dir=str(folder / "run"), model="classic", tile_size=512,
        overlap=0.0625,
        min_area_px=50, pred_iou_thresh=0.8, stability_score_thresh=0.8,
    )  # fmt: skip
    with jupyterlab(folder, request.param) as lab, open_notebook(chromium, lab, path) as notebook:
        notebook.name = "root" if request.param == "/" else "hub"
        notebook.run_all()
        yield notebook
        assert [u for u in notebook.requests if not u.startswith((lab.url, "data:", "blob:"))] == []
        unexpected = [
            text for text in notebook.complaints
            if not any(known in text for known in EXPECTED_COMPLAINTS)
        ]  # fmt: skip
        assert unexpected == []


def map_of(notebook, which):
    """The map of the area (0) or of the tuner (1), in sight."""
    view = notebook.page.locator(".leaflet-container").nth(which)
    view.scroll_into_view_if_needed()
    return view


def shown(notebook):
    """How many polygons the tuner's canvas shows."""
    return int(notebook.page.locator(POLYGONS).first.get_attribute("data-shown") or -1)


def until_shown(notebook, expression, seconds=20):
    """Wait until the canvas shows as many polygons as the kernel says."""
    for _ in range(int(seconds / 0.2)):
        if shown(notebook) == int(notebook.ask(f"print({expression})")):
            return shown(notebook)
        notebook.page.wait_for_timeout(200)
    raise AssertionError(f"{shown(notebook)} shown, {notebook.ask(f'print({expression})')} meant")


def coloured(notebook):
    """How many pixels of the tuner's canvas are painted."""
    return notebook.page.locator(POLYGONS).first.evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.filter((value, i) => i % 4 === 3 && value > 0).length"
    )


def slider(notebook, label):
    """The handle of a slider of the tuner, focused."""
    row = notebook.page.locator(".widget-slider", has_text=label).first
    handle = row.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    return handle


def button(notebook, text):
    """A button, of the area if both panels have it."""
    return notebook.page.get_by_role("button", name=text, exact=True).first


def undo(notebook):
    """The tuner's button."""
    return notebook.page.locator(".sam-workbench-tuner").get_by_role("button", name="Undo").first


def test_01_the_raster_is_on_the_map(opened):
    view = map_of(opened, 0)
    view.locator("img.leaflet-image-layer").first.wait_for()
    opened.page.wait_for_timeout(1000)
    opened.picture(f"{opened.name}-01-area")
    loaded = view.locator("img.leaflet-image-layer").first.evaluate("i => i.naturalWidth")
    assert loaded > 500


# what the browser shows, for it is told when a zoom has ended
SIDES = "[round(side, 5) for side in (picker.scene_map.map.west, picker.scene_map.map.east)]"


def test_01_the_wheel_scrolls_the_page_until_the_map_is_clicked(opened):
    view, page = map_of(opened, 0), opened.page
    whole = opened.ask(f"print({SIDES})")
    top = view.bounding_box()["y"]
    page.mouse.move(*centre_of(view))
    page.mouse.wheel(0, 40)
    page.wait_for_function(
        "top => document.querySelector('.leaflet-container').getBoundingClientRect().y < top",
        arg=top,
    )
    opened.picture(f"{opened.name}-01a-wheel")
    page.wait_for_timeout(500)  # Leaflet waits for more before it zooms
    assert opened.ask(f"print({SIDES})") == whole
    page.mouse.click(*centre_of(view))
    page.mouse.wheel(0, -100)
    opened.until(f"{SIDES}[1] < {whole}[1]")
    view.get_by_title("the whole area, or the whole raster").click()
    opened.until(SIDES, whole)


def centre_of(view):
    box = view.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def aoi_bounds(opened):
    """West, south, east, north of what Python has as the area, in degrees."""
    return np.array(
        json.loads(
            opened.ask(
                "import shapely; a = picker.session.job.aoi\n"
                "print(list(shapely.geometry.shape(a).bounds) if a else [])"
            )
        )
    )


def until_area(opened, meant):
    """Wait until the bounds of the area are as meant."""
    for _ in range(100):
        if meant(aoi_bounds(opened)):
            return aoi_bounds(opened)
        opened.page.wait_for_timeout(200)
    raise AssertionError(f"the area is {aoi_bounds(opened)}")


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=8)
    page.mouse.up()


def test_02_a_polygon_is_drawn_edited_moved_and_deleted(opened):
    view, page = map_of(opened, 0), opened.page
    x, y = centre_of(view)
    view.locator(".leaflet-pm-icon-polygon").click()
    # clear of the buttons that the tool shows while it draws
    corners = [(x - 100, y + 80), (x + 110, y + 60), (x + 60, y - 60)]
    for corner in [*corners, corners[0]]:  # the first once more ends it
        page.mouse.move(*corner, steps=3)
        page.mouse.click(*corner)
        page.wait_for_timeout(150)
    drawn = until_area(opened, lambda bounds: len(bounds) == 4)
    assert opened.ask("print(len(picker.session.job.aoi['coordinates'][0]))") == "4"
    opened.picture(f"{opened.name}-01b-polygon")

    view.locator(".leaflet-pm-icon-edit").click()
    drag(page, corners[1], (x + 170, y + 60))
    wider = until_area(opened, lambda bounds: bounds[2] > drawn[2] + 1e-6)
    assert wider[[0, 1, 3]] == pytest.approx(drawn[[0, 1, 3]], abs=2e-6)
    opened.picture(f"{opened.name}-01c-editing")
    view.locator(".leaflet-pm-icon-edit").click()

    view.locator(".leaflet-pm-icon-drag").click()
    drag(page, (x, y + 20), (x - 60, y + 20))
    moved = until_area(opened, lambda bounds: bounds[0] < wider[0] - 1e-6)
    assert moved - wider == pytest.approx(np.array([1, 0, 1, 0]) * (moved - wider)[0], abs=3e-6)
    view.locator(".leaflet-pm-icon-drag").click()

    view.locator(".leaflet-pm-icon-delete").click()
    page.mouse.click(x - 60, y + 20)
    until_area(opened, lambda bounds: len(bounds) == 0)
    view.locator(".leaflet-pm-icon-delete").click()
    assert "Whole raster" in opened.page.locator(".sam-workbench-aoi").inner_text()


def test_02_a_rectangle_is_drawn_by_keyboard(opened):
    view, page = map_of(opened, 0), opened.page
    whole = opened.ask(f"print({SIDES})")
    for keys in ([], ["ArrowDown", "ArrowRight", "ArrowDown", "ArrowRight"]):
        if not keys:
            view.get_by_role("button", name="Draw Rectangle").focus()
            page.keyboard.press("Enter")
            view.focus()
        for key in keys:
            page.keyboard.press(key)
            page.wait_for_timeout(400)
        page.keyboard.press("Enter")
    until_area(opened, lambda bounds: len(bounds) == 4)
    opened.picture(f"{opened.name}-01d-keyboard")
    button(opened, "Whole raster").click()
    until_area(opened, lambda bounds: len(bounds) == 0)
    opened.until(SIDES, whole)


def test_02_a_rectangle_becomes_the_area(opened):
    before = int(opened.ask("print(picker.session.area.n_tiles)"))
    view = map_of(opened, 0)
    view.locator(".leaflet-pm-icon-rectangle").click()
    box = view.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.click(x - 120, y - 130)
    opened.page.mouse.move(x, y, steps=5)
    opened.page.mouse.click(x + 60, y + 130)
    opened.until("picker.session.job.aoi is not None")
    after = int(opened.ask("print(picker.session.area.n_tiles)"))
    assert 0 < after < before
    opened.picture(f"{opened.name}-02-rectangle")


def test_03_proposed_tiles_are_computed_and_drawn(opened):
    button(opened, "Propose tiles").click()
    opened.page.wait_for_timeout(1500)
    opened.picture(f"{opened.name}-03-computing")
    opened.until("len(tuner.session.samples) >= 2 and not tuner.session.busy", seconds=180)
    n = until_shown(opened, "len(tuner.panel.view.kept)")
    assert n > 5
    assert coloured(opened) > 500
    opened.page.wait_for_timeout(1500)
    map_of(opened, 1)
    opened.picture(f"{opened.name}-04-polygons")


def test_04_sliders_move_polygons_by_keyboard_and_mouse(opened):
    n, pixels = shown(opened), coloured(opened)
    handle = slider(opened, "predicted IoU")
    for _ in range(14):
        opened.page.keyboard.press("ArrowRight")
    opened.until("round(tuner.job.pred_iou_thresh, 3)", "0.87")
    fewer = until_shown(opened, "len(tuner.panel.view.kept)")
    assert fewer < n
    assert coloured(opened) != pixels
    box = handle.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] - 60, box["y"] + 5, steps=12)
    opened.page.mouse.up()
    opened.until("tuner.job.pred_iou_thresh < 0.85")
    assert until_shown(opened, "len(tuner.panel.view.kept)") > fewer
    opened.picture(f"{opened.name}-05-slider")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("stability", "stability_score_thresh"),
        ("min. part, px", "min_area_px"),
        ("max. area, m²", "max_area_m2"),
        ("min. area, m²", "min_area_m2"),
        ("fill holes, m²", "fill_holes_m2"),
        ("min. solidity", "min_solidity"),
        ("simplify, m", "simplify_m"),
    ],
)
def test_05_each_slider_reaches_the_job_and_the_map(opened, label, name):
    before = opened.ask(f"print(tuner.job.{name})")
    slider(opened, label)
    for _ in range(4):
        opened.page.keyboard.press("ArrowRight")
    opened.until(f"str(tuner.job.{name}) != {before!r}")
    until_shown(opened, "len(tuner.panel.view.kept)")
    for _ in range(8):  # on a slow machine, one step for each key
        if opened.ask(f"print(tuner.job.{name})") == before:
            break
        if undo(opened).is_enabled():
            undo(opened).click()
        opened.page.wait_for_timeout(400)
    opened.until(f"str(tuner.job.{name}) == {before!r}", seconds=10)


def test_06_planar_is_a_box(opened):
    box = opened.page.get_by_label("planar")
    box.scroll_into_view_if_needed()
    box.check()
    opened.until("tuner.job.planar")
    until_shown(opened, "len(tuner.panel.view.kept)")
    box.uncheck()
    opened.until("tuner.job.planar", "False")
    until_shown(opened, "len(tuner.panel.view.kept)")


def place_of_a_polygon(opened):
    """Where on the page the largest polygon that is shown lies."""
    return place_of(opened, "p = tuner.panel.view.polygons; g = p.geometry.iloc[[p.area.argmax()]]")


def place_of(opened, code):
    """Where on the page the first shape of `g`, a GeoSeries that `code` makes, lies."""
    lon, lat = json.loads(
        opened.ask(
            f"{code}\n"
            "from workbench.raster.crs import to_lonlat; m = g.iloc[0].representative_point()\n"
            "print([float(v) for v in to_lonlat(g.crs, m.x, m.y)])"
        )
    )
    view = map_of(opened, 1)
    box = view.bounding_box()
    south, west, north, east = json.loads(
        opened.ask(
            "b = tuner.panel.scene_map.map.bounds\nprint([*map(float, b[0]), *map(float, b[1])])"
        )
    )
    x = box["x"] + (lon - west) / (east - west) * box["width"]
    mercator = np.log(np.tan(np.pi / 4 + np.radians([south, lat, north]) / 2))
    y = box["y"] + (mercator[2] - mercator[1]) / (mercator[2] - mercator[0]) * box["height"]
    return x, y


def test_07_hovering_tells_the_scores_and_a_click_why(opened):
    x, y = place_of_a_polygon(opened)
    opened.page.mouse.move(x - 3, y - 3)
    opened.page.mouse.move(x, y, steps=3)
    tip = opened.page.locator(".sam-workbench-tip").first
    tip.wait_for(state="visible", timeout=9000)
    assert "confidence" in tip.inner_text()
    opened.picture(f"{opened.name}-06-hover")
    opened.page.mouse.click(x, y)
    opened.until("'kept' in tuner.panel.verdicts.text.value")
    why = opened.page.locator(".sam-workbench-answer table")
    assert "predicted IoU" in why.inner_text()
    why.wait_for(state="visible", timeout=9000)
    assert why.bounding_box()["y"] < 900  # in sight, with the map
    opened.picture(f"{opened.name}-07-why")


def test_07_a_click_beside_the_polygons_names_the_threshold_that_removes(opened):
    place = place_of(
        opened,
        "import numpy as np, pandas as pd; v = tuner.panel.view\n"
        "from workbench.tuning.preview import Fate\n"
        "rows = np.flatnonzero(v.fate == Fate.BELOW)[:300]\n"
        "g = pd.concat([tuner.panel.preview.outline(int(r)) for r in rows], ignore_index=True)\n"
        "m = g.representative_point(); m = m[m.within(tuner.session.area.aoi)]\n"
        "listed = [tuner.panel.preview.at(p.x, p.y, v)[:10] for p in m]\n"
        "m = m[[any(one.fate == Fate.BELOW for one in of) for of in listed]]\n"
        "g = g.loc[[g.loc[m.index].area.idxmax()]]",
    )
    opened.page.mouse.click(*place)
    opened.until(
        "any(why in tuner.panel.verdicts.text.value for why in ('is not above', 'is below'))"
    )
    why = opened.page.locator(".sam-workbench-answer table").inner_text()
    assert "below" in why
    opened.picture(f"{opened.name}-07b-removed")


def test_08_enter_is_a_click_at_the_cross_in_the_middle_of_the_map(opened):
    before = opened.ask("print(tuner.panel.verdicts.text.value)")
    button(opened, "Bad").focus()
    for _ in range(12):
        opened.page.keyboard.press("Tab")
        if opened.page.evaluate("document.activeElement.matches('.leaflet-container')"):
            break
    for _ in range(3):
        opened.page.keyboard.press("ArrowDown")
        opened.page.wait_for_timeout(400)
    opened.picture(f"{opened.name}-07c-keyboard")
    opened.page.keyboard.press("Enter")
    opened.until(f"tuner.panel.verdicts.text.value != {before!r}")
    for _ in range(3):
        opened.page.keyboard.press("ArrowUp")
        opened.page.wait_for_timeout(400)


def test_08_what_advise_needs_is_said_beside_its_button(opened):
    button(opened, "Advise").click()
    said = opened.page.locator(".sam-workbench-tuner").get_by_text("at least one of each")
    said.wait_for(timeout=9000)
    above, below = (button(opened, "Advise").bounding_box(), map_of(opened, 1).bounding_box())
    assert above["y"] < said.bounding_box()["y"] < below["y"]


def test_08_good_and_bad_make_a_precision(opened):
    button(opened, "Good").click()
    opened.until("tuner.panel.judging.mode.value", "good")
    opened.page.mouse.click(*place_of_a_polygon(opened))
    opened.until("len(tuner.session.judged)", "1")
    opened.until("'100%' in tuner.panel.figures.value")
    button(opened, "Explain").click()


def test_09_two_settings_can_be_flipped(opened):
    first = float(opened.ask("print(tuner.job.pred_iou_thresh)"))
    button(opened, "Keep as B").click()
    slider(opened, "predicted IoU")
    for _ in range(6):
        opened.page.keyboard.press("ArrowRight")
    opened.until(f"abs(tuner.job.pred_iou_thresh - {first} - 0.03) < 1e-6")  # all keys are through
    of_a, pixels = until_shown(opened, "len(tuner.panel.view.kept)"), coloured(opened)
    opened.picture(f"{opened.name}-08-a")
    button(opened, "A ⇄ B").click()
    opened.until(f"abs(tuner.job.pred_iou_thresh - {first}) < 1e-6")
    assert until_shown(opened, "len(tuner.panel.view.kept)") > of_a
    assert coloured(opened) != pixels
    opened.picture(f"{opened.name}-08-b")
    button(opened, "A ⇄ B").click()
    opened.until(f"tuner.job.pred_iou_thresh > {first} + 0.02")
    assert until_shown(opened, "len(tuner.panel.view.kept)") == of_a


def test_09_a_preset_is_saved_and_comes_back(opened):
    before = float(opened.ask("print(tuner.job.pred_iou_thresh)"))
    name = opened.page.get_by_placeholder("name of a preset")
    name.fill("roofs")
    name.press("Tab")
    button(opened, "Save preset").click()
    opened.page.locator(".sam-workbench-tuner", has_text="roofs.yaml").wait_for(timeout=9000)
    assert "pred_iou_thresh" in (opened.lab.folder / "presets" / "roofs.yaml").read_text()
    slider(opened, "predicted IoU")
    for _ in range(4):
        opened.page.keyboard.press("ArrowLeft")
    opened.until(f"abs(tuner.job.pred_iou_thresh - {before} + 0.02) < 1e-6")
    button(opened, "Load").click()
    opened.until(f"abs(tuner.job.pred_iou_thresh - {before}) < 1e-6")
    until_shown(opened, "len(tuner.panel.view.kept)")


def test_09_what_goes_wrong_is_said_in_a_sentence(opened):
    name = opened.page.get_by_placeholder("name of a preset")
    name.fill("nobody")
    name.press("Tab")
    button(opened, "Load").click()
    said = opened.page.locator(".sam-workbench-tuner", has_text="no preset 'nobody'")
    said.wait_for(timeout=9000)
    opened.picture(f"{opened.name}-08c-error")
    # a slider whose work fails is not silent either
    opened.ask("tuner.panel.preview.look = lambda *_: 1 / 0")
    slider(opened, "stability")
    opened.page.keyboard.press("ArrowRight")
    opened.page.locator(".sam-workbench-tuner", has_text="ZeroDivisionError").wait_for(timeout=9000)
    opened.ask("del tuner.panel.preview.look")
    opened.page.keyboard.press("ArrowLeft")
    mended = opened.page.locator(".sam-workbench-tuner", has_not_text="ZeroDivisionError")
    mended.wait_for(timeout=9000)
    until_shown(opened, "len(tuner.panel.view.kept)")


def test_09_the_keyboard_reaches_all_controls(opened):
    button(opened, "Propose tiles").focus()
    reached = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(
            opened.page.evaluate(
                "(e => e.getAttribute('aria-label') || e.textContent.trim() || e.type)"
                "(document.activeElement)"
            )
        )
    expected = {
        "Clear tiles", "Explain", "Good", "Bad", "Keep as B", "Undo", "Defaults", "Save preset",
        "Load", "predicted IoU threshold", "stability threshold", "predicted IoU", "min. part, px",
    }  # fmt: skip
    assert expected <= reached
    told = opened.page.get_by_role("slider", name="min. part, px").get_attribute("aria-valuetext")
    assert told == opened.ask("print(tuner.job.min_area_px)")


def test_10_the_line_in_the_plane_is_the_slider(opened):
    line = opened.page.get_by_role("slider", name="predicted IoU threshold").first
    line.scroll_into_view_if_needed()
    before = float(opened.ask("print(tuner.job.pred_iou_thresh)"))
    line.focus()
    opened.page.keyboard.press("ArrowLeft")
    opened.until(f"tuner.job.pred_iou_thresh < {before}")
    opened.picture(f"{opened.name}-08-plane")


def test_11_running_the_cell_again_keeps_the_state(opened):
    before = opened.ask("print(tuner.job.pred_iou_thresh, len(tuner.session.samples))")
    opened.run_all()
    opened.until("picker.session.job.aoi is not None")
    assert opened.ask("print(tuner.job.pred_iou_thresh, len(tuner.session.samples))") == before
    until_shown(opened, "len(tuner.panel.view.kept)")


def test_11_running_only_the_tuners_cell_again_shows_the_same_panel(opened):
    opened.ask("panel = tuner.panel")
    opened.run_cell("tuner = ThresholdTuner(picker)")
    opened.until("tuner.panel is panel")
    assert opened.page.locator(".sam-workbench-tuner").count() == 1
    n = until_shown(opened, "len(tuner.panel.view.kept)")
    slider(opened, "predicted IoU")
    opened.page.keyboard.press("ArrowLeft")
    assert until_shown(opened, "len(tuner.panel.view.kept)") >= n
    opened.page.keyboard.press("ArrowRight")
    opened.until(f"len(tuner.panel.view.kept) == {n}")
    assert until_shown(opened, "len(tuner.panel.view.kept)") == n


def test_12_the_job_is_saved_run_cancelled_and_run_to_its_end(opened):
    save = button(opened, "Save")
    save.scroll_into_view_if_needed()
    save.click()
    saved = opened.lab.folder / "run-job.yaml"
    opened.until(f"__import__('os').path.exists({str(saved)!r})")
    button(opened, "Run here").click()
    opened.page.wait_for_timeout(1200)
    opened.picture(f"{opened.name}-09-running")
    cancel = opened.page.locator(".sam-workbench-run button", has_text="Cancel")
    cancel.click()
    opened.page.locator(".sam-workbench-run", has_text="stored. Run again").wait_for(timeout=9000)
    button(opened, "Run here").click()
    opened.page.locator(".sam-workbench-run", has_text="Run folder").wait_for(timeout=240_000)
    opened.page.wait_for_timeout(1000)
    opened.page.locator(".sam-workbench-run").scroll_into_view_if_needed()
    opened.picture(f"{opened.name}-10-finished")
    assert len(read_layer(opened.lab.folder / "run" / "prelabels.gpkg")) > 3


def test_13_c2_the_polygons_on_the_screen_are_those_of_the_geopackage(opened):
    layer = read_layer(opened.lab.folder / "run" / "prelabels.gpkg").to_crs(3857)
    layer = layer.set_index("id")
    drawn = json.loads(
        opened.ask(
            "import numpy as np, json, base64\n"
            "o = tuner.panel.overlay.outlines\n"
            "rows = np.frombuffer(tuner.panel.overlay.shown, '<u4')\n"
            "from workbench.tuning.webmap import outlines\n"
            "c = np.frombuffer(o['coords'], '<f4').reshape(-1, 2)\n"
            "s = np.frombuffer(o['ring_sizes'], '<u4'); r = np.frombuffer(o['rings'], '<u4')\n"
            "ends = np.cumsum(s); last = np.cumsum(r)\n"
            "p = tuner.panel.view.polygons.set_index('row')\n"
            "out = {}\n"
            "for k in rows:\n"
            "    row = int(tuner.panel.drawn.rows[k])\n"
            "    if p.loc[row, 'seam']: continue\n"
            "    a = ends[last[k] - r[k]] - s[last[k] - r[k]]; b = ends[last[k] - 1]\n"
            "    box = np.r_[c[a:b].min(0), c[a:b].max(0)] + np.r_[o['origin'], o['origin']]\n"
            "    t = p.loc[row]\n"
            "    out[f'{t.source}/r{t.tile_row}c{t.tile_col}/{t.ordinal}'] = box.tolist()\n"
            "print(json.dumps(out))"
        )
    )
    assert len(drawn) >= 1
    for label, box in drawn.items():
        assert layer.loc[label].geometry.bounds == pytest.approx(box, abs=0.02)


def test_14_a_finished_run_goes_back_to_the_sliders_and_is_written_anew(opened):
    button(opened, "Tune on these tiles").click()
    opened.until("len(tuner.session.samples) == tuner.session.area.n_tiles", seconds=60)
    slider(opened, "predicted IoU")
    thresh = float(opened.ask("print(tuner.job.pred_iou_thresh)")) + 0.025
    for _ in range(5):
        opened.page.keyboard.press("ArrowRight")
    opened.until(f"abs(tuner.job.pred_iou_thresh - {thresh}) < 1e-6")  # all keys are through
    run = button(opened, "Run here")
    run.scroll_into_view_if_needed()
    run.click()
    opened.until("tuner.session.busy")  # that of the run before is gone
    opened.page.locator(".sam-workbench-run", has_text="Run folder").wait_for(timeout=60_000)
    opened.until("tuner.session.busy", "False")
    layer = read_layer(opened.lab.folder / "run" / "prelabels.gpkg")
    assert (layer["confidence"] > thresh).all()


def test_15_the_dark_theme_is_readable(opened):
    opened.page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    opened.page.wait_for_timeout(1500)
    map_of(opened, 1)
    opened.picture(f"{opened.name}-11-dark")
    map_of(opened, 0)
    opened.picture(f"{opened.name}-12-dark-area")


def test_16_the_notebook_file_holds_no_widget_state(opened):
    opened.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    opened.page.wait_for_timeout(1500)
    text = opened.path.read_text()
    assert "application/vnd.jupyter.widget-state+json" not in text
    assert len(text) < 200_000
