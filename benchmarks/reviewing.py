"""What a review costs in the running QGIS desktop, with the plugin and with real keys.

    python benchmarks/reviewing.py RASTER=OBJECTS [--teach 1 | 0 | …] [--pause 1] [--model classic]
    python benchmarks/reviewing.py --many 200000

The first form reviews a scene to its end, by somebody who knows all its objects: first as many
tiles as `--teach` says, then all others with the classes that these teach (0: without classes). It
prints how often a key was pressed, what was mended, drawn and rejected together, and the cost
against drawing everything. The second form measures the time from a key to the next label with many
labels.

It needs QGIS and a virtual screen, as tests/qgis_gui/ does.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import geopandas as gpd
import numpy as np
import shapely

from workbench import Job, read_run, run
from workbench.evaluation.cost import DRAW_S, FITS, LOOK_S, MEND_S, NEARLY, review_cost
from workbench.evaluation.matching import match
from workbench.layer.files import write_layer
from workbench.layer.qgis import styles, write_project
from workbench.layer.schema import as_layer
from workbench.review.examples import learn_from
from workbench.review.job import ReviewJob
from workbench.review.next_job import write_taught_job
from workbench.review.read import read_review
from workbench.runs.labels import EXAMPLES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "qgis_gui"))
import scene as made_up  # noqa: E402
from desktop import Desktop, missing  # noqa: E402

# after so many rejections in a row the reviewer looks at the rest of the tile as a whole, to see if
# all of it can be rejected, which takes as long as drawing an object; if not, the next look comes
# after twice as many
PATIENCE, GLANCE_S = 5, 10.0


@dataclass
class Work:
    """What a reviewer did, in labels and objects, and how long each key took."""

    looked_at: int = 0
    mended: int = 0
    drawn: int = 0
    glances: int = 0
    together: int = 0  # labels that were rejected with the rest of their tile
    waits: list[float] = field(default_factory=list)  # seconds from a key to the next label drawn
    seconds: float = 0.0  # of looking and pressing keys
    meant: dict[int, str] = field(default_factory=dict)

    def cost(self) -> float:
        """Seconds, with the times of `workbench.evaluation.cost`."""
        looking = LOOK_S * self.looked_at + GLANCE_S * self.glances
        return looking + MEND_S * self.mended + DRAW_S * self.drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene", nargs="?", metavar="RASTER=OBJECTS")
    parser.add_argument("--teach", type=int, default=1, help="tiles that teach classes")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds for each decision")
    parser.add_argument("--model", default="classic")
    parser.add_argument("--runs", type=Path, default=Path("runs/reviewing"))
    parser.add_argument("--many", type=int, metavar="LABELS")
    given = parser.parse_args(arguments)
    reason = missing()
    if reason:
        sys.exit(reason)
    if given.many:
        with tempfile.TemporaryDirectory(prefix="reviewing_") as folder:
            many(given.many, Path(folder))
        return
    raster, objects = map(Path, given.scene.split("=", 1))
    whole_scene(fresh_run(raster, given), gpd.read_file(objects), given)


def fresh_run(raster: Path, given: argparse.Namespace) -> Path:
    """Copy the run folder of a raster, which is kept between calls."""
    kept = given.runs / given.model / raster.stem
    job = Job.create(
        source=str(raster.resolve()), out_dir=str(kept), model=given.model,
        classes={1: "object"}, default_class=1,
    )  # fmt: skip
    if not (kept / "report.html").exists():
        run(job)
    folder = kept.with_name(f"{raster.stem}_under_review")  # at the same depth: paths are relative
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(kept, folder))


# ------------------------------------------------------------------------------- one scene


def whole_scene(folder: Path, objects: gpd.GeoDataFrame, given: argparse.Namespace) -> None:
    """Review a scene to its end, and print what it costs."""
    layer = read_run(folder).layer
    objects = objects.to_crs(layer.crs)
    alone = review_cost(layer, objects)
    print(f"\n{len(objects)} objects, {len(layer)} labels; a key for each costs {alone.ratio:.2f}")
    work = []
    if given.teach:
        work.append(reviewed(folder, objects, given.pause, tiles=given.teach))
        tell(f"{given.teach} tiles", work[0])
        teach(folder)
    work.append(reviewed(folder, objects, given.pause, tiles=sys.maxsize))
    tell("the others, with classes" if given.teach else "all tiles", work[-1])
    kept = read_labels(folder).query("status in ['accepted', 'edited']")
    found = (match(kept, objects, at_least=NEARLY).best_iou() >= NEARLY).sum()
    total = sum(one.cost() for one in work)
    print(
        f"In all {total / 60:.1f} minutes of {alone.drawing_seconds / 60:.1f} for drawing: cost "
        f"{total / alone.drawing_seconds:.2f}. Kept: {len(kept)} labels, {found} objects."
    )


def teach(folder: Path) -> None:
    """Teach classes by what is reviewed, as `review.ipynb` does, and refresh the layer."""
    job, finished = ReviewJob(run_dir=str(folder)), read_run(folder)
    labels = read_review(job.gpkg, finished).labels
    job.folder.mkdir(exist_ok=True)
    learn_from(job, finished, labels)
    path, _ = write_taught_job(job, finished, labels, job.folder / EXAMPLES)
    before = read_labels(folder).query("status != 'unreviewed'").set_index("id")["status"]
    run(Job.from_yaml(path))
    after = read_labels(folder).set_index("id")["status"]
    assert after.reindex(before.index).equals(before), "a refresh has lost a decision"


def tell(what: str, work: Work) -> None:
    """Print a line about a part of the work."""
    print(
        f"{what}: {work.looked_at} labels one by one, {work.together} rejected together, "
        f"{work.glances} looks at a whole tile, {work.mended} mended, {work.drawn} drawn; key to "
        f"next label: median {median(work.waits) * 1000:.0f} ms, 95 % "
        f"{np.quantile(work.waits, 0.95) * 1000:.0f} ms; "
        f"{60 * len(work.waits) / work.seconds:.0f} labels a minute",
        flush=True,
    )


def reviewed(folder: Path, objects: gpd.GeoDataFrame, pause: float, *, tiles: int) -> Work:
    """Review tiles in the desktop until so many are done, save, and return what was done."""
    outlines, labels = read_run(folder).tiles, read_labels(folder)
    right, shapes = right_labels(labels, objects)
    work = Work()
    with opened(folder / "review.qgz") as desktop:
        review_tiles(desktop, right, shapes, pause, tiles, work)
        done = desktop.ask("answer = dock.tour.finished()[0]")
        reached = match(labels, objects, at_least=NEARLY).best_iou() >= NEARLY
        missed = objects.geometry[~reached].to_numpy()
        area = shapely.union_all(outlines.geometry[outlines["tile"].isin(done)].to_numpy())
        for shape in missed[shapely.intersects(area, shapely.point_on_surface(missed))]:
            work.drawn += desktop.ask(
                f"shape = QgsGeometry.fromWkt('{shape.wkt}')\n"
                "answer = int(layer.addFeature(QgsVectorLayerUtils.createFeature(layer, shape)))"
            )
        assert desktop.ask("answer = layer.commitChanges() or layer.commitErrors()") is True
        desktop.ask("iface.newProject(False)")
    saved = read_labels(folder)["status"]
    wrong = [fid for fid, status in work.meant.items() if saved[fid] != status]
    assert not wrong, f"{len(wrong)} decisions are lost"
    return work


def read_labels(folder: Path) -> gpd.GeoDataFrame:
    """Read the labels of a run folder, by fid."""
    return gpd.read_file(folder / "prelabels.gpkg", layer="prelabels", fid_as_index=True)


def right_labels(
    labels: gpd.GeoDataFrame, objects: gpd.GeoDataFrame
) -> tuple[set[int], dict[int, str]]:
    """Return the best label of each object, and the shape of those that need mending, by fid."""
    pairs = match(labels, objects, at_least=NEARLY)
    right, shapes = set(), {}
    best: dict[int, tuple[float, int]] = {}
    for row, thing, iou in zip(pairs.predicted, pairs.reference, pairs.iou, strict=True):
        best[thing] = max(best.get(thing, (0.0, -1)), (float(iou), int(labels.index[row])))
    for thing, (iou, fid) in best.items():
        right.add(fid)
        if iou < FITS:
            shapes[fid] = objects.geometry.iloc[thing].wkt
    return right, shapes


def review_tiles(
    desktop: Desktop,
    right: set[int],
    shapes: dict[int, str],
    pause: float,
    tiles: int,
    work: Work,
) -> None:
    """Press keys until so many tiles are done, or all."""
    in_a_row, patience, tile, begin, apart = 0, PATIENCE, None, time.monotonic(), 0.0
    while True:
        fid, now, rest, done = desktop.ask(
            "chosen = layer.selectedFeatureIds()\n"
            "answer = [chosen[0] if chosen else None, dock.tour.tile, dock.tour.rest(), "
            "dock.tiles_done]"
        )
        if fid is None or done >= tiles:
            break
        if now != tile:
            tile, in_a_row, patience = now, 0, PATIENCE
        start = time.monotonic()
        if in_a_row >= patience and len(rest) > patience:
            in_a_row, patience, work.glances = 0, 2 * patience, work.glances + 1
            if not right.intersection(rest):
                work.together += len(rest)
                work.meant |= dict.fromkeys(rest, "rejected")
                desktop.click(*desktop.place_of("dock.rest_button"))
                desktop.wait(0.3)
                desktop.focus()
                apart += time.monotonic() - start
                continue
        if fid in shapes:
            work.mended += 1
            desktop.ask(
                "layer.beginEditCommand('Mend')\n"
                f"layer.changeGeometry({fid}, QgsGeometry.fromWkt('{shapes[fid]}'))\n"
                "layer.endEditCommand()"
            )
            apart += time.monotonic() - start
        time.sleep(pause)
        key, status = ("a", "accepted") if fid in right else ("r", "rejected")
        work.meant[fid] = "edited" if fid in shapes else status
        in_a_row = in_a_row + 1 if key == "r" else 0
        work.looked_at += 1
        wait = press(desktop, key, fid)
        if wait is not None:
            work.waits.append(wait)
    work.seconds = time.monotonic() - begin - apart


# ----------------------------------------------------------------------------- the desktop


@contextmanager
def opened(project: Path) -> Iterator[Desktop]:
    """Open a project in a QGIS with the plugin, and begin its review."""
    with tempfile.TemporaryDirectory(prefix="qgis_") as name:
        folder = Path(name)
        build = [sys.executable, ROOT / "qgis_plugin" / "build.py", folder / "plugin.zip"]
        subprocess.run(build, check=True, capture_output=True)
        shutil.unpack_archive(folder / "plugin.zip", folder / "plugin")
        plugin = folder / "plugin" / "sam_workbench_review"
        with Desktop(None, plugin=plugin, home=folder / "home") as desktop:
            desktop.ask(
                f"iface.addProject({str(project)!r})\n"
                "layer = QgsProject.instance().mapLayersByName('prelabels')[0]", 120
            )  # fmt: skip
            desktop.ask(
                "import time\n"
                "import qgis.utils\n"
                "from qgis.PyQt.QtWidgets import QAction\n"
                "iface.mainWindow().findChild(QAction, 'sam_workbench_review').trigger()\n"
                "dock = qgis.utils.plugins['sam_workbench_review'].dock\n"
                "drawn = []\n"
                "iface.mapCanvas().mapCanvasRefreshed.connect(lambda: drawn.append(time.time()))",
                120,
            )
            desktop.wait(1.5)
            desktop.focus()
            yield desktop


def press(desktop: Desktop, key: str, fid: int) -> float | None:
    """Press a key; return the seconds until the next label is drawn, None if there is none."""
    start = time.time()
    desktop.x("key", key)
    for _ in range(1500):
        chosen, drawn = desktop.ask(
            f"answer = [layer.selectedFeatureIds(), [t for t in drawn if t > {start}]]"
        )
        if not chosen:
            return None
        if chosen != [fid] and drawn:
            return float(drawn[0] - start)
    raise AssertionError(f"no label follows {fid}")


# ------------------------------------------------------------------------------ many labels


def many(n: int, folder: Path) -> None:
    """Time keys in a layer of about `n` labels in 64 tiles."""
    side, per_side, step = round(n**0.5), 8, 12.0
    x, y = (part.ravel() for part in np.meshgrid(np.arange(side), np.arange(side)))
    left, top = made_up.LEFT, made_up.TOP
    shapes = shapely.box(
        left + step * x + 2, top - step * y - 9, left + step * x + 9, top - step * y - 2
    )
    each = -(-side // per_side)
    names = np.array([f"scene/r{b}c{a}" for a, b in zip(x // each, y // each, strict=True)], object)
    columns = {
        "id": [f"{name}/{i}" for i, name in enumerate(names)], "class_id": None,
        "status": "unreviewed", "stability": 0.9, "area_m2": 49.0, "area_px": 100,
        "confidence": np.random.default_rng(0).uniform(0.5, 1, len(x)), "source_tile": names,
        "source": "scene", "n_tiles": 1, "at_edge": False,
    }  # fmt: skip
    layer = as_layer(gpd.GeoDataFrame(columns, geometry=shapes, crs=made_up.UTM))
    cells = [(row, col) for row in range(per_side) for col in range(per_side)]
    wide = step * each
    tiles = gpd.GeoDataFrame(
        {
            "tile": [f"scene/r{row}c{col}" for row, col in cells], "source": "scene",
            "tile_row": [row for row, _ in cells], "tile_col": [col for _, col in cells],
            "status": "ok", "error": "", "n_candidates": 1, "n_polygons": 1, "seconds": 1.0,
        },
        geometry=[
            shapely.box(left + wide * col, top - wide * (row + 1), left + wide * (col + 1),
                        top - wide * row)
            for row, col in cells
        ],
        crs=made_up.UTM,
    )  # fmt: skip
    files = write_layer(
        [layer], lambda _: tiles, folder, styles=lambda: styles(made_up.CLASSES, False)
    )
    write_project(
        folder / "review.qgz", gpkg=files.gpkg, rasters=[], crs=made_up.UTM, tiles=tiles,
        bounds=tuple(tiles.total_bounds), classes=made_up.CLASSES, title="review",
    )  # fmt: skip
    with opened(folder / "review.qgz") as desktop:
        waits = []
        for _ in range(60):
            (fid,) = desktop.ask("answer = layer.selectedFeatureIds()")
            waits.append(press(desktop, "a", fid) or np.nan)
            time.sleep(0.2)
        rest = desktop.ask("answer = len(dock.tour.rest())")
        start = time.monotonic()
        desktop.ask("dock.reject_rest()", 120)
        seconds = time.monotonic() - start
    print(
        f"{len(layer):,} labels: key to next label drawn: median {median(waits) * 1000:.0f} ms, "
        f"95 % {np.quantile(waits, 0.95) * 1000:.0f} ms; the rest of a tile ({rest:,} labels) "
        f"rejected and saved: {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
