"""Bring objects that are known already up to date: one mask for each feature of a vector file.

Each window's answers are stored as soon as they are there, so a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from tqdm import tqdm

from workbench._support.files import atomic_path, remove_stale
from workbench.candidates.select import Thresholds
from workbench.candidates.table import Candidates
from workbench.errors import JobError, RunFailedError
from workbench.polygons.build import shapes_in_window
from workbench.raster.scene import Scene
from workbench.runs import choose
from workbench.runs.folder import FolderLock
from workbench.runs.job import Job
from workbench.runs.plan import folder_of, open_scenes
from workbench.runs.prompts import PromptWindow, best_masks, read_prompts, windows_around
from workbench.segmenters.defaults import defaults_of

LARGEST = 8192  # side of a window that is read, pixels
SAME = 0.9  # from this IoU on a new shape only follows the pixels, and nothing has changed
LAYER, LEDGER = "prompted.gpkg", "prompted_windows.parquet"


class Prompted(Protocol):
    """A model that can be asked for the object at a place."""

    @property
    def key(self) -> Any:
        """All that its masks depend on."""

    def load(self) -> None:
        """Get ready. Whatever is wrong with weights or device raises here."""

    def answer(
        self,
        image: NDArray[np.uint8],
        points: NDArray[np.float64],
        boxes: NDArray[np.float64] | None = None,
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """The masks of prompts on an image, and the prompt of each."""


def answer_prompts(job: Job, prompts: str | Path) -> gpd.GeoDataFrame:
    """Ask for one mask for each feature of a vector file, and write the layer.

    The run folder gets `prompted.gpkg` and `prompted_windows.parquet`, the ledger: a row for each
    window, with how many features it has, how many kept their old shape, seconds and error. What an
    earlier call has stored in the same folder is not computed again.

    Args:
        job: Source, model, thresholds and so on; windows have the side `tile_size`.
        prompts: Points, boxes or polygons, in any CRS. Boxes and polygons ask with a point
            inside and their box; `tiny`, which learned from points, is asked without the box.

    Returns:
        The features that lie in the scenes, in the working CRS, with their attributes, `fid` and
        index, and three columns: `score`, the predicted IoU; `prompt_iou`, the IoU of the new shape
        with the old one; and `changed`, whether that is below 0.9. A feature without a mask above
        the thresholds keeps its old shape, and has no score.

    Raises:
        JobError: The prompts cannot be used, or the model takes none.
        RunFailedError: Some windows failed; raised after the layer is written.

    Example:
        >>> layer = answer_prompts(Job(source="ortho.tif", model="tiny"), "footprints.gpkg")
        >>> layer[layer["changed"]].to_file("to_check.gpkg")
    """
    scenes = open_scenes(job)
    asked = read_prompts(prompts, scenes)
    if job.model == "classic":
        raise JobError(
            "Parameter `model`: classic finds masks on its own and takes no prompts. Set model to "
            "tiny or another SAM."
        )
    lock = FolderLock(folder_of(job, scenes))
    try:
        segmenter: Prompted = choose.segmenter_for(job, {})  # type: ignore[assignment]
        store = _Store(lock.folder / "prompted", _key(segmenter, scenes, asked, job))
        todo = [
            (scene, part)
            for scene, rows in zip(scenes, _by_scene(asked, scenes), strict=True)
            for part in _windows(scene, asked, rows, job)
        ]
        waiting = [one for one in todo if not job.resume or not store.has(*one)]
        if waiting:
            segmenter.load()
        for scene, part in tqdm(waiting, desc="windows", unit="window"):
            store.write(scene, part, *_answer(segmenter, scene, part, job.thresholds))
        answers, ledger = store.read(todo)
        layer = _layer(asked, answers)
        with atomic_path(lock.folder / LAYER) as path:
            # a column of this name becomes the features' own number
            named = layer.rename_axis("fid").reset_index() if "fid" not in layer else layer
            named.to_file(path, layer="prompted", driver="GPKG")
        with atomic_path(lock.folder / LEDGER) as path:
            ledger.to_parquet(path, index=False)
    finally:
        lock.release()
    failed = ledger[ledger["error"] != ""]
    if len(failed):
        raise RunFailedError(
            f"{len(failed)} of {len(ledger)} windows failed, so {failed['features'].sum()} "
            f"features kept their old shapes. The first: {failed['error'].iloc[0]}. Run the same "
            "again: only these are computed."
        )
    return layer


def _by_scene(asked: gpd.GeoDataFrame, scenes: Sequence[Scene]) -> list[NDArray[np.intp]]:
    """The rows of each scene; a feature in several belongs to the first that holds its middle."""
    middles = shapely.point_on_surface(asked.geometry.to_numpy())
    frames = [shapely.box(*scene.bounds) for scene in scenes]
    holds = [shapely.contains_properly(frame, middles) for frame in frames]
    meets = [shapely.intersects(frame, asked.geometry.to_numpy()) for frame in frames]
    first = np.argmax(np.stack([*holds, *meets]), axis=0) % len(scenes)
    return [np.flatnonzero(first == i) for i in range(len(scenes))]


def _windows(
    scene: Scene, asked: gpd.GeoDataFrame, rows: NDArray[np.intp], job: Job
) -> Iterator[PromptWindow]:
    with_boxes = defaults_of(job.model).takes_boxes
    for part in windows_around(scene, asked.geometry.iloc[rows], job.tile_size):
        boxes = part.boxes if with_boxes else None
        yield PromptWindow(part.window, rows[part.features], part.points, boxes)


def _answer(
    segmenter: Prompted, scene: Scene, part: PromptWindow, thresholds: Thresholds
) -> tuple[gpd.GeoDataFrame, dict[str, Any]]:
    """The new shapes of a window's features, as far as there are any, and its row of the ledger."""
    start = time.perf_counter()
    rows, shapes, scores, error = np.zeros(0, int), np.zeros(0, object), np.zeros(0), ""
    try:
        if part.window.width > LARGEST:
            raise JobError(
                f"a feature needs a window of {int(part.window.width)} pixels, and {LARGEST} are "
                "the most. Set resolution_m to larger pixels"
            )
        image, valid = scene.read(part.window)
        found, prompt = segmenter.answer(image, part.points, part.boxes)
        sound = found.column("pred_iou") > thresholds.pred_iou_thresh
        sound &= found.column("stability_score") >= thresholds.stability_score_thresh
        found, prompt = found.take(sound), prompt[sound]
        best = best_masks(found, prompt, part.boxes)
        shapes = shapes_in_window(found.take(best), scene, part.window, valid)
        there = ~shapely.is_empty(shapes)
        rows, shapes = part.features[prompt[best]][there], shapes[there]
        scores = found.column("pred_iou")[best][there].astype(float)
    except Exception as problem:
        # one bad window must not stop the others: the ledger has its error, and the run fails at
        # its end
        error = f"{type(problem).__name__}: {problem}"
    answers = gpd.GeoDataFrame({"row": rows, "score": scores}, geometry=shapes, crs=scene.crs)
    return answers, {
        "source": scene.name,
        "col_off": int(part.window.col_off),
        "row_off": int(part.window.row_off),
        "features": len(part.features),
        "kept": len(part.features) - len(answers),
        "seconds": round(time.perf_counter() - start, 3),
        "error": error,
    }


