"""The notebooks: stripped, without functions, and run by papermill as a user would."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from known_objects import write_labels

from workbench.layer import read_layer

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stripped_and_hold_no_functions(path):
    for cell in cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
        tree = ast.parse(cell.source)
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(tree))
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


def papermill(tmp_path, *arguments, cwd=None):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "prelabel.ipynb")]
    done = subprocess.run(
        [*command, str(out), "--no-progress-bar", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or tmp_path,
        timeout=300,
    )
    return done, out


@pytest.fixture
def raster(tmp_path):
    labels = np.zeros((300, 400), int)
    labels[40:120, 50:170] = 200
    labels[150:250, 200:330] = 120
    return write_labels(tmp_path / "scene.tif", labels)


def test_papermill_runs_it_and_again_from_its_own_job(raster, tmp_path):
    run = tmp_path / "run"
    done, out = papermill(tmp_path, "-p", "source", raster, "-p", "out_dir", run)
    assert done.returncode == 0, done.stderr
    layer = read_layer(run / "prelabels.gpkg")
    assert len(layer) >= 2
    shown = [o for c in cells(out) for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in shown)
    assert any("text/html" in o.get("data", {}) for o in shown)
    assert out.stat().st_size < 2_000_000
    job = yaml.safe_load((run / "job.yaml").read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(job | {"out_dir": str(tmp_path / "b")}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done, _ = papermill(tmp_path, "-f", tmp_path / "again.yaml", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    again = read_layer(tmp_path / "b" / "prelabels.gpkg")
    assert again.equals(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "pred_iou_tresh", "0.9"], "Unknown parameter `pred_iou_tresh`. Did you mean"),
        (["-p", "tile_size", "huge"], "Parameter `tile_size`"),
        (["-p", "source", "missing.tif"], "missing.tif"),
    ],
)
def test_bad_parameters_end_at_once_with_their_name(arguments, message, tmp_path):
    done, out = papermill(tmp_path, "-p", "out_dir", tmp_path / "run", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert out.exists()
    assert not (tmp_path / "run").exists()
