"""Who else has the same file open: two people in one GeoPackage overwrite each other's work."""

import getpass
import json
import os
import platform
import time
from pathlib import Path

from qgis.PyQt.QtCore import QTimer

from .marks import BEAT, MARK, marks_beside, opened_text


class Others:
    """Marks that this QGIS has a file open, and calls `warn(text)` once for each other QGIS."""

    def __init__(self, file, warn):
        self.file, self.warn = Path(file), warn
        self.known = set()
        self.mine = self.file.with_name(f"{self.file.name}{MARK}{platform.node()}-{os.getpid()}")
        self.since = time.strftime("%H:%M")
        self.timer = QTimer()
        self.timer.timeout.connect(self.beat)
        self.timer.start(BEAT * 1000)
        self.beat()

    def beat(self):
        """Show that we are there, and look for others."""
        me = {"who": f"{getpass.getuser()} on {platform.node()}", "since": self.since}
        try:
            self.mine.write_text(json.dumps(me), encoding="utf-8")
            now = self.mine.stat().st_mtime  # by the clock of the disk, like theirs
            for path, mark in marks_beside(self.file, now):
                if mark is None:
                    path.unlink()
                elif path != self.mine and path.name not in self.known:
                    self.known.add(path.name)
                    self.tell(mark)
        except (OSError, ValueError):  # the folder cannot be written, or they have just left
            return

    def tell(self, other):
        """Warn of another person."""
        self.warn(
            f"{opened_text(self.file, other)}. Each of you may overwrite what the other one saves. "
            "One of you should close it. To work at the same time, use two packages or a database."
        )

    def leave(self):
        """Remove our mark."""
        self.timer.stop()
        try:
            self.mine.unlink()
        except OSError:
            return
