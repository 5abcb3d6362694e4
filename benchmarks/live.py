"""How fast the interactive workbench follows a hand, in a real JupyterLab and Chromium.

python benchmarks/live.py [--only thresholds cleaning verdicts pan window tile restart review]

Each figure is the time from a key or button that the browser sees to the frame that shows what it
did: to the start of the frame after it, which a browser begins once the one before is painted. The
alternatives, ipyleaflet `GeoJSON` layers that are replaced, run in the same notebook, one by one.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import rasterio
from affine import Affine
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "ui"))
from lab import CHROMIUM, FLAGS, Notebook, jupyterlab, open_notebook

REPEATS = 30
SETTLED_MS = 500
CANVAS = "document.querySelector('canvas.sam-workbench-polygons')"
PLAIN = "document.querySelectorAll('.leaflet-container')[2].querySelector('.leaflet-overlay-pane')"
SIDE = 1024

# Candidates that look like roofs: blobs with ragged outlines, in threes that overlap
SAMPLES = """
import cv2, numpy as np
from workbench.candidates.rle import encode_masks
from workbench.candidates.select import prune
from workbench.candidates.store import TileRecord
from workbench.candidates.table import Candidates, Rules
from workbench.tuning.process import TileDone

def blobs(n, seed, side):
    rng = np.random.default_rng(seed)
    boxes, areas, rles = [], [], []
    for i in range(n):
        if i % 3 == 0:
            cx, cy = rng.integers(40, side - 40, 2)
            a, b = rng.integers(6, 20, 2)
            turn = int(rng.integers(180))
        mask = np.zeros((side, side), np.uint8)
        centre = int(cx + rng.integers(-2, 3)), int(cy)
        cv2.ellipse(mask, centre, (int(a + rng.integers(4)), int(b)), turn, 0, 360, 1, -1)
        here = mask[cy - 40 : cy + 40, cx - 40 : cx + 40]
        here[...] = cv2.medianBlur(here & (rng.random(here.shape) > 0.15), 3)
        here[38:43, 38:43] = 1
        ys, xs = np.nonzero(here)
        x, y = cx - 40, cy - 40
        boxes.append((xs.min() + x, ys.min() + y, xs.max() + x, ys.max() + y))
        areas.append(len(ys))
        rles.append(encode_masks(mask.view(bool)[None])[0])
    x0, y0, x1, y1 = np.array(boxes).T
    zero, full = np.zeros(n, int), np.full(n, side)
    return prune(Candidates.from_columns(Rules(side, side), dict(
        tile_row=zero, tile_col=zero, ordinal=np.arange(n),
        pred_iou=rng.uniform(0.5, 1, n).astype("f4"),
        stability_score=rng.uniform(0.5, 1, n).astype("f4"), x0=x0, y0=y0, x1=x1, y1=y1,
        area_px=areas, point_x=zero, point_y=zero, crop_x0=zero, crop_y0=zero, crop_x1=full,
        crop_y1=full, rle=rles)))

def samples(session, n_tiles, n):
    made = []
    for part in session.area.parts:
        for tile in part.tiles[:n_tiles]:
            found = blobs(n, len(made), session.job.tile_size).at_tile(tile.row, tile.col)
            record = TileRecord(*part.index(tile), "ok")
            made.append(session.sample_of(TileDone(record, found, stored=True)))
    return tuple(made)

def settled(tuner, wait=90):
    import time
    end = time.time() + wait
    panel = tuner.panel
    while sum(map(len, panel.drawn.frames)) < 0.97 * panel.preview.n_candidates:
        if time.time() > end:
            break
        time.sleep(0.2)
    return len(panel.view.kept)
"""

# What an ipyleaflet layer does instead: all features again for each step of a slider
LAYER = """
import ipyleaflet, ipywidgets, json
from IPython.display import display
shapes = tuner.panel.view.polygons
shapes = shapes[["confidence", "geometry"]].to_crs(4326)
features = json.loads(shapes.to_json())["features"]
look = dict(color="#3388ff", weight=1, fillOpacity=0.2)
baked = json.loads(json.dumps(features))
for feature in baked:
    feature["properties"]["style"] = look
