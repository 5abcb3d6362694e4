"""The hand-off to QGIS: styles and the review project, written without QGIS.

One fragment of XML says how a layer looks and how its form works. Its elements are valid in
`<qgis>` (QML: in the GeoPackage and beside the GeoJSON) and in `<maplayer>` (the project), so the
three never drift apart. What QGIS insists on is marked `QGIS:`.
"""

from __future__ import annotations

import os
import re
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pyproj
import rasterio
from rasterio.enums import ColorInterp, MaskFlags

from workbench import layer as layers
from workbench.atomic import atomic_path
from workbench.opening import crs_of
from workbench.raster import Scene
from workbench.sources import gdal_name

# lower bound of confidence and colour, bright enough for imagery and told apart by the colour
# blind; fixed, so that a colour means the same in every run, in QGIS and in the report
CONFIDENCE_CLASSES: Sequence[tuple[float, str]] = (
    (0.0, "#d32a8c"),
    (0.7, "#ff6f59"),
    (0.8, "#ffa62b"),
    (0.9, "#ffe45c"),
    (0.95, "#b9fbc0"),
)
NO_SCORE_COLOR = "#4cc9f0"
NO_SCORE = 99  # what a polygon drawn by hand is classified as

TILE_STATUSES: Mapping[str, tuple[str, str]] = {
    "ok": ("ok", "#e0e0e0"),
    "empty": ("no object found", "#9e9e9e"),
    "nodata": ("no valid pixels", "#616161"),
    "failed": ("failed", "#ff1744"),
}
STATUSES: Mapping[layers.Status, str] = {
    "unreviewed": "Unreviewed",
    "accepted": "Accepted",
    "rejected": "Rejected",
    "edited": "Edited",
}

# QGIS: decides which migrations run. A newer one makes older QGIS warn, none at all makes every
# QGIS warn, so it stays at the oldest version that is supported.
_VERSION = "3.22.0"
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_IDS = uuid.UUID("0a4f6f0e-52a0-4a56-a8b5-6f7f1a6d1c55")  # layer ids are the same in every run
_SNAP_TOLERANCE = 8.0  # map units, which are metres


@dataclass(frozen=True)
class ProjectRaster:
    """A raster as the project shows it.

    `source` is a local path or a GDAL name (`/vsicurl/…`). `bands` are one or three 1-based band
    numbers, `()` leaves the colours to QGIS (palettes). `stretch` has `(low, high)` for each of
    the bands, or is None for values that are 0..255 already. `alpha` is the band that hides
    pixels; QGIS numbers a mask as one more band after the last.
    """

    source: Path | str
    name: str
    crs: pyproj.CRS
    bands: tuple[int, ...]
    stretch: tuple[tuple[float, float], ...] | None = None
    alpha: int | None = None


def scene_raster(scene: Scene) -> ProjectRaster:
    """Show the scene's source file with the bands and the stretch that the model has seen."""
    name = gdal_name(scene.source)
    with rasterio.open(name) as dataset:
        crs = crs_of(dataset, scene.source)
        palette = dataset.colorinterp[scene.bands[0] - 1] == ColorInterp.palette
        masked = dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
        bands_in_file = dataset.count
    bands = scene.bands if len(set(scene.bands)) > 1 else scene.bands[:1]
    stretch = None
    if scene.stretch is not None:
        stretch = tuple(zip(scene.stretch.low, scene.stretch.high, strict=True))[: len(bands)]
    return ProjectRaster(
        source=Path(name) if Path(name).exists() else name,
        name=scene.name,
        crs=crs,
        bands=() if palette else bands,
        stretch=stretch,
        alpha=bands_in_file + 1 if masked else scene.alpha,
    )


def styles(classes: Mapping[int, str]) -> dict[str, str]:
    """QML for the layers `prelabels` and `tiles`, as `layer.write_layer` takes it."""
    return {layers.LABELS: _qml(label_style(classes)), layers.TILES: _qml(tile_style())}


