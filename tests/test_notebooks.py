"""The notebooks: stripped, without functions, and run by papermill as a user would."""

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import nbformat
import numpy as np
import pandas as pd
import pytest
import shapely
import yaml
from known_objects import TRANSFORM, objects, write_labels
from known_runs import job_for
from reviews import save_reviewed
from small_sams import small_sam3, small_tokenizer

from workbench import Job, run
from workbench.errors import ReviewError
from workbench.layer.files import read_layer
from workbench.review.job import ReviewJob
from workbench.review.next_job import advise_run, write_advised_job
from workbench.review.read import read_reviewed
from workbench.segmenters.sam.extras import is_installed

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


def papermill(tmp_path, *arguments, cwd=None, notebook="prelabel"):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{notebook}.ipynb")]
    done = subprocess.run(
        [*command, str(out), "--no-progress-bar", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or tmp_path,
        timeout=300,
    )
    return done, out


def test_a_folder_and_a_raster_whose_names_are_numbers(tmp_path):
    write_labels(tmp_path / "0079", objects((96, 96), 1))
    done, _ = papermill(tmp_path, "-p", "source", "0079", "-p", "out_dir", "2024_05")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "2024_05" / "report.html").exists()
    assert not (tmp_path / "202405").exists()


def test_the_lab_opens_a_copy_that_is_made_once_and_left_to_its_user(tmp_path):
    for name in ("Makefile", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    mine, original = tmp_path / "prelabel.ipynb", ROOT / "notebooks" / "prelabel.ipynb"
    for content in (original.read_text(), "what I have set"):
        subprocess.run(["make", "-C", tmp_path, mine.name], check=True, capture_output=True)
        assert mine.read_text() == content
        mine.write_text("what I have set")
    assert f"/{mine.name}" in (ROOT / ".gitignore").read_text().splitlines()
    command = ["make", "-n", "-C", tmp_path, "lab", "READY="]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"default_url=/lab/tree/{mine.name}" in told


def test_the_demo_takes_the_sample_scene_whatever_the_notebook_says():
    command = ["make", "-n", "-C", ROOT, "demo", "READY="]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (line,) = (line for line in told.replace("\\\n", "").splitlines() if "/papermill " in line)
    words = shlex.split(line)
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    edited = {"source": "mine.tif", "aoi": "area.gpkg", "model": "vit_h"}
    assert Job.create(**edited | given) == Job(out_dir=str(ROOT / "runs" / "demo"))


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


@pytest.mark.skipif(
    not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
)
def test_papermill_runs_sam3_with_words_and_exemplars(raster, tmp_path):
    small_sam3().save_pretrained(tmp_path / "sam3")
    small_tokenizer(tmp_path / "sam3")
    (x0, y1), (x1, y0) = TRANSFORM @ (50, 40), TRANSFORM @ (170, 120)
    roof = shapely.box(x0, y0, x1, y1)
    drawn = gpd.GeoDataFrame({"class_id": [3]}, geometry=[roof], crs=32633)
    drawn.to_file(tmp_path / "drawn.gpkg")
    run = tmp_path / "run"
    words = "{concepts: {1: building, 2: pool}, classes: {1: house, 2: pool, 3: roof}}"
    done, _ = papermill(
        tmp_path, "-p", "source", raster, "-p", "out_dir", run, "-p", "model", "sam3",
        "-p", "checkpoint", "sam3", "-y", words, "-p", "exemplars", "drawn.gpkg",
        "-p", "tile_size", 256, "-p", "pred_iou_floor", 0, "-p", "pred_iou_thresh", 0.01,
        "-p", "min_area_px", 0, "-p", "max_area_share", "null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layer = read_layer(run / "prelabels.gpkg")
    assert len(layer)
    assert set(layer["class_id"]) <= {1, 2, 3}
    assert layer["class_score"].between(0.01, 1).all()
    stored = pd.concat(pd.read_parquet(path) for path in (run / "candidates").glob("*.parquet"))
    assert set(stored["ordinal"] // 1000) == {1, 2, 3}
    assert "Class 3 is shown in 1 of 4 tiles" in (run / "report.html").read_text(encoding="utf-8")


def test_a_batch_job_opens_each_raster_once_and_imports_no_map(raster, tmp_path):
    sources = [cell.source for cell in cells(ROOT / "notebooks" / "prelabel.ipynb")]
    given = f"source, out_dir = {str(raster)!r}, {str(tmp_path / 'run')!r}"
    script = tmp_path / "batch.py"
    script.write_text(
        "import sys\n"
        "from workbench.raster import open as opening\n"
        "_opened, _plan = [], opening._plan\n"
        "opening._plan = lambda *args: _opened.append(1) or _plan(*args)\n"
        + "\n".join([sources[0], given, *sources[1:]])
        + "\nassert len(_opened) == 1, _opened\n"
        "assert not {'ipyleaflet', 'ipywidgets', 'anywidget'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "prelabels.gpkg").exists()


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


# ----------------------------------------------------------------------------------- review


def test_the_parameters_cells_are_the_models_fields():
    for notebook, model, given in (
        ("prelabel", Job, {}),
        ("review", ReviewJob, {"run_dir": "runs/scene"}),
    ):
        (cell,) = [
            c
            for c in cells(ROOT / "notebooks" / f"{notebook}.ipynb")
            if "parameters" in c.metadata.get("tags", [])
        ]
        values = {}
        exec(cell.source, {}, values)
        assert list(values) == list(model.model_fields)
        assert model.create(**values | given) == model.create(**given)


@pytest.fixture
def finished(tmp_path, known_objects_only):
    """A run of many tiles."""
    raster = write_labels(tmp_path / "scene.tif", objects((230, 330), 1))
    return run(job_for(raster, tmp_path / "run"))


def test_papermill_takes_a_review_back(tmp_path, finished):
    labels = finished.layer.assign(status="accepted")
    labels.loc[::3, "status"] = "rejected"
    reviewed = save_reviewed(labels[1:], tmp_path / "reviewed.gpkg")
    done, out = papermill(
        tmp_path, "-p", "run_dir", finished.folder, "-p", "reviewed", reviewed,
        "-p", "chip_size", 64, "-p", "next_source", "next.tif", notebook="review",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    review = finished.folder / "review"
    there = {path.name for path in review.iterdir()}
    assert there == {
        "issues.gpkg", "changes.png", "changes_map.png", "advice.png", "job.yaml",
        "dataset", "examples.parquet",
    }  # fmt: skip
    advised = Job.from_yaml(review / "job.yaml")
    assert advised.source == str(tmp_path / "next.tif")
    assert advised.aoi is advised.out_dir is None
    assert advised.cleaning == finished.job.cleaning
    shown = [o for c in cells(out) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == 3
    said = "".join(o["text"] for c in cells(out) for o in c.outputs if o.output_type == "stream")
    assert f"labels of {reviewed}; everything is written to {review}" in said
    assert "F1 " in said
    assert f"{review / 'dataset'}: " in said


def test_a_reference_advises_before_any_review(tmp_path, finished):
    finished.layer[finished.layer["confidence"] > 0.907].to_file(tmp_path / "truth.gpkg")
    job = ReviewJob.create(run_dir=str(finished.folder), reference=str(tmp_path / "truth.gpkg"))
    labels = read_reviewed(job.gpkg, finished)
    advice = advise_run(job, finished, labels)
    assert advice.n_reference == (finished.layer["confidence"] > 0.907).sum()
    with pytest.raises(ReviewError, match="at least two tiles"):
        advise_run(ReviewJob.create(run_dir=str(finished.folder)), finished, labels)
    path, effect = write_advised_job(job, finished, labels, advice)
    again = Job.from_yaml(path)
    assert again.out_dir == str(finished.folder)  # its candidates are stored
    assert "in seconds" in effect
    assert again.thresholds == advice.advised
    some = labels.assign(status=labels["status"].where(labels.index > 0, "accepted"))
    path, effect = write_advised_job(job, finished, some, advice)
    assert Job.from_yaml(path).out_dir == str(finished.folder)
    assert Job.from_yaml(path).refresh
    assert "in seconds, and keeps every label that a person has touched" in effect


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "run_dri", "x"], "Unknown parameter `run_dri`. Did you mean `run_dir`"),
        (["-p", "run_dir", "nowhere"], "holds no finished run"),
        (["-p", "run_dir", "null"], "Parameter `run_dir`: give the run folder that was reviewed"),
    ],
)
def test_bad_parameters_of_a_review_are_named(arguments, message, tmp_path):
    done, _ = papermill(tmp_path, "-p", "run_dir", "x", *arguments, notebook="review")
    assert done.returncode == 1
    assert message in done.stderr
