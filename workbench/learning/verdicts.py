"""Verdicts: the classes that a person gives to candidates, saved as they are given.

A verdict is about one candidate, and holds for all candidates of its tile that show the same
object. Verdicts are examples: their file can teach this run and others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj

from workbench._support.files import atomic_path
from workbench.errors import ExamplesError
from workbench.learning.examples import COLUMNS, LIKE_IT, PERSON, Examples
from workbench.learning.features import FEATURES, FEATURES_VERSION

VERDICTS = "verdicts.parquet"  # the file in a run folder
_COLUMNS = {**COLUMNS, "ordinal": "int64"}  # of each candidate; that of `label` was judged


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Rows of examples with the `ordinal` of each candidate.

    `label` is the id of the candidate that was judged (source, tile and ordinal, as in a layer);
    the other rows of a label show the same object.
    """

    frame: gpd.GeoDataFrame

    @classmethod
    def none(cls, crs: pyproj.CRS) -> Verdicts:
        """No verdicts."""
        columns = [*_COLUMNS, *FEATURES]
        empty = {name: np.empty(0, _COLUMNS.get(name, "float32")) for name in columns}
        return cls(gpd.GeoDataFrame(empty, geometry=[], crs=crs))

    def __len__(self) -> int:
        return len(self.said)

    @cached_property
    def said(self) -> Mapping[str, int]:
        """The class of each candidate that was judged, by its id; 0: none of these."""
        judged = self.frame[self._is_judged]
        return dict(zip(judged["label"].tolist(), judged["class_id"].tolist(), strict=True))

    @cached_property
    def examples(self) -> Examples:
        """The examples that the verdicts give."""
        columns = [*COLUMNS, *FEATURES, "geometry"]
        return Examples(self.frame[columns].reset_index(drop=True))

    @property
    def can_teach(self) -> bool:
        """Whether there are at least two classes, or one and something that is none of these."""
        return len(set(self.said.values())) > 1

    def with_verdict(self, described: gpd.GeoDataFrame, class_id: int) -> Verdicts:
        """Add a verdict about the first of some described candidates; the others show it, too.

        `described` has `source`, `tile`, `ordinal`, `FEATURES` and geometry. Earlier verdicts about
        the same object are dropped.
        """
        ids = _ids(described)
        mine = ids.iloc[0]
        here = self.frame[_ids(self.frame) == mine]
        left = self.frame[~self.frame["label"].isin([mine, *here["label"]])]
        # a candidate that was itself judged keeps its own verdict
        described = described[(ids == mine) | ~ids.isin(_ids(left))]
        said_by = np.where(_ids(described) == mine, PERSON, LIKE_IT)
        rows = described.assign(
            class_id=class_id, label=mine, said_by=said_by, features_version=FEATURES_VERSION
        )
        frames = [left, rows] if len(left) else [rows]
        return _verdicts(pd.concat(frames, ignore_index=True))

    def without(self, label: str) -> Verdicts:
        """Remove a verdict."""
        return _verdicts(self.frame[self.frame["label"] != label])

    def write(self, path: Path) -> None:
        """Write GeoParquet, whole or not at all; raises `OutputError`."""
        with atomic_path(path) as temporary:
            self.frame.to_parquet(temporary, index=False)

    @property
    def _is_judged(self) -> pd.Series:
        return _ids(self.frame) == self.frame["label"]


def read_verdicts(path: Path, crs: pyproj.CRS) -> Verdicts:
    """Read the verdicts of a run folder, in its CRS; none if there is no file.

    Raises `ExamplesError` if the file is not what this version writes.
    """
    if not path.exists():
        return Verdicts.none(crs)
    try:
        frame = gpd.read_parquet(path).to_crs(crs)
        read = _verdicts(frame)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise ExamplesError(
            f"{path} holds no verdicts that this version can read ({error}). Move it out of the "
            "run folder to start again; nothing is written to it until then."
        ) from error
    if (read.frame["features_version"] != FEATURES_VERSION).any():
        raise ExamplesError(
            f"{path} holds verdicts of another version of SAM Workbench. Move it out of the run "
            "folder, and name it in `examples`: what it says still counts on this scene."
        )
    return read


def _verdicts(frame: gpd.GeoDataFrame) -> Verdicts:
    wanted = {**_COLUMNS, **dict.fromkeys(FEATURES, "float32")}
    # to cast all columns each time would take half of the time of a verdict
    wrong = {name: dtype for name, dtype in wanted.items() if frame.dtypes[name] != dtype}
    typed = frame.astype(wrong) if wrong else frame
    return Verdicts(typed[[*wanted, "geometry"]].reset_index(drop=True))


def _ids(frame: pd.DataFrame) -> pd.Series:
    return frame["tile"].astype(str) + "/" + frame["ordinal"].astype(str)
