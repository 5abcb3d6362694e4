"""The rules of a review inside QGIS: what a decision is, what comes next, and how it is shown.

`style` puts the text of this module into the style of the labels, followed by one call. The plugin
in `qgis_plugin/` has a copy, which is used if the plugin is installed. So the module must run in
QGIS 3.22 and later, with the Python of QGIS, and without this package.
"""
# mypy: ignore-errors

from qgis.core import (
    NULL,
    QgsApplication,
    QgsCoordinateTransform,
    QgsFeatureRequest,
    QgsGeometry,
    QgsProject,
    QgsProviderRegistry,
    QgsRectangle,
)
from qgis.gui import QgsAttributeForm, QgsDualView
from qgis.PyQt import sip
from qgis.PyQt.QtGui import QColor
from qgis.utils import iface

VERBS = {"accepted": "Accept", "rejected": "Reject", "unreviewed": "Reopen"}
TAKE_BACK = "Take back: "
SHARE = 0.2  # of the view, filled by the label that is shown
WIDEST = 0.8  # of a side of the view, for labels that are long and thin


# ------------------------------------------------------------------- what the buttons call


def review(layer_id, fid, status, *, classes_matter=False):
    """Give the label of a button a status, and go to the next one that waits for review.

    `fid` is a number, or a number as text. A button in a form decides about the label that is
    highlighted on the map, because the form may lag behind. `classes_matter` warns, once for each
    open layer, when a label without a class is accepted.
    """
    layer = editable(layer_id)
    if layer is None:
        return
    fid = highlighted(layer, _number(fid))
    if fid is None:
        say(
            "This polygon is not in the layer yet",
            "Press OK in its form. A polygon that you draw counts as reviewed (edited).",
        )
        return
    decide(layer, [fid], status)
    after = next_label(layer)
    show(layer, after, instead_of=fid)
    if classes_matter and status == "accepted":
        ask_for_class(layer, [fid])


def review_selected(layer_id, status, *, classes_matter=False):
    """Give all selected labels a status, as one step that can be undone."""
    layer = editable(layer_id)
    if layer is None:
        return
    fids = list(layer.selectedFeatureIds())
    if not fids:
        say("No label is selected", f"Select the labels first, then press {VERBS[status]} again.")
        return
    decide(layer, fids, status)
    say(f"{VERBS[status]}: {_counted(len(fids))}", "Edit > Undo takes it back.")
    if classes_matter and status == "accepted":
        ask_for_class(layer, fids)


def switch_zoom():
    """Let the map zoom to each label, or only move to it."""
    set_zoom(not _zooms())
    say("Zoom to each label", "On" if _zooms() else "Off: the map only moves to the label")


# ------------------------------------------------------------------------------ decisions


def editable(layer_id):
    """Return the layer, ready to be edited, or None."""
    layer = QgsProject.instance().mapLayer(layer_id)
    if layer is None:
        return None
    if not (layer.isEditable() or layer.startEditing()):
        say(f"{layer.name()} cannot be edited", "Is its file write-protected, or open elsewhere?")
        return None
    follow_undo(layer)
    return layer


def decide(layer, fids, status, class_id=None):
    """Give labels a status, and a class unless it is None, as one step that can be undone.

    A label whose shape was edited stays `edited` when it is accepted. Returns the name of the step.
    """
    fields = layer.fields()
    status_field, class_field = fields.indexOf("status"), fields.indexOf("class_id")
    what = _counted(len(fids)) if len(fids) != 1 else f"label {fids[0]}"
    name = f"{VERBS[status]} {what}"
    layer.beginEditCommand(name)
    for feature in layer.getFeatures(only(fids, [status_field, class_field])):
        # without field defaults, so that nothing else changes
        if not (status == "accepted" and feature["status"] == "edited"):
            layer.changeAttributeValue(feature.id(), status_field, status, feature["status"], True)
        if class_id is not None:
            layer.changeAttributeValue(
                feature.id(), class_field, class_id, feature["class_id"], True
            )
    layer.endEditCommand()
    return name


