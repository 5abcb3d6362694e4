"""`review.ipynb` in a real browser: labels answered by keys are in the GeoPackage at once."""

import sqlite3
from contextlib import closing

import pytest
from lab import copied_notebook, jupyterlab, open_notebook
from test_prelabel import EXPECTED_COMPLAINTS

from workbench import Job, run
from workbench.samples.demo import sample_scene

CANVAS = "document.querySelector('canvas.sam-workbench-polygons')"
TRIAGE = "answering.session.triage"
SMALL = {"width": 1024, "height": 768}
LARGE = {"width": 1920, "height": 1080}
RING = f"{TRIAGE}.labels.geometry.iloc[-1].geoms[0].exterior.coords"


@pytest.fixture(scope="module")
def opened(chromium, tmp_path_factory):
    """The notebook on a run of the made scene, run once for all steps."""
    folder = tmp_path_factory.mktemp("review") / "work"
    folder.mkdir()
    run(
        Job.create(
            source=str(sample_scene()), out_dir=str(folder / "run"), model="classic",
            tile_size=512, min_area_px=100, classes={1: "building", 2: "parcel"},
        )
    )  # fmt: skip
    path = copied_notebook("review", folder, run_dir=str(folder / "run"))
    with jupyterlab(folder) as lab, open_notebook(chromium, lab, path) as notebook:
        notebook.run_all()
        yield notebook
        unexpected = [
            text for text in notebook.complaints
            if not any(known in text for known in EXPECTED_COMPLAINTS)
        ]  # fmt: skip
        assert unexpected == []


def stored(notebook, columns="status, class_id"):
    """What the GeoPackage says of each label."""
    gpkg = notebook.lab.folder / "run" / "prelabels.gpkg"
    with closing(sqlite3.connect(f"file:{gpkg}?mode=ro", uri=True)) as db:
        return {fid: tuple(rest) for fid, *rest in db.execute(
            f"SELECT fid, {columns} FROM prelabels")}  # fmt: skip


def shown(notebook):
    """The fid of the label that is shown."""
    return int(notebook.ask(f"print({TRIAGE}.labels['fid'].iloc[{TRIAGE}.row])"))


def press(notebook, key):
    """Press a key, and wait until the kernel has answered; returns the label that it was about."""
    fid = shown(notebook)
    before = notebook.ask("print(answering.session.changes)")
    notebook.page.keyboard.press(key)
    notebook.until(f"answering.session.changes > {before}")
    return fid


def see(notebook):
    view = notebook.page.locator(".sam-workbench-review .leaflet-container").first
    view.scroll_into_view_if_needed()
    return view


def test_1_all_labels_are_on_the_map_and_the_first_is_shown(opened):
    see(opened)
    n = len(stored(opened))
    assert n > 100
    opened.page.wait_for_function(f"Number({CANVAS}?.dataset.shown) === {n}", timeout=60_000)
    opened.until(f"{TRIAGE}.row >= 0")
    opened.page.wait_for_timeout(1500)
    opened.picture("review-1-first")


def test_2_keys_answer_and_are_in_the_file_at_once(opened):
    cells = opened.page.locator(".jp-Cell").count()
    see(opened).hover(position={"x": 200, "y": 150})
    before = stored(opened)
    accepted, rejected = press(opened, "a"), press(opened, "r")
    classed, refused = press(opened, "2"), press(opened, "0")
    skipped = press(opened, "Space")
    now = stored(opened)
    assert now[accepted] == ("accepted", before[accepted][1])
    assert now[rejected][0] == now[refused][0] == "rejected"
    assert now[classed] == ("accepted", 2)
    assert now[skipped] == before[skipped]
    others = set(before) - {accepted, rejected, classed, refused}
    assert {fid: now[fid] for fid in others} == {fid: before[fid] for fid in others}
    assert opened.page.locator(".jp-Cell").count() == cells  # `a` and `r` are commands elsewhere


