"""The review project, written without QGIS."""

from __future__ import annotations

import os
import re
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas as gpd
import pyproj
import shapely
from rasterio.enums import ColorInterp, MaskFlags

from workbench._support.files import atomic_path
from workbench._support.palette import CONFIDENCE_CLASSES, ConfidenceClasses
from workbench.layer import schema
from workbench.layer.qgis.style import SAVED_ID, area_symbol, label_styles, saved_style, tile_style
from workbench.layer.qgis.xml import VERSION, document, el, style_element, text_of
from workbench.raster.bands import open_dataset
from workbench.raster.open import crs_of
from workbench.raster.scene import Scene
from workbench.raster.sources import gdal_environment, gdal_name, is_local

_IDS = uuid.UUID("0a4f6f0e-52a0-4a56-a8b5-6f7f1a6d1c55")  # layer ids are the same in every run
MAX_BOOKMARKS = 2000  # nobody scrolls through more, and each one costs QGIS some kB
AREA = "area (aoi)"
_SNAP_TOLERANCE = 12.0  # screen pixels: in map units it would be too large when zoomed in
_SELECTED = (255, 255, 0, 18)  # QGIS's own yellow would hide what is to be judged
# names of rules in the plugin Topology Checker of English QGIS, run by hand from its panel
_TOPOLOGY_RULES = ("must not have invalid geometries", "must not have duplicates")
_PLANAR_RULES = ("must not overlap", "must not have gaps")


@dataclass(frozen=True)
class ProjectRaster:
    """How the project shows a raster.

    `source` is a local path or a GDAL name (`/vsicurl/…`). `bands` are one or three band numbers,
    counted from 1; `()` leaves the colours to QGIS (palettes). `stretch` has `(low, high)` for each
    band, or is None if the values are 0..255 already. `alpha` is the band that hides pixels; QGIS
    counts a mask as one more band, after the last one.
    """

    source: Path | str
    name: str
    crs: pyproj.CRS
    bands: tuple[int, ...]
    stretch: tuple[tuple[float, float], ...] | None = None
    alpha: int | None = None


def scene_raster(scene: Scene) -> ProjectRaster:
    """Show the scene's source file with the bands and the stretch that the model saw."""
    name = gdal_name(scene.source)
    with gdal_environment(scene.opened_as), open_dataset(scene.opened_as) as dataset:
        crs = crs_of(dataset, scene.source)
        palette = dataset.colorinterp[scene.bands[0] - 1] == ColorInterp.palette
        masked = dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
        bands_in_file = dataset.count
    bands = scene.bands if len(set(scene.bands)) > 1 else scene.bands[:1]
    stretch = None
    if scene.stretch is not None:
        stretch = tuple(zip(scene.stretch.low, scene.stretch.high, strict=True))[: len(bands)]
    return ProjectRaster(
        source=Path(name) if is_local(name) and Path(name).exists() else name,
        name=scene.name,
        crs=crs,
        bands=() if palette else bands,
        stretch=stretch,
        alpha=bands_in_file + 1 if masked else scene.alpha,
    )