LAYERS = {
    "baked": (baked, {}),
    "style": (features, dict(style=look)),
    "callback": (features, dict(style_callback=lambda feature: look)),
}
beside = tuner.panel.scene_map.map
plain = ipyleaflet.Map(layers=(), center=beside.center, zoom=beside.zoom)
alternative = ipywidgets.FloatSlider(0.6, min=0.5, max=1, step=0.005, description="layer")
layer = None
def data(thresh, of):
    kept = [f for f in of if f["properties"]["confidence"] > thresh]
    return {"type": "FeatureCollection", "features": kept}
def show(kind):
    global layer
    of, how = LAYERS[kind]
    plain.clear()
    alternative.unobserve_all()
    alternative.value = 0.6
    layer = ipyleaflet.GeoJSON(data=data(0.6, of), **how)
    plain.add(layer)
    alternative.observe(lambda c: setattr(layer, "data", data(c["new"], of)), "value")
display(alternative, plain)
"""

# In the kernel: a few verdicts, as keys give them, and where on the map others can be given
TEACH = """
import numpy as np
panel = tuner.panel
job = panel.session.job
panel.session.name_classes({1: "one", 2: "two"}, panel.session.colors)
while panel.teaching.describe_one(panel.preview):
    pass
rows = np.random.default_rng(0).permutation(panel.view.kept)
for i, row in enumerate(rows[:30].tolist()):
    panel.teaching.say(row, i % 3, panel.preview)
panel._refresh()
def place(i):
    from workbench.raster.crs import to_lonlat
    (south, west), (north, east) = panel.scene_map.map.bounds
    there = panel.preview.outline(int(rows[30 + i])).representative_point()
    lon, lat = to_lonlat(there.crs, there.x.to_numpy(), there.y.to_numpy())
    print([float((lon[0] - west) / (east - west)), float((north - lat[0]) / (north - south))])
