"""Whatever comes from outside gives one error of ours or a right result, and leaves no trace."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pytest
import yaml
from hostile import ours
from hypothesis import given
from hypothesis import strategies as st
from known_objects import objects, write_labels
from known_runs import job_for, use_known_objects
from strange import catalogues, changed, item, rasters, tables, texts, tries
from test_hostile import Tags

from workbench import Job, run
from workbench.errors import WorkbenchError
from workbench.layer.files import read_layer
from workbench.learning.examples import read_labels
from workbench.raster.aoi import load_aoi
from workbench.raster.open import open_scene
from workbench.raster.sources import find_sources
from workbench.raster.stac import rasters_of
from workbench.runs.prompts import read_prompts
from workbench.runs.result import read_run
from workbench.widgets.saved import SavedSession, read_saved


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a small run of known objects."""
    folder = tmp_path_factory.mktemp("finished")
    raster = write_labels(folder / "scene.tif", objects((100, 120), 1))
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        yield run(job_for(raster, folder / "run")).folder


def read_raster(path: Path) -> None:
    scene = open_scene(path)
    height, width = min(scene.height, 300), min(scene.width, 300)
    rgb, valid = scene.read(scene.window.intersection(type(scene.window)(0, 0, width, height)))
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8
    assert valid.shape == (height, width)
    assert not rgb[~valid].any()


# rasterio drops a message of GDAL that quotes bytes which are no text, and tells of that
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@tries(25)
@given(st.data())
def test_any_raster_is_a_scene_or_an_error_of_ours(place, data):
    ours(read_raster, data.draw(rasters(place)))


@tries(25)
@given(st.data())
def test_any_table_is_an_area_labels_and_prompts_or_an_error_of_ours(place, finished, data):
    scene = read_run(finished).scenes[0]
    path = data.draw(tables(place, scene.window_polygon(scene.window)))
    ours(load_aoi, str(path))
    ours(read_labels, str(path), [1, 2])
    ours(lambda: read_prompts(path, [scene], None, {1: "a", 2: "b"}).attributes())


@tries(50)
@given(st.data())
def test_any_catalogue_is_rasters_or_an_error_of_ours(place, data):
    document = data.draw(st.sampled_from(catalogues("scene.tif")))
    for _ in range(data.draw(st.integers(1, 3))):
        document = changed(document, data.draw)
    (place / "c.json").write_text(json.dumps(document, default=str), encoding="utf-8")
    (place / "item.json").write_text(json.dumps(changed(item("a.tif"), data.draw), default=str))
    search = {"max_cloud": 50, "asset": "visual", "max_items": 3, "bbox": None}
    wanted = {name: search[name] for name in data.draw(st.sets(st.sampled_from([*search])))}
    wanted = changed(wanted, data.draw) if wanted and data.draw(st.booleans()) else wanted
    if isinstance(wanted, dict):
        search = wanted | {"stac": str(place / "c.json")}
        ours(lambda: [open_scene(name) for name in find_sources(rasters_of(search))])


@tries(20)
@given(st.data())
def test_any_record_of_a_run_is_read_or_an_error_of_ours(place, finished, data):
    folder = place / "run"
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    record = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 2))):
        record = changed(record, data.draw)
    text = yaml.safe_dump(record, allow_unicode=True)
    (folder / "run.yaml").write_bytes(text.encode(errors="surrogatepass"))

    def look() -> None:
        read = read_run(folder)
        assert len(read.layer) == read.tiles["n_polygons"].sum()
        assert {Path(scene.name).name for scene in read.scenes} == {s.name for s in read.scenes}

    ours(look)


@tries(40)
@given(st.data())
def test_any_session_is_taken_up_or_an_error_of_ours(place, finished, data):
    job = Job.from_yaml(finished / "job.yaml")
    kept = SavedSession(given=job.parameters(), changed={"min_area_px": 3}, judged=())
    document = json.loads(kept.model_dump_json())
    for _ in range(data.draw(st.integers(1, 3))):
        document = changed(document, data.draw)
    text = json.dumps(document, default=str)
    (place / "session.json").write_bytes(text.encode(errors="surrogatepass"))

    def take_up() -> None:
        saved = read_saved(place)
        assert saved is not None
        again = saved.applied(job)
        saved.other_for(again)
        opened = again if saved.opened is None else saved.opened.job_for(again)
        # a file never decides where tiles are computed, or where they are written
        assert (again.scheduler, again.out_dir) == (job.scheduler, job.out_dir)
        assert opened.scheduler == job.scheduler

    ours(take_up)


@tries(3)
@given(st.data())
def test_a_run_of_any_names_and_attributes_shows_them_as_text(tmp_path_factory, data):
    """Names of the raster, its tags, classes, and all columns of a file of prompts."""
    place = tmp_path_factory.mktemp("any")
    name = data.draw(texts.filter(lambda text: 0 < len(text.encode()) < 200 and "/" not in text))
    raster = write_labels(place / f"x{name}.tif", objects((100, 120), 1))
    classes = dict(enumerate(data.draw(st.lists(texts.filter(str.strip), max_size=3)), 1))
    prompts = data.draw(
        st.none() | tables(place, open_scene(raster).window_polygon(open_scene(raster).window))
    )
    before = set(place.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        try:
            made = run(
                job_for(
                    str(raster), place / "run", classes=classes or {1: "object"},
                    prompts=prompts and str(prompts),
                )
            )  # fmt: skip
        except WorkbenchError:
            return
    page = Tags((made.folder / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "onerror", "iframe", "object", "embed", "form"} & page.found
    with zipfile.ZipFile(made.folder / "review.qgz") as project:
        assert project.namelist() == ["review.qgs"]
        ElementTree.fromstring(project.read("review.qgs"))
    features = json.loads((made.folder / "prelabels.geojson").read_text(encoding="utf-8"))
    stored, table = (
        read_layer(made.folder / f"prelabels.{kind}").sort_values("id", ignore_index=True)
        for kind in ("gpkg", "parquet")
    )
    assert len(features["features"]) == len(stored) == len(table)
    assert stored["source"].tolist() == table["source"].tolist()
    assert set(gpd.read_parquet(made.folder / "prelabels.parquet")["source"]) <= {f"x{name}"}
    written = set(place.rglob("*")) - before
    assert all(path.is_relative_to(place / "run") for path in written)