def write_project(
    path: Path,
    *,
    gpkg: Path,
    rasters: Sequence[ProjectRaster],
    crs: pyproj.CRS,
    bounds: tuple[float, float, float, float],
    classes: Mapping[int, str],
    title: str,
    tiles: gpd.GeoDataFrame | None = None,
    aoi: shapely.Geometry | None = None,
    planar: bool = False,
    confidence: ConfidenceClasses = CONFIDENCE_CLASSES,
    learned: Mapping[int, str] | None = None,
    more: Sequence[str] = (),
) -> None:
    """Write the review project (`.qgz`): pre-labels above tiles above imagery.

    `gpkg` was written by `write_layer`, in the metric working CRS `crs`. `bounds` is what the
    project shows when it opens (left, bottom, right, top). Each tile becomes a bookmark, unless
    there are more than `MAX_BOOKMARKS`; `aoi`, in `crs`, is an outline above the tiles. In a
    `planar` layer, drawn polygons cannot overlap others. `confidence` are the classes of confidence
    and their colours, `learned` the colours of learned classes and `more` further columns, as in
    `label_styles`.
    Local paths are relative to the project, so that the folder can move together with its imagery.
    """
    folder = path.parent.resolve()
    source = _local(gpkg, folder)
    ids = {name: _layer_id(name, name) for name in (schema.LABELS, schema.TILES)}
    raster_sources = [_local(raster.source, folder) for raster in rasters]
    raster_ids = [
        _layer_id(raster.name, f"raster/{raster_source}")
        for raster, raster_source in zip(rasters, raster_sources, strict=True)
    ]

    root = el(None, "qgis", projectname=title, version=VERSION)
    el(root, "title", title)
    _spatial_reference(el(root, "projectCrs"), crs)
    tree = el(root, "layer-tree-group")
    area_id = _layer_id(AREA, AREA)
    if aoi is not None:
        _tree_layer(tree, area_id, AREA, "annotation")
    for name, id in ids.items():
        _tree_layer(tree, id, name, "ogr")
    _tree_layer(tree, SAVED_ID, "prelabels as saved", "ogr", shown=False)
    # thousands of pre-cut rasters in one list would bury the two layers
    group = tree if len(rasters) == 1 else el(tree, "layer-tree-group", name="imagery", expanded=0)
    for id, raster in zip(raster_ids, rasters, strict=True):
        _tree_layer(group, id, raster.name, "gdal")

    _snapping(root, ids)
    canvas = el(root, "mapcanvas", name="theMapCanvas")
    extent = el(canvas, "extent")
    for corner, value in zip(_CORNERS, bounds, strict=True):
        el(extent, corner, float(value))
    _spatial_reference(el(canvas, "destinationsrs"), crs)

    projectlayers = el(root, "projectlayers")
    looks = label_styles(classes, planar, confidence, learned, more)
    for name, style, wkb in (
        (schema.LABELS, next(iter(looks.values())), "MultiPolygon"),
        (schema.TILES, tile_style(), "Polygon"),
    ):
        node = _map_layer(
            projectlayers, ids[name], name, f"{source}|layername={name}", "ogr", "vector", crs
        )
        node.attrib.update(geometry="Polygon", wkbType=wkb, labelsEnabled="0")
        if name == schema.TILES:  # saved labels change how many wait in a tile: draw it again
            el(el(node, "dataDependencies"), "layer", id=ids[schema.LABELS])
        if name == schema.LABELS:
            _style_manager(node, looks)
        node.extend(style)
    # what the status compares a shape with; QGIS shows private layers in no list
    node = _map_layer(projectlayers, SAVED_ID, "prelabels as saved",
                      f"{source}|layername={schema.LABELS}", "ogr", "vector", crs)  # fmt: skip
    node.attrib.update(geometry="Polygon", wkbType="MultiPolygon", labelsEnabled="0", readOnly="1")
    flags = el(node, "flags")
    for flag, value in (("Identifiable", 0), ("Removable", 0), ("Searchable", 0), ("Private", 1)):
        el(flags, flag, value)
    node.extend(saved_style())
    for id, raster, raster_source in zip(raster_ids, rasters, raster_sources, strict=True):
        node = _map_layer(
            projectlayers, id, raster.name, raster_source, "gdal", "raster", raster.crs
        )
        if raster.bands:
            _raster_renderer(node, raster)

    if aoi is not None:
        _area(_map_layer(projectlayers, area_id, AREA, "", "annotation", "annotation", crs), aoi)

    properties = el(root, "properties")
    # QGIS: without it, <projectCrs> is ignored
    _property(properties, "SpatialRefSys/ProjectionsEnabled", "int", "1")
    _property(properties, "Paths/Absolute", "bool", "false")
    # topological editing moves a corner of all labels that share it: only for planar layers
    _property(properties, "Digitizing/TopologicalEditing", "int", str(int(planar)))
    for part, value in zip(("Red", "Green", "Blue", "Alpha"), _SELECTED, strict=True):
        _property(properties, f"Gui/SelectionColor{part}Part", "int", str(value))
    # areas on the ellipsoid, as area_m2
    _property(properties, "Measure/Ellipsoid", "QString", "EPSG:7030")
    _property(properties, "Measurement/DistanceUnits", "QString", "meters")
    _property(properties, "Measurement/AreaUnits", "QString", "m2")
    rules = (*_TOPOLOGY_RULES, *(_PLANAR_RULES if planar else ()))
    _property(properties, "Topol/testCount", "int", str(len(rules)))
    for number, rule in enumerate(rules):
        _property(properties, f"Topol/testname_{number}", "QString", rule)
        _property(properties, f"Topol/layer1_{number}", "QString", ids[schema.LABELS])
        _property(properties, f"Topol/layer2_{number}", "QString", "No layer")
    if planar:
        # modes: 0 never, 1 with the active layer, 2 with the listed layers
        _property(properties, "Digitizing/AvoidIntersectionsMode", "int", "2")
        names = _property(properties, "Digitizing/AvoidIntersectionsList", "QStringList", None)
        el(names, "value", ids[schema.LABELS])
    if tiles is not None and len(tiles) <= MAX_BOOKMARKS:
        _bookmarks(root, tiles, crs)
    view = el(el(root, "ProjectViewSettings"), "DefaultViewExtent")
    for corner, value in zip(_CORNERS, bounds, strict=True):
        view.set(corner, text_of(float(value)))
    _spatial_reference(view, crs)

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        entry = zipfile.ZipInfo(f"{path.stem}.qgs")  # dated 1980: equal projects, equal files
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, document(root))


