"""The outline at a person's clicks, from a tile that the network has encoded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from workbench.candidates.rle import encode_masks
from workbench.polygons.build import shapes_in_window
from workbench.polygons.clean import Cleaning, clean, only_polygons
from workbench.raster.scene import Scene
from workbench.runs.choose import segmenter_for
from workbench.runs.job import Job
from workbench.segmenters.protocol import Segmenter
from workbench.segmenters.sam import SamSegmenter
from workbench.segmenters.sam.by_hand import EncodedTile
from workbench.tuning.questions import (
    Answer,
    Clicks,
    Encoding,
    Question,
    Reply,
    model_of,
    refuse_without_clicks,
)

MOST_TILES = 8  # that stay encoded: up to 30 MB each


@dataclass(frozen=True, eq=False)
class TileOfScene:
    """A window of a scene, encoded; `valid` `(h, w)` are its valid pixels."""

    encoded: EncodedTile
    scene: Scene
    window: Window
    valid: NDArray[np.bool_]

    def polygon_at(self, clicks: Clicks) -> tuple[shapely.MultiPolygon, float]:
        """Return the polygon for some clicks, and its predicted IoU.

        It is a MultiPolygon along pixel edges, in the scene's CRS; empty if there is no mask. What
        an outline that is corrected has outside of the window stays.
        """
        to_map = self.scene.window_transform(self.window)
        points = np.column_stack(~to_map @ (clicks.points[:, 0], clicks.points[:, 1]))
        box = before = None
        if clicks.box is not None:
            x, y = ~to_map @ (clicks.box[[0, 2]], clicks.box[[1, 3]])
            box = np.array([x.min(), y.min(), x.max(), y.max()])
        if clicks.shape is not None:
            size = self.valid.shape
            before = rasterize([clicks.shape], size, transform=to_map, dtype=np.uint8).view(bool)
        answer = self.encoded.answer(points, clicks.on_object, box, before)
        masks = encode_masks(answer.mask[None])
        (shape,), _ = shapes_in_window(masks, self.scene, self.window, self.valid)
        if clicks.shape is not None:
            here = self.scene.window_polygon(self.window)
            outside = shapely.difference(clicks.shape, here)
            shape = only_polygons(np.array([shapely.union(shape, outside)]))[0]
        return shape, answer.pred_iou


class AskedByHand:
    """Answers the questions of a person; the last tiles stay encoded."""

    def __init__(self) -> None:
        self._tiles: OrderedDict[tuple[Any, ...], TileOfScene] = OrderedDict()
        self.segmenter: SamSegmenter | None = None  # that was asked last
        self._model: tuple[Any, ...] = ()  # as the job names it

    def answer(
        self, question: Question, loaded: Segmenter | None, tell: Callable[[Reply], None]
    ) -> Answer:
        """Answer a question; `tell` hears before that if its tile must be encoded.

        A Segmenter that is `loaded` is asked if it has the job's weights. Raises `WorkbenchError`
        if the model cannot be used, or the raster cannot be read.
        """
        job, scene, window = question.job, question.scene, question.window
        name = (scene.fingerprint, scene.transform, window.flatten())
        if self._model != model_of(job) or name not in self._tiles:
            tell(Encoding(question.number))
        segmenter = self._chosen(job, loaded)
        if name not in self._tiles:
            image, valid = scene.read(window)
            self._tiles[name] = TileOfScene(EncodedTile.of(segmenter, image), scene, window, valid)
            while len(self._tiles) > MOST_TILES:
                self._tiles.popitem(last=False)
        self._tiles.move_to_end(name)
        shape, pred_iou = self._tiles[name].polygon_at(question.clicks)
        return Answer(question.number, as_label(shape, question), pred_iou)

    def _chosen(self, job: Job, loaded: Segmenter | None) -> SamSegmenter:
        if self.segmenter is None or self._model != model_of(job):
            self.forget()
            refuse_without_clicks(job)
            wanted = segmenter_for(job, {})
            assert isinstance(wanted, SamSegmenter)
            if isinstance(loaded, SamSegmenter) and _weights(loaded) == _weights(wanted):
                wanted = loaded
            wanted.load()
            self.segmenter, self._model = wanted, model_of(job)
        return self.segmenter

    def forget(self) -> None:
        """Free the memory of the tiles and of the model."""
        self._tiles.clear()
        self.segmenter, self._model = None, ()


def as_label(shape: shapely.MultiPolygon, question: Question) -> shapely.MultiPolygon:
    """Clean an outline as the job cleans its labels, whatever its size.

    Of several parts those are kept that were clicked, or that the outline has which is corrected.
    In a box only small ones are dropped.
    """
    if shapely.is_empty(shape):
        return shape
    cleaning, clicks = question.job.cleaning, question.clicks
    pixel = abs(question.scene.transform.a * question.scene.transform.e)
    parts = shapely.get_parts(shape)
    area = shapely.area(parts)
    kept = np.zeros(len(parts), bool)
    if clicks.on_object.any():
        clicked = shapely.points(clicks.points[clicks.on_object])
        kept[shapely.STRtree(parts).nearest(clicked)] = True
    if clicks.shape is not None:
        kept |= shapely.intersects(parts, clicks.shape)
    if clicks.box is not None:
        here = shapely.intersects(parts, shapely.box(*clicks.box))
        kept |= here & (area >= cleaning.min_area_px * pixel)
    kept[area.argmax()] |= not kept.any()
    whole: shapely.MultiPolygon = shapely.multipolygons(parts[kept])  # type: ignore[assignment]
    frame = gpd.GeoDataFrame(
        {"area_px": [round(whole.area / pixel)]}, geometry=[whole], crs=question.scene.crs
    )
    gently = replace(
        Cleaning(min_area_px=0),
        fill_holes_m2=cleaning.fill_holes_m2,
        simplify_m=cleaning.simplify_m,
    )
    cleaned = clean(frame, gently)
    outline: shapely.MultiPolygon = cleaned.geometry.iloc[0] if len(cleaned) else whole
    return outline


def _weights(segmenter: SamSegmenter) -> tuple[Any, ...]:
    return segmenter.name, segmenter.weights_sha256, segmenter.device, segmenter.precision