def label_style(classes: Mapping[int, str]) -> list[ET.Element]:
    """How the pre-labels look (by confidence) and how their form works."""
    # QGIS: no slider, which shows a real number as 0 and may write that (qgis/QGIS#49127)
    score = {"Style": "SpinBox", "Min": 0.0, "Max": 1.0, "Step": 0.01, "Precision": 3,
             "AllowNull": True}  # fmt: skip
    form = [
        _Field("fid", "", "Hidden", editable=False),
        # what a person draws: an id of its own, and it counts as reviewed
        _Field("id", "Id", editable=False, default="'drawn/' || uuid('WithoutBraces')"),
        _Field(
            "class_id",
            "Class",
            "ValueMap",
            _value_map({number: f"{number} – {name}" for number, name in classes.items()}),
        ),
        _Field("status", "Status", "ValueMap", _value_map(STATUSES), default="'edited'"),
        _Field("confidence", "Confidence", "Range", score, editable=False),
        _Field("stability", "Stability", "Range", score, editable=False),
        _Field("area_m2", "Area (m²)", editable=False, default="$area", on_update=True),
        _Field("area_px", "Area (pixels)", editable=False),
        _Field("source_tile", "Tile", editable=False),
        _Field("source", "Source", editable=False),
        _Field("n_tiles", "Merged from tiles", editable=False),
        _Field("at_edge", "At the edge of the imagery", "CheckBox", editable=False),
    ]
    rows = "\"status\" = 'rejected'"
    return [
        _confidence_renderer(opacity=f"if({rows}, 25, 100)"),
        *_form(form, display='concat("id", \' · \', round("confidence", 2))'),
    ]


def tile_style() -> list[ET.Element]:
    """How the tiles look: outlines by status, failed ones in red."""
    form = [_Field(name, name, editable=False) for name in ("fid", *layers.TILE_COLUMNS)]
    renderer = _el(None, "renderer-v2", type="categorizedSymbol", attr="status", forceraster=0)
    categories, symbols = _el(renderer, "categories"), _el(renderer, "symbols")
    for number, (status, (label, color)) in enumerate(TILE_STATUSES.items()):
        _el(categories, "category", symbol=number, value=status, label=label, type="string",
            render="true")  # fmt: skip
        symbol = _el(symbols, "symbol", type="fill", name=number, alpha=1)
        fill = 30 if status == "failed" else 0
        _outline(symbol, color, fill, width=0.3, style="dash")
    return [renderer, *_form(form, display='"tile"')]


