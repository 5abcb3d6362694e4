"""Take the pictures of the README from the real thing, over the sample scene.

    python docs/pictures.py [tuner | classes | review-notebook | qgis]

`tuner.jpg`: the notebook in JupyterLab and Chromium, a tile, the pointer on a roof.
`classes.jpg`: the same tile, after two classes were taught by a few keys.
`review-notebook.jpg`: labels of a finished layer, some of them answered by keys.
`qgis.jpg`: the project of a run as QGIS draws it, by Debian's Python with QGIS (`apt-get install
chromium python3-qgis`).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab import Notebook

HERE = Path(__file__).parent
TILE = ("sample", 0, 0)
# left, bottom, right, top in the CRS of the sample scene
TUNED = (691_365.0, 5_334_572.0, 691_675.0, 5_334_822.0)
DRAWN = (691_275.0, 5_334_566.0, 691_815.0, 5_334_863.0)
# asked in the notebook: where on the map the roof nearest to its middle lies, as shares of its size
ROOF = """
from workbench.raster.crs import to_lonlat
polygons = tuner.panel.view.polygons
(south, west), (north, east) = tuner.panel.scene_map.map.bounds
middle = polygons.geometry.representative_point()
lon, lat = to_lonlat(polygons.crs, middle.x.to_numpy(), middle.y.to_numpy())
across, down = (lon - west) / (east - west), (north - lat) / (north - south)
far = (across - 0.4) ** 2 + (down - 0.45) ** 2 + 9 * ~polygons.area.between(90, 250).to_numpy()
print([float(across[far.argmin()]), float(down[far.argmin()])])
"""
# asked in the notebook: say of some objects what they are, as keys on the map do, and then correct
# what has a wrong colour, the largest first, as a person would
TAUGHT = """
import numpy as np
from workbench.evaluation.matching import match
from workbench.samples.demo import sample_truth
panel, truth = tuner.panel, sample_truth()
teaching, preview = panel.teaching, panel.preview
truth = truth[(truth["kind"] == "building") | (truth["kind"] == "parcel") & (truth.area > 2000)]
number_of = {"building": 1, "parcel": 2}

def meant(polygons):
    pairs = match(polygons, truth, at_least=0.6)
    numbers = np.zeros(len(polygons), int)
    numbers[pairs.predicted] = truth["kind"].map(number_of).to_numpy()[pairs.reference]
    return numbers

def say(polygons, numbers):
    for row, number in zip(polygons["row"].tolist(), numbers.tolist(), strict=True):
        teaching.say(row, number, preview, again_undoes=False)
    teaching.learn()

shown = panel.view.polygons
shown = shown[shown.representative_point().within(shapely.box(*BOUNDS))]
numbers, rng = meant(shown), np.random.default_rng(0)
first = np.concatenate([rng.permutation(np.flatnonzero(numbers == n))[:4] for n in (1, 2, 0)])
say(shown.iloc[first], numbers[first])
for _ in range(5):
    classes = teaching.classed(preview).classes
    coloured = preview.polygons_before_cleaning(classes.kept)
    coloured = coloured[coloured.intersects(shapely.box(*BOUNDS))]
    coloured = coloured.iloc[np.argsort(-coloured.area.to_numpy())]
    numbers = meant(coloured)
    wrong = np.flatnonzero(numbers != classes.class_id[coloured["row"]])
    print(f"{len(coloured)} objects have a colour, {len(wrong)} a wrong one")
    if not len(wrong):
        break
    say(coloured.iloc[wrong[:4]], numbers[wrong[:4]])
