"""The QGIS desktop in a virtual screen, driven with real mouse and key events.

What a test does goes through the X server (`click`, `drag`, `key`, `type`). What it wants to know
it asks by a piece of Python that runs inside QGIS (`ask`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1280, 900
# a fresh profile greets with tips and news, which would cover what a test clicks on, and asks the
# network for plugins
SETTINGS = """
[app]
plugin_repositories\\QGIS%20Official%20Plugin%20Repository\\enabled=false
news-feed\\items\\httpsfeedqgisorg\\disabled=true
[core]
NewsFeed\\httpsfeedqgisorg\\disabled=true
[PythonPlugins]
[qgis]
showTips325=false
showTips322=false
checkVersion=false
digitizing\\line_width=1
digitizing\\default_snap_type=Vertex
askToSaveProjectChanges=false
"""


def missing() -> str | None:
    """Say why there is no desktop here, or None if there is one."""
    gone = [name for name in ("qgis", "Xvfb", "xdotool", "import") if shutil.which(name) is None]
    if gone:
        return (
            f"no {', '.join(gone)}: apt-get install --no-install-recommends qgis python3-qgis "
            "qgis-providers xvfb xdotool imagemagick"
        )
    return None


class Desktop:
    """QGIS with a project open, in a screen of its own; a context manager."""

    def __init__(
        self, project: Path | None, *, plugin: Path | None = None, home: Path | None = None
    ):
        self.folder = Path(tempfile.mkdtemp(prefix="qgis_gui_")) if home is None else home
        self._inbox = self.folder / "inbox"
        self._inbox.mkdir(parents=True, exist_ok=True)
        self._number = 0
        profile = self.folder / "profiles" / "default"
        ini = profile / "QGIS" / "QGIS3.ini"
        ini.parent.mkdir(parents=True, exist_ok=True)
        settings = SETTINGS
        if plugin is not None:
            target = profile / "python" / "plugins" / plugin.name
            shutil.copytree(plugin, target, dirs_exist_ok=True)
            settings = settings.replace("[PythonPlugins]", f"[PythonPlugins]\n{plugin.name}=true")
        ini.write_text(settings, encoding="utf-8")
        self._project = project
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> Desktop:
        """Start the screen and QGIS, and wait until the project is drawn."""
        read, write = os.pipe()
        screen = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{WIDTH}x{HEIGHT}x24",
                  "-nolisten", "tcp"]  # fmt: skip
        self._log = (self.folder / "qgis.log").open("w")
        self._start(screen, pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as pipe:
            self.display = f":{pipe.readline().strip()}"
        keep = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PROJ", "VIRTUAL"))
        }
        runtime = self.folder / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        self.environment = keep | {
            "DISPLAY": self.display,
            "PATH": "/usr/bin:/bin",  # QGIS asks the first python3 there where its modules are
            "QT_QPA_PLATFORM": "xcb",
            "GDAL_PAM_ENABLED": "NO",
            "WORKBENCH_GUI_TEST": str(self._inbox),
            "XDG_RUNTIME_DIR": str(runtime),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "LIBGL_ALWAYS_SOFTWARE": "1",
        }
        command = ["qgis", "--nologo", "--noversioncheck", "--profiles-path", str(self.folder),
                   "--code", str(HERE / "inside.py")]  # fmt: skip
        if self._project is not None:
            command += ["--project", str(self._project)]
        self._start(command, env=self.environment)
        try:
            self.ask("from qgis.utils import iface\nfrom qgis.core import *\nanswer = 1", 90)
            self.ask(
                "w = iface.mainWindow()\n"
                f"w.setGeometry(0, 0, {WIDTH}, {HEIGHT})\n"
                "w.activateWindow()\n"
            )
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes that were started here."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()

    def _start(self, command: list[str], **more: Any) -> None:
        self._processes.append(
            subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, **more)
        )

    def ask(self, code: str, seconds: float = 30) -> Any:
        """Run Python inside QGIS, and return what it has put into `answer`."""
        self._number += 1
        request = self._inbox / f"{self._number:06d}.py"
        temporary = request.with_suffix(".new")
        temporary.write_text(code, encoding="utf-8")
        temporary.rename(request)
        answer, deadline = request.with_suffix(".json"), time.monotonic() + seconds
        while not answer.exists():
            dead = [p for p in self._processes if p.poll() is not None]
            if dead or time.monotonic() > deadline:
                log = (self.folder / "qgis.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"QGIS does not answer: {code[:200]}\n{log}")
            time.sleep(0.004)
        content = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in content:
            raise AssertionError(f"{code}\n{content['error']}")
        return content["answer"]

    def wait(self, seconds: float = 0.0) -> None:
        """Wait until the map is drawn and nothing is left to do."""
        time.sleep(seconds)
        deadline = time.monotonic() + 30
        calm = 0
        while calm < 2:
            drawing = self.ask("answer = iface.mapCanvas().isDrawing()")
            calm = 0 if drawing else calm + 1
            assert time.monotonic() < deadline, "the map is drawn without end"
            time.sleep(0.03)

    def x(self, *arguments: object) -> str:
        """Send events with xdotool."""
        done = subprocess.run(
            ["xdotool", *map(str, arguments)], env=self.environment, capture_output=True,
            text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def focus(self) -> None:
        """Give the keyboard to the window on top, which a window manager would do."""
        window = self.ask(
            "from qgis.PyQt.QtWidgets import QApplication\n"
            "w = QApplication.activePopupWidget() or QApplication.activeModalWidget()\n"
            "answer = int((w or iface.mainWindow()).window().winId())"
        )
        self.x("windowfocus", window, "sleep", 0.03)

    def key(self, *names: str) -> None:
        """Press keys, one after the other, in the window on top."""
        self.focus()
        self.x("key", "--delay", 12, *names)

    def type(self, text: str) -> None:
        """Type a text in the window on top."""
        self.focus()
        self.x("type", "--delay", 12, text)

    def click(self, x: float, y: float, button: int = 1) -> None:
        """Click at a place of the screen."""
        self.x("mousemove", round(x), round(y), "sleep", 0.06, "click", button, "sleep", 0.06)

    def double_click(self, x: float, y: float) -> None:
        """Click twice at a place of the screen."""
        self.x("mousemove", round(x), round(y), "sleep", 0.06,
               "click", "--repeat", 2, "--delay", 60, 1, "sleep", 0.06)  # fmt: skip

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place on the screen of a point in map units."""
        return tuple(
            self.ask(
                "from qgis.PyQt.QtCore import QPoint\n"
                "c = iface.mapCanvas()\n"
                f"p = c.getCoordinateTransform().transform({x!r}, {y!r})\n"
                "q = c.mapToGlobal(QPoint(round(p.x()), round(p.y())))\n"
                "answer = [q.x(), q.y()]"
            )
        )

    def place_of(self, widget: str) -> tuple[float, float]:
        """Return the middle of a widget on the screen, given as an expression in Python."""
        return tuple(
            self.ask(f"w = {widget}\nq = w.mapToGlobal(w.rect().center())\nanswer = [q.x(), q.y()]")
        )

    def picture(self, path: Path) -> Path:
        """Save what is on the screen."""
        subprocess.run(
            ["import", "-window", "root", str(path)], env=self.environment, check=True, timeout=30
        )
        return path