def write_project(
    path: Path,
    *,
    gpkg: Path,
    rasters: Sequence[ProjectRaster],
    crs: pyproj.CRS,
    bounds: tuple[float, float, float, float],
    classes: Mapping[int, str],
    title: str,
) -> None:
    """Write the review project (`.qgz`): pre-labels above tiles above imagery.

    `gpkg` is what `layer.write_layer` has written, in the metric working CRS `crs`; `bounds` is
    what the project shows when it opens (left, bottom, right, top). Local paths are written
    relative to the project, so that the folder can move together with its imagery.
    """
    folder = path.parent.resolve()
    source = _local(gpkg, folder)
    ids = {name: _layer_id(name, name) for name in (layers.LABELS, layers.TILES)}
    raster_sources = [_local(raster.source, folder) for raster in rasters]
    raster_ids = [
        _layer_id(raster.name, f"raster/{raster_source}")
        for raster, raster_source in zip(rasters, raster_sources, strict=True)
    ]

    root = _el(None, "qgis", projectname=title, version=_VERSION)
    _el(root, "title", title)
    _spatial_reference(_el(root, "projectCrs"), crs)
    tree = _el(root, "layer-tree-group")
    for name, id in ids.items():
        _tree_layer(tree, id, name, "ogr")
    # thousands of pre-cut rasters in one list would bury the two layers
    group = tree if len(rasters) == 1 else _el(tree, "layer-tree-group", name="imagery", expanded=0)
    for id, raster in zip(raster_ids, rasters, strict=True):
        _tree_layer(group, id, raster.name, "gdal")

    _snapping(root, ids)
    canvas = _el(root, "mapcanvas", name="theMapCanvas")
    extent = _el(canvas, "extent")
    for corner, value in zip(_CORNERS, bounds, strict=True):
        _el(extent, corner, float(value))
    _spatial_reference(_el(canvas, "destinationsrs"), crs)

    projectlayers = _el(root, "projectlayers")
    for name, style, wkb in (
        (layers.LABELS, label_style(classes), "MultiPolygon"),
        (layers.TILES, tile_style(), "Polygon"),
    ):
        node = _map_layer(
            projectlayers, ids[name], name, f"{source}|layername={name}", "ogr", "vector", crs
        )
        node.attrib.update(geometry="Polygon", wkbType=wkb, labelsEnabled="0")
        node.extend(style)
    for id, raster, raster_source in zip(raster_ids, rasters, raster_sources, strict=True):
        node = _map_layer(
            projectlayers, id, raster.name, raster_source, "gdal", "raster", raster.crs
        )
        if raster.bands:
            _raster_renderer(node, raster)

    properties = _el(root, "properties")
    # QGIS: without it, <projectCrs> is ignored
    _property(properties, "SpatialRefSys/ProjectionsEnabled", "int", "1")
    _property(properties, "Paths/Absolute", "bool", "false")
    _property(properties, "Digitizing/TopologicalEditing", "int", "1")
    # areas on the ellipsoid, as area_m2
    _property(properties, "Measure/Ellipsoid", "QString", "EPSG:7030")
    _property(properties, "Measurement/DistanceUnits", "QString", "meters")
    _property(properties, "Measurement/AreaUnits", "QString", "m2")
    view = _el(_el(root, "ProjectViewSettings"), "DefaultViewExtent")
    for corner, value in zip(_CORNERS, bounds, strict=True):
        view.set(corner, _text(float(value)))
    _spatial_reference(view, crs)

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        entry = zipfile.ZipInfo(f"{path.stem}.qgs")  # dated 1980: equal projects, equal files
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, _document(root))


# ------------------------------------------------------------------------------------- symbols


def _confidence_renderer(opacity: str) -> ET.Element:
    # QGIS: NULL falls in no range and would not be drawn, so a polygon just drawn would vanish
    renderer = _el(None, "renderer-v2", type="graduatedSymbol", graduatedMethod="GraduatedColor",
                   attr=f'coalesce("confidence", {NO_SCORE})', forceraster=0)  # fmt: skip
    ranges, symbols = _el(renderer, "ranges"), _el(renderer, "symbols")
    lows = [low for low, _ in CONFIDENCE_CLASSES]
    edges = [-NO_SCORE, *lows[1:], NO_SCORE - 1]
    colors = [color for _, color in CONFIDENCE_CLASSES]
    rows = [*zip(edges, edges[1:], confidence_labels(), colors, strict=False)]
    # QGIS takes the first range that fits, both ends included: 0.9 is to be in "0.9 – 0.95"
    rows = [*reversed(rows), (NO_SCORE - 0.5, NO_SCORE + 0.5, "no score", NO_SCORE_COLOR)]
    for number, (low, high, label, color) in enumerate(rows):
        _el(ranges, "range", symbol=number, lower=float(low), upper=float(high), label=label,
            render="true")  # fmt: skip
        symbol = _el(symbols, "symbol", type="fill", name=number, alpha=1, clip_to_extent=1)
        _option(
            _el(symbol, "data_defined_properties"),
            {
                "name": "",
                "properties": {"alpha": {"active": True, "expression": opacity, "type": 3}},
                "type": "collection",
            },
        )
        _outline(symbol, "#000000", 0, width=0.9, alpha=120)  # tells a bright roof's edge
        _outline(symbol, color, 40, width=0.5)
    _el(renderer, "classificationMethod", id="Custom")
    return renderer


def confidence_labels() -> list[str]:
    """What the legend says of each of `CONFIDENCE_CLASSES`."""
    lows = [low for low, _ in CONFIDENCE_CLASSES]
    between = [f"{a:g} – {b:g}" for a, b in pairwise(lows[1:])]
    return [f"below {lows[1]:g}", *between, f"{lows[-1]:g} and above"]


