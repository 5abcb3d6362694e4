"""Files from outside as nobody would write them: rasters, tables, catalogues, records of a run."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from hostile import damaged, odd_texts, odd_values
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from known_objects import TRANSFORM, objects, paint
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

MORE = "WORKBENCH_FUZZ"  # how many times as many tries as in the suite

NAMES = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "'; DROP TABLE x; --",
    '"', "\\", "a\nb", "]]>", "[% 1 + 1 %]", "{{ 7 * 7 }}", "$\\frac{$", "%s{0}", "=cmd|'/c x'!A0",
    "geometry", "geom", "fid", "FID", "ogc_fid", "rowid", "index", "id", "source", "status",
    "class_id", "label", "said_by", "features_version", "area_m2", "prompt_id", "crs", " ", ".",
    "\u202egpj", "é" * 60, "ſ", "x|layername=y", "javascript:alert(1)", "file:///etc/hostname",
]  # fmt: skip
names = st.sampled_from(NAMES) | odd_texts


def tries(n: int) -> settings:
    """How often a test tries: in the suite the same each time, with `WORKBENCH_FUZZ` at random.

    The variable says how many times as often.
    """
    more = os.environ.get(MORE)
    return settings(
        max_examples=n * int(more or 1),
        derandomize=more is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ------------------------------------------------------------------------------------ rasters

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64"]
ODD_NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, -1e38, math.nan, math.inf, -math.inf, 255.0]
odd_numbers = st.sampled_from(ODD_NUMBERS) | st.floats()
transforms = st.sampled_from([TRANSFORM, Affine.identity(), TRANSFORM @ Affine.rotation(30)])
transforms |= st.builds(Affine, *[odd_numbers] * 6)
codes = ["EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:2263", "EPSG:3413", "EPSG:4978", "EPSG:5773"]
texts = names.filter(lambda text: "\0" not in text and text.isprintable())


@st.composite
def rasters(draw: st.DrawFn, place: Path) -> Path:
    """A GeoTIFF with anything in its tags, on any grid; the file may be damaged."""
    dtype, count = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 5))
    filled = draw(st.none() | odd_numbers)
    crs, transform = draw(st.none() | st.sampled_from(codes)), draw(transforms)
    tags = [draw(st.dictionaries(texts, texts, max_size=2)) for _ in range(2)]
    numbers = [draw(odd_numbers) for _ in range(3)]
    words, color = [draw(texts) for _ in range(2)], draw(st.sampled_from(list(ColorInterp)))
    points = [GroundControlPoint(*draw(st.tuples(*[odd_numbers] * 4))) for _ in range(4)]
    wanted, seed = draw(st.sets(st.integers(0, 8))), draw(st.integers(0, 10**6))
    path = place / "odd.tif"
    path.unlink(missing_ok=True)
    image = np.resize(paint(objects((60, 80), 1, largest=20)).transpose(2, 0, 1), (count, 60, 80))
    values = image.astype(dtype)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if filled is not None:
            values[:, :, :9] = np.array(filled).astype(dtype)
        # GDAL does not write everything
        with (
            contextlib.suppress(Exception),
            rasterio.open(
                path, "w", driver="GTiff", width=80, height=60, count=count, dtype=dtype, crs=crs,
                transform=transform,
            ) as file,
        ):  # fmt: skip
            file.write(values)
            acts = (
                lambda: file.update_tags(**tags[0]),
                lambda: file.update_tags(1, **tags[1]),
                lambda: setattr(file, "nodata", numbers[0]),
                lambda: setattr(file, "scales", [numbers[1]] * count),
                lambda: setattr(file, "offsets", [numbers[2]] * count),
                lambda: setattr(file, "descriptions", [words[0]] * count),
                lambda: setattr(file, "units", [words[1]] * count),
                lambda: setattr(file, "colorinterp", [color] * count),
                lambda: setattr(file, "gcps", (points, "EPSG:32633")),
            )
            for number in sorted(wanted):
                with contextlib.suppress(Exception):
                    acts[number]()
    if not path.exists():
        path.write_bytes(b"II*\0")
    if seed % 4 == 0:
        path.write_bytes(damaged(path.read_bytes(), seed))
    return path


# ------------------------------------------------------------------------------------- tables

cells: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), texts,
    st.datetimes(datetime.datetime(1, 1, 1)), st.binary(max_size=5),
)  # fmt: skip
numbers = st.sampled_from([0, 1, 2, -1, 1.5, None, math.nan, math.inf, "1", "x", True, 2**62])


@st.composite
def tables(draw: st.DrawFn, place: Path, box: shapely.Polygon) -> Path:
    """A vector file with any columns and shapes, some of them on a raster."""
    x, y, n = *box.centroid.coords[0], draw(st.integers(1, 4))
    squares = st.builds(
        lambda dx, dy, side: shapely.box(x + dx, y + dy, x + dx + side, y + dy + side),
        st.floats(-60, 60), st.floats(-40, 40), st.floats(0.5, 90),
    )  # fmt: skip
    odd = [
        None, shapely.Point(), shapely.Polygon(), shapely.LineString([(x, y), (x + 9, y)]),
        shapely.Polygon([(x, y), (x + 9, y + 9), (x + 9, y), (x, y + 9)]),
        shapely.GeometryCollection([shapely.Point(x, y), shapely.box(x, y, x + 5, y + 5)]),
        shapely.box(x, y, math.inf, y + 5), shapely.force_3d(shapely.box(x, y, x + 5, y + 5)),
    ]  # fmt: skip
    points = st.builds(lambda shape: shape.centroid, squares)
    kinds = st.sampled_from([squares, squares, squares, points, st.sampled_from(odd)])
    kind = draw(kinds)
    shapes = [draw(kind if draw(st.integers(0, 3)) else squares) for _ in range(n)]
    columns = {}
    for name in draw(st.lists(texts.filter(bool), max_size=4, unique_by=str.lower)):
        of_one_kind = draw(st.sampled_from([cells, texts, numbers, st.floats(), st.integers(0, 3)]))
        columns[name] = [draw(of_one_kind) for _ in range(n)]
    if draw(st.booleans()):
        columns["class_id"] = [draw(numbers | st.sampled_from([1, 1, 2])) for _ in range(n)]
    columns.pop("geometry", None)
    frame = gpd.GeoDataFrame(pd.DataFrame(columns), geometry=shapes, crs=32633)
    texts_only = dict.fromkeys(columns, str)
    path = place / f"odd.{draw(st.sampled_from(['gpkg', 'geojson', 'fgb', 'shp', 'parquet']))}"
    for old in place.glob("odd.*"):
        old.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for left in (lambda: frame, lambda: frame.astype(texts_only), lambda: frame[["geometry"]]):
            with contextlib.suppress(Exception):  # the format cannot hold it
                write = left().to_parquet if path.suffix == ".parquet" else left().to_file
                write(path)
                break
    return path


# ------------------------------------------------------------------- catalogues and records


def changed(value: Any, draw: st.DrawFn) -> Any:
    """A plain value with something in it replaced, dropped or named otherwise."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        how = draw(st.integers(0, 7))
        if how == 0:
            return {k: v for k, v in value.items() if k != key}
        if how == 1:
            return value | {draw(names): value[key]}
        return value | {key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed(value[place], draw), *value[place + 1 :]]
    return draw(odd_values | names)


def item(href: str) -> dict[str, Any]:
    """A good STAC item."""
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "bbox": [15, 47, 16, 48],
        "geometry": None, "properties": {"datetime": "2024-05-01T00:00:00Z", "eo:cloud_cover": 5},
        "links": [{"rel": "self", "href": "a.json"}],
        "assets": {
            "visual": {"href": href, "type": "image/tiff", "roles": ["visual"]},
            "B4": {"href": "b.tif", "eo:bands": [{"common_name": "red"}], "bands": [{"name": "r"}]},
            "small": {"href": "t.png", "roles": ["thumbnail"]},
        },
    }  # fmt: skip


def catalogues(href: str) -> list[dict[str, Any]]:
    """Good STAC documents of each kind."""
    return [
        item(href),
        {"type": "FeatureCollection", "features": [item(href), item(href)]},
        {
            "type": "Collection", "stac_version": "1.0.0", "id": "c",
            "links": [{"rel": "item", "href": "item.json"}, {"rel": "self", "href": "c.json"}],
        },
    ]  # fmt: skip
