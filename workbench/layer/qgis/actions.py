"""What the buttons Accept, Reject and Reopen do in QGIS.

`style` puts the text of this module into the style of the labels, followed by a call of `review`.
It runs in QGIS 3.22 and later, with the Python of QGIS, and without this package.
"""
# mypy: ignore-errors

from qgis.core import NULL, QgsFeatureRequest, QgsProject, QgsProviderRegistry
from qgis.utils import iface


def review(layer_id, fid, status, *, ask_for_class=False):
    """Give a label a status, then select the least certain one that waits for review.

    How certain a label is says its class score, or its confidence if no classes were learned.

    `ask_for_class` warns, once for each open layer, when a label without a class is accepted.
    """
    layer = QgsProject.instance().mapLayer(layer_id)
    if layer is None or not (layer.isEditable() or layer.startEditing()):
        return
    # without the defaults: that of the status would set `edited`
    layer.changeAttributeValue(fid, layer.fields().indexOf("status"), status, NULL, True)
    least = _least_certain(layer)
    layer.selectByIds([] if least is None else [least])
    if iface is None:
        return
    if least is not None:
        iface.mapCanvas().panToSelected(layer)
        iface.mapCanvas().flashFeatureIds(layer, [least])
    # kept with the open layer, not in the project
    if ask_for_class and layer.getFeature(fid)["class_id"] == NULL:
        if not layer.property("said_no_class"):
            iface.messageBar().pushWarning(
                "No class",
                "You accepted a label without a class. Set its class in the form. Or name one "
                "class for all such labels when you import the review (default_class).",
            )
        layer.setProperty("said_no_class", True)


def _least_certain(layer):
    """Return the id of the unreviewed label that is least certain, or None."""
    edits = layer.editBuffer()
    status = layer.fields().indexOf("status")
    gone = set(edits.deletedFeatureIds())
    now = {
        fid: values[status]
        for fid, values in edits.changedAttributeValues().items()
        if status in values and fid not in gone
    }
    seen = [layer.getFeature(fid) for fid, value in now.items() if value == "unreviewed"]
    seen += [f for f in edits.addedFeatures().values() if f["status"] == "unreviewed"]
    waiting = [(f["class_score"] or f["confidence"] or 0, f.id()) for f in seen]
    # the stored ones that the edits have not touched
    stored = _stored_unreviewed(layer, len(now) + len(gone) + 1)
    waiting += [(c or 0, fid) for c, fid in stored if fid not in now and fid not in gone]
    return min(waiting, default=(None, None))[1]


def _stored_unreviewed(layer, limit):
    """Return certainty and id of at least so many stored labels, the least certain first."""
    if layer.storageType() != "GPKG":
        request = QgsFeatureRequest().setFilterExpression("\"status\" = 'unreviewed'")
        return [
            (f["class_score"] or f["confidence"], f.id())
            for f in layer.dataProvider().getFeatures(request)
        ]
    # by the index of the table: a loop over 200,000 labels takes a second
    place = QgsProviderRegistry.instance().decodeUri("ogr", layer.source())
    subset = layer.subsetString() and f"({layer.subsetString()})"
    where = " AND ".join(filter(None, ["status = 'unreviewed'", subset]))
    table = place["layerName"].replace('"', '""')
    # + 0: GDAL hides a column that is a fid
    query = (
        f'SELECT coalesce(class_score, confidence) AS certainty, fid + 0 FROM "{table}" '
        f"WHERE {where} ORDER BY certainty, fid LIMIT {limit}"
    )
    metadata = QgsProviderRegistry.instance().providerMetadata("ogr")
    return metadata.createConnection(place["path"], {}).executeSql(query)
