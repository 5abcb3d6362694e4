"""The labels of a tile and the order of tiles, for a layer in QGIS."""

from qgis.core import NULL, QgsFeatureRequest, QgsProject, QgsRectangle

from . import actions
from .order import Order, most_doubt_first

ALL = "all labels"  # the name of the only tile if the project has no layer of tiles
WAITING = "n_unreviewed"  # how many labels wait in a tile: a GeoPackage keeps count by itself


class Tour(Order):
    """Leads through the unreviewed labels of a layer."""

    def __init__(self, layer):
        super().__init__(_tiles(layer))
        self.layer = layer
        self.was = {}  # the statuses of the labels of this tile, as saved

    def labels_in(self, box):
        """Yield id, status and score of the labels of a tile, and whether they reach beyond it."""
        return _labels_in(self.layer, box)

    def statuses(self, fids):
        """Return pairs of id and current status of the labels of the tile that still exist.

        From memory: reading the thousands of labels that a tile may have would take longer than
        everything else that a key does.
        """
        changed, gone = unsaved(self.layer)
        now = [(fid, changed.get(fid, self.was.get(fid))) for fid in fids if fid not in gone]
        return [(fid, status) for fid, status in now if status is not None]

    def saved(self):
        """Read the statuses of this tile again, after changes were saved."""
        field = self.layer.fields().indexOf("status")
        request = actions.only([fid for fid in self.fids if fid > 0], [field])
        found = self.layer.dataProvider().getFeatures(request)
        self.was = {f.id(): f["status"] for f in found}

    def _enter(self, name, place):
        """Make a tile the current one, if a label waits in it."""
        entered = super()._enter(name, place)
        if entered:
            self.saved()
        return entered

    def finished(self):
        """Return the names of the tiles whose labels are all reviewed, and those of the others.

        Tiles without labels are in neither. A GeoPackage counts only what is saved.
        """
        counts = _counted_by_file(self.layer)
        if counts is None:
            counts = {name: self._waiting_in(box) for name, box in self.tiles}
        done = [name for name, n in counts.items() if n == 0]
        return done, [name for name, n in counts.items() if n]

    def _waiting_in(self, box):
        """Return how many labels of a tile wait, None if it has no labels."""
        statuses = [status for _, status, *_ in _labels_in(self.layer, box)]
        return statuses.count("unreviewed") if statuses else None


def unsaved(layer):
    """Return the statuses that are not saved yet, by id, and the ids of deleted labels.

    Labels drawn since the last save have negative ids.
    """
    edits = layer.editBuffer()
    if edits is None:
        return {}, set()
    field = layer.fields().indexOf("status")
    values = edits.changedAttributeValues()
    changed = {fid: of[field] for fid, of in values.items() if field in of}
    changed.update({fid: f["status"] for fid, f in edits.addedFeatures().items()})
    return changed, set(edits.deletedFeatureIds())


def teaching_order(layer):
    """Return the names of the tiles, those with most labels that the model is unsure of first.

    Without class scores these are the tiles with most labels.
    """
    return most_doubt_first({tile: doubt for tile, (_, doubt) in _by_tile(layer).items()})


def _by_tile(layer):
    """Return how many labels wait and how unsure the model is about them, by tile, as saved."""
    known = "class_score" in layer.fields().names()
    if layer.storageType() == "GPKG":
        score = "coalesce(class_score, 0.5)" if known else "0.5"
        waits = "(status = 'unreviewed')"
        columns = f"source_tile, sum({waits}), sum({waits} * {score} * (1 - {score}))"
        rows = actions.stored(layer, columns, "1 GROUP BY source_tile")
        return {tile: (int(n or 0), float(doubt or 0)) for tile, n, doubt in rows}
    found = {}
    for feature in layer.dataProvider().getFeatures():
        n, doubt = found.get(feature["source_tile"], (0, 0.0))
        if feature["status"] == "unreviewed":
            score = feature["class_score"] if known else 0.5
            score = score if isinstance(score, float) else 0.5
            n, doubt = n + 1, doubt + score * (1 - score)
        found[feature["source_tile"]] = n, doubt
    return found


def tile_layer(layer):
    """Return the layer of tiles that belongs to the labels, or None."""
    for other in QgsProject.instance().mapLayersByName("tiles"):
        if "tile" in other.fields().names() and other.crs() == layer.crs():
            return other
    return None


def _tiles(layer):
    """Return the tiles of the project as name and box, as they are listed."""
    tiles = tile_layer(layer)
    found = [] if tiles is None else tiles.getFeatures()
    return [(f["tile"], f.geometry().boundingBox()) for f in found] or [(ALL, None)]


def _counted_by_file(layer):
    """Return how many labels wait by tile, as their GeoPackage counts them; None: it does not."""
    tiles = tile_layer(layer)
    if tiles is None or layer.storageType() != "GPKG" or WAITING not in tiles.fields().names():
        return None
    counts = {f["tile"]: f[WAITING] for f in tiles.getFeatures()}
    return {name: None if n == NULL else n for name, n in counts.items()}


def _labels_in(layer, box):
    """Yield id, status and score of the labels of a tile, and whether they reach beyond it.

    A label belongs to the tile that contains its middle, as in the results of the review. The left
    and the upper edge belong to the tile.
    """
    request = QgsFeatureRequest() if box is None else QgsFeatureRequest(box)
    names = [n for n in ("status", "confidence", "class_score") if n in layer.fields().names()]
    request.setSubsetOfAttributes(names, layer.fields())
    for feature in layer.getFeatures(request):
        reaches = False
        if box is not None:
            shape = feature.geometry()
            middle = shape.pointOnSurface()
            if middle.isNull() or not _holds(box, middle.asPoint()):
                continue
            reaches = not QgsRectangle(box).contains(shape.boundingBox())
        scores = [feature[n] for n in ("class_score", "confidence") if n in names]
        known = [score for score in scores if score not in (None, NULL)]
        yield feature.id(), feature["status"], known[0] if known else 1.0, reaches


def _holds(box, point):
    return (
        box.xMinimum() <= point.x() < box.xMaximum()
        and box.yMinimum() < point.y() <= box.yMaximum()
    )