def _outline(
    symbol: ET.Element,
    color: str,
    fill_alpha: int,
    *,
    width: float,
    alpha: int = 255,
    style: str = "solid",
) -> None:
    node = _el(symbol, "layer", class_="SimpleFill", enabled=1, locked=0, pass_=0)
    _option(
        node,
        {
            "color": _rgba(color, fill_alpha),
            "style": "solid" if fill_alpha else "no",
            "outline_color": _rgba(color, alpha),
            "outline_style": style,
            "outline_width": str(width),
            "outline_width_unit": "MM",
            "joinstyle": "round",
        },
    )


def _raster_renderer(node: ET.Element, raster: ProjectRaster) -> None:
    pipe = _el(node, "pipe")
    renderer = _el(pipe, "rasterrenderer", opacity=1, alphaBand=raster.alpha or -1)
    if len(raster.bands) == 3:
        red, green, blue = raster.bands
        renderer.attrib.update(type="multibandcolor", redBand=str(red), greenBand=str(green),
                               blueBand=str(blue))  # fmt: skip
        tags = ["redContrastEnhancement", "greenContrastEnhancement", "blueContrastEnhancement"]
    else:
        renderer.attrib.update(type="singlebandgray", grayBand=str(raster.bands[0]),
                               gradient="BlackToWhite")  # fmt: skip
        tags = ["contrastEnhancement"]
    for tag, (low, high) in zip(tags, raster.stretch or (), strict=False):
        enhancement = _el(renderer, tag)
        _el(enhancement, "minValue", float(low))
        _el(enhancement, "maxValue", float(high))
        _el(enhancement, "algorithm", "StretchToMinimumMaximum")


# --------------------------------------------------------------------------------------- forms


@dataclass(frozen=True)
class _Field:
    """How one attribute shows up in the form; `default` is a QGIS expression."""

    name: str
    alias: str
    widget: str = "TextEdit"
    config: Mapping[str, Any] | None = None
    editable: bool = True
    default: str = ""
    on_update: bool = False  # the default is taken again at each change of the polygon


def _form(fields: Sequence[_Field], display: str) -> list[ET.Element]:
    names = ("fieldConfiguration", "aliases", "defaults", "editable")
    configuration, aliases, defaults, editable = (_el(None, name) for name in names)
    for index, field in enumerate(fields):
        entry = _el(configuration, "field", name=field.name, configurationFlags="None")
        widget = _el(entry, "editWidget", type=field.widget)
        _option(_el(widget, "config"), dict(field.config or {}))
        _el(aliases, "alias", field=field.name, index=index, name=field.alias)
        _el(defaults, "default", field=field.name, expression=field.default,
            applyOnUpdate=int(field.on_update))  # fmt: skip
        _el(editable, "field", name=field.name, editable=int(field.editable))
    return [
        configuration,
        aliases,
        defaults,
        editable,
        _el(None, "featformsuppress", 2),  # always open the form for a new polygon
        _el(None, "previewExpression", display),
    ]


def _value_map(choices: Mapping[Any, str]) -> dict[str, Any]:
    return {"map": [{label: str(value)} for value, label in choices.items()]}


# ------------------------------------------------------------------------------------- project

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _snapping(root: ET.Element, ids: Mapping[str, str]) -> None:
    """Snap to vertices and segments of pre-labels only: tile edges would attract their corners."""
    # modes: 1 active layer, 2 all layers, 3 per layer; types: 1 vertex, 2 segment, 3 both;
    # units: 0 layer, 1 pixels, 2 map
    snapping = _el(root, "snapping-settings", enabled=1, mode=3, type=3, unit=2,
                   tolerance=_SNAP_TOLERANCE)  # fmt: skip
    snapping.set("intersection-snapping", "0")
    individual = _el(snapping, "individual-layer-settings")
    for name, id in ids.items():
        _el(individual, "layer-setting", id=id, enabled=int(name == layers.LABELS), type=3,
            units=2, tolerance=_SNAP_TOLERANCE, minScale=0, maxScale=0)  # fmt: skip


