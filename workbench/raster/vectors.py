"""Features of vector files: any that GDAL reads, and GeoParquet; one layer of several."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import pyogrio
from pyogrio.util import vsi_path

from workbench._support.secrets import has_secrets, without_secrets
from workbench.errors import WorkbenchError
from workbench.raster.sources import GDAL_ERRORS, gdal_name, is_local, signed
from workbench.raster.texts import HEAD_BYTES, copy_text, fetched, head_of

# what GDAL takes for a description of features that are elsewhere; it goes by the content
_ELSEWHERE = re.compile(rb"<OGRWFS|<OGRVRTDataSource|gdal_streamed_alg", re.IGNORECASE)
# how a JSON begins: an object, a comment or a call before it
_JSON = re.compile(rb"[{/]|\w+\(")
# a driver named before the path; GDAL finds it by the content anyway
_DRIVER = re.compile(r"(?:geojson|geojsonseq|topojson|esrijson|jsonfg|gdalg):", re.IGNORECASE)
# what a JSON file has if its CRS is at an address
_LINKED = re.compile(rb"""["']type["']\s*:\s*["'](?:link|url)["']|\\u00[4-7]""", re.IGNORECASE)
_LINK = object()  # in place of a part of such a file that names an address
_PARQUET = (".parquet", ".geoparquet", ".pq")
# what a layer says of itself if it may hold polygons
_POLYGONAL = ("Polygon", "Unknown", "GeometryCollection", "Surface")


def read_vectors(
    address: str,
    what: str,
    refusal: type[WorkbenchError],
    *,
    columns: Sequence[str] | None = None,
    layer: str | None = None,
) -> gpd.GeoDataFrame:
    """Read the features of a vector file, in the CRS of the file.

    Args:
        address: a path, a URL or a GDAL name (`/vsizip/…`); a layer of several is named as QGIS
            does it, `file.gpkg|layername=aoi`.
        what: begins each message, for example ``Parameter `prompts`: roofs.gpkg``.
        refusal: the kind of error that a message is raised as.
        columns: those wanted besides the geometry, where the file has them; None: all.
        layer: the layer that is meant if the file has it and the address names none.

    Returns:
        Columns and `geometry`. The index is the file's `fid`, where it has one.

    Raises:
        WorkbenchError: a `refusal`: the file is not there or cannot be read, has no geometry or no
            CRS, or holds several layers of polygons and none of them is named.
    """
    path, options = _parts(address)
    if is_local(path) and not os.path.exists(path):
        raise refusal(
            f"{what}: no such file. Check the path; relative paths start at {os.getcwd()}."
        )
    try:
        frame = _read(path, options, what, columns, layer)
    except _LayerError as error:
        raise refusal(str(error)) from None
    except Exception as error:  # a damaged file can fail anywhere in GDAL, GEOS and PROJ
        quiet = None if has_secrets(str(error)) else error
        reason = _without_sql(without_secrets(str(error))).rstrip(".")
        raise refusal(
            f"{what} cannot be read as a vector file: {reason}. Open it in QGIS "
            "and export it again, for example as GeoPackage."
        ) from quiet
    if not isinstance(frame, gpd.GeoDataFrame):
        raise refusal(f"{what} has no geometry. Give a vector layer, not a table.")
    if frame.crs is None:
        raise refusal(
            f"{what} has no CRS, so its place is unknown. Save it with one, for example with "
            "`ogr2ogr -a_srs EPSG:32633 out.gpkg in.shp`."
        )
    return frame if frame.geometry.name == "geometry" else frame.rename_geometry("geometry")


def _without_sql(reason: str) -> str:
    """What GDAL says about a file, without the query that failed, and each cause once."""
    causes = re.sub(r"\bsqlite3_\w+\(.*?\) failed: ", "", reason, flags=re.DOTALL).split("; ")
    return "; ".join(dict.fromkeys(causes))


class _LayerError(Exception):
    """It is not clear which layer of a file is meant."""


def _parts(address: str) -> tuple[str, dict[str, str]]:
    """Split `file.gpkg|layername=aoi` into the file and its options."""
    address = _DRIVER.sub("", address, count=1) if _DRIVER.match(address) else address
    if "|" not in address or os.path.exists(address):
        return address, {}
    path, *options = address.split("|")
    return path, dict(option.partition("=")[::2] for option in options)


