#!/usr/bin/python3
"""Review the project of tests/test_qgis.py in headless QGIS, as a person would; JSON on stdout.

Accept and reject by the code of the layer's own actions, reshape, change a class, draw, delete.
"""

import json
import os
from types import SimpleNamespace

import qgis.utils
from qgis.core import (
    NULL,
    QgsExpression,
    QgsGeometry,
    QgsProject,
    QgsRectangle,
    QgsRenderContext,
    QgsVectorLayer,
    QgsVectorLayerUtils,
)
from qgis.gui import QgsMapCanvas, QgsMessageBar
from qgis_headless import context_of, in_qgis


def label(layer, number):
    return next(f for f in layer.getFeatures() if f["id"] == f"scene/r0c0/{number}")


def press(layer, name, feature):
    """Run the Python of an action, and return the id of the label that it goes to."""
    (action,) = [a for a in layer.actions().actions() if a.name() == name]
    code = QgsExpression.replaceExpressionText(action.command(), context_of(layer, feature))
    exec(code, {})
    chosen = list(layer.getSelectedFeatures())
    return chosen[0]["id"] if chosen else None


def press_in_geojson(project, path):
    """Accept a label of the GeoJSON beside the project, whose style has the same actions."""
    source = os.path.join(os.path.dirname(path), "prelabels.geojson")
    layer = project.addMapLayer(QgsVectorLayer(source, "geojson", "ogr"))
    went_to = press(layer, "Accept", label(layer, 3))
    layer.rollBack()
    return went_to


def said_without_a_class(layer):
    """Accept labels with and without a class in a window, and return what its message bar says."""
    bar, canvas, said = QgsMessageBar(), QgsMapCanvas(), []
    qgis.utils.iface = SimpleNamespace(messageBar=lambda: bar, mapCanvas=lambda: canvas)
    for number in (3, 1, 1):  # of which 1 has none
        press(layer, "Accept", label(layer, number))
        item = bar.currentItem()
        said.append(item and [int(item.level()), item.title(), item.text()])
        bar.clearWidgets()
    qgis.utils.iface = None
    layer.rollBack()
    return said


def drawn_in_each_style(layer, feature):
    found = {}
    for name in layer.styleManager().styles():
        layer.styleManager().setCurrentStyle(name)
        context = QgsRenderContext()
        context.setExpressionContext(context_of(layer, feature))
        renderer = layer.renderer().clone()
        renderer.startRender(context, layer.fields())
        found[name] = renderer.symbolForFeature(feature, context) is not None
        renderer.stopRender(context)
    layer.styleManager().setCurrentStyle("Confidence")
    return found


def main(path):
    project = QgsProject.instance()
    project.read(path)
    (layer,) = project.mapLayersByName("prelabels")
    fields = layer.fields()
    tip = QgsExpression.replaceExpressionText(
        layer.mapTipTemplate(), context_of(layer, label(layer, 2))
    )
    strange = label(layer, 2)
    strange["status"] = "<img src=x onerror=alert(1)>"
    strange_tip = QgsExpression.replaceExpressionText(
        layer.mapTipTemplate(), context_of(layer, strange)
    )
    layer.startEditing()
    went_to = [press(layer, "Accept", label(layer, 3))]
    layer.selectByIds([])
    layer.changeAttributeValue(label(layer, 2).id(), fields.indexOf("class_id"), 1)
    reject = press(layer, "Reject", label(layer, 0))  # nothing is left to go to
    went_to += [press(layer, "Reopen", label(layer, 0)), reject]
    # a label without a score comes first; one that is deleted is not gone to
    drawn = label(layer, 4).id()
    layer.changeAttributeValue(drawn, fields.indexOf("status"), "unreviewed", NULL, True)
    went_to.append(press(layer, "Reopen", label(layer, 0)))
    layer.deleteFeature(drawn)
    went_to.append(press(layer, "Reopen", label(layer, 0)))

    first = label(layer, 0)
    box = first.geometry().boundingBox()
    corner = QgsRectangle(box.xMinimum(), box.yMaximum() - 10, box.xMinimum() + 10, box.yMaximum())
    smaller = first.geometry().difference(QgsGeometry.fromRect(corner))
    smaller.convertToMultiType()
    layer.changeGeometry(first.id(), smaller)

    left, top = box.xMinimum() + 165, box.yMaximum()
    square = QgsGeometry.fromRect(QgsRectangle(left, top - 15, left + 15, top))
    square.convertToMultiType()
    class_id = fields.indexOf("class_id")
    new = QgsVectorLayerUtils.createFeature(layer, square, {class_id: 3}, context_of(layer))
    layer.addFeature(new)
    seen = drawn_in_each_style(layer, new)
    saved = layer.commitChanges()
    went_to.append(press_in_geojson(project, path))
    said = said_without_a_class(layer)
    seen = {
        "went_to": went_to, "map_tip": tip, "strange_tip": strange_tip, "saved": saved,
        "drawn_in_each_style": seen, "errors": layer.commitErrors(), "said": said,
    }  # fmt: skip
    print(json.dumps(seen))
    project.clear()


if __name__ == "__main__":
    in_qgis(main, gui=True)
