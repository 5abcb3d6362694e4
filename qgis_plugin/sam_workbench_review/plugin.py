"""The plugin that QGIS starts and stops: a button, and the dock that it opens."""

from pathlib import Path

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QAction

from .dock import ReviewDock

NAME = "SAM Workbench Review"


class Plugin:
    """The plugin: its button in the toolbar and in the menu, and its dock."""

    def __init__(self, iface):
        self.iface = iface
        self.dock = self.action = None

    def initGui(self):  # noqa: N802 - QGIS calls it by this name
        """Add the button."""
        icon = QIcon(str(Path(__file__).with_name("icon.svg")))
        self.action = QAction(icon, NAME, self.iface.mainWindow())
        self.action.setObjectName("sam_workbench_review")
        self.action.setCheckable(True)
        self.action.setToolTip("Review the pre-labels: one key a label, tile by tile")
        self.action.triggered.connect(self.toggle)
        self.iface.addToolBarIcon(self.action)
        self.iface.addPluginToVectorMenu(NAME, self.action)

    def unload(self):
        """Remove the button and the dock."""
        if self.dock is not None:
            self.dock.stop()
            self.iface.removeDockWidget(self.dock)
            self.dock.deleteLater()
            self.dock = None
        self.iface.removePluginVectorMenu(NAME, self.action)
        self.iface.removeToolBarIcon(self.action)

    def toggle(self, on):
        """Open the dock and begin, or close it and stop."""
        if self.dock is None:
            self.dock = ReviewDock(self.iface)
            self.iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
            self.dock.visibilityChanged.connect(self._seen)
        self.dock.setVisible(on)
        self._seen()

    def _seen(self, *_):
        """Follow the dock: its own cross may close it; behind another dock it is still open."""
        is_open = not self.dock.isHidden()
        self.action.setChecked(is_open)
        if is_open and self.dock.layer is None:
            self.dock.start()
        elif not is_open:
            self.dock.stop()
