"""What each of several reviewers was given, and what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray

from workbench.errors import ReviewError
from workbench.layer.guard import label_digests
from workbench.layer.schema import COLUMNS, LABELS, as_layer
from workbench.polygons.areas import only_polygonal
from workbench.review.read import read_review
from workbench.runs.result import Run, read_run

HERE = "run folder"  # the name of the review in the run folder itself
KEPT = ("accepted", "edited")


@dataclass(frozen=True, eq=False)
class Answers:
    """What one reviewer was given and what came back; `answers` are the rows of touched labels."""

    name: str
    given: gpd.GeoDataFrame
    back: gpd.GeoDataFrame
    answers: Mapping[str, NDArray[np.int64]]  # by id; no rows: deleted
    drawn: NDArray[np.int64]

    def rows(self, label: str) -> gpd.GeoDataFrame:
        """The label as it came back: no row if it was deleted, several if it was split."""
        return self.back.iloc[self.answers[label]]

    def verdict(self, label: str) -> str:
        """What this reviewer says of a label."""
        statuses = set(self.rows(label)["status"])
        if not statuses:
            return "deleted"
        best = ("edited", "accepted", "unreviewed", "rejected")
        return next(status for status in best if status in statuses)

    def shape(self, label: str) -> shapely.Geometry:
        """The label as one shape; of a deleted one, that which was given."""
        frame = self.rows(label)
        frame = frame if len(frame) else self.given[self.given["id"] == label]
        return shapely.union_all(only_polygonal(frame.geometry)[0])

    def classes(self, label: str) -> tuple[int | None, ...]:
        """The classes of a label: one, unless it was split."""
        given = self.rows(label)["class_id"]
        return tuple(sorted({None if pd.isna(c) else int(c) for c in given}, key=str))


def read_package(path: Path, run: Run) -> Answers:
    """Read a folder that `split_review` made of a run; raises `ReviewError` for any other."""
    part = read_run(path)
    same_scenes = all(scene in run.scenes for scene in part.scenes)
    if not same_scenes or not part.tiles["tile"].isin(run.tiles["tile"]).all():
        raise ReviewError(
            f"{path} is no package of the run in {run.folder}: it has other tiles. Give the "
            "packages that split_review made of this run."
        )
    given = part.layer
    return _package(path.name, given, read_with_more(path / "prelabels.gpkg", part))


def read_with_more(gpkg: Path, run: Run) -> gpd.GeoDataFrame:
    """Read a reviewed layer with the columns that somebody has added."""
    labels = read_review(gpkg, run).labels
    stored = pyogrio.read_dataframe(
        gpkg, layer=LABELS, fid_as_index=True, read_geometry=False, IMMUTABLE="YES"
    )
    added = stored.drop(columns=[name for name in stored if name in {*COLUMNS, *labels.columns}])
    added = added.reindex(labels["fid"]).reset_index(drop=True)
    labels = labels.drop(columns=["fid", "unclosed"])
    both = pd.concat([labels, added], axis=1)
    return both[~shapely.is_empty(labels.geometry.to_numpy())].reset_index(drop=True)


def _package(name: str, given: gpd.GeoDataFrame, back: gpd.GeoDataFrame) -> Answers:
    before: dict[str, list[bytes]] = {}
    for label, digest in label_digests(given):
        before.setdefault(label, []).append(digest)
    now: dict[str, list[bytes]] = {}
    rows: dict[str, list[int]] = {}
    for row, (label, digest) in enumerate(label_digests(as_layer(back))):
        now.setdefault(label, []).append(digest)
        rows.setdefault(label, []).append(row)
    answers = {
        label: np.array(rows.get(label, []), np.int64)
        for label in before
        if sorted(before[label]) != sorted(now.get(label, []))
    }
    drawn = [row for label in now if label not in before for row in rows[label]]
    return Answers(name, given, back, answers, np.array(sorted(drawn), np.int64))


def answers_here(base: gpd.GeoDataFrame, came: Sequence[Answers], run: Run) -> Answers:
    """What a person changed in the run folder itself since the packages were given out.

    `base` are the labels there. Labels that a refresh has replaced do not count.
    """
    given = [came[0].given]
    for package in came[1:]:
        known = pd.concat(given)["id"]
        given.append(package.given[~package.given["id"].isin(known)])
    all_given = pd.concat(given, ignore_index=True)
    known = {*base["id"], *run.layer["id"]}
    all_given = all_given[all_given["id"].isin(known)].reset_index(drop=True)
    there = base[base["id"].isin(all_given["id"])].reset_index(drop=True)
    return _package(HERE, all_given, there)


def only_shapes(labels: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """Mend the shapes of labels `(n,)`, to compare them."""
    shapes = labels.geometry.to_numpy().copy()
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken], method="structure")
    return np.asarray(shapes, object)
