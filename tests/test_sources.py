import functools
import http.server
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from made_rasters import (
    GEOGRAPHIC,
    GRIDS,
    assert_rectangles_in_place,
    three_rectangles,
    whole,
    write,
)

from workbench.errors import SceneError
from workbench.opening import open_scene
from workbench.sources import find_sources


def test_sources_by_path_list_glob_and_directory(tmp_path):
    for name in ("b.tif", "a.tif", "c.TIF", "deep/d.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, np.zeros((3, 8, 8), np.uint8))
    for name in ("a.tif.msk", "a.tif.ovr", "a.tfw", "notes.txt", "quicklook.png", "all.vrt"):
        (tmp_path / name).touch()
    a, b, c = (str(tmp_path / name) for name in ("a.tif", "b.tif", "c.TIF"))
    assert find_sources(a) == [a]
    assert find_sources(tmp_path / "a.tif") == [a]
    assert find_sources([b, a, b]) == [b, a]
    assert find_sources(str(tmp_path)) == [a, b, c]
    assert find_sources(f"{tmp_path}/a.t*") == [a]
    assert find_sources(f"{tmp_path}/**/*.tif") == [a, b, str(tmp_path / "deep/d.tif")]
    assert find_sources([str(tmp_path / "deep"), a]) == [str(tmp_path / "deep/d.tif"), a]
    assert find_sources(f"{tmp_path}/all.vrt") == [f"{tmp_path}/all.vrt"]


def test_a_directory_shows_pictures_with_a_world_file_and_lone_vrts(tmp_path):
    (tmp_path / "map.jpg").touch()
    (tmp_path / "map.jgw").touch()
    (tmp_path / "photo.jpg").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "map.jpg")]
    (tmp_path / "map.jpg").unlink()
    (tmp_path / "all.vrt").touch()
    assert find_sources(tmp_path) == [str(tmp_path / "all.vrt")]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    path = write(tmp_path / "scene [1] & <2>.tif", three_rectangles(), "EPSG:4326", GEOGRAPHIC)
    assert find_sources(str(path)) == [str(path)]
    assert_rectangles_in_place(open_scene(path), "EPSG:4326", GEOGRAPHIC)


def test_urls_and_gdal_names_stay_as_they_are():
    for name in ("https://example.org/a.tif", "s3://bucket/a*.tif", "/vsizip/a.zip/a.tif"):
        assert find_sources(name) == [name]


@pytest.mark.parametrize("pattern", ["*.tif", "missing.tif", ""])
def test_nothing_found_is_an_error_that_names_it(tmp_path, pattern):
    with pytest.raises(SceneError, match=re.escape(str(tmp_path / pattern))):
        find_sources(str(tmp_path / pattern))


def test_an_empty_list_of_sources_is_an_error():
    with pytest.raises(SceneError, match="empty"):
        find_sources([])


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Static files with byte ranges, which GDAL needs; counts what is asked for."""

    asked: list[str]

    def __init__(self, *args, asked: list[str], **options):
        self.asked = asked
        super().__init__(*args, **options)

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


def test_a_raster_at_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # rasterio keeps the GIL in some calls: a request from there would wait for our server for ever
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "5")
    crs, transform = GRIDS["geographic"]
    path = write(tmp_path / "remote.tif", three_rectangles(), crs, transform)
    asked: list[str] = []
    handler = functools.partial(RangeServer, directory=str(tmp_path), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/remote.tif"
            scene = open_scene(url)
            assert (scene.source, scene.name) == (url, "remote")
            assert (whole(scene)[0] == whole(open_scene(path))[0]).all()
            scene.close()
            # no listing, no sidecars
            assert set(asked) == {"/remote.tif"}
            with pytest.raises(SceneError, match="404"):
                open_scene(url.replace("remote", "missing"))
        finally:
            server.shutdown()