panel._refresh()
"""
QUALITY, LARGEST = 88, 250_000  # of a JPEG; bytes


def save(png: bytes, path: Path) -> None:
    """Keep a picture as JPEG, no larger than a page that loads at once can bear."""
    from PIL import Image

    quality = QUALITY
    while True:
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(
            jpeg, "JPEG", quality=quality, optimize=True, progressive=True
        )
        if jpeg.tell() <= LARGEST:
            break
        quality -= 4
    path.write_bytes(jpeg.getvalue())
    print(f"{path}: {jpeg.tell():,} bytes at quality {quality}")


def picture_of_the_tuner(folder: Path) -> bytes:
    """The tuner's cell, with a tile of the village and the pointer on a roof."""

    def point_at_a_roof(opened: Notebook) -> None:
        across, down = json.loads(opened.ask(ROOF))
        canvas = opened.page.locator(".sam-workbench-tuner .leaflet-container").bounding_box()
        x, y = canvas["x"] + across * canvas["width"], canvas["y"] + down * canvas["height"]
        opened.page.mouse.move(x, y, steps=3)

    return tuner_after(point_at_a_roof, folder)


def picture_of_classes(folder: Path) -> bytes:
    """The tuner's cell after keys have taught what a roof and what a field is."""

    def teach(opened: Notebook) -> None:
        names = {1: "roof", 2: "field"}
        opened.ask(f"tuner.session.name_classes({names}, tuner.session.colors)")
        print(opened.ask(f"import shapely\nBOUNDS = {TUNED}\n{TAUGHT}"))
        known = "getattr(tuner.panel.teaching.lesson, 'expected', None) is not None"
        opened.until(known, seconds=120)

    return tuner_after(teach, folder)


def tuner_after(act: Callable[[Notebook], None], folder: Path) -> bytes:
    """The tuner's cell over the village, after something was done in the notebook."""

    def on_the_tile(opened: Notebook) -> None:
        opened.ask(f"tuner.panel.tiles.compute([{TILE}])")
        opened.until("len(tuner.session.samples) == 1 and not tuner.session.busy", seconds=300)
        opened.page.locator(".sam-workbench-tuner").scroll_into_view_if_needed()
        opened.ask(f"tuner.panel.scene_map.fit({TUNED})")
        opened.page.wait_for_timeout(4000)
        act(opened)

    parameters = {"tile_size": 2048, "min_area_px": 150}
    return panel_after(on_the_tile, folder, "prelabel", ".sam-workbench-tuner", parameters)


def picture_of_a_review(folder: Path) -> bytes:
    """The cell that labels are answered in, after some answers by keys."""
    from workbench import Job, run
    from workbench.samples.demo import sample_scene

    run(
        Job.create(
            source=str(sample_scene()), out_dir=str(folder / "run"), tile_size=1024,
            min_area_px=150, classes={1: "roof", 2: "field"},
        )
    )  # fmt: skip

    def answer(opened: Notebook) -> None:
        view = opened.page.locator(".sam-workbench-review .leaflet-container").first
        view.scroll_into_view_if_needed()
        view.hover(position={"x": 60, "y": 300})
        for _ in range(18):
            area = float(opened.ask(AREA))
            opened.page.keyboard.press("1" if 60 < area < 300 else "2" if area > 900 else "r")
            opened.page.wait_for_timeout(700)
        opened.until("answering.session.ranking.is_done", seconds=120)
        opened.page.wait_for_timeout(3000)

    parameters = {"run_dir": str(folder / "run")}
    return panel_after(answer, folder, "review", ".sam-workbench-review", parameters)


AREA = "t = answering.session.triage; print(t.labels['area_m2'].iloc[t.row])"  # m²


def panel_after(
    act: Callable[[Notebook], None], folder: Path, name: str, panel: str, parameters: dict[str, Any]
) -> bytes:
    """A panel of a notebook, after something was done in it."""
    sys.path.insert(0, str(HERE.parent / "tests" / "ui"))
    from lab import CHROMIUM, FLAGS, VIEWPORT, copied_notebook, jupyterlab, open_notebook
    from playwright.sync_api import sync_playwright

    VIEWPORT.update(width=1420, height=1180)
    work = folder / "work"
    work.mkdir()
    notebook = copied_notebook(name, work, **parameters)
    with sync_playwright() as started, jupyterlab(work) as lab:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with open_notebook(browser, lab, notebook) as opened:
            opened.page.evaluate(
                "window.jupyterapp.commands.execute('application:toggle-left-area')"
            )
            opened.run_all()
            act(opened)
            opened.page.wait_for_timeout(1500)
            taken: bytes = opened.page.locator(panel).screenshot()
        browser.close()
    return taken


