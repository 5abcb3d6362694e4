#!/usr/bin/python3
"""Open a .qgz/.qgs/.gpkg/.geojson in headless QGIS and say, as JSON, what QGIS saw.

    /usr/bin/python3 qgis_verify.py review.qgz --topology --edit

Debian 12:  apt-get install --no-install-recommends python3-qgis qgis-providers
Needs no display; uses a throw-away QGIS profile; never writes next to the input
(``--edit`` works on a copy).  Nothing here calls loadNamedStyle: what is reported is what a
person gets on opening the file.

JSON on stdout.  ``problems`` lists what an annotator would stumble over.
Exit status: 0 no problems, 1 problems, 2 QGIS could not read the input.
"""

import argparse
import atexit
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

SCRATCH = tempfile.mkdtemp(prefix="qgis_verify_")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["QGIS_CUSTOM_CONFIG_PATH"] = SCRATCH
os.environ.setdefault("XDG_RUNTIME_DIR", SCRATCH)
os.environ["GDAL_PAM_ENABLED"] = "NO"  # no .aux.xml beside the raster

from qgis.core import (  # noqa: E402
    QgsApplication,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsFeatureRequest,
    QgsGeometry,
    QgsMapLayer,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsRenderContext,
    QgsSettings,
    QgsSnappingConfig,
    QgsSpatialIndex,
    QgsTolerance,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QSize  # noqa: E402
from qgis.PyQt.QtGui import QColor, QImage  # noqa: E402
from qgis.PyQt.QtXml import QDomDocument  # noqa: E402
from qgis_headless import context_of  # noqa: E402

SNAP_MODES = {
    int(QgsSnappingConfig.ActiveLayer): "active layer",
    int(QgsSnappingConfig.AllLayers): "all layers",
    int(QgsSnappingConfig.AdvancedConfiguration): "advanced",
}
SNAP_UNITS = {
    int(QgsTolerance.LayerUnits): "layer",
    int(QgsTolerance.Pixels): "pixels",
    int(QgsTolerance.ProjectUnits): "map",
}
WIDTH = 1000  # of the picture, pixels
MIN_OVERLAP = 1e-6  # map units²
SNAP_FLAGS = {1: "vertex", 2: "segment", 4: "area", 8: "centroid", 16: "middle", 32: "endpoint"}


def flags(value, names):
    return [name for bit, name in names.items() if int(value) & bit]


def rectangle(r):
    return [r.xMinimum(), r.yMinimum(), r.xMaximum(), r.yMaximum()]


def plain(value):
    """JSON-able copy of a QVariant."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return None if hasattr(value, "isNull") and value.isNull() else str(value)


def expression_problem(text, layer):
    """Why QGIS cannot use this expression in this layer, or ''."""
    expression = QgsExpression(text)
    if expression.hasParserError():
        return expression.parserErrorString()
    unknown = (
        expression.referencedColumns()
        - set(layer.fields().names())
        - {QgsFeatureRequest.ALL_ATTRIBUTES}
    )
    return f"no such field: {sorted(unknown)}" if unknown else ""


# ------------------------------------------------------------------ one vector layer


def describe_renderer(layer, problems):
    renderer = layer.renderer()
    info = {"type": renderer.type() if renderer else None}
    if renderer is None:
        return info
    info["attribute"] = renderer.classAttribute() if hasattr(renderer, "classAttribute") else None
    if info["attribute"]:
        wrong = expression_problem(
            info["attribute"]
            if info["attribute"] not in layer.fields().names()
            else QgsExpression.quotedColumnRef(info["attribute"]),
            layer,
        )
        if wrong:
            problems.append(f"{layer.name()}: renderer attribute {info['attribute']}: {wrong}")
    classes = [{"label": item.label()} for item in renderer.legendSymbolItems()]
    # how many features fall in each class; those in none are invisible
    context = QgsRenderContext()
    context.setExpressionContext(context_of(layer))
    renderer = renderer.clone()
    renderer.startRender(context, layer.fields())
    keys = [item.ruleKey() for item in renderer.legendSymbolItems()]
    counts, invisible = dict.fromkeys(keys, 0), 0
    request = QgsFeatureRequest()
    if not renderer.filterNeedsGeometry():
        request.setFlags(QgsFeatureRequest.NoGeometry)
    for feature in layer.getFeatures(request):
        context.expressionContext().setFeature(feature)
        if renderer.symbolForFeature(feature, context) is None:
            invisible += 1
            continue
        for key in renderer.legendKeysForFeature(feature, context):
            counts[key] = counts.get(key, 0) + 1
    renderer.stopRender(context)
    for entry, key in zip(classes, keys, strict=False):
        entry["features"] = counts[key]
    info.update(classes=classes, invisible_features=invisible)
    if invisible:
        problems.append(f"{layer.name()}: {invisible} features match no class and are not drawn")
    return info


def describe_field(layer, index, problems):
    field = layer.fields().at(index)
    setup = layer.editorWidgetSetup(index)
    default = layer.defaultValueDefinition(index)
    constraints = field.constraints()
    form = layer.editFormConfig()
    info = {
        "name": field.name(),
        "type": field.typeName(),
        "widget": setup.type(),
        "config": plain(setup.config()),
        "editable": not form.readOnly(index),
        "reuse_last": form.reuseLastValue(index),
        "default": default.expression(),
        "default_on_update": default.applyOnUpdate(),
        "not_null": bool(constraints.constraints() & constraints.ConstraintNotNull),
        "constraint": constraints.constraintExpression(),
    }
    for kind in ("default", "constraint"):
        wrong = info[kind] and expression_problem(info[kind], layer)
        if wrong:
            problems.append(f"{layer.name()}.{field.name()}: {kind} expression: {wrong}")
    if (
        info["widget"] == "Range"
        and setup.config().get("Style") in ("Slider", "Dial")
        and field.typeName().lower() in ("real", "double")
    ):
        # qgis/QGIS#49127: these widgets are integer; shown as 0, and written back as 0
        problems.append(
            f"{layer.name()}.{field.name()}: {setup.config()['Style']} on a real number shows 0"
            + (" and overwrites the value" if info["editable"] else "")
        )
    if info["widget"] == "ValueMap":
        raw = setup.config().get("map", [])
        pairs = [p for entry in (raw if isinstance(raw, list) else [raw]) for p in entry.items()]
        info["choices"] = {label: plain(value) for label, value in pairs}
        known = {str(value) for _, value in pairs}
        values = {v for v in layer.uniqueValues(index) if plain(v) is not None}
        strange = sorted(str(v) for v in values if str(v) not in known)
        if strange:
            problems.append(
                f"{layer.name()}.{field.name()}: values without a choice: {strange[:10]}"
            )
    return info


def describe_vector(layer, problems):
    info = {
        "geometry": QgsWkbTypes.displayString(layer.wkbType()),
        "features": layer.featureCount(),
        "spatial_index": layer.hasSpatialIndex() == 2,
    }
    info["renderer"] = describe_renderer(layer, problems)
    info["labels"] = layer.labelsEnabled()
    info["styles"] = layer.styleManager().styles()
    info["current_style"] = layer.styleManager().currentStyle()
    info["fields"] = [describe_field(layer, i, problems) for i in range(layer.fields().count())]
    form = layer.editFormConfig()

    def walk(container):
        out = []
        for child in container.children():
            kind = type(child).__name__.replace("QgsAttributeEditor", "").lower()
            name = child.action(layer).name() if kind == "action" else child.name()
            out.append(
                {"name": name, "children": walk(child)} if kind == "container" else f"{kind}:{name}"
            )
        return out

    info["form"] = {
        "open_on_new": form.suppress() == form.SuppressOff,
        "tree": walk(form.invisibleRootContainer()) if form.layout() == form.TabLayout else [],
    }
    manager = layer.actions()
    info["actions"] = [
        {
            "name": a.name(),
            "type": int(a.type()),
            "scopes": sorted(a.actionScopes()),
            "runnable": a.runable(),
            "default_on_canvas": manager.defaultAction("Canvas").id() == a.id(),
        }
        for a in manager.actions()
    ]
    options = layer.geometryOptions()
    info["edit_checks"] = options.geometryChecks()
    stored = layer.storedExpressionManager().storedExpressions()
    info["saved_filters"] = {e.name: e.expression for e in stored}
    info["row_styles"] = [c.rule() for c in layer.conditionalStyles().rowStyles()]
    for text in [*info["saved_filters"].values(), *info["row_styles"]]:
        wrong = expression_problem(text, layer)
        if wrong:
            problems.append(f"{layer.name()}: {text}: {wrong}")
    info["table_sort"] = layer.attributeTableConfig().sortExpression()
    info["map_tip"] = bool(layer.mapTipTemplate())
    if layer.providerType() == "ogr":
        # what a person gets who drags just this file into QGIS
        fresh = QgsVectorLayer(layer.source().split("|subset=")[0], "fresh", "ogr")
        related, _, names, _, _ = fresh.listStylesInDatabase()
        info["stored_styles"] = names[: max(related, 0)]
    return info


def describe_layer(layer, problems):
    info = {
        "id": layer.id(),
        "name": layer.name(),
        "valid": layer.isValid(),
        "provider": layer.providerType(),
        "source": layer.source(),
        "crs": layer.crs().authid() or ("custom" if layer.crs().isValid() else None),
    }
    if not layer.isValid():
        problems.append(f"{layer.name()}: layer is not valid: {layer.source()}")
        return info
    if not layer.crs().isValid():
        problems.append(f"{layer.name()}: no CRS")
    if isinstance(layer, QgsVectorLayer):
        info.update(kind="vector", **describe_vector(layer, problems))
    elif isinstance(layer, QgsRasterLayer):
        info.update(
            kind="raster",
            width=layer.width(),
            height=layer.height(),
            bands=layer.bandCount(),
            renderer={"type": layer.renderer().type() if layer.renderer() else None},
        )
    return info


# ------------------------------------------------------------------ project


def describe_project(project, path, problems):
    snapping = project.snappingConfig()
    rules = [
        {
            "rule": project.readEntry("Topol", f"/testname_{i}")[0],
            "layer1": project.readEntry("Topol", f"/layer1_{i}")[0],
            "layer2": project.readEntry("Topol", f"/layer2_{i}")[0],
        }
        for i in range(project.readNumEntry("Topol", "/testCount")[0])
    ]
    info = {
        "title": project.title(),
        "crs": project.crs().authid() or ("custom" if project.crs().isValid() else None),
        "layer_order": [layer.name() for layer in shown(project.layerTreeRoot().layerOrder())],
        "snapping": {
            "enabled": snapping.enabled(),
            "mode": SNAP_MODES.get(int(snapping.mode())),
            "type": flags(snapping.typeFlag(), SNAP_FLAGS),
            "tolerance": snapping.tolerance(),
            "units": SNAP_UNITS.get(int(snapping.units())),
            "layers": {
                layer.name(): {
                    "enabled": s.enabled(),
                    "type": flags(s.typeFlag(), SNAP_FLAGS),
                    "tolerance": s.tolerance(),
                    "units": SNAP_UNITS.get(int(s.units())),
                }
                for layer, s in snapping.individualLayerSettings().items()
            },
        },
        "topological_editing": project.topologicalEditing(),
        "avoid_overlap": {
            "mode": int(project.avoidIntersectionsMode()),
            "layers": [layer.name() for layer in project.avoidIntersectionsLayers()],
        },
        "topology_rules": rules,
        "bookmarks": [b.name() for b in project.bookmarkManager().bookmarks()],
        "view_extent": rectangle(project.viewSettings().defaultViewExtent()),
        "absolute_paths": absolute_sources(path),
    }
    if not project.crs().isValid():
        problems.append("project: no CRS")
    if set(project.layerTreeRoot().findLayerIds()) != set(project.mapLayers()):
        problems.append("project: not every layer is in the layer tree")
    if info["absolute_paths"]:
        problems.append(f"project: absolute paths: {info['absolute_paths']}")
    for rule in rules:
        if project.mapLayer(rule["layer1"]) is None:
            problems.append(
                f"project: topology rule '{rule['rule']}' names no layer of the project"
            )
    if snapping.enabled() and info["snapping"]["units"] == "map" and project.crs().isGeographic():
        problems.append("project: snapping tolerance is in degrees")
    return info


def absolute_sources(path):
    """Sources in the project file that would break when the folder is moved."""
    if path.suffix == ".qgz":
        with zipfile.ZipFile(path) as archive:
            text = archive.read(next(n for n in archive.namelist() if n.lower().endswith(".qgs")))
    else:
        text = path.read_bytes()
    sources = [
        e.text or "" for e in ET.fromstring(text).iterfind("projectlayers/maplayer/datasource")
    ]
    local = [s for s in sources if not s.startswith("/vsi")]  # a URL does not move
    return [s for s in local if s.startswith("/") or s[1:3] in (":/", ":\\")]


# ------------------------------------------------------------------ picture


def render(layers, crs, extent, size):
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(crs)
    settings.setOutputSize(size)
    settings.setExtent(extent)
    settings.setBackgroundColor(QColor("white"))
    context = QgsExpressionContext()
    context.appendScopes(
        [
            QgsExpressionContextUtils.globalScope(),
            QgsExpressionContextUtils.projectScope(QgsProject.instance()),
            QgsExpressionContextUtils.mapSettingsScope(settings),
        ]
    )
    settings.setExpressionContext(context)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage().convertToFormat(QImage.Format_RGB32)
    return image, [e.message for e in job.errors()]


def pixels(image):
    bits = image.constBits()
    bits.setsize(image.sizeInBytes())
    return memoryview(bytes(bits)).cast("I")


def describe_picture(layers, crs, extent, size, problems):
    image, errors = render(layers, crs, extent, size)
    info = {"drawn": {}}
    problems += [f"rendering: {e}" for e in errors]
    everything = pixels(image)
    for layer in layers:  # share of pixels that change when the layer is taken away
        rest, _ = render([other for other in layers if other is not layer], crs, extent, size)
        changed = sum(a != b for a, b in zip(everything, pixels(rest), strict=False))
        info["drawn"][layer.name()] = round(changed / len(everything), 4)
        if not changed:
            problems.append(f"{layer.name()}: leaves no trace in the picture")
    return info


# ------------------------------------------------------------------ topology


def check_topology(layer):
    """Count what makes polygons bad training data; invalid ones take no part in the comparisons."""
    found = dict.fromkeys(("empty", "invalid", "duplicates", "overlaps"), 0)
    geometries, index = {}, QgsSpatialIndex()
    for feature in layer.getFeatures(QgsFeatureRequest().setNoAttributes()):
        geometry = feature.geometry()
        if geometry.isEmpty():
            found["empty"] += 1
        elif geometry.validateGeometry(QgsGeometry.ValidatorGeos):
            found["invalid"] += 1
        else:
            geometries[feature.id()] = geometry
            index.addFeature(feature)
    for fid, geometry in geometries.items():
        for other in index.intersects(geometry.boundingBox()):
            if other <= fid:
                continue
            if geometry.isGeosEqual(geometries[other]):
                found["duplicates"] += 1
            elif geometry.intersection(geometries[other]).area() > MIN_OVERLAP:
                found["overlaps"] += 1
    checks = layer.geometryOptions().geometryChecks()
    return found | {"must_not_overlap": "QgsGeometryOverlapCheck" in checks}


# ------------------------------------------------------------------ editing, on a copy


def try_editing(layer, problems):
    """Edit, add and save as an annotator would, with the layer's own forms; on a copy."""
    source = layer.source().split("|")
    copy = Path(SCRATCH) / ("copy_" + Path(source[0]).name)
    shutil.copy2(source[0], copy)
    twin = QgsVectorLayer("|".join([str(copy), *source[1:]]), layer.name(), layer.providerType())
    style = QDomDocument()
    layer.exportNamedStyle(style)
    twin.importNamedStyle(style)
    info = {}
    if not twin.startEditing():
        problems.append(f"{layer.name()}: cannot be edited")
        return {"editable": False}
    first = next(twin.getFeatures())
    names = twin.fields().names()
    before = dict(zip(names, map(plain, first.attributes()), strict=False))

    # 1. reshape a polygon
    moved = first.geometry().buffer(-0.05 * math.sqrt(first.geometry().area()), 4)
    if QgsWkbTypes.isMultiType(twin.wkbType()):
        moved.convertToMultiType()
    twin.changeGeometry(first.id(), moved)
    after = dict(zip(names, map(plain, twin.getFeature(first.id()).attributes()), strict=False))
    info["changed_by_reshape"] = {k: [before[k], after[k]] for k in names if before[k] != after[k]}
    info["planar_area_after_reshape"] = moved.area()

    # 2. draw a new polygon
    box = first.geometry().boundingBox()
    shape = QgsGeometry.fromRect(
        QgsRectangle(box.xMinimum(), box.yMinimum(), box.center().x(), box.center().y())
    )
    if QgsWkbTypes.isMultiType(twin.wkbType()):
        shape.convertToMultiType()
    context = context_of(layer)
    new = QgsVectorLayerUtils.createFeature(twin, shape, {}, context)
    info["new_feature"] = {
        k: v for k, v in zip(names, map(plain, new.attributes()), strict=False) if k != "fid"
    }
    unmet = {}
    for i, name in enumerate(names):
        ok, errors = QgsVectorLayerUtils.validateAttribute(twin, new, i)
        if not ok:
            unmet[name] = errors
    for name in list(unmet):  # give the obligatory choices a value, as the form would force one to
        i = names.index(name)
        choice = next(
            (v for e in twin.editorWidgetSetup(i).config().get("map", []) for v in e.values()), None
        )
        if choice is not None:
            new.setAttribute(i, int(choice) if twin.fields().at(i).isNumeric() else choice)
    twin.addFeature(new)
    count = twin.featureCount()
    info["saved"] = twin.commitChanges()
    if not info["saved"]:
        problems.append(f"{layer.name()}: saving failed: {twin.commitErrors()}")
    again = QgsVectorLayer("|".join([str(copy), *source[1:]]), "again", layer.providerType())
    if again.featureCount() != count:
        problems.append(f"{layer.name()}: {again.featureCount()} features after saving {count}")
    return info


# ------------------------------------------------------------------ main


def shown(layers):
    """Leave out private layers, which no list of QGIS shows."""
    return [layer for layer in layers if layer and not layer.flags() & QgsMapLayer.Private]


def fingerprint(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_input(path, layer_name):
    """-> (layers, CRS, is it a project, could QGIS read it)"""
    project = QgsProject.instance()
    if path.suffix.lower() in (".qgz", ".qgs"):
        ok = project.read(str(path))
        layers = shown(project.layerTreeRoot().layerOrder())
        drawn = {layer.id() for layer in layers}
        rest = [layer for id, layer in sorted(project.mapLayers().items()) if id not in drawn]
        layers += shown(rest)
        return layers, project.crs(), True, ok
    layers = []
    probe = QgsVectorLayer(str(path), path.stem, "ogr")
    if path.suffix.lower() != ".gpkg":
        layers = [probe] if probe.isValid() else []
    elif probe.isValid():
        provider = probe.dataProvider()
        names = [s.split(provider.sublayerSeparator())[1] for s in provider.subLayers()]
        for name in [layer_name] if layer_name else sorted(names):
            layer = QgsVectorLayer(f"{path}|layername={name}", name, "ogr")
            if layer.isValid() and layer.isSpatial():
                layers.append(layer)
    project.addMapLayers(layers)
    if layers:
        project.setCrs(layers[0].crs())
    return layers, project.crs(), False, bool(layers)


def verify(path, args):
    log, problems = [], []
    QgsApplication.messageLog().messageReceived.connect(
        lambda text, tag, level: log.append(f"log: {text}") if int(level) == 2 else None
    )
    project = QgsProject.instance()
    layers, crs, is_project, ok = open_input(path, args.layer)
    report = {"read": ok}
    if not ok:
        problems.append(f"QGIS could not read {path.name}: {project.error()}")
    if is_project and ok:
        report["project"] = describe_project(project, path, problems)
    report["layers"] = [describe_layer(layer, problems) for layer in layers]
    valid = [layer for layer in layers if layer.isValid() and layer.isSpatial()]
    polygons = [
        layer
        for layer in valid
        if isinstance(layer, QgsVectorLayer) and layer.geometryType() == QgsWkbTypes.PolygonGeometry
    ]
    if valid and not args.no_picture:
        extent = (
            QgsRectangle(project.viewSettings().defaultViewExtent())
            if is_project
            else QgsRectangle()
        )
        if extent.isEmpty():
            extent = QgsRectangle(valid[0].extent())
            for layer in valid[1:]:
                extent.combineExtentWith(layer.extent())
            extent.scale(1.02)
        size = QSize(WIDTH, max(1, round(WIDTH * extent.height() / extent.width())))
        report["picture"] = describe_picture(valid, crs, extent, size, problems)
    if args.topology:
        report["topology"] = {
            layer.name(): check_topology(layer)
            for layer in polygons
            if not args.layer or layer.name() == args.layer
        }
        for name, found in report["topology"].items():
            kinds = ["empty", "invalid", "duplicates"]
            # labels may overlap, as masks do, unless their layer checks at saving that none does
            if found["must_not_overlap"]:
                kinds.append("overlaps")
            bad = {k: found[k] for k in kinds if found[k]}
            if bad:
                problems.append(f"{name}: topology: {bad}")
    if args.edit:
        report["editing"] = {layer.name(): try_editing(layer, problems) for layer in polygons}
    report["problems"] = problems + log
    return report


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layer", help="only this layer of a GeoPackage")
    parser.add_argument(
        "--topology", action="store_true", help="count invalid, equal and overlapping polygons"
    )
    parser.add_argument(
        "--edit", action="store_true", help="edit and save a copy, report defaults and constraints"
    )
    parser.add_argument("--no-picture", action="store_true")
    args = parser.parse_args(argv)
    path = args.path.resolve()
    if not path.exists():
        parser.error(f"no such file: {path}")
    before = fingerprint(path)
    application = QgsApplication([], False)
    QgsApplication.setPrefixPath("/usr", True)
    application.initQgis()
    QgsSettings().setValue("qgis/walForSqlite3", False)  # leave no -wal beside the input
    report = verify(path, args)
    QgsProject.instance().clear()
    report["input_unchanged"] = fingerprint(path) == before
    json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
    print(flush=True)
    application.exitQgis()
    return 2 if not report["read"] else 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