def restore(layer, name, before):
    """Restore the status and the class that labels had before: `{fid: (status, class)}`."""
    fields = layer.fields()
    layer.beginEditCommand(f"{TAKE_BACK}{name}")
    for fid, (status, class_id) in before.items():
        layer.changeAttributeValue(fid, fields.indexOf("status"), status, NULL, True)
        layer.changeAttributeValue(fid, fields.indexOf("class_id"), class_id, NULL, True)
    layer.endEditCommand()
    say("Taken back", name)


def next_label(layer):
    """Return the id of the label to show next, or None: the least certain unreviewed one."""
    plan = PLANS.get(layer.id(), least_certain)
    return plan(layer)


PLANS = {}  # by layer id: functions that return the next label; the plugin adds its own


def least_certain(layer):
    """Return the id of the unreviewed label that is least certain, or None.

    Its certainty is its class score, or its confidence if no classes were learned.
    """
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
    """Return certainty and id of at least `limit` stored labels, the least certain first."""
    if layer.storageType() != "GPKG":
        request = QgsFeatureRequest().setFilterExpression("\"status\" = 'unreviewed'")
        found = layer.dataProvider().getFeatures(request)
        return [(f["class_score"] or f["confidence"], f.id()) for f in found]
    # by SQL, which uses the table's index: a loop over 200,000 labels takes a second
    return stored(
        layer,
        "coalesce(class_score, confidence) AS certainty, fid + 0",
        f"status = 'unreviewed' ORDER BY certainty, fid LIMIT {limit}",
    )


def stored(layer, columns, where):
    """Return rows of the labels as they are saved in their GeoPackage, by SQL."""
    place = QgsProviderRegistry.instance().decodeUri("ogr", layer.source())
    subset = layer.subsetString() and f"({layer.subsetString()}) AND "
    table = place["layerName"].replace('"', '""')
    # columns have fid + 0, because GDAL hides a column that is a fid
    query = f'SELECT {columns} FROM "{table}" WHERE {subset}{where}'
    metadata = QgsProviderRegistry.instance().providerMetadata("ogr")
    return metadata.createConnection(place["path"], {}).executeSql(query)


def only(fids, fields):
    """Return a request for some labels and fields, without shapes."""
    request = QgsFeatureRequest().setFilterFids(list(fids))
    request.setSubsetOfAttributes(list(fields))
    return request.setFlags(QgsFeatureRequest.Flag.NoGeometry)


def _number(fid):
    """Return the id of a label as a number; None for a polygon just drawn, which has none yet."""
    text = str(fid).strip()
    negative = text.startswith("-")
    return int(text) if text[negative:].isdigit() and abs(int(text)) < 2**62 else None


def _counted(n):
    return "1 label" if n == 1 else f"{n:,} labels"


# ---------------------------------------------------------------------- what a person sees


def say(title, text):
    """Show a line above the map."""
    if iface is not None:
        iface.messageBar().pushInfo(title, text)


def ask_for_class(layer, fids):
    """Warn, once for each open layer, if one of these labels has no class."""
    if iface is None or layer.property("said_no_class"):  # lasts while the layer is open
        return
    classes = layer.fields().indexOf("class_id")
    if any(f["class_id"] == NULL for f in layer.getFeatures(only(fids, [classes]))):
        iface.messageBar().pushWarning(
            "No class",
            "Set it in the form, or press its number in the plugin. At the import, labels without "
            "a class get the default_class, if there is one.",
        )
        layer.setProperty("said_no_class", True)


def highlighted(layer, fid):
    """Return the id of the label that a button means: that of its row, or the highlighted one.

    A form may show one label while the map highlights another: people look at the map. None for a
    polygon that is not in the layer.
    """
    if fid is None or not layer.getFeature(fid).isValid():
        return None
    chosen = layer.selectedFeatureIds()
    if iface is None or len(chosen) != 1:
        return fid
    return chosen[0] if any(_shows(f, layer, fid) for f in _widgets(QgsAttributeForm)) else fid


