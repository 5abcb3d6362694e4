"""Classes of a run: taught by its examples, and given to the candidates that it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from workbench._support.cores import usable_cores
from workbench.candidates.store import Ledger, TileRecord, valid_masks
from workbench.candidates.table import Candidates, concat
from workbench.candidates.valid import on_valid_pixels
from workbench.learning.choose import select_classes
from workbench.learning.classifier import NONE, Classifier
from workbench.learning.examples import Examples, check, join, match_labels
from workbench.learning.features import FEATURES, SceneColours, describe
from workbench.learning.held_out import HeldOut, held_out
from workbench.polygons.areas import lies_in, middle_of
from workbench.polygons.build import to_polygons
from workbench.raster.scene import Scene, raster_of
from workbench.raster.tiles import tile_name
from workbench.runs.folder import features_in, store_in
from workbench.runs.labels import EXAMPLES, labelled_area_of, labels_of, off_the_scene, on_scene
from workbench.runs.plan import Plan
from workbench.runs.said import Said, fill_their_tile, select_said, traced_rows
from workbench.runs.tile_stream import ScenePlan


@dataclass(frozen=True, eq=False)
class Taught:
    """What the examples of a job teach; `notes` are sentences for the person who gave them."""

    classifier: Classifier
    class_thresh: float
    examples: Examples
    expected: HeldOut
    said: Said
    notes: tuple[str, ...]

    def summary(self, classes: Mapping[int, str]) -> dict[str, str]:
        """What the report says of it: quantities and sentences by name."""
        counted = self.examples.objects()
        objects = dict(zip(counted.index.tolist(), counted.tolist(), strict=True))
        none = np.count_nonzero(self.examples.class_id == NONE)
        lines = {
            f"objects of class {number} ({classes.get(number, '?')})": f"{count:,}"
            for number, count in objects.items()
            if number != NONE
        }
        lines["candidates that are none of these"] = f"{none:,}"
        lines["class_thresh"] = f"{self.class_thresh:g}"
        lines["expected on tiles not seen"] = self.expected.text()
        return lines | {f"note {i}": note for i, note in enumerate(self.notes, 1)}


def teach(plan: Plan) -> Taught | None:
    """Learn the classes of a job from its examples and the stored candidates; None without any.

    Raises `ExamplesError` if nothing can be learned.
    """
    if plan.job.examples is None:
        return None
    labels = labels_of(plan.job)
    area = labelled_area_of(plan.job)
    found = [one.examples for one in labels if one.examples is not None]
    notes = [note for one in labels for note in one.notes]
    polygons = [one for one in labels if len(one.polygons)]
    if polygons or area is not None:
        crs = plan.crs
        wanted = pd.concat([on_scene(one, crs) for one in labels], ignore_index=True)
        known = [one.frame for one in found]
        others = [frame.geometry[frame["class_id"] != NONE].to_crs(crs) for frame in known]
        objects = np.concatenate([np.empty(0, object), *(one.to_numpy() for one in others)])
        complete = None if area is None else shapely.union_all(area.to_crs(crs).to_numpy())
        ledger = plan.store.ledger()  # once: it looks at every file of the store
        for part in plan.scenes:
            found += list(
                examples_of(plan.folder, part, plan.area.finest, ledger, wanted, complete, objects)
            )
    if not found:
        raise off_the_scene(labels, [part.scene for part in plan.scenes])
    return learn(join(found), plan.job.class_thresh, plan.crs, notes)


def learn(
    examples: Examples, class_thresh: float | None, crs: pyproj.CRS, notes: Sequence[str] = ()
) -> Taught:
    """Learn classes from examples; without a threshold the best one on tiles held out is taken.

    Raises `ExamplesError` if nothing can be learned.
    """
    notes = (*notes, *check(examples))
    expected = held_out(examples, class_thresh)
    classifier = Classifier.fit(examples.figures, examples.class_id, weight=examples.weight)
    said = Said.by(examples, crs)
    return Taught(classifier, expected.class_thresh, examples, expected, said, notes)


def classed_polygons(
    plan: Plan,
    taught: Taught,
    part: ScenePlan,
    candidates: Candidates,
    records: Sequence[TileRecord],
) -> gpd.GeoDataFrame:
    """Select by class and trace: `to_polygons` with `class_id`, `class_score` and `accepted_iou`.

    The last is for `merge_seams`: the IoU with the shape that a person has given its class.
    """
    class_id, score = taught.classifier.best(figures_of(plan.folder, part, candidates))
    valid = valid_masks(records, candidates.rules)
    seen = on_valid_pixels(candidates, part.grid, valid)
    whole = fill_their_tile(plan.job, part, candidates, records)
    about = taught.said.about(len(candidates), taught.said.shown_by(part, candidates, records))

    def choose(score: NDArray[np.float64]) -> NDArray[np.int64]:
        return select_classes(seen, score, taught.class_thresh)

    chosen = select_said(candidates, class_id, score, plan.job, whole, about, choose)
    kept = candidates.take(chosen.rows)
    polygons = to_polygons(kept, part.scene, part.grid, valid)
    row = chosen.rows[traced_rows(kept, polygons)]
    return polygons.assign(
        class_id=chosen.class_id[row],
        class_score=chosen.class_score[row],
        accepted_iou=np.where(chosen.by_person, about.iou, 0)[row],
    )


def without_class(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give an empty frame of polygons the columns that `classed_polygons` adds."""
    nothing = {"class_score": np.empty(0), "accepted_iou": np.empty(0)}
    return polygons.assign(class_id=np.empty(0, np.int64), **nothing)