def test_3_z_and_the_button_take_answers_back(opened):
    see(opened).hover(position={"x": 200, "y": 150})
    fid = press(opened, "a")
    assert stored(opened)[fid][0] == "accepted"
    press(opened, "z")
    assert stored(opened)[fid][0] == "unreviewed"
    assert shown(opened) == fid
    press(opened, "Control+Shift+z")
    assert stored(opened)[fid][0] == "accepted"


def test_4_after_a_few_answers_the_order_follows_them(opened):
    see(opened).hover(position={"x": 200, "y": 150})
    for _ in range(14):
        large = opened.ask(f"print({TRIAGE}.labels['area_m2'].iloc[{TRIAGE}.row] > 150)")
        press(opened, "1" if large == "True" else "r")
    opened.until("answering.session._ranked_at > 0", seconds=60)
    text = opened.page.locator(".sam-workbench-review .sam-workbench-now").inner_text()
    opened.until("answering.session.ranking.is_done", seconds=120)
    opened.page.wait_for_timeout(1500)
    opened.picture("review-2-answered")
    assert "class" in text
    assert "labels a minute" in opened.page.locator(".sam-workbench-review").inner_text()


def test_5_many_at_once(opened):
    panel = opened.page.locator(".sam-workbench-review")
    n = len([1 for status, _ in stored(opened).values() if status == "rejected"])
    rest = panel.get_by_role("button", name="Reject the rest of this tile")
    left = int(rest.inner_text().split("(")[1].rstrip(")").replace(",", ""))
    rest.click()
    opened.until(f"sum(s == 'rejected' for s in {TRIAGE}.status)", str(n + left))
    assert [s for s, _ in stored(opened).values()].count("rejected") == n + left
    opened.page.keyboard.press("z")  # the button has the focus, and keys still count
    opened.until(f"sum(s == 'rejected' for s in {TRIAGE}.status)", str(n))
    above = panel.get_by_role("button", name="Accept all above")
    wanted = int(above.inner_text().split("(")[1].rstrip(")").replace(",", ""))
    before = [s for s, _ in stored(opened).values()].count("accepted")
    if wanted:
        above.click()
        opened.until(f"sum(s == 'accepted' for s in {TRIAGE}.status)", str(before + wanted))
    assert [s for s, _ in stored(opened).values()].count("accepted") == before + wanted


def test_6_nothing_is_written_while_qgis_has_the_file_open(opened):
    log = opened.lab.folder / "run" / "prelabels.gpkg-wal"
    log.touch()
    see(opened).hover(position={"x": 200, "y": 150})
    before, fid = stored(opened), shown(opened)
    opened.page.keyboard.press("a")
    text = opened.page.get_by_text("is open in another program, probably QGIS").first
    text.wait_for(timeout=10_000)
    opened.picture("review-3-open-in-qgis")
    log.unlink()
    assert stored(opened) == before
    assert shown(opened) == fid
    press(opened, "a")
    assert stored(opened)[fid][0] == "accepted"


