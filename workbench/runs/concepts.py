"""Labels of concepts: which class lies where, tile by tile, as for learned classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import geopandas as gpd
import numpy as np

from workbench.candidates.concepts import QUERIES, concept_of
from workbench.candidates.select import passes
from workbench.candidates.store import TileRecord, valid_masks
from workbench.candidates.table import Candidates
from workbench.candidates.valid import on_valid_pixels
from workbench.learning.choose import select_classes
from workbench.polygons.build import to_polygons
from workbench.runs.job import Job
from workbench.runs.said import fill_their_tile, traced_rows
from workbench.runs.tile_stream import ScenePlan

FULL = 0.9  # of the queries: the last ones rarely find an object of their own


class ConceptLabels:
    """Makes the polygons of a run's concepts, and counts tiles that may hold more objects."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._full: Counter[int] = Counter()  # tiles, by class
        self._objects: Counter[int] = Counter()

    def polygons(
        self, part: ScenePlan, candidates: Candidates, records: Sequence[TileRecord]
    ) -> gpd.GeoDataFrame:
        """Select by class and trace: `to_polygons` with `class_id` and `class_score`.

        Each place has one class, by the rule that learned classes have; the score of a candidate
        counts as that of its class.
        """
        job = self._job
        class_id = concept_of(candidates)
        score = candidates.column("pred_iou").astype(float)
        good = passes(candidates, job.thresholds)
        self._count(candidates.take(good))
        good &= ~fill_their_tile(job, part, candidates, records)
        threshold = job.thresholds.pred_iou_thresh
        valid = valid_masks(records, candidates.rules)
        seen = on_valid_pixels(candidates, part.grid, valid)
        rows = select_classes(seen, np.where(good, score, -1.0), threshold)
        kept = candidates.take(rows)
        polygons = to_polygons(kept, part.scene, part.grid, valid)
        row = rows[traced_rows(kept, polygons)]
        return polygons.assign(class_id=class_id[row], class_score=score[row])

    @property
    def notes(self) -> list[str]:
        """Sentences for the person who named the concepts."""
        names = self._job.classes
        return [
            f"{tiles:,} tiles have about as many objects of class {number} ({names.get(number)}) "
            f"as SAM 3 finds in one image ({QUERIES}), so some may be missing: run with a smaller "
            "tile_size, in another out_dir."
            for number, tiles in sorted(self._full.items())
        ]

    def table(self) -> Mapping[str, str]:
        """What the report says of them: quantities and sentences by name."""
        words = self._job.concepts or {}
        lines = {
            f"class {number} ({self._job.classes.get(number, '?')}), objects in all tiles": (
                f"{count:,}" + (f", asked for as “{words[number]}”" if number in words else "")
            )
            for number, count in sorted(self._objects.items())
        }
        return lines | {f"note {i}": note for i, note in enumerate(self.notes, 1)}

    def _count(self, found: Candidates) -> None:
        keys = [concept_of(found), found.column("tile_row"), found.column("tile_col")]
        groups, counts = np.unique(np.column_stack(keys), axis=0, return_counts=True)
        for (number, _, _), count in zip(groups.tolist(), counts.tolist(), strict=True):
            self._objects[number] += count
            self._full[number] += count >= FULL * QUERIES
        self._full = +self._full


def without_concept(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give an empty frame of polygons the columns that `ConceptLabels.polygons` adds."""
    return polygons.assign(class_id=np.empty(0, np.int64), class_score=np.empty(0))
