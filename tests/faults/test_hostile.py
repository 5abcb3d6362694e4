"""What people send, and what is made to harm: no code is run, and every error is our own."""

import zipfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from hostile import (
    Trap,
    as_text,
    check,
    damaged,
    geojson,
    job_files,
    ours,
    write_aois,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ipywidgets import HTML
from ipywidgets.widgets.widget import _instances
from known_objects import objects, write_labels
from known_runs import job_for

from workbench import Job, run
from workbench.errors import AOIError, CheckpointError, JobError, RunFolderError, SceneError
from workbench.raster.aoi import load_aoi
from workbench.segmenters.sam.checkpoints import MODELS
from workbench.widgets import AOIPicker, RunPanel, ThresholdTuner

MARKUP = "<img src=x onerror=alert(1)>"
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


# ------------------------------------------------------------------------------- nothing runs


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(raster, tmp_path):
    weights = torch.load(MODELS["tiny"].weights.fetch(), weights_only=True)
    sprung = tmp_path / "sprung"
    for new in (True, False):
        torch.save(
            {**weights, "trap": Trap(sprung)}, tmp_path / "evil.pth",
            _use_new_zipfile_serialization=new,
        )  # fmt: skip
        job = job_for(raster, tmp_path / "run", model="tiny", checkpoint=str(tmp_path / "evil.pth"))
        with pytest.raises(CheckpointError, match=r"evil\.pth holds Python code .* not run"):
            run(job)
    assert not sprung.exists()
    assert not (tmp_path / "run").exists()


def test_tags_in_yaml_make_no_objects(raster, tmp_path):
    sprung = tmp_path / "sprung"
    for tag in (
        f"!!python/object/apply:os.mkdir ['{sprung}']",
        f"!!python/object/new:os.mkdir ['{sprung}']",
        "!!python/name:os.mkdir",
    ):
        (tmp_path / "job.yaml").write_text(f"source: {tag}\n")
        with pytest.raises(JobError, match="cannot be read as a job: could not determine"):
            Job.from_yaml(tmp_path / "job.yaml")
        assert Job.create(source=f"[{tag}]").source == f"[{tag}]"  # a file may be called so
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.yaml").write_text(f"crs: {tag}\n")
        with pytest.raises(RunFolderError, match=r"run\.yaml cannot be read"):
            run(job_for(raster, tmp_path / "run"))
    assert not sprung.exists()


def test_aliases_that_hold_themselves_or_everything_are_refused(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in pairwise("abcdefghi")]
    for text in ("aoi: &a {x: *a}", "source: &a [*a]", "\n".join(lines), "source: " + "[" * 3000):
        (tmp_path / "job.yaml").write_text(text)
        with pytest.raises(JobError) as told:
            Job.from_yaml(tmp_path / "job.yaml")
        assert len(str(told.value)) < 1000


# ------------------------------------------------------------------------- nothing gets outside


@pytest.mark.usefixtures("known_objects_only")
def test_names_in_a_run_folder_lead_nowhere_else(raster, tmp_path):
    folder = tmp_path / "deep" / "run"
    run(job_for(raster, folder))
    record = yaml.safe_load((folder / "run.yaml").read_text())
    for name in ("../../outside", "/outside", "a/b", "..\0"):
        record["scenes"][0]["name"] = name
        (folder / "run.yaml").write_text(yaml.safe_dump(record))
        with pytest.raises(RunFolderError, match="was not written by a run"):
            run(job_for(raster, folder))
    assert not list(tmp_path.glob("outside*"))


def test_archives_are_never_unpacked(raster, tmp_path):
    archive = tmp_path / "deep" / "area.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("../escaped.geojson", "/tmp/escaped.geojson", "../../escaped.tif"):
            content.writestr(name, raster.read_bytes() if name.endswith("tif") else "{}")
    with pytest.raises(AOIError):
        load_aoi(str(archive))
    with pytest.raises(SceneError):
        run(job_for(str(archive), tmp_path / "run"))
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped.geojson").exists()


# ---------------------------------------------------------------------------- nothing is markup


class Tags(HTMLParser):
    """The tags and handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found |= {tag, *(name for name, _ in attributes)}


@pytest.mark.usefixtures("known_objects_only")
def test_names_of_files_and_classes_are_text_in_pages_and_projects(tmp_path):
    labels = objects((230, 330), 1)
    plain = write_labels(tmp_path / "plain.tif", labels)
    odd = write_labels(tmp_path / f"{MARKUP}\" '&amp; $x^{{$ ]]>.tif", labels)
    expected = run(job_for(plain, tmp_path / "plain"))
    folder = tmp_path / f"{MARKUP}$\\frac{{$"
    result = run(job_for(odd, folder, classes={1: f"{MARKUP}&\"'", 2: "]]>\x07"}))
    assert len(result.layer) == len(expected.layer)
    page, plain_page = (
        Tags((done.folder / "report.html").read_text(encoding="utf-8")).found
        for done in (result, expected)
    )
    assert page == plain_page
    assert "onerror" not in page
    with zipfile.ZipFile(folder / "review.qgz") as project:
        (name,) = project.namelist()
        assert "/" not in name
        root = ElementTree.fromstring(project.read(name))
    classes = {
        node.get("name")
        for config in root.iter("field") if config.get("name") == "class_id"
        for node in config.iter("Option")
    }  # fmt: skip
    assert {f"1 – {MARKUP}&\"'", "2 – ]]>"} <= classes


def test_names_are_text_in_widgets(tmp_path):
    odd = write_labels(tmp_path / f"{MARKUP}.tif", objects((230, 330), 1))
    job = job_for(odd, tmp_path / f"{MARKUP}run", classes={1: MARKUP}, interactive=True)
    picker = AOIPicker(job)
    try:
        tuner = ThresholdTuner(picker)
        panel = RunPanel(tuner).panel
        picker.session.job = job.changed(aoi=f"{MARKUP}.gpkg")
        panel.file.path.value = str(tmp_path / f"{MARKUP}.yaml")
        panel.file.save()
        pages = [widget.value for widget in _instances.values() if isinstance(widget, HTML)]
        assert sum("&lt;img" in page for page in pages) >= 2
        assert not any("<img" in page for page in pages)
    finally:
        picker.close()


# --------------------------------------------------------------------------------- every error


@pytest.mark.usefixtures("known_objects_only")
@FUZZ
@given(content=job_files())
def test_any_job_file_is_a_job_or_an_error_of_ours(content, raster, tmp_path):
    (tmp_path / "job.yaml").write_bytes(content)
    ours(check, tmp_path / "job.yaml", raster, tmp_path / "run")


@FUZZ
@given(area=geojson)
def test_any_geojson_is_an_area_or_an_error_of_ours(area, tmp_path):
    ours(load_aoi, area)
    (tmp_path / "area.geojson").write_text(as_text(area), encoding="utf-8")
    ours(load_aoi, str(tmp_path / "area.geojson"))


@pytest.fixture(scope="module")
def areas(tmp_path_factory):
    return write_aois(tmp_path_factory.mktemp("areas"))


@FUZZ
@given(which=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_any_damaged_vector_file_is_an_area_or_an_error_of_ours(areas, which, seed):
    path = areas[which]
    content = path.read_bytes()
    try:
        path.write_bytes(damaged(content, seed))
        ours(load_aoi, str(path))
    finally:
        path.write_bytes(content)
