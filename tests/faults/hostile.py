"""Jobs and areas of interest as no one would write them, and what is made to harm."""

import json
import random
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
import yaml
from hypothesis import strategies as st

from workbench import Job
from workbench.errors import WorkbenchError
from workbench.runs.plan import prepare

# what YAML, GDAL and PROJ make something of, or should not
ODD_TEXTS = [
    "", "null", "auto", "~", "-1", "1e999", ".nan", "[", "{a: b", "*x", "&x [*x]", "!!bool x",
    "!!timestamp x", "!!python/object/apply:os.system [exit 3]", "{1: !!int ''}", "[!!float x]",
    "<script>alert(1)</script>", "../../x", "/", "~nobody-is-called-so/x", "\x07", "\u202egpj",
    "EPSG:4326", "EPSG:99999", "EPSG:3031", "ESRI:54009", "IGNF:LAMB93", "LOCAL_CS[]", "²", "*.tif",
    "/vsizip/x.zip", "GPKG:x", "/vsimem/x", "[[[[[[[[", "9" * 5000, "x" * 5000, "5,5,5", "[0, 100]",
]  # fmt: skip
odd_texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | odd_texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(odd_texts | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def job_files(draw: st.DrawFn) -> bytes:
    """A `job.yaml` with a few fields out of order, or bytes of one."""
    values: dict[Any, Any] = dict(Job().parameters())
    names = st.sampled_from(list(values))
    for name in draw(st.lists(names, min_size=1, max_size=3)):
        values[name] = draw(odd_values)
    if draw(st.integers(0, 9)) == 0:
        values[draw(odd_texts)] = draw(odd_values)
    text = yaml.safe_dump(values, allow_unicode=True)
    if draw(st.integers(0, 3)) == 0:  # as YAML, not as a value in it
        text += f"{draw(names)}: {draw(odd_texts)}\n"
    content = text.encode(errors="surrogatepass")
    return damaged(content, draw(st.integers(0, 999))) if draw(st.integers(0, 3)) == 0 else content


numbers = st.floats() | st.integers(-200, 200) | st.just(10**400) | st.none() | odd_texts
positions = st.lists(numbers, max_size=4)
shapes = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Polygon", "MultiPolygon", "Point", "GeometryCollection", "x", 5]),
        "coordinates": st.lists(st.lists(positions, max_size=6), max_size=3) | odd_values,
    }
)
geojson = (
    shapes
    | st.fixed_dictionaries({"type": st.just("Feature"), "geometry": shapes | odd_values})
    | st.fixed_dictionaries(
        {
            "type": st.just("FeatureCollection"),
            "features": st.lists(
                st.fixed_dictionaries(
                    {"type": st.just("Feature"), "properties": odd_values, "geometry": shapes}
                ),
                max_size=3,
            )
            | odd_values,
        }
    )
)


def damaged(content: bytes, seed: int) -> bytes:
    """Cut some content short, or write over a few of its bytes."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 20)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def write_aois(folder: Path) -> list[Path]:
    """Good areas of interest in the formats that people have."""
    frame = gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.box(15, 47, 16, 48)], crs=4326)
    paths = [folder / f"area.{suffix}" for suffix in ("geojson", "gpkg", "shp", "fgb", "gml")]
    for path in paths:
        frame.to_file(path)
    return paths


def as_text(value: Any) -> str:
    """A value as JSON with what JSON has no words for."""
    return json.dumps(value, default=str)


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def ours(action: Callable[..., object], *arguments: object) -> None:
    """Call something that may fail, but only with an error of ours."""
    with warnings.catch_warnings(), suppress(WorkbenchError):
        warnings.simplefilter("ignore")  # of GDAL and PROJ, about what they have been given
        action(*arguments)


def check(job_file: Path, raster: Path, folder: Path) -> None:
    """Read a job and check all of it, as `run` does before long work."""
    job = Job.from_yaml(job_file)
    Job.create(**job.parameters())
    job.command("in.ipynb", "out.ipynb")
    with closing(prepare(job.changed(source=str(raster), out_dir=str(folder), scheduler=None))):
        pass