def show(layer, fid, *, instead_of=None):
    """Select a label, on the map and in the forms, and go to it; None: select nothing."""
    layer.selectByIds([] if fid is None else [fid])
    if iface is None or fid is None:
        return
    _forms_go_to(layer, fid, instead_of)
    feature = layer.getFeature(fid)
    if not feature.hasGeometry():
        return
    canvas = iface.mapCanvas()
    to_map = QgsCoordinateTransform(
        layer.crs(), canvas.mapSettings().destinationCrs(), QgsProject.instance()
    )
    box = to_map.transformBoundingBox(feature.geometry().boundingBox())
    if _zooms():
        canvas.setExtent(view_of(box, canvas.width(), canvas.height()))
        canvas.refresh()
    elif not canvas.extent().contains(box):
        canvas.setCenter(box.center())
        canvas.refresh()
    # only the outline: a flashing area would hide what is to be judged
    outline = QgsGeometry(feature.geometry().constGet().boundary())
    canvas.flashGeometries(
        [outline], layer.crs(), QColor(255, 255, 255, 255), QColor(255, 255, 255, 0), 2, 250
    )


def view_of(box, width, height):
    """Return the extent of a window with these sides in which a box fills `SHARE`."""
    longest = max(box.width(), box.height()) or 1.0
    w, h = max(box.width(), longest / 8), max(box.height(), longest / 8)
    scale = min((SHARE * width * height / (w * h)) ** 0.5, WIDEST * width / w, WIDEST * height / h)
    middle = box.center()
    x, y = width / scale / 2, height / scale / 2
    return QgsRectangle(middle.x() - x, middle.y() - y, middle.x() + x, middle.y() + y)


def set_zoom(on):
    """Let the map zoom to each label from now on, or only move to it; the project keeps it."""
    QgsProject.instance().writeEntryBool("SamWorkbench", "zoom", on)


def _zooms():
    return QgsProject.instance().readBoolEntry("SamWorkbench", "zoom", True)[0]


def _widgets(*kinds):
    """Return the widgets of QGIS classes, which Python lists only as Qt widgets."""
    by_name = {kind.__name__: kind for kind in kinds}
    named = ((w, w.metaObject().className()) for w in QgsApplication.allWidgets())
    return [sip.cast(widget, by_name[name]) for widget, name in named if name in by_name]


def _shows(form, layer, fid):
    return form.isVisible() and form.layer() is layer and form.feature().id() == fid


def _forms_go_to(layer, fid, instead_of):
    """Show a label in the forms of the tables, and in those that showed `instead_of`."""
    for widget in _widgets(QgsDualView, QgsAttributeForm):
        if isinstance(widget, QgsDualView):
            if widget.masterModel().layer() is layer:
                widget.setCurrentEditSelection([fid])
        elif instead_of is not None and _shows(widget, layer, instead_of):
            widget.setFeature(layer.getFeature(fid))


# ------------------------------------------------------------------------------------ undo


def follow_undo(layer):
    """From now on, when a step is undone, say which and go back to its label."""
    if not layer.property("workbench_undo"):  # lasts while the layer is open
        _Undo(layer)
        layer.setProperty("workbench_undo", True)


class _Undo:
    """Watches the editing steps of a layer."""

    def __init__(self, layer):
        self.layer, self.touched = layer, set()
        self.index = layer.undoStack().index()
        # functions, because PyQt does not keep the owner of a method alive
        for signal in (layer.attributeValueChanged, layer.geometryChanged, layer.featureAdded):
            signal.connect(lambda fid, *_: self.touched.add(fid))
        layer.undoStack().indexChanged.connect(lambda index: self.moved(index))

    def moved(self, index):
        stack, before, touched = self.layer.undoStack(), self.index, self.touched
        self.index, self.touched = index, set()
        # saving empties the stack, but undoes nothing
        if index >= before or index >= stack.count():
            return
        steps = before - index
        say("Undone", stack.text(index) if steps == 1 else f"{steps} steps")
        back = [fid for fid in touched if self.layer.getFeature(fid).isValid()]
        if len(back) == 1:
            show(self.layer, back[0])
        elif back:
            self.layer.selectByIds(back)
