"""Every command that the docs name, run as far as a machine without GPU, conda and cluster can.

papermill's own command line reads the options; the cells of the notebook are then run in this
process, which is quicker than a kernel for each (`test_notebooks.py` starts real ones). Rasters are
small, tiles too, and where a model wants a GPU, or weights of 2.5 GB, `tiny` stands in for it.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path

import geopandas as gpd
import nbformat
import papermill.cli
import pyarrow.parquet as pq
import pyogrio
import pytest
import yaml
from click.testing import CliRunner
from known_objects import TRANSFORM, UTM, objects, write_labels
from packaging.requirements import Requirement
from rasterio.features import shapes
from reviews import save_reviewed
from shapely.geometry import shape
from small_sams import small_sam3, small_tokenizer

from workbench.runs.result import read_run
from workbench.segmenters.sam.checkpoints import MODELS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = ROOT / "README.md"
OTHERS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = ROOT / "benchmarks" / "README.md"


def blocks(page):
    """The blocks of code on a page, in order: their language and text; indented ones have none."""
    block = re.compile(r"```(\w*)\n(.*?)```|((?:^ {4}[^\n]*\n)+)", re.DOTALL | re.MULTILINE)
    return [
        (language, fenced or textwrap.dedent(indented))
        for language, fenced, indented in block.findall(page.read_text(encoding="utf-8"))
    ]


def commands(page):
    """The command lines on a page, blocks first, each as words without its comment."""
    lines = [
        line
        for language, text in blocks(page)
        if language in ("", "bash")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    lines += [
        span
        for span in spans
        if " " in span and "…" not in span and Path(span.split()[0]).name in KNOWN
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [[w for w in one if not re.match(r"[A-Z_]+=", w)] for one in words if one]


class Workshop:
    """A folder with all that the docs speak of, in which their commands are run."""

    def __init__(self, folder):
        self.folder = folder
        self.background = []
        self.done = []
        for name in ("notebooks", "environment.yml", "docs", "tests", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        drawn = objects((384, 512), 1, n=40)
        names = ["ortho", "next", "scenes/1", "scenes/2", "rasters/tiles/1", "rasters/tiles/2"]
        for name in names:
            (folder / f"{name}.tif").parent.mkdir(parents=True, exist_ok=True)
            write_labels(folder / f"{name}.tif", drawn)
        found = shapes(drawn, mask=drawn > 0, transform=TRANSFORM)
        labels = gpd.GeoDataFrame(geometry=[shape(s) for s, _ in found], crs=UTM)
        labels.to_file(folder / "labels.gpkg")
        labels.to_file(folder / "footprints.gpkg")
        labels.head(2).assign(class_id=1).to_file(folder / "exemplars.gpkg")
        if find_spec("transformers"):
            small_sam3().save_pretrained(folder / "sam3")
            small_tokenizer(folder / "sam3")
        labels.dissolve().envelope.to_file(folder / "area.gpkg")
        shutil.copy(MODELS["tiny"].weights.path, folder / "weights.pth")

    def run(self, page):
        """Run the commands of a page that no other page has had, in their order."""
        for words in commands(page):
            if words not in self.done:
                self.done.append(words)
                KNOWN[Path(words[0]).name](self, words[1:])

    def papermill(self, words):
        if words[0].startswith("-"):  # the prose speaks of an option
            return
        notebook = Path(words[0]).name
        words = [self.stand_in(word) for word in words]
        if "sam3" in words and not find_spec("transformers"):
            return
        if "-k" in words:
            del words[words.index("-k") : words.index("-k") + 2]
        if notebook == "review.ipynb":
            self.review(self.folder / words[words.index("run_dir") + 1])
            words += ["-p", "chip_size", "64"]
        elif "-f" not in words:
            sam = "tiny" in words
            words += ["-p", "tile_size", "512" if sam else "128", "-p", "min_area_px", "20"]
            words += ["-p", "points_per_side", "3"] if sam else []
            # the sample scene is a large one
            words += [] if "source" in words else ["-p", "source", "ortho.tif"]
        done = CliRunner().invoke(papermill.cli.papermill, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def stand_in(self, word):
        """What is here in place of what is not."""
        if word.startswith("tcp://"):
            return self.scheduler
        if "{z}" in word or "stac:" in word:  # test_web_tiles.py and test_stac.py have servers
            return "ortho.tif"
        word = word.replace("[4, 3, 2]", "[3, 2, 1]").replace("https://example.org/", "")
        others = dict.fromkeys(("vit_h", "vit_b", "mobile_sam", "sam_hq_vit_b"), "tiny")
        others |= {"/shared/runs/all": "shared/runs/all"}
        return others.get(word, word)

    def review(self, run):
        """Have a run made and all of it accepted."""
        if not run.exists():
            arguments = f"-p source ortho.tif -p out_dir {run}"
            self.papermill(shlex.split(f"notebooks/prelabel.ipynb out.ipynb {arguments}"))
        labels = read_run(run).layer.assign(status="accepted")
        (run / "prelabels.gpkg").unlink()
        save_reviewed(labels, run / "prelabels.gpkg")

    def dask(self, words):
        if words[0] == "cuda":  # dask-cuda is for machines with a GPU
            return
        words = [self.stand_in(word) for word in words] + ["--no-dashboard"]
        words += ["--host", "127.0.0.1", "--port", "0"] if words[0] == "scheduler" else []
        log = self.folder / f"{words[0]}.log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "dask", *words]
            started = subprocess.Popen(command, stderr=output, start_new_session=True)
        self.background.append(started)
        if words[0] == "scheduler":
            while not (found := re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text())):
                assert started.poll() is None, log.read_text()
            self.scheduler = found[1]

    def pip(self, words):
        assert words[0] in ("install", "wheel")
        if "-c" in words:
            at = words.index("-c")
            assert (ROOT / words[at + 1]).exists()
            words = words[:at] + words[at + 2 :]
        for word in words[1:]:
            if not word.startswith(("-", ".")):
                requirement = Requirement(word)
                assert requirement.name == PROJECT["name"]
                assert requirement.extras <= set(PROJECT["optional-dependencies"])

    def python(self, words):
        if words[:3] == ["-m", "ipykernel", "install"]:
            words = ["--prefix=kernels" if word == "--user" else word for word in words]
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            assert list((self.folder / "kernels").rglob("gpu/kernel.json"))
        elif words[0] == "-m":
            assert find_spec(words[1])
        elif words[0] == "-c":
            exec(words[1], {})
        else:
            source = (ROOT / words[0]).read_text(encoding="utf-8")
            options = [word for word in words if word.startswith("--")]
            assert [option for option in options if f'"{option}"' not in source] == []

    def make(self, words):
        subprocess.run(["make", "-n", "-C", ROOT, *words], check=True, capture_output=True)

    def conda(self, words):
        environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
        assert words in (
            ["env", "create", "-f", "environment.yml"],
            ["activate", environment["name"]],
        )

    def ogr2ogr(self, words):
        """The commands of a database are those of test_postgis.py; here its review is stood in."""
        if words[1] == "GPKG":
            self.review(self.folder / "runs" / "ortho")
            shutil.copy(self.folder / "runs" / "ortho" / "prelabels.gpkg", self.folder / words[2])

    def of_the_system(self, words):
        """What is not this project's."""

    def close(self):
        for process in reversed(self.background):
            process.terminate()
            process.wait(20)