def keep_examples(plan: Plan, taught: Taught) -> None:
    """Write what the classes were taught by into the run folder."""
    taught.examples.write(plan.folder / EXAMPLES)


def figures_of(folder: Path, part: ScenePlan, candidates: Candidates) -> NDArray[np.float32]:
    """Features of all stored candidates of a few tiles, from the run folder or computed."""
    return features_in(folder).figures(
        candidates, part.scene.fingerprint, lambda: described(part, candidates)
    )


def described(part: ScenePlan, candidates: Candidates) -> NDArray[np.float32]:
    """Compute the features of all candidates of some tiles, `(n, len(FEATURES))`."""
    scene, colours = part.scene, _colours_of(part.scene)
    index = np.column_stack([candidates.column(name) for name in ("tile_row", "tile_col")])
    tiles, tile_of = np.unique(index, axis=0, return_inverse=True)
    figures = np.zeros((len(candidates), len(FEATURES)), np.float32)

    def one(number: int) -> None:
        tile = part.grid.tile(*tiles[number].tolist())
        rows = np.flatnonzero(tile_of.ravel() == number)
        image, valid = scene.read(tile.window)
        pixel_m = scene.pixel_m_in(tile.window)
        figures[rows] = describe(candidates.take(rows), image, valid, colours, pixel_m)

    with ThreadPoolExecutor(usable_cores(), "features") as threads:
        list(threads.map(one, range(len(tiles))))
    return figures


@lru_cache(maxsize=64)
def _colours_of(scene: Scene) -> SceneColours:
    return SceneColours.of(scene)


def examples_of(
    folder: Path,
    part: ScenePlan,
    finest: Sequence[ScenePlan],
    ledger: Ledger,
    labels: gpd.GeoDataFrame,
    area: shapely.Geometry | None,
    known: NDArray[np.object_] | None = None,
) -> Iterator[Examples]:
    """Make examples from those stored tiles of a scene that labels or the labelled area reach.

    `labels`, `area` and `known` are as for `match_labels`; `finest` are the scenes on the working
    grid, whose tiles are held out together.
    """
    shapes = labels.geometry.to_numpy()
    if area is not None:
        shapes = np.array([*shapes, area], object)
    windows = np.array([part.scene.window_polygon(tile.window) for tile in part.tiles], object)
    reached = set(shapely.STRtree(shapes).query(windows, "intersects")[0].tolist())
    wanted = {part.index(tile) for i, tile in enumerate(part.tiles) if i in reached}
    cores = {(tile.row, tile.col): part.scene.window_polygon(tile.core) for tile in part.tiles}
    for candidates, records in store_in(folder).read([part.index(t) for t in part.tiles], ledger):
        here = [record.index for record in records if record.index in wanted]
        if not here or not len(candidates):
            continue
        figures = figures_of(folder, part, candidates)  # of all: they are kept together
        some = concat([candidates.of_tile(row, col) for _, row, col in here])
        valid = valid_masks(records, candidates.rules)
        polygons = to_polygons(some, part.scene, part.grid, valid)
        core = [
            cores[index] for index in zip(polygons["tile_row"], polygons["tile_col"], strict=True)
        ]
        # what two tiles see alike would count twice
        home = np.flatnonzero(lies_in(polygons.geometry.to_numpy(), np.array(core, object)))
        polygons = polygons.iloc[home]
        figures = figures[traced_rows(candidates, polygons)]
        described = gpd.GeoDataFrame(
            dict(zip(FEATURES, figures.T, strict=True))
            | {
                "source": raster_of(part.scene.name),
                "tile": _held_out_with(finest, part, polygons),
            },
            geometry=polygons.geometry.to_numpy(),
            crs=polygons.crs,
        )
        yield match_labels(labels, described, area, known)


def _held_out_with(
    finest: Sequence[ScenePlan], part: ScenePlan, polygons: gpd.GeoDataFrame
) -> NDArray[np.object_]:
    """The tile of the working grid that each polygon lies in: what is held out lies together."""
    (own,) = [one for one in finest if one.scene.name == raster_of(part.scene.name)]
    tiles = list(zip(polygons["tile_row"], polygons["tile_col"], strict=True))
    if part.scene.scale > 1:
        middle = shapely.get_coordinates(middle_of(polygons.geometry.to_numpy()))
        pixels = [~own.scene.transform @ (x, y) for x, y in middle.tolist()]
        found = [next(own.grid.within(x, y, x, y)) for x, y in pixels]
        tiles = [(tile.row, tile.col) for tile in found]
    return np.array([tile_name(own.scene.name, *tile) for tile in tiles], object)
