"""The dock: what the keys do, and the progress of the review."""

import time
from collections import deque

from qgis.core import QgsExpressionContextUtils, QgsProject
from qgis.gui import QgsMapTool
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDockWidget,
    QGridLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from . import actions
from .frame import Frame
from .keys import Keys
from .order import pace_of
from .others import Others
from .tour import ALL, Tour, teaching_order, tile_layer, unsaved

COLUMNS = {"id", "status", "class_id", "confidence"}


class ReviewDock(QDockWidget):
    """The dock of the plugin. `start` begins a review, `stop` ends it; both may be repeated."""

    def __init__(self, iface):
        super().__init__("Review", iface.mainWindow())
        self.setObjectName("SamWorkbenchReview")
        self.iface = iface
        self.layer = self.tour = self.others = None
        self.times = deque(maxlen=500)
        self.history = []  # name of each decision, and {fid: (status, class)} before it
        self.drawing = None  # what was selected when a drawing began
        self.frame = Frame(iface.mapCanvas())
        self.keys = Keys(iface.mainWindow(), self._refresh)
        self.soon = QTimer(self)  # one step changes several things: refresh once
        self.soon.setSingleShot(True)
        self.soon.timeout.connect(self._show_state)
        self._build()
        QgsProject.instance().layersWillBeRemoved.connect(self._layers_go)
        QgsProject.instance().readProject.connect(lambda *_: self.isVisible() and self.start())

    # ------------------------------------------------------------------ begin and end

    def start(self):
        """Begin with the labels of the open project."""
        self.stop()
        found = [
            layer
            for layer in QgsProject.instance().mapLayers().values()
            if _is_review(layer) and not layer.readOnly()
        ]
        found.sort(key=lambda layer: layer.name() != "prelabels")
        if not found:
            self.now.setText("Open the review.qgz of a run folder: it contains the labels.")
            return
        self.layer = actions.editable(found[0].id())
        if self.layer is None:
            self.now.setText("The labels cannot be edited.")
            return
        self.iface.setActiveLayer(self.layer)
        if self.layer.storageType() == "GPKG":
            self.others = Others(self.layer.source().split("|")[0], self._warn)
        self.tour = Tour(self.layer)
        self.tour.entered = self._tile_begins
        self._sort_tiles()
        actions.PLANS[self.layer.id()] = self.tour.next
        self.times.clear()
        self.index = self.layer.undoStack().index()
        for signal, slot in self._signals():
            signal.connect(slot)
        self._classes()
        self.tiles_done = None
        self._saved()
        self.frame.begin()
        self.keys.set(self._calls())
        self.keys.turn(True)
        self._go()

    def stop(self):
        """End the review; what was decided is kept in the layer."""
        if self.others is not None:
            self.others.leave()
            self.others = None
        self.keys.turn(False)
        self.frame.hide()
        if self.layer is None:
            return
        actions.PLANS.pop(self.layer.id(), None)
        for signal, slot in self._signals():
            signal.disconnect(slot)
        self.layer = self.tour = None
        self.history.clear()

    def _warn(self, text):
        self.iface.messageBar().pushWarning("Two people in one file", text)

    def _signals(self):
        return (
            (self.layer.selectionChanged, self._refresh),
            (self.layer.featureAdded, self._drawn),
            (self.layer.undoStack().indexChanged, self._stepped),
            (self.layer.afterCommitChanges, self._saved),
        )

    def _layers_go(self, ids):
        if self.layer is not None and self.layer.id() in ids:
            self.stop()
            self.now.setText("The labels are closed.")

    # ------------------------------------------------------------------- what keys do

    def _calls(self):
        calls = {
            "A": self.accept, "R": self.reject, "Z": self.back, "Space": self.skip,
            "E": self.edit, "D": self.draw,
        }  # fmt: skip
        for number in self.classes:
            if 1 <= number <= 9:
                calls[str(number)] = lambda number=number: self.decide("accepted", number)
        return calls

    def accept(self):
        """Accept what is selected."""
        self.decide("accepted")

    def reject(self):
        """Reject what is selected."""
        self.decide("rejected")

    def decide(self, status, class_id=None):
        """Decide about what is selected, and go to the next label."""
        if not self._ready():
            return
        fids = list(self.layer.selectedFeatureIds())
        if fids:
            self._decide(fids, status, class_id)
            if status == "accepted" and class_id is None and len(self.classes) > 1:
                actions.ask_for_class(self.layer, fids)
        self._go(instead_of=fids[0] if len(fids) == 1 else None)

    def reject_rest(self):
        """Reject all labels of this tile that are still unreviewed."""
        if self._ready() and self.tour.rest():
            self._decide(self.tour.rest(), "rejected")
            self._go()

    def back(self):
        """Undo the last step, and go back to its label."""
        if not self._ready():
            return
        stack = self.layer.undoStack()
        if stack.canUndo() and not stack.undoText().startswith(actions.TAKE_BACK):
            stack.undo()  # `actions` says what was undone, and shows the label
        elif self.history:  # saved since
            name, before = self.history.pop()
            actions.restore(self.layer, name, before)
            self._show_again(before)
        if self.layer.selectedFeatureCount() > 1:  # the next key would decide about all of them
            self._go()

    def _stepped(self, index):
        """Forget decisions that were undone, by Z or from the menu."""
        stack, before, self.index = self.layer.undoStack(), self.index, index
        for step in range(min(before, stack.count()) - 1, index - 1, -1):
            if self.history and self.history[-1][0] == stack.text(step):
                self._show_again(self.history.pop()[1])
                if self.times:
                    self.times.pop()
        self._refresh()

    def _show_again(self, before):
        """Show the label of an undone decision, if it was about only one."""
        if len(before) == 1 and self.layer.selectedFeatureIds() != list(before):
            actions.show(self.layer, next(iter(before)))

    def skip(self):
        """Leave the label for later."""
        if self._ready():
            for fid in self.layer.selectedFeatureIds():
                self.tour.skip(fid)
            self._go()

    def edit(self):
        """Switch to the vertex tool, to edit the shape of this label."""
        if self._ready():
            self.iface.actionVertexToolActiveLayer().trigger()
            self.iface.mapCanvas().setFocus()

    def draw(self):
        """Draw a label that was missed."""
        if self._ready():
            self.drawing = self.layer.selectedFeatureIds()
            self.iface.actionAddFeature().trigger()
            self.iface.mapCanvas().setFocus()

    # ------------------------------------------------------------------------ inside

    def _ready(self):
        """Say whether there is a review, ready to be edited."""
        return self.layer is not None and actions.editable(self.layer.id()) is not None

    def _decide(self, fids, status, class_id=None):
        request = actions.only(
            fids, [self.layer.fields().indexOf(n) for n in ("status", "class_id")]
        )
        before = {f.id(): (f["status"], f["class_id"]) for f in self.layer.getFeatures(request)}
        name = actions.decide(self.layer, fids, status, class_id)
        self.history.append((name, before))
        now = time.monotonic()
        self.times.extend([now] * len(fids))
        self._put_tool_away()
        if len(fids) > 1:
            actions.say(name, "Z takes it back.")

    def _put_tool_away(self):
        """Go back to the tool that moves the map, if an editing tool is active."""
        self.drawing = None
        tool = self.iface.mapCanvas().mapTool()
        if tool is not None and tool.flags() & QgsMapTool.Flag.EditTool:
            self.iface.actionPan().trigger()

    def _go(self, instead_of=None):
        fid = self.tour.next()
        actions.show(self.layer, fid, instead_of=instead_of)
        self._refresh()
        if fid is None:
            self._save()

    def _tile_begins(self):
        if self.saves.isChecked():
            self._save()

    def _save(self):
        if self.layer.isModified():
            saved = self.layer.commitChanges(False)
            if not saved:
                actions.say("Not saved", "; ".join(self.layer.commitErrors()))

    def _saved(self):
        """Count again, and let the layer of tiles show which are fully reviewed."""
        self._count()
        self.tour.saved()
        finished, rest = self.tour.finished()
        tiles = tile_layer(self.layer)
        if tiles is not None and self.layer.storageType() != "GPKG":  # which counts by itself
            names = "|".join(finished)
            QgsExpressionContextUtils.setLayerVariable(tiles, "reviewed_tiles", names)
            tiles.triggerRepaint()
        before, (self.tiles_done, self.n_tiles) = self.tiles_done, (
            len(finished), len(finished) + len(rest),
        )  # fmt: skip
        if before is not None and before * 3 < self.n_tiles <= self.tiles_done * 3:
            actions.say(
                "A third of the tiles are reviewed",
                "That is enough to learn from.",
            )
        self._refresh()

    def _drawn(self, fid):
        if self.drawing is None:
            return
        back, self.drawing = self.drawing, None

        def go_on():
            if self.layer is not None:
                self.iface.actionPan().trigger()
                actions.show(self.layer, back[0]) if back else self._go()

        QTimer.singleShot(0, go_on)

    def _sort_tiles(self):
        if self.tour is None:
            return
        if self.order.currentIndex() == 0:
            self.tour.sort(teaching_order(self.layer))
        else:
            self.tour.sort([name for name, _ in Tour(self.layer).tiles])

    def _classes(self):
        """Read the classes from the form of the layer, and make a button for each."""
        choices = self.layer.editorWidgetSetup(self.layer.fields().indexOf("class_id"))
        rows = choices.config().get("map", [])
        rows = [rows] if isinstance(rows, dict) else rows
        pairs = [(str(value), label) for row in rows for label, value in row.items()]
        self.classes = {int(value): label for value, label in pairs if value.isdigit()}
        while self.class_grid.count():
            self.class_grid.takeAt(0).widget().deleteLater()
        for i, (number, label) in enumerate(self.classes.items()):
            button = _button(label, lambda _, n=number: self.decide("accepted", n),
                             f"Set this class and accept (key {number})")  # fmt: skip
            self.class_grid.addWidget(button, i // 2, i % 2)

    # ------------------------------------------------------------------- what is shown

    def _build(self):
        self.classes = {}
        self.now = QLabel("")
        self.now.setWordWrap(True)
        self.tile_bar, self.tiles_bar, self.all_bar = (QProgressBar() for _ in range(3))
        self.pace = QLabel("")
        self.keys_line = QLabel("<i>The keys wait: click on the map to use them.</i>")
        self.keys_line.setWordWrap(True)
        decide = QGridLayout()
        for i, (text, call, tip) in enumerate(
            [
                ("Accept   A", self.accept, "Accept what is selected"),
                ("Reject   R", self.reject, "Reject what is selected"),
                ("Edit shape   E", self.edit, "Move the corners of this label"),
                ("Draw missed   D", self.draw, "Draw a label that is missing"),
                ("Back   Z", self.back, "Undo the last step and go back to its label"),
                ("Skip   Space", self.skip, "Leave this label for later"),
            ]
        ):
            decide.addWidget(_button(text, lambda _, call=call: call(), tip), i // 2, i % 2)
        self.class_grid = QGridLayout()
        self.rest_button = _button(
            "Reject the rest of this tile", lambda _: self.reject_rest(),
            "Reject all labels of this tile that are still unreviewed; Z takes it back",
        )  # fmt: skip
        self.order = QComboBox()
        self.order.addItems(["Tiles that teach most first", "Tiles as they are listed"])
        self.order.currentIndexChanged.connect(lambda _: self._sort_tiles())
        self.zooms = QCheckBox("Zoom to each label")
        self.zooms.setChecked(True)
        self.zooms.toggled.connect(actions.set_zoom)
        self.saves = QCheckBox("Save when a tile is done")
        self.saves.setChecked(True)
        column = QVBoxLayout()
        for part in (
            self.now, self.keys_line, decide, self.class_grid, self.rest_button, self.tile_bar,
            self.tiles_bar, self.all_bar, self.pace, self.order, self.zooms, self.saves,
        ):  # fmt: skip
            (column.addWidget if isinstance(part, QWidget) else column.addLayout)(part)
        column.addStretch(1)
        body = QWidget()
        body.setLayout(column)
        self.setWidget(body)

    def _count(self):
        """Count the labels that are saved as reviewed."""
        self.was = {}  # the saved statuses of labels that were changed since
        if self.layer.storageType() == "GPKG":
            rows = actions.stored(self.layer, "status, count(*)", "1 GROUP BY status")
            counts = {status: int(n) for status, n in rows}
        else:
            statuses = [f["status"] for f in self.layer.dataProvider().getFeatures()]
            counts = {status: statuses.count(status) for status in set(statuses)}
        self.total = sum(counts.values())
        self.done = self.total - counts.get("unreviewed", 0)

    def _reviewed(self):
        """Return how many labels are reviewed, including unsaved changes, and how many exist."""
        changed, gone = unsaved(self.layer)
        unknown = [f for f in (set(changed) | gone) - set(self.was) if f > 0]
        if unknown:
            field = self.layer.fields().indexOf("status")
            stored = self.layer.dataProvider().getFeatures(actions.only(unknown, [field]))
            self.was.update({f.id(): f["status"] for f in stored})
        now = {fid: status for fid, status in changed.items() if fid not in gone}
        before = {fid for fid in set(now) | gone if self.was.get(fid, "unreviewed") != "unreviewed"}
        done = self.done - len(before) + sum(status != "unreviewed" for status in now.values())
        return done, self.total - len(gone) + sum(fid < 0 for fid in now)

    def _refresh(self, *_):
        self.soon.start(0)

    def _show_state(self):
        if self.layer is None:
            return
        self.keys_line.setVisible(not self.keys.work)
        chosen = self.layer.selectedFeatureIds()
        self.frame.show(self.layer, chosen)
        if len(chosen) == 1:
            feature = self.layer.getFeature(chosen[0])
            self.now.setText(self._line(feature) if feature.isValid() else "")
        elif chosen:
            self.now.setText(
                f"<b>{len(chosen):,} labels are selected.</b> A and R decide about all of them."
            )
        elif self.tour.tile is None:
            self.now.setText("<b>All labels are reviewed.</b> Save and close QGIS.")
        else:
            self.now.setText("No label is selected. Space shows the next one.")
        done, n = self.tour.progress()
        _fill(self.tile_bar, done, n, f"Tile {self.tour.tile or ''}: {done} of {n}")
        self.rest_button.setText(f"Reject the rest of this tile ({n - done})")
        self.rest_button.setEnabled(n > done)
        self.tiles_bar.setVisible(self.tour.tiles[0][0] != ALL)
        _fill(self.tiles_bar, self.tiles_done, self.n_tiles,
              f"Tiles: {self.tiles_done:,} of {self.n_tiles:,} are done")  # fmt: skip
        done, n = self._reviewed()
        _fill(self.all_bar, done, n, f"All: {done:,} of {n:,}")
        self.pace.setText(pace_of(self.times, time.monotonic()))

    def _line(self, feature):
        number = feature["class_id"]
        name = self.classes.get(number, "no class") if isinstance(number, int) else "no class"
        confidence = feature["confidence"]
        score = f", confidence {confidence:.2f}" if isinstance(confidence, float) else ""
        return f"<b>Label {feature.id()}: {feature['status']}</b><br>{name}{score}"


def _is_review(layer):
    return hasattr(layer, "fields") and set(layer.fields().names()) >= COLUMNS


def _button(text, call, tip):
    button = QPushButton(text)
    button.setToolTip(tip)
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the map keeps the focus
    button.clicked.connect(call)
    return button


def _fill(bar, done, n, text):
    bar.setMaximum(max(n, 1))
    bar.setValue(done)
    bar.setFormat(text)
