import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.cli import _resolve_type

from workbench.candidates.select import Thresholds
from workbench.errors import JobError
from workbench.runs.job import Job

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "prelabel.ipynb"


def test_documented_defaults():
    job = Job()
    assert job.parameters() == {
        "source": None, "aoi": None, "out_dir": None, "model": "tiny", "checkpoint": None,
        "device": "auto", "precision": "auto", "bands": "auto", "stretch": "auto", "nodata": None,
        "crs": "auto", "resolution_m": None, "tile_size": 1024, "overlap": 0.1875, "scales": [1],
        "points_per_side": 32, "crop_n_layers": 0, "pred_iou_thresh": None,
        "stability_score_thresh": None, "pred_iou_floor": None, "stability_floor": None,
        "box_nms_thresh": None, "crop_nms_thresh": 0.7, "max_area_share": 0.8,
        "duplicate_iou": 0.7, "overlaps": "nested",
        "min_area_px": 500, "min_area_m2": None, "max_area_m2": None,
        "fill_holes_m2": None, "min_solidity": None, "simplify_m": None, "planar": False,
        "regularize": None,
        "examples": None, "labelled_area": None, "class_thresh": None, "prompts": None,
        "grid": "auto", "concepts": None, "exemplars": None,
        "classes": {1: "object"}, "default_class": None, "reference": None,
        "formats": None, "scheduler": None, "resume": True, "refresh": False, "interactive": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "thresholds"),
    [("classic", (0.85, 0.92)), ("tiny", (0.65, 0.9)), ("vit_h", (0.85, 0.92))],
)
def test_each_model_has_thresholds_of_its_own(model, thresholds):
    job = Job.create(model=model)
    assert job.thresholds == Thresholds(*thresholds)
    assert (job.rules.pred_iou_floor, job.rules.stability_floor) == (0.5, 0.5)
    assert job.rules.box_nms_thresh == (0.95 if model == "tiny" else 0.7)
    assert job.changed(box_nms_thresh=0.8).rules.box_nms_thresh == 0.8
    assert job.changed(pred_iou_thresh=0.7).thresholds == Thresholds(0.7, thresholds[1])
    assert job.changed(pred_iou_floor=0.3).rules.pred_iou_floor == 0.3
    with pytest.raises(JobError, match="below the floor"):
        job.changed(pred_iou_floor=thresholds[0] + 0.01)


def test_the_notebook_has_exactly_the_parameters_and_their_defaults():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    values = {}
    exec(cell.source, {}, values)
    assert list(values) == list(Job.model_fields)
    assert Job.create(**values) == Job()