KNOWN = {
    "papermill": Workshop.papermill,
    "dask": Workshop.dask,
    "pip": Workshop.pip,
    "python": Workshop.python,
    "make": Workshop.make,
    "conda": Workshop.conda,
    "ogr2ogr": Workshop.ogr2ogr,
    **dict.fromkeys(
        ("hf", "git", "cd", "source", "apt-get", "pre-commit", "createdb", "psql"),
        Workshop.of_the_system,
    ),
}


def run_cells(input_path, parameters, **_):
    """Run the cells of a notebook here, with the parameters that papermill would inject."""
    names = {"__name__": "__main__"}
    for cell in nbformat.read(input_path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= parameters


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Where the commands of the README have been run, and those of the other pages will be."""
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        patch.setattr(papermill.cli, "execute_notebook", run_cells)
        try:
            made.run(README)
            yield made
        finally:
            made.close()


def test_the_readmes_commands_follow_one_another(workshop):
    runs = [read_run(path.parent) for path in workshop.folder.rglob("report.html")]
    assert {"sample", "ortho-vit_h", "all"} <= {run.folder.name for run in runs}
    assert all(len(run.layer) for run in runs if run.job.model == "classic")
    assert all(set(run.tiles["status"]) <= {"ok", "empty"} for run in runs)


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_the_commands_of(page, workshop):
    workshop.run(page)


@pytest.mark.parametrize("page", [README, *OTHERS], ids=lambda page: page.name)
def test_the_python_of(page, workshop):
    names = {}  # of a page: one block goes on where another ended
    for language, text in blocks(page):
        if language == "python":
            compiled = compile(text, str(page), "exec")
            # wants a SLURM; is run by test_docs_api.py
            if "dask_jobqueue" not in text and "sample_scene" not in text:
                exec(compiled, names)


def test_the_benchmarks_are_called_as_they_are():
    scripts = [words for words in commands(BENCHMARKS) if words[0] == "python"]
    assert len(scripts) > 5
    for words in scripts:
        Workshop.python(None, words[1:])


# ------------------------------------------------------------------------- files and columns


def documented(heading):
    """The names in the first column of the table under a heading of docs/outputs.md."""
    text = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_files_of_a_run_and_of_its_review(workshop):
    run = workshop.folder / "runs" / "sample"
    there = {path.name + "/" * path.is_dir() for path in run.iterdir() if path.name != ".lock"}
    assert {name.replace("*.parquet", "") for name in documented("The run folder")} == there
    there = {path.name + "/" * path.is_dir() for path in (run / "review").iterdir()}
    assert set(documented("The folder `review`")) == there
    dataset = run / "review" / "dataset"
    patterns = [re.sub("<.*?>", "*", name) for name in documented("The data set")]
    meant = {path for pattern in patterns for path in dataset.glob(pattern)}
    assert {path for path in dataset.rglob("*") if path.is_file()} == meant
    assert all(list(dataset.glob(pattern)) for pattern in patterns)


def test_the_columns_of_everything(workshop):
    run = workshop.folder / "runs" / "sample"
    prelabels = documented("Columns of `prelabels`")
    assert prelabels == list(gpd.read_parquet(run / "prelabels.parquet").columns[:-1])
    assert prelabels == list(pyogrio.read_info(run / "prelabels.gpkg", layer="prelabels")["fields"])
    feature = json.loads((run / "prelabels.geojson").read_text(encoding="utf-8"))["features"][0]
    assert list(feature["properties"]) == [*prelabels, "crs"]
    tiles = documented("Columns of `tiles`")
    unreviewed = workshop.folder / "runs" / "footprints" / "prelabels.gpkg"
    assert tiles == list(pyogrio.read_info(unreviewed, layer="tiles")["fields"])
    assert tiles == [*gpd.read_parquet(run / "tiles.parquet").columns[:-1], "n_unreviewed"]
    stored = next((run / "candidates").glob("*.parquet"))
    assert documented("Columns of `candidates`") == pq.read_schema(stored).names
    for path, layer in (
        ("issues.gpkg", "issues"),
        ("issues.gpkg", "mended"),
        ("dataset/chips.gpkg", "chips"),
    ):
        there = pyogrio.read_info(run / "review" / path, layer=layer)["fields"]
        assert documented(f"Columns of `{layer}`") == list(there), layer


def test_no_command_of_the_docs_is_unknown():
    first = {words[0] for page in (README, *OTHERS) for words in commands(page)}
    assert {Path(word).name for word in first} <= set(KNOWN)
    assert {"papermill", "dask", "pip", "make", "conda", "python"} <= first
