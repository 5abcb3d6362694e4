"""The order of a review: one tile to its end before the next.

Within a tile, labels that reach into other tiles come first, because they decide about those, too.
The others follow by their score, so that what surely is nothing comes last and can be rejected
together.
"""

from qgis.core import NULL, QgsFeatureRequest, QgsProject, QgsRectangle

from . import actions

ALL = "all labels"  # the name of the only tile where the project has no layer of tiles
WAITING = "n_unreviewed"  # how many labels wait in a tile: a GeoPackage keeps count by itself


class Tour:
    """Leads through the unreviewed labels of a layer."""

    def __init__(self, layer):
        self.layer = layer
        self.tiles = _tiles(layer)
        self.tile = None  # the name of the tile that is being reviewed
        self.was = {}  # all labels of that tile, and their statuses as saved
        self.waiting = []  # those still to be shown
        self.skipped = {}  # how often
        self.done = set()  # tiles that need not be looked at again
        self.entered = None  # is called when a tile begins

    def sort(self, names):
        """Set the order of the tiles; the current one is still reviewed to its end."""
        place = {name: i for i, name in enumerate(names)}
        self.tiles.sort(key=lambda tile: place.get(tile[0], len(place)))

    def next(self, layer=None, *, look_again=True):
        """Return the id of the label to show next; None: nothing is left."""
        fid = self._of_this_tile()
        if fid is None and self.tile is not None:
            self._enter(self.tile)  # a label may have come back
            fid = self._of_this_tile()
        if fid is not None:
            return fid
        for name, _ in self.tiles:
            if name not in self.done:
                if self._enter(name):
                    if self.entered:
                        self.entered()
                    return self._of_this_tile()
                self.done.add(name)
        if look_again:  # a label may have come back, or was skipped twice
            self.done.clear()
            self.skipped.clear()
            return self.next(look_again=False)
        self.tile, self.was = None, {}
        return None

    def skip(self, fid):
        """Show a label later: at the end of its tile, and if skipped again, at the very end."""
        self.skipped[fid] = self.skipped.get(fid, 0) + 1
        self.waiting = [other for other in self.waiting if other != fid]
        if self.skipped[fid] < 2:
            self.waiting.append(fid)

    def rest(self):
        """Return the unreviewed labels of the current tile."""
        return [fid for fid, status in self._statuses().items() if status == "unreviewed"]

    def progress(self):
        """Return how many labels of the current tile are reviewed, and how many there are."""
        statuses = list(self._statuses().values())
        return len(statuses) - statuses.count("unreviewed"), len(statuses)

    def finished(self):
        """Return the names of the tiles whose labels are all reviewed, and those of the others.

        Tiles without labels are in neither. A GeoPackage knows what is saved.
        """
        counts = _counted_by_file(self.layer)
        if counts is None:
            counts = {name: self._waiting_in(box) for name, box in self.tiles}
        done = [name for name, n in counts.items() if n == 0]
        return done, [name for name, n in counts.items() if n]

    def _waiting_in(self, box):
        """Return how many labels of a tile wait, or None if it has no labels."""
        statuses = [status for _, status, *_ in _labels_in(self.layer, box)]
        return statuses.count("unreviewed") if statuses else None

    def saved(self):
        """Read the statuses of this tile again, after a change was saved."""
        self.was = self._stored()

    def _stored(self):
        status = self.layer.fields().indexOf("status")
        request = actions.only([fid for fid in self.was if fid > 0], [status])
        return {f.id(): f["status"] for f in self.layer.dataProvider().getFeatures(request)}

    def _statuses(self):
        """Return the statuses of this tile's labels as they are now, by id.

        From memory: to read the thousands of labels that a tile may have takes longer than all else
        that a key does.
        """
        changed, gone = unsaved(self.layer)
        return {
            fid: changed.get(fid, status)
            for fid, status in self.was.items()
            if fid not in gone and (fid > 0 or fid in changed)
        }

    def _of_this_tile(self):
        while self.waiting:
            feature = self.layer.getFeature(self.waiting[0])
            if feature.isValid() and feature["status"] == "unreviewed":
                return self.waiting[0]
            self.waiting.pop(0)
        return None

    def _enter(self, name):
        """Make a tile the current one, if a label waits in it."""
        box = dict(self.tiles)[name]
        labels = list(_labels_in(self.layer, box))
        waiting = [
            (not reaches, -score, fid)
            for fid, status, score, reaches in labels
            if status == "unreviewed" and self.skipped.get(fid, 0) < 2
        ]
        if not waiting:
            return False
        self.tile = name
        self.was = {fid: status for fid, status, *_ in labels}
        if unsaved(self.layer) != ({}, set()):
            self.was.update(self._stored())
        self.waiting = [fid for *_, fid in sorted(waiting)]
        return True


def unsaved(layer):
    """Return the statuses that are not saved yet, by id, and the ids of deleted labels.

    Labels that were drawn since have negative ids.
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
    """Return the names of the tiles, first those with most labels that the model is unsure about.

    Without class scores these are the tiles with most labels.
    """
    doubts = {tile: doubt for tile, (_, doubt) in _by_tile(layer).items()}
    return sorted(doubts, key=lambda tile: -doubts[tile])


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

    A label belongs to the tile that holds its middle, as in the results of the review. The left and
    the upper edge of a tile are its own.
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