def _read(
    path: str,
    options: dict[str, str],
    what: str,
    columns: Sequence[str] | None,
    meant: str | None,
) -> gpd.GeoDataFrame:
    plain = without_secrets(path).split("?")[0]
    if plain.lower().endswith(_PARQUET):
        frame = gpd.read_parquet(path if is_local(path) else io.BytesIO(fetched(path)))
        kept = frame.columns if columns is None else [*columns, frame.geometry.name]
        return frame[[name for name in frame if name in kept]]
    with _at_hand(path) as place:
        if os.path.isfile(place):
            _refuse_references(place, path, what)
        named = {str(name): kind for name, kind in pyogrio.list_layers(place).tolist()}
        layer = options.get("layername")
        number = options.get("layerid", "")
        if layer is None and number.isdecimal() and int(number) < len(named):
            layer = list(named)[int(number)]
        if layer is not None and layer not in named:
            raise _LayerError(f"{what} has no layer {layer}. {_choice(path, list(named))}")
        if layer is None:
            layer = meant if meant in named else _only_polygons(path, named, what)
        return gpd.read_file(
            place,
            layer=layer,
            columns=None if columns is None else list(columns),
            where=options.get("subset"),
            fid_as_index=True,
        )


@contextmanager
def _at_hand(path: str) -> Iterator[str]:
    """Give the name by which GDAL opens a vector file.

    A text at an address or in an archive is copied to this disk first, so that what is checked is
    what GDAL reads.
    """
    place = vsi_path(gdal_name(signed(path)))
    try:
        head = b"" if os.path.exists(place) else head_of(place)
    except GDAL_ERRORS:
        head = b""  # a folder, a database, or nothing: GDAL will tell
    if not _may_refer(head):
        yield place
        return
    name = os.path.basename(without_secrets(path).split("?")[0]) or "text"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name.removesuffix(".zip")
        copy_text(place, copy)
        yield str(copy)


def _may_refer(head: bytes) -> bool:
    """Whether a file that begins so may name an address that GDAL would ask."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return _JSON.match(text) is not None or _ELSEWHERE.search(text) is not None


def _refuse_references(path: str, given: str, what: str) -> None:
    """Refuse a file on disk, which was `given` as a path or address, if it names an address.

    That is a description of features elsewhere (a service, a virtual layer, a command of GDAL), or
    a GeoJSON or TopoJSON with a CRS at an address: of the whole, of a feature or of a shape.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
        own = is_local(given) and given.lower().endswith(".vrt")  # somebody knows what it names
        if path.lower().endswith(".gdalg.json") or (_ELSEWHERE.search(head) and not own):
            raise _LayerError(
                f"{what} describes features elsewhere and holds none. Save those that are wanted "
                "as a file, for example with QGIS."
            )
        # any name may be written with escapes, which only a parser undoes
        if not _JSON.match(head):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            if not _LINKED.search(whole):
                return
        file.seek(0)
        text = file.read().decode("utf-8-sig")

    def look(pairs: list[tuple[str, object]]) -> object:
        """Tell whether an object names an address; GDAL takes `CRS` for `crs`, too."""
        if any(name.lower() == "crs" and value is _LINK for name, value in pairs):
            raise _LayerError(
                f"{what} has its CRS at an address, which is not asked. Save it with its CRS by "
                "name, for example as GeoPackage."
            )
        types = [str(value).lower() for name, value in pairs if name.lower() == "type"]
        return _LINK if {"link", "url"} & set(types) else None

    decoder, start = json.JSONDecoder(object_pairs_hook=look), text.find("{")
    while start >= 0:  # each line may be a document
        _, end = decoder.raw_decode(text, start)
        start = text.find("{", end)


def _only_polygons(path: str, named: dict[str, str | None], what: str) -> str | None:
    """The layer of polygons if there is one; else the first, about which will be said what it is.

    A table without geometry counts only if there is nothing else.
    """
    polygonal = [
        name for name, kind in named.items() if kind and any(word in kind for word in _POLYGONAL)
    ]
    if len(polygonal) > 1:
        raise _LayerError(
            f"{what} has {len(polygonal)} layers of polygons. {_choice(path, polygonal)}"
        )
    spatial = [name for name, kind in named.items() if kind]
    return next(iter(polygonal or spatial or named), None)


def _choice(path: str, layers: Sequence[str]) -> str:
    path = without_secrets(path)
    lines = "\n".join(f"  {path}|layername={layer}" for layer in layers)
    return f"Name one of them:\n{lines}"