def _tree_layer(parent: ET.Element, id: str, name: str, provider: str) -> None:
    _el(parent, "layer-tree-layer", id=id, name=name, providerKey=provider, checked="Qt::Checked",
        expanded=int(name == layers.LABELS))  # fmt: skip


def _map_layer(
    parent: ET.Element,
    id: str,
    name: str,
    source: str,
    provider: str,
    kind: str,
    crs: pyproj.CRS,
) -> ET.Element:
    node = _el(parent, "maplayer", type=kind, styleCategories="AllStyleCategories")
    _el(node, "id", id)
    _el(node, "datasource", source)
    _el(node, "layername", name)
    _spatial_reference(_el(node, "srs"), crs)  # QGIS: a project does not ask the file
    _el(node, "provider", provider, **({"encoding": "UTF-8"} if kind == "vector" else {}))
    return node


def _layer_id(name: str, key: str) -> str:
    # QGIS: an id of 10 characters or less is thrown away, and the layer tree loses the layer
    return f"{re.sub(r'[^A-Za-z0-9]', '_', name)}_{uuid.uuid5(_IDS, key)}"


def _local(source: Path | str, folder: Path) -> str:
    """Write a path relative to the project; GDAL names stay as they are."""
    if isinstance(source, str):
        return source
    source = source.resolve()
    try:
        relative = Path(os.path.relpath(source, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return source.as_posix()
    # QGIS: only ./ and ../ are resolved against the project's folder
    return relative if relative.startswith("../") else f"./{relative}"


def _spatial_reference(parent: ET.Element, crs: pyproj.CRS) -> None:
    # QGIS: <authid> alone is ignored; WKT always works and leads back to the EPSG code
    node = _el(parent, "spatialrefsys")
    _el(node, "wkt", crs.to_wkt("WKT2_2019"))
    epsg = crs.to_epsg()
    if epsg:
        _el(node, "srid", epsg)
        _el(node, "authid", f"EPSG:{epsg}")
    _el(node, "description", crs.name)
    _el(node, "geographicflag", "true" if crs.is_geographic else "false")


def _property(properties: ET.Element, path: str, kind: str, value: str) -> None:
    """Add a project entry in the notation of QGIS 3, which QGIS 4 reads too."""
    group, name = path.split("/")
    node = properties.find(group)
    _el(_el(properties, group) if node is None else node, name, value, type=kind)


# ----------------------------------------------------------------------------------------- XML


def _qml(style: Iterable[ET.Element]) -> str:
    root = _el(None, "qgis", version=_VERSION, styleCategories="AllStyleCategories")
    root.extend(style)
    return _document(root).decode()


def _document(root: ET.Element) -> bytes:
    ET.indent(root)
    return (_DOCTYPE + ET.tostring(root, encoding="unicode")).encode()


def _el(parent: ET.Element | None, tag: str, text: Any = None, /, **attributes: Any) -> ET.Element:
    node = ET.Element(tag) if parent is None else ET.SubElement(parent, tag)
    for name, value in attributes.items():
        node.set(name.removesuffix("_"), _text(value))  # class_, pass_: keywords of Python
    if text is not None:
        node.text = _text(text)
    return node


def _text(value: Any) -> str:
    # XML has no way to write control characters and lone surrogates
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", str(value))


def _option(parent: ET.Element, value: Any, name: str | None = None) -> None:
    """Write a value in QGIS's notation for variants."""
    node = _el(parent, "Option", **({} if name is None else {"name": name}))
    match value:
        case Mapping():
            node.set("type", "Map")
            for key, item in value.items():
                _option(node, item, key)
        case list():
            node.set("type", "List")
            for item in value:
                _option(node, item)
        case bool():
            node.attrib.update(type="bool", value="true" if value else "false")
        case float():
            node.attrib.update(type="double", value=repr(value))
        case int():
            node.attrib.update(type="int", value=str(value))
        case _:
            node.attrib.update(type="QString", value=_text(value))


def _rgba(color: str, alpha: int) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"{red},{green},{blue},{alpha}"
