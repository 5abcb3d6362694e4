"""STAC as a source, tested against an API of its own."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import stac_server
from known_objects import TRANSFORM, UTM, write_labels
from known_runs import job_for

from workbench import Job, run
from workbench.errors import JobError, SceneError
from workbench.raster import sources
from workbench.raster.stac import rasters_of
from workbench.runs.plan import open_scenes


def item(folder, number, *, collection="ortho", cloud=0, day="2026-05-01", assets=None):
    """A raster of one object, and its item."""
    labels = np.zeros((96, 96), int)
    labels[20:40, 20:40] = 1
    place = TRANSFORM @ TRANSFORM.translation(200 * number, 0)
    write_labels(folder / f"{number}.tif", labels, place)
    box = gpd.GeoSeries([shapely.box(*place @ (0, 96), *place @ (96, 0))], crs=UTM).to_crs(4326)[0]
    visual = {"href": f"./{number}.tif", "type": "image/tiff; application=geotiff"}
    content = {
        "type": "Feature", "stac_version": "1.0.0", "id": f"item{number}",
        "collection": collection, "geometry": shapely.geometry.mapping(box),
        "bbox": list(box.bounds), "links": [],
        "properties": {"datetime": f"{day}T10:00:00Z", "eo:cloud_cover": cloud},
        "assets": assets or {
            "thumbnail": {"href": "t.tif", "type": "image/tiff", "roles": ["thumbnail"]},
            "visual": {**visual, "roles": ["visual"]},
            "nir": {"href": "nir.tif", "type": "image/tiff"},
        },
    }  # fmt: skip
    path = folder / f"{number}.item.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "catalogue"
    made.mkdir()
    item(made, 0)
    item(made, 1, cloud=80)
    item(made, 2, day="2026-06-01")
    item(made, 3, collection="other")
    return made


@pytest.fixture
def api(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "RETRY_SECONDS", ())
    server = subprocess.Popen(
        [sys.executable, stac_server.__file__, folder, tmp_path / "log"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.kill()
    server.wait()
    server.stdout.close()


def test_an_item_in_a_file_and_a_collection_of_files(folder):
    (scene,) = open_scenes(Job.create(source=str(folder / "0.item.json")))
    assert scene.source == str(folder / "0.tif")
    links = [{"rel": "item", "href": f"./{number}.item.json"} for number in (0, 2)]
    collection = {"type": "Collection", "stac_version": "1.0.0", "id": "c", "links": links}
    (folder / "collection.json").write_text(json.dumps(collection))
    found = open_scenes(Job.create(source=str(folder / "collection.json")))
    assert [scene.name for scene in found] == ["0", "2"]


@pytest.mark.usefixtures("known_objects_only")
def test_an_item_at_an_address_makes_a_run(api, tmp_path):
    made = run(job_for(f"{api}/0.item.json", tmp_path / "run"))
    assert len(made.layer) == 1
    assert made.scenes[0].source == f"{api}/0.tif"


@pytest.mark.usefixtures("known_objects_only")
def test_a_search_makes_one_run_of_its_items(api, tmp_path):
    pytest.importorskip("pystac_client")
    whole = gpd.read_file(tmp_path / "catalogue" / "0.item.json").total_bounds
    area = shapely.box(whole[0], whole[1] - 0.01, whole[2] + 0.01, whole[3] + 0.01)
    job = job_for(tmp_path, tmp_path / "run", aoi=shapely.geometry.mapping(area))

    def names(**search):
        job_here = job.changed(source={"stac": f"{api}/", **search})
        return [scene.name for scene in open_scenes(job_here)]

    assert names() == ["0", "1", "2", "3"]
    assert names(collections=["ortho"]) == ["0", "1", "2"]
    assert names(collections=["ortho"], max_cloud=20) == ["0", "2"]
    assert names(datetime="2026-06-01") == ["2"]
    made = run(
        job.changed(source=f"{{stac: {api}/, collections: [ortho], bbox: aoi, max_cloud: 20}}")
    )
    assert sorted(made.layer["source"]) == ["0", "2"]
    assert Job.from_yaml(made.folder / "job.yaml").source["collections"] == ["ortho"]
    with pytest.raises(SceneError, match="more than 2 such items"):
        names(max_items=2)
    with pytest.raises(SceneError, match="no item that fits"):
        names(collections=["none"])
    with pytest.raises(SceneError, match="cloud is not one of stac, "):
        names(cloud=3)


def test_the_asset_is_chosen_by_role_and_common_names(folder):
    def choose(assets, **more):
        path = item(folder, 7, assets=assets)
        return Path(rasters_of({"stac": str(path), **more})[0]).name

    def asset(name, *colours, roles=("data",), key="eo:bands"):
        word = "common_name" if key == "eo:bands" else "eo:common_name"
        return {
            "href": f"{name}.tif", "type": "image/tiff", "roles": list(roles),
            key: [{word: colour} for colour in colours],
        }  # fmt: skip

    naip = asset("naip", "red", "green", "blue", "nir")
    assert choose({"dsm": asset("dsm"), "image": naip}) == "naip.tif"
    later = asset("later", "red", "green", "blue", key="bands")
    assert choose({"dsm": asset("dsm"), "image": later}) == "later.tif"
    assert choose({"a": asset("a"), "TCI": asset("tci")}) == "tci.tif"
    assert choose({"a": asset("a"), "b": asset("b", roles=["visual"])}) == "b.tif"
    assert choose({"only": asset("only")}) == "only.tif"
    assert choose({"a": asset("a"), "b": asset("b")}, asset="b") == "b.tif"
    with pytest.raises(SceneError, match=r"which of its assets .* asset: a\. It has: a, b"):
        choose({"a": asset("a"), "b": asset("b")})
    with pytest.raises(SceneError, match="red, green and blue in files of their own"):
        choose({colour: asset(colour, colour) for colour in ("red", "green", "blue")})
    with pytest.raises(SceneError, match="has no asset c; it has: a"):
        choose({"a": asset("a")}, asset="c")


def test_what_is_not_stac_is_refused(folder, api):
    (folder / "x.json").write_text('{"type": "Topology", "stac_version": "1.0.0"}')
    for source in (str(folder / "x.json"), {"stac": f"{api}/missing.json"}):
        with pytest.raises(SceneError, match=r"not a STAC item|HTTP response code: 404"):
            open_scenes(Job.create(source=source))
    with pytest.raises(JobError, match="STAC search"):
        Job.create(source={"url": "https://h"})


@pytest.mark.parametrize("document", [
    {"type": "Feature", "assets": None},
    {"type": "Feature", "assets": {"a": "x"}, "links": [5]},
    {"type": "Feature", "assets": {}, "properties": None},
    {"type": "FeatureCollection", "features": 5},
    {"type": "Collection", "links": [{"rel": "item"}]},
    {"type": "Feature", "properties": {"eo:cloud_cover": "clear"}, "assets": {}},
])  # fmt: skip
def test_a_document_of_another_shape_is_refused(tmp_path, document):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document | {"stac_version": "1.0.0"}))
    with pytest.raises(SceneError, match=r"odd\.json is not as STAC describes"):
        rasters_of({"stac": str(path), "max_cloud": 50})


@pytest.mark.parametrize("values", [{"max_items": "many"}, {"max_cloud": None}, {"max_items": -1}])
def test_a_search_with_words_for_numbers_is_refused(folder, values):
    with pytest.raises(SceneError, match=f"{next(iter(values))} must be a number from 0 on"):
        rasters_of({"stac": str(folder / "a.json"), **values})