def picture_of_qgis(folder: Path) -> bytes:
    """A run's project, drawn by QGIS with the legend of its pre-labels."""
    from workbench import Job, run

    done = run(Job.create(out_dir=str(folder / "run"), tile_size=2048, min_area_px=150))
    target = folder / "qgis.png"
    command = ["/usr/bin/python3", __file__, str(done.folder / "review.qgz"), str(target)]
    subprocess.run(command, check=True, env=os.environ | {"QT_QPA_PLATFORM": "offscreen"})
    return target.read_bytes()


def draw_with_qgis(project_file: str, target: str) -> None:
    """Export a layout of the project: the map, and beside it the legend of the pre-labels."""
    from qgis.core import (
        QgsApplication,
        QgsLayout,
        QgsLayoutExporter,
        QgsLayoutItemLegend,
        QgsLayoutItemMap,
        QgsLayoutItemScaleBar,
        QgsLayoutPoint,
        QgsLayoutSize,
        QgsLegendRenderer,
        QgsLegendStyle,
        QgsProject,
        QgsRectangle,
    )
    from qgis.PyQt.QtGui import QColor

    application = QgsApplication([], False)
    application.initQgis()
    project = QgsProject.instance()
    project.read(project_file)
    layout = QgsLayout(project)
    layout.initializeDefaults()
    width, height = 200, 110
    layout.pageCollection().page(0).setPageSize(QgsLayoutSize(width, height))
    canvas = QgsLayoutItemMap(layout)
    canvas.attemptMove(QgsLayoutPoint(0, 0))
    canvas.attemptResize(QgsLayoutSize(width, height))
    left, bottom, right, top = DRAWN
    canvas.zoomToExtent(QgsRectangle(left, bottom, right, top))
    layout.addLayoutItem(canvas)
    legend = QgsLayoutItemLegend(layout)
    legend.setLinkedMap(canvas)
    legend.setAutoUpdateModel(False)
    legend.setTitle("Confidence")
    root = legend.model().rootGroup()
    for tree in root.findLayers():
        if tree.name() != "prelabels":
            tree.parent().removeChildNode(tree)
        else:
            QgsLegendRenderer.setNodeLegendStyle(tree, QgsLegendStyle.Hidden)
    legend.setBackgroundColor(QColor(255, 255, 255, 230))
    legend.attemptMove(QgsLayoutPoint(width - 48, 4))
    layout.addLayoutItem(legend)
    scale = QgsLayoutItemScaleBar(layout)
    scale.setLinkedMap(canvas)
    scale.applyDefaultSize()
    scale.setBackgroundEnabled(True)
    scale.setBackgroundColor(QColor(255, 255, 255, 230))
    scale.attemptMove(QgsLayoutPoint(4, height - 19))
    layout.addLayoutItem(scale)
    settings = QgsLayoutExporter.ImageExportSettings()
    settings.dpi = 178
    QgsLayoutExporter(layout).exportToImage(target, settings)
    project.clear()
    application.exitQgis()


TAKE = {"tuner": picture_of_the_tuner, "classes": picture_of_classes,
        "review-notebook": picture_of_a_review, "qgis": picture_of_qgis}  # fmt: skip

if __name__ == "__main__":
    if len(sys.argv) == 3:
        draw_with_qgis(*sys.argv[1:])
        sys.exit()
    for name in sys.argv[1:] or TAKE:
        with tempfile.TemporaryDirectory() as folder:
            save(TAKE[name](Path(folder)), HERE / f"{name}.jpg")
