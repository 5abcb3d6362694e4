"""The keys of a review, which work in every window of QGIS, but not while somebody types."""

from qgis.PyQt.QtCore import QObject, Qt
from qgis.PyQt.QtGui import QKeySequence
from qgis.PyQt.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QLineEdit

try:  # Qt 6
    from qgis.PyQt.QtGui import QShortcut
except ImportError:  # Qt 5
    from qgis.PyQt.QtWidgets import QShortcut

# Qt itself leaves letters to text fields; in these widgets, a letter also does something
FIELDS = (QComboBox, QAbstractSpinBox, QLineEdit)


class Keys(QObject):
    """Shortcuts that work in the whole application while they are on.

    `work` says whether they are active right now; `changed` is called when that changes.
    """

    def __init__(self, window, changed):
        super().__init__(window)
        self._window, self._changed = window, changed
        self._shortcuts, self._on, self.work = [], False, False
        QApplication.instance().focusChanged.connect(self._focus_moved)

    def set(self, calls):
        """Let keys call functions: a mapping of key names to functions."""
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []
        for name, call in calls.items():
            shortcut = QShortcut(QKeySequence(name), self._window)
            shortcut.setContext(Qt.ShortcutContext.ApplicationShortcut)
            shortcut.setAutoRepeat(False)  # a key that is held down is one decision
            # if something else has the same key, Qt calls it ambiguous
            shortcut.activated.connect(call)
            shortcut.activatedAmbiguously.connect(call)
            shortcut.setEnabled(False)
            self._shortcuts.append(shortcut)
        self._focus_moved(None, QApplication.focusWidget())

    def turn(self, on):
        """Turn all keys on or off."""
        self._on = on
        self._focus_moved(None, QApplication.focusWidget())

    def _focus_moved(self, _, now):
        self.work = self._on and not isinstance(now, FIELDS)
        for shortcut in self._shortcuts:
            shortcut.setEnabled(self.work)
        self._changed()
