"""Two notebooks, two tuners in one notebook, and closing, in a real JupyterLab and browser."""

import nbformat
import pytest
from lab import jupyterlab, open_notebook, prelabel_notebook

from workbench.samples.demo import sample_scene

TUNER = "canvas.sam-workbench-polygons"
SETTING = {
    "source": str(sample_scene()), "tile_size": 512, "min_area_px": 50, "pred_iou_thresh": 0.8,
    "stability_score_thresh": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """A JupyterLab with two notebooks in folders of their own."""
    folder = tmp_path_factory.mktemp("two") / "work"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        prelabel_notebook(folder / name, out_dir=str(folder / name / "run"), **SETTING)
    with jupyterlab(folder) as lab:
        yield lab


def tune(notebook, n):
    """Compute one tile, and move the slider of the `n`-th tuner up by two steps."""
    page = notebook.page
    tuner = page.locator(".sam-workbench-tuner").nth(n)
    handle = tuner.locator(".widget-slider", has_text="predicted IoU").locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")


def test_two_notebooks_do_not_disturb_each_other(chromium, lab):
    one, two = (lab.folder / name / "prelabel.ipynb" for name in ("one", "two"))
    with open_notebook(chromium, lab, one) as first, open_notebook(chromium, lab, two) as second:
        for notebook in (first, second):
            notebook.run_all()
            notebook.ask("tuner.panel.n_tiles.value = 1")
            notebook.page.get_by_role("button", name="Propose tiles", exact=True).first.click()
        for notebook in (first, second):
            notebook.until("len(tuner.session.samples) == 1 and not tuner.session.busy")
        before = second.ask("print(tuner.panel.view.kept.tolist())")
        tune(first, 0)
        first.until("round(tuner.job.pred_iou_thresh, 3)", "0.81")
        assert second.ask("print(tuner.job.pred_iou_thresh)") == "0.8"
        assert second.ask("print(tuner.panel.view.kept.tolist())") == before
        assert first.ask("import os; print(os.getpid())") != second.ask(
            "import os; print(os.getpid())"
        )


def test_two_tuners_of_one_notebook_are_two_and_closing_frees_the_model(chromium, lab):
    path = lab.folder / "two.ipynb"
    new = nbformat.v4
    folders = [str(lab.folder / name / "run2") for name in ("one", "two")]
    cells = ["from workbench import Job\nfrom workbench.widgets import AOIPicker, ThresholdTuner"]
    for name, folder in zip("ab", folders, strict=True):
        cells += [
            f"{name} = ThresholdTuner(AOIPicker(Job.create(out_dir={folder!r}, **{SETTING!r})))"
            f"\n{name}"
        ]
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    with open_notebook(chromium, lab, path) as opened:
        opened.run_all()
        for name in "ab":
            opened.ask(f"{name}.panel.n_tiles.value = 1; {name}.panel.propose()")
        for name in "ab":
            opened.until(f"len({name}.session.samples) == 1 and not {name}.session.busy")
        tune(opened, 0)
        opened.until("round(a.job.pred_iou_thresh, 3)", "0.81")
        assert opened.ask("print(b.job.pred_iou_thresh)") == "0.8"
        shown = [int(opened.ask(f"print(len({name}.panel.view.kept))")) for name in "ab"]
        opened.page.wait_for_function(
            "meant => [...document.querySelectorAll('canvas.sam-workbench-polygons')]"
            ".map(c => Number(c.dataset.shown)).join() === meant",
            arg=",".join(map(str, shown)),
            timeout=30_000,
        )
        opened.picture("two-tuners")

        assert opened.ask("import psutil; print(len(psutil.Process().children()))") == "2"
        opened.ask("a.close()")
        opened.until("len(psutil.Process().children())", "1")
        opened.page.wait_for_function(
            "document.querySelectorAll('.sam-workbench-tuner').length === 1", timeout=30_000
        )
        tune(opened, 0)  # the other goes on
        opened.until("round(b.job.pred_iou_thresh, 3)", "0.81")
