"""A batch run of the notebook: no maps, no widgets."""

import subprocess
import sys
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "prelabel.ipynb"
MAPS = {"ipyleaflet", "ipywidgets", "anywidget"}


def code_of(parameters):
    """The notebook's code, with parameters in a cell of their own, as papermill adds them."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            yield cell.source
        if "parameters" in cell.metadata.get("tags", []):
            yield "\n".join(f"{name} = {value!r}" for name, value in parameters.items())


def test_a_batch_run_loads_no_maps(raster, tmp_path):
    given = {"source": str(raster), "out_dir": str(tmp_path / "run"), "tile_size": 128}
    code = [*code_of({**given, "interactive": False}), "import sys; print(*sys.modules)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "rasterio" in loaded
    assert not loaded & MAPS
    assert (tmp_path / "run" / "prelabels.gpkg").exists()


def test_at_a_notebook_the_widgets_are_imported():
    (imports,) = (cell for cell in code_of({}) if "AOIPicker, " in cell)
    before, after = imports.split("if job.is_interactive:")
    assert "widgets" not in before
    assert "from workbench.widgets import AOIPicker, RunPanel, ThresholdTuner" in after
