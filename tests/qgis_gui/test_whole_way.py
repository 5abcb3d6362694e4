"""The whole way of a reviewer, in a fresh profile: from the plugin's zip to the COCO file.

A scripted reviewer knows the truth of a real scene, and decides by mouse and keys. In a test it is
in a hurry; with WORKBENCH_REVIEW_PAUSE=1 it takes a second for each label, as a person does. The
figures are printed. WORKBENCH_GUI_PICTURES names a folder for pictures of the way; `review`
and `tiles` are those of docs/review.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import pyogrio
import pytest
from conftest import ROOT, Review
from desktop import Desktop, missing

from workbench import Job, run
from workbench.evaluation.matching import pairs_of

SCENE = "kampala/kampala_z20_a.tif"
TRUTH = "kampala/kampala_a_buildings.geojson"
ENOUGH = 60  # labels that the reviewer decides one by one
PAUSE = float(os.environ.get("WORKBENCH_REVIEW_PAUSE", "0.05"))  # seconds from seeing to deciding
MANAGER = (
    "from qgis.PyQt.QtWidgets import *\n"
    # the main window, whose child it is, has its widgets, too
    "manager = [w for w in QgsApplication.topLevelWidgets() if isinstance(w, QDialog) and "
    "w.isVisible() and w.findChild(QWidget, 'mZipFileWidget')][0]\n"
)


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("WORKBENCH_TEST_DATA")
    if folder is None:
        pytest.skip("set WORKBENCH_TEST_DATA to the folder with the real scenes")
    reason = missing()
    if reason:
        pytest.skip(reason)
    return Path(folder)


def test_from_the_zip_of_the_plugin_to_the_coco_file(data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "sam_workbench_review.zip"
    subprocess.run([sys.executable, ROOT / "qgis_plugin" / "build.py", archive], check=True)
    folder = tmp_path / "run"
    made = run(
        Job.create(
            source=str(data / SCENE), out_dir=str(folder), model="classic", tile_size=512,
            classes={1: "roof"}, default_class=1,
        )
    )  # fmt: skip
    is_roof = roofs(made.layer, data)
    with Desktop(None, home=tmp_path / "home") as desktop:
        install(desktop, archive)
        review = Review(desktop, folder / "review.qgz")
        desktop.ask(
            f"answer = iface.addProject({str(review.project)!r})\n"
            "layer = QgsProject.instance().mapLayersByName('prelabels')[0]\n"
            "iface.messageBar().clearWidgets()"
        )
        desktop.click(*desktop.place_of(
            "[b for b in iface.mainWindow().findChildren(QToolButton) if b.isVisible() and "
            "b.defaultAction() and b.defaultAction().objectName() == 'sam_workbench_review'][0]"
        ))  # fmt: skip
        desktop.ask("import qgis.utils\ndock = qgis.utils.plugins['sam_workbench_review'].dock")
        desktop.wait(1.5)
        picture(desktop, "review.png")
        decided, waits, seconds = a_third(review, is_roof)
        picture(desktop, "third.png")
        desktop.ask("iface.mapCanvas().zoomToFullExtent()")
        desktop.wait(0.5)
        picture(desktop, "tiles.png")
        bars = desktop.ask("answer = [dock.tiles_bar.text(), dock.all_bar.text()]")
        if desktop.ask("answer = layer.isModified()"):  # a tile that is done is saved by itself
            review.shortcut("mActionSaveLayerEdits")
        desktop.ask("iface.newProject(False)")  # closes the GeoPackage
        desktop.wait(1)
    rows = review.rows()
    wrong = {fid for fid, status in decided.items() if rows[fid]["status"] != status}
    others = {f for f, row in rows.items() if row["status"] != "unreviewed"} - set(decided)
    pace = 60 * len(waits) / seconds
    print(
        f"\n{len(waits)} labels decided one by one, {len(decided)} in all of {len(rows)}; "
        f"{len(wrong)} wrong or lost, {len(others)} made up; {pace:.0f} labels a minute; key to "
        f"next label drawn: median {statistics.median(waits) * 1000:.0f} ms, 95 % "
        f"{sorted(waits)[int(0.95 * len(waits))] * 1000:.0f} ms; {'; '.join(bars)}"
    )
    assert not wrong
    assert not others
    assert len(waits) >= ENOUGH
    assert pace > 40
    said = back(folder, tmp_path)
    print(said)
    assert "No advice" not in said
    assert "No examples" not in said
    annotations = sorted((folder / "review" / "dataset" / "annotations").glob("*.json"))
    assert annotations, said
    objects = [a for path in annotations for a in json.loads(path.read_text())["annotations"]]
    kept = {a["label_id"] for a in objects if not a["iscrowd"]}
    accepted = {rows[fid]["id"] for fid, status in decided.items() if status == "accepted"}
    print(f"COCO: {len(kept)} of {len(accepted)} accepted labels in {len(annotations)} splits")
    assert kept <= accepted
    assert len(kept) > 0.5 * len(accepted)


def roofs(layer: gpd.GeoDataFrame, data: Path) -> dict[int, bool]:
    """Whether each label is a roof, by fid: at least half of both agrees."""
    truth = pyogrio.read_dataframe(data / TRUTH).to_crs(layer.crs)
    found = pairs_of(layer.geometry.to_numpy(), truth.geometry.to_numpy(), at_least=0.5)
    matched = set(found.predicted.tolist())
    return {row + 1: row in matched for row in range(len(layer))}


def install(desktop: Desktop, archive: Path) -> None:
    """Install the plugin as a person does: Plugins, Install from ZIP, the file, the button."""
    desktop.ask(
        "from qgis.PyQt.QtCore import QTimer\n"
        "QTimer.singleShot(0, iface.actionManagePlugins().trigger)"
    )
    deadline = time.monotonic() + 60
    while not desktop.ask(
        "from qgis.PyQt.QtWidgets import *\n"
        "answer = any(isinstance(w, QDialog) and w.isVisible() and "
        "w.findChild(QWidget, 'mZipFileWidget') is not None "
        "for w in QgsApplication.topLevelWidgets())"
    ):
        assert time.monotonic() < deadline, "the manager of plugins does not open"
        time.sleep(0.2)
    time.sleep(0.5)
    desktop.click(*desktop.ask(
        MANAGER + "l = manager.findChild(QListWidget, 'mOptionsListWidget')\n"
        "i = [l.item(k) for k in range(l.count()) if 'ZIP' in l.item(k).text()][0]\n"
        "q = l.viewport().mapToGlobal(l.visualItemRect(i).center())\nanswer = [q.x(), q.y()]"
    ))  # fmt: skip
    field = "manager.findChild(QWidget, 'mZipFileWidget').findChild(QLineEdit)"
    desktop.click(*desktop.place_of(field))
    desktop.type(str(archive))
    assert desktop.ask(f"answer = {field}.text()") == str(archive)
    picture(desktop, "install.png")
    desktop.click(*desktop.place_of("manager.findChild(QWidget, 'buttonInstallFromZip')"))
    for _ in range(50):
        time.sleep(0.2)
        asked = desktop.ask(
            "b = [w for w in QgsApplication.topLevelWidgets() if isinstance(w, QMessageBox) and "
            "w.isVisible()]\n"
            "answer = None\n"
            "if b:\n"
            "    yes = b[0].button(QMessageBox.Yes)\n"
            "    q = yes.mapToGlobal(yes.rect().center())\n"
            "    answer = [q.x(), q.y()]"
        )
        if asked:  # whether the source can be trusted
            desktop.click(*asked)
        if desktop.ask(
            "import qgis.utils\nanswer = 'sam_workbench_review' in qgis.utils.active_plugins"
        ):
            break
    desktop.ask("manager.close()")
    desktop.wait(0.3)
    desktop.ask("import qgis.utils\nqgis.utils.plugins['sam_workbench_review']")


def a_third(review: Review, is_roof: dict[int, bool]) -> tuple[dict[int, str], list[float], float]:
    """Review a third of the tiles; return what was meant by fid, waits and the time in seconds.

    Within a tile, what is left when no roof is left is rejected by the button.
    """
    desktop, meant, waits = review.desktop, {}, []
    desktop.ask(
        "import time\n"
        "drawn = []\n"
        "iface.mapCanvas().mapCanvasRefreshed.connect(lambda: drawn.append(time.time()))"
    )
    desktop.focus()
    begin, paused = time.monotonic(), 0.0
    while True:
        fid, rest, done, n = desktop.ask(
            "chosen = layer.selectedFeatureIds()\n"
            "answer = [chosen[0] if chosen else None, dock.tour.rest(), dock.tiles_done, "
            "dock.n_tiles]"
        )
        if fid is None or (done * 3 >= n and len(waits) >= ENOUGH):
            break
        if len(rest) > 3 and not any(is_roof[other] for other in rest):
            start = time.monotonic()
            meant.update(dict.fromkeys(rest, "rejected"))
            desktop.click(*desktop.place_of("dock.rest_button"))
            desktop.wait(0.3)
            desktop.focus()
            paused += time.monotonic() - start  # bulk: no part of the pace of single labels
            continue
        time.sleep(PAUSE)
        assert fid not in meant, "nobody is asked twice"
        key, meant[fid] = ("a", "accepted") if is_roof[fid] else ("r", "rejected")
        start = time.time()
        desktop.x("key", key)
        following, readable = [fid], []
        for _ in range(600):
            following, readable = desktop.ask(
                f"answer = [layer.selectedFeatureIds(), [t for t in drawn if t > {start}]]"
            )
            if following != [fid] and (readable or not following):
                break
        if readable:
            waits.append(readable[0] - start)
    return meant, waits, time.monotonic() - begin - paused


def back(folder: Path, tmp_path: Path) -> str:
    """Import the review by papermill, and return what the notebook says."""
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", ROOT / "notebooks" / "review.ipynb", out,
         "--no-progress-bar", "-p", "run_dir", folder],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads(out.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream"]
    return "".join("".join(o["text"]) for o in outputs if o["name"] == "stdout")


def picture(desktop: Desktop, name: str) -> None:
    folder = os.environ.get("WORKBENCH_GUI_PICTURES")
    if folder:
        desktop.picture(Path(folder) / name)