@pytest.mark.parametrize(
    ("given", "name", "meant"),
    [
        (2019, "source", "2019"),
        ("null", "aoi", None),
        ("null", "pred_iou_thresh", None),
        ("null", "tile_size", None),  # has no null: refused below
        ("['a.tif', 'b.tif']", "source", ["a.tif", "b.tif"]),
        ("[3, 2, 1]", "bands", (3, 2, 1)),
        ("auto", "bands", None),
        ("auto", "interactive", None),
        ({"1": "roof", "2": "tree"}, "classes", {1: "roof", 2: "tree"}),
        ("{1: roof}", "classes", {1: "roof"}),
        ("false", "interactive", False),
        ("False", "interactive", False),
        ("no", "interactive", False),
        (0, "interactive", False),
        ("TRUE", "planar", True),
        ("0.9", "pred_iou_thresh", 0.9),
        ('{"type": "Polygon", "coordinates": []}', "aoi", {"type": "Polygon", "coordinates": []}),
        (32633, "crs", "32633"),
        ("3,2,1", "bands", (3, 2, 1)),
        ("2, 98", "stretch", (2.0, 98.0)),
        ("None", "source", None),
        (["a.tif", Path("b.tif")], "source", ["a.tif", "b.tif"]),
        ("[ab]*.tif", "source", "[ab]*.tif"),
        (None, "min_area_px", None),
        ("{1: 2019}", "classes", {1: "2019"}),
        ("~/a.tif", "source", str(Path.home() / "a.tif")),
        (["~/a.tif"], "source", [str(Path.home() / "a.tif")]),
        ("~/aoi.gpkg", "aoi", str(Path.home() / "aoi.gpkg")),
        ("pmtiles", "formats", ["pmtiles"]),
        ("pmtiles, flatgeobuf", "formats", ["pmtiles", "flatgeobuf"]),
        ("[pmtiles]", "formats", ["pmtiles"]),
        ("~/run", "out_dir", str(Path.home() / "run")),
    ],
)
def test_values_are_taken_as_meant(given, name, meant):
    if name == "tile_size":
        with pytest.raises(JobError, match=name):
            Job.create(**{name: given})
    else:
        assert getattr(Job.create(**{name: given}), name) == meant


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pred_iou_tresh": 0.9}, "Unknown parameter `pred_iou_tresh`. Did you mean `pred_iou_thr"),
        ({"colour": 1}, "Unknown parameter `colour`"),
        ({"pred_iou_thresh": 1.5}, "`pred_iou_thresh`: .*less than or equal to 1.*1.5"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"tile_size": "big"}, "`tile_size`"),
        ({"overlap": 0.9}, "`overlap`"),
        ({"model": "vit_x"}, "`model`: .*'vit_h'.*pip install 'sam-workbench.models.'.*vit_x"),
        ({"model": ["vit_b"]}, "`model`: no model has this name"),
        ({"pred_iou_thresh": 0.3}, r"pred_iou_thresh \(0.3\) is below the floor"),
        ({"stability_score_thresh": 0.3}, "stability_score_thresh .* below the floor"),
        ({"bands": [0, 1, 2]}, "band numbers start at 1"),
        ({"bands": [1, 2]}, "`bands`"),
        ({"stretch": [98, 2]}, "stretch"),
        ({"crs": "EPSG:99999"}, "`crs`: no CRS"),
        ({"default_class": 7}, "default_class 7"),
        ({"interactive": "perhaps"}, "`interactive`"),
        ({"source": ""}, "`source`: is empty"),
        ({"source": ["a.tif", ""]}, "`source`"),
        ({"aoi": " "}, "`aoi`: is empty"),
        (
            {"model": "classic", "checkpoint": "sam.pth"},
            "checkpoint sam.pth: `classic` has no weights",
        ),
        ({"resolution_m": "inf"}, "`resolution_m`"),
        ({"simplify_m": float("inf")}, "`simplify_m`"),
        ({"min_area_m2": float("nan")}, "`min_area_m2`"),
        ({"classes": "{1: no}"}, "`classes`: class 1 is called False"),
        (
            {"classes": {1: "roof", "1": "tree"}},
            "`classes`: two classes have the same number: give each one",
        ),
        ({"crs": "²"}, "`crs`: no CRS"),
        ({"formats": "shapefile"}, "`formats`: .*'flatgeobuf' or 'pmtiles'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(JobError, match=message):
        Job.create(**parameters)


def test_without_a_least_area_every_part_is_kept():
    assert Job.create(min_area_px=None).cleaning.min_area_px == 0


def test_yaml_round_trip(tmp_path):
    job = Job.create(
        source="a.tif", classes={3: "Größe & <b>"}, aoi={"type": "Point"}, bands=[1, 2, 3]
    )
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml(), encoding="utf-8")
    again = Job.from_yaml(path)
    assert again == job.model_copy(update={"source": str(Path("a.tif").absolute())})
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))) == list(Job.model_fields)


def test_urls_stay_as_they_are():
    job = Job.create(source=["https://host/a.tif", "s3://bucket/b.tif", "/vsicurl/https://h/c.tif"])
    assert job.parameters()["source"] == list(job.source)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.getcwd []", "7: x"])
def test_files_that_are_no_jobs_are_refused(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JobError, match=re.escape(str(path))):
        Job.from_yaml(path)


def test_a_notebook_refuses_unknown_parameters(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("__vsc_ipynb_file__", raising=False)
    namespace = {"source": "a.tif", "In": [""], "Out": {}, "_i1": "", "Job": Job, "Path": Path}
    assert Job.from_notebook(namespace).source == "a.tif"
    with pytest.raises(JobError, match="Unknown parameter `min_area`"):
        Job.from_notebook({**namespace, "min_area": 5})
    with pytest.raises(JobError, match="Unknown parameter `note`"):
        Job.from_notebook({**namespace, "note": "x"})


def test_a_person_may_have_variables_of_their_own():
    namespace = {"interactive": True, "note": "x"}
    assert Job.from_notebook(namespace).is_interactive
    with pytest.raises(JobError, match="pred_iou_thresh"):
        Job.from_notebook({**namespace, "pred_iou_tresh": 0.9})


def test_widgets_only_where_a_person_is(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("__vsc_ipynb_file__", raising=False)
    assert not Job().is_interactive
    monkeypatch.setenv("JPY_SESSION_NAME", "/lab/prelabel.ipynb")
    monkeypatch.setattr("workbench._support.notebook._kernel_allows_input", lambda: True)
    assert Job().is_interactive
    monkeypatch.setattr("workbench._support.notebook._kernel_allows_input", lambda: False)
    assert not Job().is_interactive  # papermill started inside a notebook
    assert Job.create(interactive=True).is_interactive


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"source": "a b.tif", "out_dir": "runs/it's", "pred_iou_thresh": 0.91, "planar": True},
        {"source": "2019", "classes": {1: "roof; & <b>", 2: "no"}, "bands": [4, 3, 2]},
        {"source": ["a.tif", "b.tif"], "min_area_px": None, "simplify_m": None, "resume": False},
        {"aoi": {"type": "Polygon", "coordinates": [[[8, 47], [8.1, 47], [8.1, 47.1], [8, 47]]]}},
    ],
)
def test_a_command_runs_exactly_this_job(parameters):
    job = Job.create(**parameters)
    name, notebook, output, *options = shlex.split(job.command("my notes.ipynb", "out.ipynb"))
    assert (name, notebook, output) == ("papermill", "my notes.ipynb", "out.ipynb")
    given = {}
    options = iter(options)
    for option in options:  # as papermill reads them
        if option == "-p":
            given |= {next(options): _resolve_type(next(options))}
        else:
            assert option == "-y"
            given |= yaml.safe_load(next(options))
    assert Job.create(**given).parameters() == job.parameters()


def test_a_changed_job_is_checked_like_any_other():
    assert Job().changed(planar=True) == Job.create(planar=True)
    with pytest.raises(JobError, match="pred_iou_thresh"):
        Job().changed(pred_iou_thresh=0.3)


def test_a_scheduler_in_a_job_file_must_be_trusted(tmp_path, monkeypatch):
    """Dask unpickles what a scheduler and its workers send, so it runs their code."""
    monkeypatch.delenv("WORKBENCH_TRUST_SCHEDULER", raising=False)
    path = tmp_path / "job.yaml"
    for address in ("tcp://10.0.0.1:8786", "tls://10.0.0.1:8786"):
        path.write_text(f"scheduler: {address}\n")
        with pytest.raises(JobError, match=rf"job\.yaml names scheduler {address}.*`-p scheduler"):
            Job.from_yaml(path)
        monkeypatch.setenv("WORKBENCH_TRUST_SCHEDULER", "tcp://10.0.0.2:8786")
        with pytest.raises(JobError, match="names scheduler"):
            Job.from_yaml(path)
        monkeypatch.setenv("WORKBENCH_TRUST_SCHEDULER", address)
        assert Job.from_yaml(path).scheduler == address
    path.write_text("scheduler: null\n")
    assert Job.from_yaml(path).scheduler is None


