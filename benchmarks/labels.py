"""How good the labels of whole runs are, and what they cost a reviewer, on labelled scenes.

    python benchmarks/labels.py [--models classic tiny] [--scenes kampala naip]
        [--variant "overlaps=one" --variant "duplicate_iou=null max_area_share=null" …]

The scenes lie in the folder that WORKBENCH_TEST_DATA names, and the sample scene is one of them.
Candidates are stored once for each scene and model, in `runs/labels`; all variants are made from
them. One row for each scene, model and variant, as Markdown, then the sums over all scenes.

- *duplicates*: share of the labels that repeat another one (IoU above 0.7).
- *largest*: the largest share of the valid part of its tile that one label covers.
- *cost*: seconds of review against seconds of drawing everything by hand.
- *cut*: straight edges of more than 20 m along the edge of a tile inside the scene.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from workbench import Job
from workbench.candidates.store import valid_masks
from workbench.evaluation.cost import ReviewCost, cost_of_pairs
from workbench.evaluation.matching import boxes, match
from workbench.polygons.overlap import iou_of
from workbench.raster.tiles import tile_windows
from workbench.runs.finish import layer_batches
from workbench.runs.plan import Plan, ScenePlan, prepare
from workbench.runs.segment import segment
from workbench.samples.demo import sample_scene, sample_truth

STRAIGHT_M = 20
HEADER = (
    "| scene | model | variant | tiles | labels | duplicates | largest | P@.5 | R@.5 | R@.75 | F1 "
    "| cost | cut |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class LabelledScene:
    """A raster, its reference, and what of both is compared."""

    name: str
    raster: Path
    reference: Callable[[], gpd.GeoDataFrame]
    compared: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame] = lambda layer: layer
    iou_thresh: float = 0.5


@dataclass(frozen=True)
class Row:
    """What is counted on one scene."""

    n_labels: int
    n_duplicates: int
    largest: float
    n_matched: int
    n_fitting: int  # at IoU 0.75
    n_reference: int
    cost: ReviewCost
    n_cut: int


def scenes(data: Path) -> Iterator[LabelledScene]:
    """All scenes that have labels of a class of areas."""
    sample = sample_scene()

    yield LabelledScene("sample", sample, sample_truth)

    def file(raster: str, labels: str, **more) -> LabelledScene:
        path = data / raster
        return LabelledScene(path.stem, path, lambda: gpd.read_file(data / labels), **more)

    for zoom in (19, 20, 21):
        yield file(f"kampala/kampala_z{zoom}_a.tif", "kampala/kampala_a_buildings.geojson")
    for raster in sorted((data / "naip_fields").glob("*.tif")):
        yield file(f"naip_fields/{raster.name}", f"naip_fields/{raster.stem}.geojson")
    yield file("spacenet_atlanta/atlanta_pan_u16.tif", "spacenet_atlanta/atlanta_buildings.gpkg")
    for name in ("OSBS_029", "SJER_477"):
        yield file(
            f"trees_neon/{name}.tif",
            f"trees_neon/{name}_boxes.gpkg",
            compared=boxes,
            iou_thresh=0.4,
        )
    yield file("oam_tcd/5b90f92da0d7280005fab355_4310.tif", "oam_tcd/oam_tcd_trees.gpkg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["classic"])
    parser.add_argument("--scenes", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--variant", action="append", help="parameters: NAME=VALUE NAME=VALUE")
    parser.add_argument("--store", type=Path, default=Path("runs/labels"))
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON a line")
    given = parser.parse_args(arguments)
    data = os.environ.get("WORKBENCH_TEST_DATA")
    if not data:
        sys.exit("WORKBENCH_TEST_DATA is not set: name the folder of the labelled scenes there.")
    variants = given.variant or [""]
    chosen = [s for s in scenes(Path(data)) if any(part in s.name for part in given.scenes)]
    print(HEADER, flush=True)
    rows: dict[tuple[str, str], list[Row]] = {}
    for model in given.models:
        for scene in chosen:
            for variant in variants:
                parameters = dict(pair.split("=", 1) for pair in variant.split())
                n_tiles, row = measure(scene, model, parameters, given.store)
                print(line(scene.name, model, variant, n_tiles, [row]), flush=True)
                rows.setdefault((model, variant), []).append(row)
                if given.json:
                    keep(given.json, scene, model, variant, row)
    for (model, variant), of_all in rows.items():
        print(line("all", model, variant, 0, of_all), flush=True)


def keep(path: Path, scene: LabelledScene, model: str, variant: str, row: Row) -> None:
    """Append a row to a file."""
    values = {"scene": scene.name, "model": model, "variant": variant}
    values |= {name: value for name, value in vars(row).items() if name != "cost"}
    values |= vars(row.cost) | {"ratio": row.cost.ratio}
    with path.open("a", encoding="utf-8") as file:
        file.write(pd.Series(values).to_json() + "\n")


def measure(
    scene: LabelledScene, model: str, parameters: dict[str, str], store: Path
) -> tuple[int, Row]:
    """Make the layer of a scene from its stored candidates and count."""
    folder = store / model / scene.name
    job = Job.create(source=str(scene.raster), out_dir=str(folder), model=model, **parameters)
    plan = prepare(job)
    try:
        start = time.perf_counter()
        for _ in segment(plan):
            pass
        stored = time.perf_counter()
        layer = pd.concat(list(layer_batches(plan, None)), ignore_index=True)
        print(
            f"{scene.name}: {stored - start:.0f} s to store, "
            f"{time.perf_counter() - stored:.1f} s to the layer",
            file=sys.stderr,
        )
        return plan.n_tiles, count(plan, layer, scene)
    finally:
        plan.close()


def count(plan: Plan, layer: gpd.GeoDataFrame, scene: LabelledScene) -> Row:
    """Count what a reviewer would notice."""
    reference = scene.compared(scene.reference())
    pairs = match(scene.compared(layer), reference)
    thresh = scene.iou_thresh
    return Row(
        len(layer),
        duplicates(layer.geometry.to_numpy()),
        largest_share(plan, layer),
        pairs.n_matched(thresh),
        pairs.n_matched(0.75),
        pairs.n_reference,
        cost_of_pairs(pairs),
        cut_edges(plan.scenes, layer),
    )


def duplicates(geometry: np.ndarray, iou_thresh: float = 0.7) -> int:
    """Labels that repeat an earlier one."""
    i, j = shapely.STRtree(geometry).query(geometry)
    i, j = i[i < j], j[i < j]
    area = shapely.area(geometry)
    alike = np.minimum(area[i], area[j]) > iou_thresh * np.maximum(area[i], area[j])
    i, j = i[alike], j[alike]
    return len(np.unique(j[iou_of(geometry[i], geometry[j]) > iou_thresh]))


def largest_share(plan: Plan, layer: gpd.GeoDataFrame) -> float:
    """The largest share of the valid part of its own tile that a label covers."""
    known = plan.store.ledger()
    largest = 0.0
    for part in plan.scenes:
        windows = tile_windows(part.scene, list(part.tiles))
        for tile, window in zip(part.tiles, windows.geometry, strict=True):
            record, _ = known[part.index(tile)]
            name = record.name
            own = layer.geometry[layer["source_tile"] == name].to_numpy()
            if not len(own):
                continue
            valid = window.area
            inside = tile.window.intersection(part.scene.window)
            [(stored, records)] = plan.store.read([record.index])
            for mask in valid_masks(records, stored.rules).values():
                seen = mask[: int(inside.height), : int(inside.width)]
                valid *= seen.mean()
            covered = shapely.area(shapely.intersection(own, window))
            largest = max(largest, float(covered.max() / valid))
    return largest


def cut_edges(parts: Iterable[ScenePlan], layer: gpd.GeoDataFrame) -> int:
    """Straight edges along a tile's edge that lies inside the scene."""
    n = 0
    for part in parts:
        scene, pixel = part.scene, part.scene.transform.a
        metres = scene.pixel_m / pixel
        xs, ys = set(), set()
        for tile in part.tiles:
            left, bottom, right, top = scene.window_polygon(tile.window).bounds
            xs |= {left, right}
            ys |= {bottom, top}
        x0, y0, x1, y1 = scene.bounds
        xs = {x for x in xs if x0 + 3 * pixel < x < x1 - 3 * pixel}
        ys = {y for y in ys if y0 + 3 * pixel < y < y1 - 3 * pixel}
        rings = shapely.get_rings(shapely.get_parts(layer.geometry.to_numpy()))
        for ring in rings:
            corners = shapely.get_coordinates(ring)
            (ax, ay), (bx, by) = corners[:-1].T, corners[1:].T
            for across, along, lines in ((bx - ax, by - ay, xs), (by - ay, bx - ax, ys)):
                at = ax if lines is xs else ay
                flat = (np.abs(across) < 1e-6 * pixel) & (np.abs(along) * metres > STRAIGHT_M)
                n += sum(
                    any(abs(place - line) < 2.5 * pixel for line in lines) for place in at[flat]
                )
    return n


def line(scene: str, model: str, variant: str, n_tiles: int, rows: Sequence[Row]) -> str:
    """One row of the table, of one scene or the sum of several."""
    labels = sum(row.n_labels for row in rows)
    references = sum(row.n_reference for row in rows)
    matched = sum(row.n_matched for row in rows)
    seconds = sum(row.cost.seconds for row in rows)
    drawing = sum(row.cost.drawing_seconds for row in rows)
    fitting = sum(row.n_fitting for row in rows)
    cells = [
        scene, model, variant or "as is", n_tiles or "", labels,
        f"{sum(row.n_duplicates for row in rows) / max(1, labels):.1%}",
        f"{max(row.largest for row in rows):.0%}",
        f"{matched / max(1, labels):.3f}", f"{matched / references:.3f}",
        f"{fitting / references:.3f}", f"{2 * matched / (labels + references):.3f}",
        f"{seconds / drawing:.2f}", sum(row.n_cut for row in rows),
    ]  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