def test_7_a_missed_object_is_drawn_and_undo_takes_it_away(opened):
    """Real clicks: three corners, a double click at the fourth, and a second one with Enter."""
    mouse, keyboard = opened.page.mouse, opened.page.keyboard
    box = see(opened).bounding_box()
    before = stored(opened)

    def place(x, y):
        return box["x"] + x, box["y"] + y

    mouse.move(*place(300, 200))
    press(opened, "1")
    n = len(stored(opened))
    keyboard.press("d")
    opened.page.locator(".sam-workbench-hint").wait_for(timeout=10_000)
    for x, y in ((260, 180), (330, 180), (330, 230)):
        mouse.click(*place(x, y), delay=30)
        opened.page.wait_for_timeout(350)
    now = opened.page.locator(".sam-workbench-review .sam-workbench-now")
    assert now.inner_text() == "new · class building"
    opened.picture("review-4-drawing")
    mouse.dblclick(*place(260, 230))
    opened.until(f"len({TRIAGE})", str(n + 1))
    (fid,) = set(stored(opened)) - set(before)
    assert stored(opened)[fid] == ("edited", 1)
    assert stored(opened, "id")[fid][0].startswith("drawn/")
    assert shown(opened) == fid
    opened.page.wait_for_function(f"Number({CANVAS}?.dataset.shown) === {n + 1}", timeout=20_000)
    opened.page.wait_for_timeout(800)
    opened.picture("review-5-drawn")
    press(opened, "z")
    assert set(stored(opened)) == set(before)
    keyboard.press("d")
    opened.page.locator(".sam-workbench-hint").wait_for(timeout=10_000)
    for x, y in ((260, 180), (330, 180), (330, 230), (280, 260)):
        mouse.click(*place(x, y), delay=30)
        opened.page.wait_for_timeout(350)
    keyboard.press("Backspace")
    keyboard.press("Enter")
    opened.until(f"len({TRIAGE})", str(n + 1))
    assert opened.ask(f"print(len({RING}))") == "4"
    keyboard.press("d")
    opened.page.locator(".sam-workbench-hint").wait_for(timeout=10_000)
    mouse.click(*place(200, 150), delay=30)
    keyboard.press("Escape")
    opened.page.locator(".sam-workbench-hint").wait_for(state="detached", timeout=10_000)
    assert len(stored(opened)) == n + 1


def test_8_corners_of_a_label_are_dragged_and_undo_brings_them_back(opened):
    mouse, keyboard = opened.page.mouse, opened.page.keyboard
    fid = shown(opened)  # the label drawn last
    before = stored(opened, "status, geom")
    see(opened).hover(position={"x": 40, "y": 300})
    keyboard.press("e")
    handles = opened.page.locator(".sam-workbench-review .marker-icon:not(.marker-icon-middle)")
    handles.first.wait_for(timeout=10_000)
    assert handles.count() == 3
    at = handles.nth(1).bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + 30, y - 10, steps=6)
    mouse.up()
    opened.picture("review-6-editing")
    changes = opened.ask("print(answering.session.changes)")
    keyboard.press("Enter")
    opened.until(f"answering.session.changes > {changes}")
    after = stored(opened, "status, geom")
    assert {key for key in after if after[key] != before[key]} == {fid}
    assert opened.ask(f"print(len({RING}))") == "4"
    opened.page.locator(".sam-workbench-hint").wait_for(state="detached", timeout=10_000)
    press(opened, "z")
    assert stored(opened, "status, geom") == before
    keyboard.press("e")
    handles.first.wait_for(timeout=10_000)
    x, y = (at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    mouse.move(x, y)
    mouse.down()
    mouse.move(x - 200, y + 10, steps=6)
    mouse.up()
    keyboard.press("Escape")
    opened.page.locator(".sam-workbench-hint").wait_for(state="detached", timeout=10_000)
    assert stored(opened, "status, geom") == before
    press(opened, "z")


def test_9_the_cells_below_read_the_answers(opened):
    said = opened.ask("print(len(found.labels[found.labels['status'] == 'accepted']))")
    assert said == "0"
    opened.run_cell("found = review(job)")
    opened.until("(found.labels['status'] == 'accepted').sum() > 5", seconds=120)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_10_small_and_large_screens_in_both_themes(opened, size, theme):
    page, name = opened.page, f"{size['width']}-{theme.split()[-1].lower()}"
    page.set_viewport_size(size)
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    page.wait_for_timeout(1500)
    view = see(opened).bounding_box()
    panel = page.locator(".sam-workbench-review").first.bounding_box()
    side = page.locator(".sam-workbench-review .sam-workbench-side").first.bounding_box()
    opened.picture(f"review-10-{name}")
    if size is SMALL:  # the controls go under the map
        assert view["width"] > max(500, 0.9 * panel["width"])
        assert side["y"] >= view["y"] + view["height"]
    else:
        assert side["x"] >= view["x"] + view["width"]
        assert view["width"] > 2 * side["width"]
    assert opened.barriers(".sam-workbench-review") == []