def test_a_job_file_does_not_keep_the_scheduler():
    job = Job.create(scheduler="tcp://10.0.0.1:8786")
    assert yaml.safe_load(job.to_yaml())["scheduler"] is None
    assert job.parameters()["scheduler"] == job.scheduler
    assert "-p scheduler tcp://10.0.0.1:8786" in job.command("a.ipynb", "b.ipynb")


@pytest.mark.parametrize("text", ["2024_05", "0079", "007", "1.10", "1e3", "True", "2019", "nan"])
def test_a_name_that_papermill_reads_as_a_number_stays_text(monkeypatch, tmp_path, text):
    """`papermill … -p out_dir 2024_05` gives the kernel 202405."""
    value = _resolve_type(text)
    assert not isinstance(value, str)
    words = ["python", "/bin/papermill", "a.ipynb", "b.ipynb", "-p", "tile_size", "512"]
    (tmp_path / "job.yaml").write_text(f"out_dir: {text}\n")
    in_yaml = yaml.safe_load(f"out_dir: {text}")["out_dir"]
    for options, given in [
        (["-p", "out_dir", text], value),
        (["-y", f"{{out_dir: {text}, bands: [3, 2, 1]}}"], in_yaml),
        (["-f", "job.yaml"], in_yaml),
    ]:
        monkeypatch.setattr(
            "workbench.runs.given._papermills",
            lambda options=options: iter([([*words, *options], tmp_path)]),
        )
        assert Job.from_notebook({"out_dir": given}).out_dir == text
    monkeypatch.setattr("workbench.runs.given._papermills", lambda: iter(()))
    with pytest.raises(JobError, match=r"`out_dir`: papermill has made .*`-r out_dir …`"):
        Job.from_notebook({"out_dir": value})
    assert Job.from_notebook({"out_dir": text}).out_dir == text


def test_names_in_a_list_and_dates_stay_text(monkeypatch, tmp_path):
    words = ["papermill", "a.ipynb", "b.ipynb", "-y", "source: [0017, 12:30, 2024-05-01]"]
    monkeypatch.setattr("workbench.runs.given._papermills", lambda: iter([(words, tmp_path)]))
    value = yaml.safe_load(words[-1])["source"]
    assert value[:2] == [15, 750]
    assert Job.from_notebook({"source": value}).source == ["0017", "12:30", "2024-05-01"]


def test_numbers_in_a_job_file_that_are_names(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("out_dir: 2024_05\nsource: [0017, a.tif]\ntile_size: 512\n")
    job = Job.from_yaml(path)
    assert (job.out_dir, job.source, job.tile_size) == ("2024_05", ["0017", "a.tif"], 512)
