"""Several rasters in one file, and one raster in several files."""

import shutil

import numpy as np
import pytest
import rasterio.shutil
from made_rasters import NORTH_UP, three_rectangles, whole, write

from workbench import Job
from workbench.errors import SceneError
from workbench.raster.open import open_scene
from workbench.raster.sources import absolute, find_sources
from workbench.runs.plan import open_scenes
from workbench.runs.record import name_scenes


def two_tables(folder):
    """A GeoPackage of two rasters, and their images."""
    path, images = folder / "two.gpkg", {}
    for number, table in enumerate("AB"):
        images[table] = np.roll(three_rectangles(), 7 * number, axis=2)
        single = write(folder / f"{table}.tif", images[table])
        more = {"APPEND_SUBDATASET": "YES"} if number else {}
        rasterio.shutil.copy(
            single, path, driver="GPKG", RASTER_TABLE=table, TILE_FORMAT="PNG", **more
        )
        single.unlink()
    return path, images


def test_the_rasters_in_a_file_are_listed_with_the_line_to_use(tmp_path, monkeypatch):
    path, images = two_tables(tmp_path)
    with pytest.raises(SceneError) as caught:
        open_scene(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} holds several rasters (2). Name one of them as source:"
    for table, line in zip("AB", lines[1:], strict=True):
        source = line.split()[0]
        assert source == f"GPKG:{path}:{table}"
        scene = open_scene(source)
        assert (whole(scene)[0] == images[table].transpose(1, 2, 0)).all()
        assert scene.name == f"two_{table}"
        # a relative name is the same raster
        monkeypatch.chdir(tmp_path)
        assert open_scene(f"GPKG:two.gpkg:{table}") == scene
    one, other = open_scenes(Job.create(source=[f"GPKG:two.gpkg:{table}" for table in "AB"]))
    assert one.fingerprint != other.fingerprint
    assert [scene.name for scene in name_scenes([one, other], None)] == ["two_A", "two_B"]
    # of another folder it is the same, and with another content it is not
    (tmp_path / "moved").mkdir()
    shutil.copy(path, tmp_path / "moved" / "two.gpkg")
    assert open_scene(f"GPKG:{tmp_path}/moved/two.gpkg:A").fingerprint == one.fingerprint


def test_relative_names_are_made_absolute_in_what_a_run_keeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tif", three_rectangles())
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "a.tif")
    (tmp_path / "a.h5").touch()
    for name, expected in {
        "GPKG:a.tif:b": f"GPKG:{tmp_path}/a.tif:b",
        'NETCDF:"a.h5":v': f'NETCDF:"{tmp_path}/a.h5":v',
        'HDF5:"a.h5"://group/v': f'HDF5:"{tmp_path}/a.h5"://group/v',
        'HDF4_SDS:UNKNOWN:"a.h5":0': f'HDF4_SDS:UNKNOWN:"{tmp_path}/a.h5":0',
        "GTIFF_DIR:1:a.tif": f"GTIFF_DIR:1:{tmp_path}/a.tif",
        "vrt://a.tif?bands=1,2,3": f"vrt://{tmp_path}/a.tif?bands=1,2,3",
        "/vsizip/z.zip/a.tif": f"/vsizip/{tmp_path}/z.zip/a.tif",
    }.items():
        assert absolute(name) == expected
        assert absolute(expected) == expected
        assert Job.create(source=name).parameters()["source"] == expected
        assert find_sources(name) == [expected]
    for name in ("GPKG:missing.gpkg:b", "https://h/a.tif", "s3://a.tif/b", "/vsizip//x/z.zip/a"):
        assert absolute(name) == name
    for name in ("vrt://a.tif?bands=1,2,3", "/vsizip/z.zip/a.tif", "GTIFF_DIR:1:a.tif"):
        assert whole(open_scene(name))[1].all()


BANDS = {
    "Sentinel-2": (["T32_20260101_B02_10m", "T32_20260101_B03_10m", "T32_20260101_B04_10m"], "432"),
    "bare": (["B02", "B03", "B04", "B08", "B8A"], "432"),
    "Landsat": (["LC08_SR_B2", "LC08_SR_B3", "LC08_SR_B4", "LC08_SR_B5"], "432"),
    "words": (["ortho_blue", "ortho_green", "ortho_nir", "ortho_red"], "dgb"),
    "band 1": (["band_1", "band_2", "band_3"], "123"),
}


@pytest.mark.parametrize("kind", BANDS)
@pytest.mark.parametrize("how", ["folder", "glob", "list"])
def test_one_band_a_file_is_asked_about(tmp_path, kind, how):
    names, _ = BANDS[kind]
    paths = [write(tmp_path / f"{name}.tif", three_rectangles()[:1] + i)
             for i, name in enumerate(names)]  # fmt: skip
    source = {"folder": str(tmp_path), "glob": f"{tmp_path}/*.tif", "list": list(map(str, paths))}
    with pytest.raises(SceneError, match="one band each") as caught:
        open_scenes(Job.create(source=source[how]))
    command = str(caught.value).split("rio stack ")[1].split(" -o")[0].split()
    ends = {"dgb": ["red", "green", "blue"], "123": ["band_1", "band_2", "band_3"]}
    wanted = ends.get(BANDS[kind][1], ["4", "3", "2"])
    for path, end in zip(command, wanted, strict=True):
        assert path.removesuffix(".tif").removesuffix("_10m").endswith(end)


def test_grey_scenes_side_by_side_are_scenes(tmp_path):
    for number in range(3):
        place = NORTH_UP @ NORTH_UP.translation(240 * number, 0)
        write(tmp_path / f"B{number + 1}.tif", three_rectangles()[:1], transform=place)
        write(tmp_path / f"sheet_{number + 1}.tif", three_rectangles()[:1], transform=place)
    assert len(open_scenes(Job.create(source=str(tmp_path)))) == 6


def test_coloured_scenes_and_two_dates_on_one_another_are_scenes(tmp_path):
    for name in ("a_B1", "a_B2", "b_B1"):
        write(tmp_path / f"{name}.tif", three_rectangles())
    write(tmp_path / "2024.tif", three_rectangles()[:1])
    write(tmp_path / "2025.tif", three_rectangles()[:1])
    assert len(open_scenes(Job.create(source=str(tmp_path)))) == 5
