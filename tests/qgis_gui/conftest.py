"""One desktop for all tests of this folder; each test opens a fresh copy of the review."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from desktop import Desktop, missing
from scene import hand_off

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Desktop(None, home=tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep a picture of the screen when a test fails."""
    outcome = yield
    used = getattr(item, "funcargs", {})
    running = used.get("desktop_with_plugin") or used.get("desktop")
    report = outcome.get_result()
    if running is not None and report.failed and report.when == "call":
        folder = os.environ.get("WORKBENCH_GUI_PICTURES")
        if folder:
            running.picture(Path(folder) / f"{item.name}.png")


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin as its zip installs it."""
    archive, folder = tmp_path_factory.mktemp("zip") / "plugin.zip", tmp_path_factory.mktemp("at")
    subprocess.run([sys.executable, ROOT / "qgis_plugin" / "build.py", archive], check=True)
    shutil.unpack_archive(archive, folder)
    return folder / "sam_workbench_review"


@pytest.fixture(scope="session")
def desktop_with_plugin(
    plugin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desktop]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Desktop(None, plugin=plugin, home=tmp_path_factory.mktemp("plugin_home")) as running:
        yield running


class Review:
    """A review that is open in the desktop, and what its file holds."""

    def __init__(self, desktop: Desktop, project: Path):
        self.desktop, self.project = desktop, project

    def ask(self, code: str) -> Any:
        return self.desktop.ask(code)

    def select(self, *fids: int) -> None:
        self.ask(f"layer.selectByIds({list(fids)})")

    def shortcut(self, action: str, key: str = "F9") -> None:
        """Press a key that the user has given to an action of the menus."""
        self.ask(
            "from qgis.PyQt.QtWidgets import QAction\n"
            f"a = iface.mainWindow().findChild(QAction, {action!r})\n"
            "for other in iface.mainWindow().findChildren(QAction):\n"
            f"    if other.shortcut().toString() == {key!r}: other.setShortcut('')\n"
            f"a.setShortcut({key!r})\n"
            "assert a.isEnabled(), a.text()"
        )
        self.desktop.key(key)
        self.desktop.wait(0.3)

    def look_at(self, fid: int, times: float = 6.0) -> None:
        """Show a label with its surroundings."""
        self.ask(
            f"b = layer.getFeature({fid}).geometry().boundingBox()\nb.scale({times})\n"
            "iface.mapCanvas().setExtent(b)\niface.mapCanvas().refresh()"
        )
        self.desktop.wait(0.2)

    def save(self) -> None:
        assert self.ask("answer = layer.commitChanges()"), self.ask("answer = layer.commitErrors()")

    def rows(self) -> dict[int, dict[str, Any]]:
        """What is saved in the GeoPackage, by fid."""
        with closing(sqlite3.connect(self.project.with_name("prelabels.gpkg"))) as db:
            db.row_factory = sqlite3.Row
            return {row["fid"]: dict(row) for row in db.execute("SELECT * FROM prelabels")}

    def shapes(self) -> dict[int, str]:
        """The shapes of the layer as it is now, by fid."""
        found = self.ask("answer = [[f.id(), f.geometry().asWkt(3)] for f in layer.getFeatures()]")
        return dict(map(tuple, found))

    def status(self, fid: int) -> str:
        return str(self.ask(f"answer = layer.getFeature({fid})['status']"))

    def said(self) -> list[str]:
        """What the message bar shows: title and text of each message, the newest last."""
        return self.ask(
            "answer = [i.title() + ': ' + i.text() for i in iface.messageBar().items()]"
        )

    def dialogs(self) -> list[str]:
        return self.ask(
            "from qgis.PyQt.QtWidgets import QDialog\n"
            "answer = [type(w).__name__ + ' ' + w.windowTitle() for w in "
            "QgsApplication.topLevelWidgets() if isinstance(w, QDialog) and w.isVisible()]"
        )


@pytest.fixture
def review(desktop: Desktop, tmp_path: Path) -> Iterator[Review]:
    """256 labels in four tiles, open and editable."""
    yield from opened_review(desktop, hand_off(tmp_path / "run"))


@pytest.fixture
def tour(desktop_with_plugin: Desktop, tmp_path: Path) -> Iterator[Review]:
    """The same with the plugin, whose dock is open."""
    for review in opened_review(desktop_with_plugin, hand_off(tmp_path / "run")):
        review.ask(
            "a = iface.mainWindow().findChild(QAction, 'sam_workbench_review')\n"
            "a.isChecked() or a.trigger()\n"
            "import qgis.utils\n"
            "dock = qgis.utils.plugins['sam_workbench_review'].dock"
        )
        desktop_with_plugin.wait(0.5)
        yield review


def opened_review(desktop: Desktop, project: Path) -> Iterator[Review]:
    """Open a project, and close what is open when the test is over."""
    opened = Review(desktop, project)
    desktop.ask(
        "from qgis.PyQt.QtWidgets import QAction, QDialog\n"
        "QgsProject.instance().setDirty(False)\n"
        f"answer = iface.addProject({str(project)!r})\n"
        "layer = QgsProject.instance().mapLayersByName('prelabels')[0]\n"
        "iface.setActiveLayer(layer)\n"
        "layer.startEditing()\n"
        "iface.messageBar().clearWidgets()"
    )
    desktop.wait(0.3)
    yield opened
    desktop.ask(
        "from qgis.PyQt.QtWidgets import QDialog\n"
        "for w in QgsApplication.topLevelWidgets():\n"
        "    if isinstance(w, QDialog) and w.isVisible(): w.close()\n"
        "iface.actionPan().trigger()\n"
        "for other in QgsProject.instance().mapLayersByName('prelabels'): other.rollBack()"
    )