"""

# Times of keys and of the frames in which the watched element has changed
WATCH = """
([expression, ahead]) => {
  window.keys = []; window.frames = [];
  if (window.watching) window.watching.disconnect();
  if (window.onKey) document.removeEventListener('keydown', window.onKey, true);
  window.onKey = () => window.keys.push(performance.now());
  document.addEventListener('keydown', window.onKey, true);
  const element = eval(expression);
  let waiting = false;
  window.watching = new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    const seen = () => { waiting = false; window.frames.push(performance.now()); };
    // a canvas is drawn in its frame, what Leaflet draws with is changed ahead of it
    if (ahead) requestAnimationFrame(() => requestAnimationFrame(seen));
    else requestAnimationFrame(seen);
  });
  window.watching.observe(element, {attributes: true, childList: true, subtree: true});
}
"""


# When the first map has come to rest, and when the picture that came then has been painted
PAN = """
() => {
  window.rest = 0; window.shown = 0; window.loaded = null; window.seer?.disconnect();
  const panes = document.querySelector(".leaflet-map-pane");
  const tell = async image => {
    await image.decode();
    requestAnimationFrame(() => requestAnimationFrame(() => { shown = performance.now(); }));
  };
  window.seer = new MutationObserver(list => {
    for (const { target, attributeName, addedNodes } of list) {
      if (target === panes && attributeName === "style") rest = performance.now();
      const changed = attributeName === "src" ? [target] : [...addedNodes];
      const image = changed.find(node => node.tagName === "IMG" && node.src.length > 1000);
      if (image && !loaded) tell(loaded = image);
    }
  });
  seer.observe(panes, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["src", "style"]});
}
"""


def main() -> None:
    """Measure what the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["thresholds", "cleaning", "verdicts", "pan", "window", "tile", "restart", "review"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    only = parser.parse_args().only
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print("| what | median ms | p95 ms |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        root = Path(folder) / "work"
        root.mkdir()
        with jupyterlab(root) as lab:
            if {"thresholds", "cleaning", "verdicts", "pan"} & set(only):
                for n_tiles, per_tile, label in ((4, 2300, "3,000"), (16, 4000, "20,000")):
                    path = _notebook(root, f"tuner{n_tiles}", n_tiles, per_tile)
                    with open_notebook(browser, lab, path) as notebook:
                        notebook.run_all(600)
                        measure_tuner(notebook, label, only)
            if "window" in only:
                path = _notebook(root, "large", 0, 0, _large(root))
                with open_notebook(browser, lab, path) as notebook:
                    # a sharp screen, whose window is 2,000 px
                    notebook.page.context.new_cdp_session(notebook.page).send(
                        "Emulation.setDeviceMetricsOverride",
                        {"width": 1440, "height": 900, "deviceScaleFactor": 2, "mobile": False},
                    )
                    notebook.run_all(300)
                    measure_window(notebook)
            if "tile" in only:
                path = _notebook(root, "tile", 0, 0, None)
                with open_notebook(browser, lab, path) as notebook:
                    notebook.run_all(300)
                    measure_first_tile(notebook)
            if "restart" in only:
                path = _notebook(root, "restart", 0, 0, None)
                with open_notebook(browser, lab, path) as notebook:
                    notebook.run_all(300)
                    measure_restart(notebook)
            if "review" in only:
                path = _review_notebook(root, 317)
                with open_notebook(browser, lab, path) as notebook:
                    notebook.run_all(600)
                    measure_review(notebook)


def measure_tuner(notebook: Notebook, label: str, only: list[str]) -> None:
    """Sliders, alternatives, panning with `label` polygons."""
    page = notebook.page
    n = int(notebook.ask("print(settled(tuner))"))
    what = f"{label} polygons ({n:,} shown)"
    if "thresholds" in only:
        ours = _press(page, "predicted IoU", CANVAS)
        _print(f"threshold, {what}", ours)
        if label == "3,000":
            for kind, words in (("baked", "each feature's own style"), ("style", "`style=`"),
                                ("callback", "`style_callback=`")):  # fmt: skip
                notebook.ask(f"show({kind!r})")
                page.wait_for_timeout(4000)
                theirs = _press(page, "layer", PLAIN, 10)
                times = np.median(theirs) / np.median(ours)
                _print(f"a replaced ipyleaflet GeoJSON layer, {words}: {times:.0f} ×", theirs)
            notebook.ask("plain.clear()")
    if "cleaning" in only and label == "3,000":
        for name in ("min. part, px", "max. area, m²", "min. solidity", "fill holes, m²",
                     "simplify, m"):  # fmt: skip
            _print(f"{name}, {what}", _press(page, name, CANVAS, 12))
        _print(f"planar, {what}", _press(page, "planar", CANVAS, 6))
    if "verdicts" in only and label == "3,000":
        measure_verdicts(notebook)
    if "pan" in only:
        fps, worst = _pan(page)
        print(f"| pan, {what}: {fps:.0f} frames/s, longest gap {worst:.0f} ms | | |", flush=True)


def measure_verdicts(notebook: Notebook) -> None:
    """From a key over an object to the map in the colours of what it taught."""
    page = notebook.page
    notebook.ask(TEACH)
    notebook.until("tuner.panel.teaching.lesson.expected is not None", seconds=180)
    view = page.locator(".sam-workbench-tuner .leaflet-container").first
    view.scroll_into_view_if_needed()
    page.evaluate(WATCH, [CANVAS, False])
    times = []
    for i in range(REPEATS):
        box, (across, down) = view.bounding_box(), json.loads(notebook.ask(f"place({i})"))
        if not (0 < across < 1 and 0 < down < 1):
            continue
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=2)
        page.wait_for_timeout(1500)  # what a run would learn has been learned, and is drawn
        seen = page.evaluate("frames.length")
        before = notebook.ask("print(id(tuner.session.verdicts))")  # kept by the history
        page.keyboard.press(str(i % 3))
        page.wait_for_function(f"frames.length > {seen}", timeout=20_000)
        times.append(page.evaluate(f"frames.at({seen}) - keys.at(-1)"))
        notebook.until(f"id(tuner.session.verdicts) != {before}")
    n = int(notebook.ask("print(tuner.panel.preview.n_candidates)"))
    _print(f"verdict by a key, {n:,} candidates", times)


def _press(page: Page, label: str, watched: str, repeats: int = REPEATS) -> list[float]:
    """Press arrow keys on a slider (space on a box), one after the other's frame; times in ms."""
    if label == "planar":
        control, keys = page.get_by_label("planar"), ["Space"]
    else:
        rows = page.locator(".widget-slider", has_text=label)
        control, keys = rows.first.locator(".noUi-handle").first, ["ArrowRight", "ArrowLeft"]
    control.scroll_into_view_if_needed()
    page.evaluate(WATCH, [watched, watched is PLAIN])
    control.focus()
    times = []
    for i in range(repeats):
        # up and down again, a few steps each way
        key = keys[0] if len(keys) == 1 else keys[(i // 5) % 2]
        seen = page.evaluate("frames.length")
        page.keyboard.press(key)
        try:
            # the canvas shows the whole answer in its first frame, and may draw it once more when
            # outlines that other settings need have come; a layer changes piece by piece
            settled = f"frames.length > {seen} && performance.now() - frames.at(-1) > {SETTLED_MS}"
            page.wait_for_function(settled, timeout=20_000)
        except Exception:
            continue  # a step that changes nothing draws nothing
        counts = seen if watched is CANVAS else -1
        times.append(page.evaluate(f"frames.at({counts}) - keys.at(-1)"))
        page.wait_for_timeout(150)
    return times


def _pan(page: Page) -> tuple[float, float]:
    """Drag the map for two seconds; frames a second, and the longest time without one."""
    view = page.locator(".leaflet-container").nth(1)
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate(
        "window.beats = []; window.beating = true; const beat = t => { beats.push(t);"
        " if (beating) requestAnimationFrame(beat); }; requestAnimationFrame(beat);"
    )
    page.mouse.move(x, y)
    page.mouse.down()
    start = time.monotonic()
    while (passed := time.monotonic() - start) < 2:
        page.mouse.move(x + 150 * np.sin(3 * passed), y + 60 * np.cos(3 * passed))
    page.mouse.up()
    beats = np.diff(page.evaluate("beating = false, beats"))
    return 1000 / float(beats.mean()), float(beats.max())


def measure_window(notebook: Notebook) -> None:
    """From the end of a pan, when the map has come to rest, to the painted window of 2,000 px."""
    page = notebook.page
    view = page.locator(".leaflet-container").first
    view.scroll_into_view_if_needed()
    notebook.ask("picker.scene_map.map.zoom = picker.scene_map.map.zoom + 3")
    page.wait_for_timeout(3000)
    box = view.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    times = []
    for i in range(20):
        page.evaluate(PAN)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + (350 if i % 2 else -350), y + 40, steps=6)
        page.mouse.up()
        page.wait_for_function("shown > 0", timeout=10_000)
        times.append(page.evaluate("shown - rest"))
        page.wait_for_timeout(800)
    px = page.evaluate("loaded.naturalWidth")
    _print(f"window of a 1 GB raster after a pan, {px} px wide", times)


def measure_first_tile(notebook: Notebook) -> None:
    """From the button to the first polygons and to the end of one tile, model `tiny`."""
    page = notebook.page
    notebook.ask("tuner.panel.n_tiles.value = 1")
    button = page.get_by_role("button", name="Propose tiles", exact=True).first
    button.scroll_into_view_if_needed()
    for name in ("right after the cells have run", "with the model loaded", "once more"):
        start = time.monotonic()
        button.click()
        page.wait_for_function(f"Number({CANVAS}.dataset.shown) > 0", timeout=180_000)
        first = time.monotonic() - start
        notebook.until("len(tuner.session.samples) == 1 and not tuner.session.busy", seconds=180)
        whole = time.monotonic() - start
        print(f"| first polygons {name}: {first:.1f} s, the tile {whole:.1f} s | | |", flush=True)
        notebook.ask("tuner.panel.tiles.clear(); tuner.panel.n_tiles.value = 1")
        notebook.ask("import shutil; shutil.rmtree(tuner.session.folder / 'candidates')")
        page.wait_for_timeout(1000)


def measure_restart(notebook: Notebook) -> None:
    """From *Restart Kernel and Run All* to the polygons of the sample tiles that were there."""
    page = notebook.page
    notebook.ask("tuner.panel.n_tiles.value = 4")
    page.get_by_role("button", name="Propose tiles", exact=True).first.click()
    notebook.until("len(tuner.session.samples) == 4 and not tuner.session.busy", seconds=600)
    shown = page.evaluate(f"{CANVAS}.dataset.shown")
    times = []
    for _ in range(5):
        start = time.monotonic()
        notebook.restart()
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(f"{CANVAS}?.dataset.shown === '{shown}'", timeout=60_000)
        times.append(1000 * (time.monotonic() - start))
        page.wait_for_timeout(3000)
    _print(f"restart to all {shown} polygons of 4 tiles", times)


def measure_review(notebook: Notebook) -> None:
    """From a key that answers to the last frame of the map at the next label."""
    page = notebook.page
    n = int(notebook.ask("print(len(review.session.triage))"))
    page.wait_for_function(f"Number({CANVAS}?.dataset.shown) === {n}", timeout=120_000)
    view = page.locator(".sam-workbench-review .leaflet-container").first
    view.scroll_into_view_if_needed()
    view.hover(position={"x": 100, "y": 100})
    page.wait_for_timeout(3000)
    page.evaluate(WATCH, [CANVAS, False])
    first, last = [], []
    for i in range(REPEATS):
        seen = page.evaluate("frames.length")
        page.keyboard.press("ar"[i % 2])
        page.wait_for_function(
            f"frames.length > {seen} && performance.now() - frames.at(-1) > {SETTLED_MS}",
            timeout=20_000,
        )
        first.append(page.evaluate(f"frames.at({seen}) - keys.at(-1)"))
        last.append(page.evaluate("frames.at(-1) - keys.at(-1)"))
        page.wait_for_timeout(300)
    writes = json.loads(notebook.ask(WRITES))
    _print(f"answer by a key, {n:,} polygons, to the first frame that differs", first)
    _print(f"answer by a key, {n:,} polygons, to the last frame at the next label", last)
    _print("of it, to write the answer", writes)


# In the kernel: how long an answer takes to be in the file
WRITES = """
import json, time
times, triage = [], review.session.triage
for i in range(30):
    start = time.perf_counter()
    triage.decide([triage.order.rest()[0]], "accepted")
    times.append(1000 * (time.perf_counter() - start))
print(json.dumps(times))
"""


def _review_notebook(root: Path, side: int) -> Path:
    """A notebook with the review of a run of `side` × `side` labels of 24 vertices."""
    from handoff import CRS, LEFT, STEP, TOP, polygons

    from workbench import Job, run
    from workbench.layer import qgis
    from workbench.layer.cores import home_in
    from workbench.layer.files import write_layer
    from workbench.layer.schema import BATCH

    source, px = root / "many.tif", int(side * STEP)
    with rasterio.open(
        source, "w", driver="GTiff", width=px, height=px, count=3, dtype="uint8", tiled=True,
        crs=CRS, transform=Affine(1, 0, LEFT, 0, -1, TOP),
    ) as file:  # fmt: skip
        file.write(np.full((3, px, px), 110, np.uint8))
    made = run(Job.create(source=str(source), out_dir=str(root / "many"), model="classic"))
    labels, (scene,) = polygons(side), made.scenes
    tile = made.tiles["tile"].to_numpy(str)[home_in(made.tiles, labels)]
    labels = labels.assign(
        id=np.char.add(np.char.add(tile, "/"), np.arange(len(labels)).astype(str)),
        source=scene.name, source_tile=tile,
    )  # fmt: skip
    batches = [labels[at : at + BATCH] for at in range(0, len(labels), BATCH)]
    styles = qgis.styles({1: "object"})
    write_layer(batches, lambda _: made.tiles, made.folder, styles=lambda: styles)
    code = (
        "from workbench.review.job import ReviewJob\nfrom workbench.widgets import LayerReview\n"
        f"review = LayerReview(ReviewJob.create(run_dir={str(made.folder)!r}))\nreview"
    )
    return _written(root / "review.ipynb", [code])


def _print(what: str, times: list[float]) -> None:
    median, p95 = np.percentile(times, [50, 95]) if times else (np.nan, np.nan)
    print(f"| {what} | {median:.0f} | {p95:.0f} |", flush=True)


def _notebook(
    root: Path, name: str, n_tiles: int, per_tile: int, source: Path | None = None
) -> Path:
    """A notebook with picker and tuner, on samples of known size if there are any."""
    if n_tiles:
        side = SIDE * int(np.sqrt(n_tiles))
        source = root / f"{name}.tif"
        grey = np.full((3, side, side), 110, np.uint8)
        _write(source, grey)
    job: dict[str, Any] = {"out_dir": str(root / name), "interactive": True}
    if source is not None:
        job["source"] = str(source)
    if n_tiles:
        job |= {"overlap": 0.0, "min_area_px": 10, "pred_iou_thresh": 0.6,
                "stability_score_thresh": 0.55}  # fmt: skip
    if not n_tiles and source is None:
        job |= {"model": "tiny", "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
    cells = [
        f"from workbench import Job\nfrom workbench.widgets import *\njob = Job.create(**{job!r})",
        "picker = AOIPicker(job)\npicker",
        "tuner = ThresholdTuner(picker)\ntuner",
    ]
    if n_tiles:
        cells.append(
            f"{SAMPLES}\ntuner.session.samples = samples(tuner.session, {n_tiles}, {per_tile})"
        )
    if n_tiles == 4:
        cells.append(f"settled(tuner)\n{LAYER}")
    return _written(root / f"{name}.ipynb", cells)


def _written(path: Path, cells: list[str]) -> Path:
    """Write a notebook of these cells."""
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


def _write(path: Path, rgb: np.ndarray) -> None:
    _, height, width = rgb.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8",
        crs="EPSG:32633", transform=Affine(0.3, 0, 500_000, 0, -0.3, 5_300_000), tiled=True,
    ) as file:  # fmt: skip
        file.write(rgb)


def _large(root: Path) -> Path:
    """A raster of 1 GB with overviews, of noise at several scales."""
    path, side, block = root / "large.tif", 18_432, 1024
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", tiled=True,
        blockxsize=512, blockysize=512, crs="EPSG:32633",
        transform=Affine(0.1, 0, 500_000, 0, -0.1, 5_300_000), BIGTIFF="YES",
    ) as file:  # fmt: skip
        for top in range(0, side, block):
            for left in range(0, side, block):
                coarse = rng.integers(40, 200, (3, 16, 16), dtype=np.uint8)
                piece = coarse.repeat(64, axis=1).repeat(64, axis=2)
                window = rasterio.windows.Window(left, top, block, block)
                file.write(piece + rng.integers(0, 40, piece.shape, dtype=np.uint8), window=window)
        file.build_overviews([2, 4, 8, 16, 32], rasterio.enums.Resampling.average)
    return path


if __name__ == "__main__":
    main()
