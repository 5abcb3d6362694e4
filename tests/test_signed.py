"""Signed addresses: the same raster behind each signature, and no signature in any file."""

import logging
import zipfile

import pytest
from known_objects import objects, write_labels
from known_runs import counted_calls, equal_layers, files_in, job_for
from range_server import serve

from workbench import Job, run
from workbench._support.secrets import has_secrets, without_secrets
from workbench.errors import JobError, SceneError
from workbench.raster import sources
from workbench.raster.open import open_scene
from workbench.runs.result import read_run


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("https://h/a.tif?X-Amz-Algorithm=A&X-Amz-Signature=s3cret", "https://h/a.tif"),
        (
            "https://h/a.tif?sv=2022&se=2026-11-30T00%3A00Z&sr=b&sp=r&sig=a%2Bb%3D",
            "https://h/a.tif",
        ),
        ("https://h/a.tif?X-Goog-Credential=me&X-Goog-Signature=1", "https://h/a.tif"),
        ("https://h/a.tif?Expires=1&Signature=ab~&Key-Pair-Id=K", "https://h/a.tif"),
        ("https://h/a.tif?id=7&token=abc&v=2", "https://h/a.tif?id=7&v=2"),
        ("https://h/a.tif?access_token=abc&id=7", "https://h/a.tif?id=7"),
        ("https://me:pw@h:8080/a.tif", "https://h:8080/a.tif"),
        ("/vsicurl/https://me@h/a.tif?api_key=1", "/vsicurl/https://h/a.tif"),
        (
            "/vsicurl?use_head=no&header.Authorization=Bearer%20x&url=https%3A%2F%2Fh%2Fa.tif",
            "/vsicurl?use_head=no&url=https%3A%2F%2Fh%2Fa.tif",
        ),
        ("WMTS:https://h/wmts?apikey=1,layer=ortho", "WMTS:https://h/wmts,layer=ortho"),
        ('NETCDF:"/vsicurl/https://h/a.nc?sig=1":v', 'NETCDF:"/vsicurl/https://h/a.nc":v'),
        ("https://h/a.tif?st=north&x=1", "https://h/a.tif?st=north&x=1"),  # no signature
        ("https://h/monkeys?a=1", "https://h/monkeys?a=1"),
        ("/data/a?b.tif", "/data/a?b.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
    ],
)
def test_only_what_signs_is_left_out_of_an_address(address, plain):
    assert without_secrets(address) == plain
    assert without_secrets(f"see {address} or not") == f"see {plain} or not"
    assert has_secrets(address) is (address != plain)


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "RETRY_SECONDS", ())
    folder = tmp_path / "served"
    folder.mkdir()
    write_labels(folder / "scene.tif", objects((230, 330), 1))
    with serve(folder, tmp_path / "requests.log") as server:
        yield server


def sign(tmp_path, signature):
    (tmp_path / "requests.signature").write_text(signature)
    return f"X-Amz-Expires=60&X-Amz-Signature={signature}"


def texts(folder):
    """What the files of a run hold, zipped ones, too."""
    for path in files_in(folder):
        yield path, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((name, archive.read(name)) for name in archive.namelist())


@pytest.mark.usefixtures("known_objects_only")
def test_a_fresh_signature_is_the_same_raster(served, tmp_path, monkeypatch):
    url, folder = f"{served.url}/scene.tif", tmp_path / "run"
    first = run(job_for(f"{url}?{sign(tmp_path, 'first0secret')}", folder))
    assert len(first.layer)
    calls = counted_calls(monkeypatch)
    again = run(job_for(f"{url}?{sign(tmp_path, 'second0secret')}", folder))
    assert calls == []
    assert equal_layers(again.layer, first.layer)
    fewer = job_for(f"{url}?{sign(tmp_path, 'third0secret')}", folder, pred_iou_thresh=0.91)
    assert len(run(fewer).layer) <= len(first.layer)
    assert calls == []
    for path, content in texts(folder):
        assert b"0secret" not in content, path
        assert b"X-Amz" not in content, path
    assert f"source: {url}\n" in (folder / "job.yaml").read_text()


@pytest.mark.usefixtures("known_objects_only")
def test_a_signature_of_the_environment(served, tmp_path, monkeypatch):
    url = f"{served.url}/scene.tif"
    query = sign(tmp_path, "first0secret")
    with pytest.raises(SceneError, match="403") as caught:
        open_scene(url)
    monkeypatch.setenv(sources.SIGNED_URLS, f"https://other/?sig=1 {url}?{query}")
    assert open_scene(url) == open_scene(f"{url}?{query}")
    made = run(job_for(url, tmp_path / "run"))
    # a reloaded run has no signature of its own
    scene = read_run(tmp_path / "run").scenes[0]
    scene.close()
    sources.forget(f"{url}?{query}")  # or all of it would come from GDAL's memory
    query = sign(tmp_path, "second0secret")
    with pytest.raises(SceneError, match="403") as caught:
        scene.read(scene.window)
    assert "0secret" not in str(caught.value)
    assert caught.value.__cause__ is None or "0secret" not in str(caught.value.__cause__)
    # one signature for all that is in a folder
    monkeypatch.setenv(sources.SIGNED_URLS, f"{served.url}/?{query}")
    assert scene.read(scene.window)[1].all()
    assert read_run(tmp_path / "run").picture() == made.picture()


def test_an_expired_signature_is_named_by_its_cause_and_not_shown(served, tmp_path, caplog):
    sign(tmp_path, "new0secret")
    with pytest.raises(SceneError, match="403") as caught:
        open_scene(f"{served.url}/scene.tif?sig=old0secret")
    assert "0secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or "0secret" not in repr(caught.value.__cause__)
    assert "403" in caplog.text  # rasterio's own
    assert "0secret" not in caplog.text


def test_refusals_and_commands_do_not_show_a_signature(caplog):
    job = Job.create(
        source=["https://me:pw@h/a.tif?sig=s3cret"], aoi="https://h/a.gpkg?token=t0ken"
    )
    assert job.source == ["https://me:pw@h/a.tif?sig=s3cret"]  # it is opened like that
    written = f"{job.to_yaml()} {job.command('a.ipynb', 'b.ipynb')} {job.parameters()}"
    assert "s3cret" not in written
    assert "t0ken" not in written
    assert "pw@" not in written
    with pytest.raises(JobError) as caught:
        Job.create(source={"url": "https://h/a.tif?sig=s3cret"})
    assert "s3cret" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        Job.from_notebook({"source": "https://h/a.tif?sig=s3cret", "interactive": False})
    assert "WORKBENCH_SIGNED_URLS" in caplog.text
    assert "s3cret" not in caplog.text