def _layer(asked: gpd.GeoDataFrame, answers: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Put new shapes in the place of the old ones."""
    old = asked.geometry.to_numpy()
    shapes, score = old.copy(), np.full(len(asked), np.nan)
    rows = answers["row"].to_numpy()
    shapes[rows] = answers.geometry.to_numpy()
    score[rows] = answers["score"].to_numpy()
    union = shapely.area(shapely.union(shapes, old))
    common = shapely.area(shapely.intersection(shapes, old))
    # a point has no shape to compare with
    compared = ~np.isnan(score) & (shapely.get_dimensions(old) == 2)
    ious = np.divide(common, union, out=np.full(len(old), np.nan), where=compared)
    return asked.set_geometry(gpd.GeoSeries(shapes, asked.index, crs=asked.crs)).assign(
        score=score, prompt_iou=ious, changed=ious < SAME
    )


class _Store:
    """A folder with a file for each window; the answers of another job in it are not used."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)

    def path(self, scene: Scene, part: PromptWindow) -> Path:
        """Where a window's answers are; windows are the same only with the same features."""
        rows = hashlib.sha256(part.features.tobytes()).hexdigest()[:8]
        place = f"{int(part.window.row_off)}_{int(part.window.col_off)}_{rows}"
        return self.folder / f"{scene.name}_{place}_{self.key}.parquet"

    def has(self, scene: Scene, part: PromptWindow) -> bool:
        """Whether a window has been answered, and has not failed."""
        path = self.path(scene, part)
        return path.exists() and not _entry(path)["error"]

    def write(
        self, scene: Scene, part: PromptWindow, answers: gpd.GeoDataFrame, entry: dict[str, Any]
    ) -> None:
        """Store a window's answers and its row of the ledger, both or neither."""
        answers.attrs["entry"] = json.dumps(entry)
        with atomic_path(self.path(scene, part)) as path:
            answers.to_parquet(path, index=False)

    def read(
        self, windows: Sequence[tuple[Scene, PromptWindow]]
    ) -> tuple[gpd.GeoDataFrame, pd.DataFrame]:
        """All answers, and the ledger."""
        paths = [self.path(*one) for one in windows]
        answers = pd.concat([gpd.read_parquet(path) for path in paths])
        return answers, pd.DataFrame([_entry(path) for path in paths])


def _entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(gpd.read_parquet(path).attrs["entry"])
    return entry


def _key(segmenter: Prompted, scenes: Sequence[Scene], asked: gpd.GeoDataFrame, job: Job) -> str:
    """What the answers depend on, in sixteen letters."""
    identity = [
        dict(segmenter.key),
        [scene.describe() for scene in scenes],
        [job.tile_size, job.thresholds.pred_iou_thresh, job.thresholds.stability_score_thresh],
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for shape in shapely.to_wkb(asked.geometry.to_numpy()):
        digest.update(shape)
    return digest.hexdigest()[:16]