def _area(node: ET.Element, aoi: shapely.Geometry) -> None:
    """Outline an area in an annotation layer, which needs no file and can be hidden."""
    items = el(node, "items")
    for number, part in enumerate(shapely.get_parts(aoi)):
        if part.geom_type != "Polygon":  # an intersection may leave lines and points
            continue
        id = f"{{{uuid.uuid5(_IDS, f'area/{number}')}}}"
        wkt = shapely.to_wkt(part, rounding_precision=3)
        item = el(items, "item", type="polygon", id=id, zIndex=0, wkt=wkt, useReferenceScale=0,
                  referenceScale=0)  # fmt: skip
        area_symbol(item)


def _raster_renderer(node: ET.Element, raster: ProjectRaster) -> None:
    pipe = el(node, "pipe")
    renderer = el(pipe, "rasterrenderer", opacity=1, alphaBand=raster.alpha or -1)
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
        enhancement = el(renderer, tag)
        el(enhancement, "minValue", float(low))
        el(enhancement, "maxValue", float(high))
        el(enhancement, "algorithm", "StretchToMinimumMaximum")


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _snapping(root: ET.Element, ids: Mapping[str, str]) -> None:
    """Snap to vertices and segments of pre-labels only: tile edges would attract their corners."""
    # modes: 1 active layer, 2 all layers, 3 per layer; types: 1 vertex, 2 segment, 3 both;
    # units: 0 layer, 1 pixels, 2 map
    snapping = el(root, "snapping-settings", enabled=1, mode=3, type=3, unit=1,
                   tolerance=_SNAP_TOLERANCE)  # fmt: skip
    snapping.set("intersection-snapping", "0")
    individual = el(snapping, "individual-layer-settings")
    for name, id in ids.items():
        el(individual, "layer-setting", id=id, enabled=int(name == schema.LABELS), type=3,
            units=1, tolerance=_SNAP_TOLERANCE, minScale=0, maxScale=0)  # fmt: skip


def _tree_layer(
    parent: ET.Element, id: str, name: str, provider: str, *, shown: bool = True
) -> None:
    el(parent, "layer-tree-layer", id=id, name=name, providerKey=provider,
        checked="Qt::Checked" if shown else "Qt::Unchecked",
        expanded=int(name == schema.LABELS))  # fmt: skip


def _map_layer(
    parent: ET.Element,
    id: str,
    name: str,
    source: str,
    provider: str,
    kind: str,
    crs: pyproj.CRS,
) -> ET.Element:
    node = el(parent, "maplayer", type=kind, styleCategories="AllStyleCategories")
    el(node, "id", id)
    el(node, "datasource", source)
    el(node, "layername", name)
    _spatial_reference(el(node, "srs"), crs)  # QGIS: a project does not take it from the file
    el(node, "provider", provider, **({"encoding": "UTF-8"} if kind == "vector" else {}))
    return node


def _layer_id(name: str, key: str) -> str:
    # QGIS: an id of 10 characters or fewer is discarded, and the layer tree loses the layer
    return f"{re.sub(r'[^A-Za-z0-9]', '_', name)}_{uuid.uuid5(_IDS, key)}"


def _local(source: Path | str, folder: Path) -> str:
    """Return a path relative to the project; GDAL names stay as they are."""
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
    node = el(parent, "spatialrefsys")
    el(node, "wkt", crs.to_wkt("WKT2_2019"))
    epsg = crs.to_epsg()
    if epsg:
        el(node, "srid", epsg)
        el(node, "authid", f"EPSG:{epsg}")
    el(node, "description", crs.name)
    el(node, "geographicflag", "true" if crs.is_geographic else "false")


def _property(properties: ET.Element, path: str, kind: str, value: str | None) -> ET.Element:
    """Add a project entry in the notation of QGIS 3, which QGIS 4 reads too."""
    group, name = path.split("/")
    node = properties.find(group)
    return el(el(properties, group) if node is None else node, name, value, type=kind)


def _style_manager(node: ET.Element, looks: Mapping[str, Sequence[ET.Element]]) -> None:
    """Offer all looks; the first one is current, and its style is in the layer itself."""
    manager = el(node, "map-layer-style-manager", current=next(iter(looks)))
    for number, (name, style) in enumerate(looks.items()):
        entry = el(manager, "map-layer-style", name=name)
        if number:
            entry.append(style_element(style))


def _bookmarks(root: ET.Element, tiles: gpd.GeoDataFrame, crs: pyproj.CRS) -> None:
    bookmarks = el(root, "Bookmarks")
    for name, shape in zip(tiles["tile"], tiles.geometry, strict=True):
        mark = el(bookmarks, "Bookmark", id=f"{{{uuid.uuid5(_IDS, f'tile/{name}')}}}", name=name,
                  group="tiles", extent=shape.envelope.wkt)  # fmt: skip
        _spatial_reference(mark, crs)
