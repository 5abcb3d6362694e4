"""Exemplars drawn in the tuner with a real mouse, for a small SAM 3 with random weights."""

import json

import geopandas as gpd
import pytest
from lab import jupyterlab, open_notebook, prelabel_notebook
from small_sams import small_sam3, small_tokenizer
from test_prompts import Hand, complaints_of, roofs  # noqa: F401  a fixture

from workbench.layer.files import read_layer
from workbench.runs.exemplars_by_hand import EXEMPLARS
from workbench.samples.demo import make_sample, write_sample
from workbench.segmenters.sam.extras import is_installed

pytestmark = pytest.mark.skipif(
    not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
)
CLASSES = {1: "building", 2: "parcel"}


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exemplars") / "work"
    folder.mkdir()
    write_sample(make_sample(560, 3), folder)
    small_sam3().save_pretrained(folder / "sam3")
    small_tokenizer(folder / "sam3")
    with jupyterlab(folder) as lab:
        yield lab


@pytest.fixture(scope="module")
def tuner(chromium, lab):
    """The tuner of SAM 3, which was not told yet what to find."""
    path = prelabel_notebook(
        lab.folder, source=str(lab.folder / "sample.tif"), out_dir=str(lab.folder / "run"),
        classes=CLASSES, model="sam3", checkpoint=str(lab.folder / "sam3"), tile_size=512,
        pred_iou_floor=0, pred_iou_thresh=0.01, min_area_px=20, max_area_share=None,
    )  # fmt: skip
    with open_notebook(chromium, lab, path) as notebook:
        notebook.run_all()
        notebook.page.wait_for_timeout(1500)
        yield Hand(notebook, "tuner.panel", ".sam-workbench-tuner")
        assert complaints_of(notebook) == []


def kept(tuner):
    frame = gpd.read_parquet(tuner.notebook.lab.folder / "run" / EXEMPLARS)
    return list(zip(frame["class_id"].tolist(), frame["unlike"].tolist(), strict=True))


def drag(tuner, bounds, button="left"):
    """Drag a box; it is kept when the tuner has one more."""
    west, south, east, north = bounds
    n = int(tuner.notebook.ask("print(len(tuner.session.exemplars))"))
    mouse = tuner.notebook.page.mouse
    tuner.point((west - 1, north + 1))
    mouse.down(button=button)
    mouse.move(*tuner.on_page((east + 1, south - 1)), steps=6)
    mouse.up(button=button)
    tuner.notebook.until("len(tuner.session.exemplars)", str(n + 1))


def candidates_of(tuner):
    return tuner.notebook.ask(
        "print([s.candidates.table.num_rows for s in tuner.session.samples], "
        "sum(s.candidates.column('pred_iou').sum() for s in tuner.session.samples))"
    )


def until_computed(tuner):
    tuner.notebook.until(
        "len(tuner.session.samples) == 1 and not tuner.session.busy", seconds=200
    )  # fmt: skip


def test_1_boxes_are_kept_as_they_are_drawn_and_the_tile_follows(tuner, roofs):  # noqa: F811
    notebook, page = tuner.notebook, tuner.notebook.page
    tuner.see_all()
    tuner.view.click(position={"x": 300, "y": 200})
    told = page.locator(".sam-workbench-tuner", has_text="finds only what it is shown")
    told.wait_for(timeout=20_000)
    notebook.picture("exemplars-1-nothing-shown")
    page.locator(".sam-workbench-palette").first.get_by_role(
        "button", name="building, said"
    ).click()
    page.get_by_role("button", name="Exemplars").click()
    tuner.hint.wait_for(timeout=20_000)
    drag(tuner, roofs[0][1])
    drag(tuner, roofs[1][1])
    notebook.picture("exemplars-2-like")
    drag(tuner, roofs[2][1], button="right")
    assert page.locator(".lm-Menu, .jp-ContextMenu").count() == 0
    assert kept(tuner) == [(1, False), (1, False), (1, True)]
    assert notebook.ask("print(tuner.session.samples)") == "()"
    notebook.picture("exemplars-3-unlike")
    page.keyboard.press("Enter")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    until_computed(tuner)
    page.wait_for_timeout(1500)
    notebook.picture("exemplars-4-found")
    assert notebook.barriers(".sam-workbench-tuner") == []


def test_2_undo_in_the_middle_and_after(tuner, roofs):  # noqa: F811
    notebook, keyboard = tuner.notebook, tuner.notebook.page.keyboard
    before = candidates_of(tuner)
    tuner.press("b", roofs[3][0])
    drag(tuner, roofs[3][1])
    drag(tuner, roofs[4][1])
    keyboard.press("Control+z")
    notebook.until("len(tuner.session.exemplars)", "4")
    assert tuner.hint.count() == 1  # a slip does not end the drawing
    keyboard.press("Escape")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    until_computed(tuner)
    assert candidates_of(tuner) != before
    assert len(kept(tuner)) == 4
    keyboard.press("Control+z")
    notebook.until("len(tuner.session.exemplars)", "3")
    until_computed(tuner)
    assert candidates_of(tuner) == before
    assert len(kept(tuner)) == 3


def test_3_a_click_removes_a_box_and_the_button_ends(tuner, roofs):  # noqa: F811
    notebook, page = tuner.notebook, tuner.notebook.page
    page.get_by_role("button", name="Exemplars: 3").click()
    tuner.hint.wait_for(timeout=20_000)
    tuner.point(roofs[1][0])
    page.mouse.down()
    page.mouse.up()
    notebook.until("len(tuner.session.exemplars)", "2")
    tuner.hint.get_by_role("button", name="Done").click()
    tuner.hint.wait_for(state="detached", timeout=10_000)
    until_computed(tuner)
    assert kept(tuner) == [(1, False), (1, True)]


def test_4_a_restart_brings_them_back_and_a_run_uses_them(tuner):
    notebook = tuner.notebook
    before = candidates_of(tuner)
    notebook.restart()
    notebook.run_all()
    notebook.until("'tuner' in globals() and len(tuner.session.exemplars)", "2", seconds=90)
    until_computed(tuner)
    assert candidates_of(tuner) == before
    notebook.page.wait_for_timeout(1500)
    notebook.picture("exemplars-5-restarted")
    run = notebook.page.get_by_role("button", name="Run here")
    run.scroll_into_view_if_needed()
    run.click()
    notebook.page.locator(".sam-workbench-run", has_text="Run folder").wait_for(timeout=240_000)
    folder = notebook.lab.folder / "run"
    assert set(read_layer(folder / "prelabels.gpkg")["class_id"]) == {1}
    named = notebook.ask("import json; print(json.dumps(tuner.session.job.exemplars))")
    assert json.loads(named) == str(folder / EXEMPLARS)
