"""Examples: described candidates whose class is known, and the labels that they come from.

A classifier is its examples: they are kept as GeoParquet, which can be joined, opened in QGIS and
used for another scene.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench._support.secrets import without_secrets
from workbench.errors import ExamplesError
from workbench.evaluation.matching import pairs_of
from workbench.layer.schema import LABELS
from workbench.learning.features import FEATURES, FEATURES_VERSION
from workbench.polygons.areas import lies_in, only_polygonal
from workbench.raster.vectors import read_vectors

SAME = 0.6  # a candidate with this IoU or more shows a labelled object
BEST = 0.5  # the same for the best candidate of a tile, if none reaches `SAME`
UNCLEAR = 0.4  # with this IoU or more, it is too similar to an object to be an example of none
PERSON = "person"  # `said_by` where a person said it, in the tuner or in a review
LIKE_IT = "like what a person judged"  # a near duplicate of it, in the tuner
ENOUGH = 5  # objects of a class; with fewer, the class is little more than a guess
# besides the figures and the geometry
COLUMNS = {
    "class_id": "int64",  # 0: none of these
    "label": "str",  # which labelled object; several candidates may show it; '' for none
    "source": "str",  # the scene
    "tile": "str",  # whose examples are held out together
    "said_by": "str",  # a person, a file, or `labelled area`
    "features_version": "int64",
}


@dataclass(frozen=True, eq=False)
class Examples:
    """Described candidates of known class: `COLUMNS`, `FEATURES` and geometry, one row each."""

    frame: gpd.GeoDataFrame

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def figures(self) -> NDArray[np.float32]:
        """The features, `(n, k)`."""
        return np.asarray(self.frame[list(FEATURES)].to_numpy(np.float32))

    @property
    def class_id(self) -> NDArray[np.int64]:
        """The classes, `(n,)`, 0 for none of these."""
        return np.asarray(self.frame["class_id"].to_numpy(np.int64))

    @property
    def weight(self) -> NDArray[np.float64]:
        """The weight of each, `(n,)`: all candidates that show one object count as one."""
        named = self.frame["label"] != ""
        shown_by = self.frame.groupby(["source", "label", "class_id"])["label"].transform("size")
        return np.where(named, 1 / shown_by.to_numpy(float), 1.0)

    def objects(self) -> pd.Series:
        """Count the labelled objects of each class."""
        named = self.frame[self.frame["label"] != ""]
        return named.drop_duplicates(["source", "label"])["class_id"].value_counts().sort_index()

    def write(self, path: Path) -> None:
        """Write GeoParquet, whole or not at all."""
        with atomic_path(path) as temporary:
            self.frame.to_parquet(temporary, index=False)


def read_examples(path: Path) -> Examples | None:
    """Read what `Examples.write` has written; None if it is anything else."""
    try:
        frame = gpd.read_parquet(path)
        return Examples(frame.astype(dict(COLUMNS))[[*COLUMNS, *FEATURES, "geometry"]])
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None


def join(examples: Sequence[Examples]) -> Examples:
    """Put examples of several sources into one table, in the CRS of the first.

    Rows are sorted by their content, so that the order of files and tiles does not matter.
    """
    crs = examples[0].frame.crs
    frames = [one.frame.to_crs(crs) for one in examples]
    by = ["source", "tile", "label", "class_id", *FEATURES]
    return Examples(pd.concat(frames).sort_values(by, kind="stable", ignore_index=True))


def examples_from(
    described: gpd.GeoDataFrame, class_id: object, label: object, said_by: object
) -> Examples:
    """Make examples of described candidates (`source`, `tile`, `FEATURES`, geometry)."""
    named = described.assign(
        class_id=class_id, label=label, said_by=said_by, features_version=FEATURES_VERSION
    )
    typed = named.astype(dict(COLUMNS))
    return Examples(typed[[*COLUMNS, *FEATURES, "geometry"]].reset_index(drop=True))


# ------------------------------------------------------------------------------------ labels


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one file: polygons with `class_id`, `label` and `said_by`, and notes on them.

    `examples` are those of its rows that carry features of this version.
    """

    polygons: gpd.GeoDataFrame
    examples: Examples | None = None
    notes: tuple[str, ...] = ()


def read_labels(address: str, classes: Collection[int]) -> Labels:
    """Read a vector file as labels: examples of a run, a reviewed layer, or polygons of classes.

    `address` is as for `read_vectors`. Without `class_id`, all are class 1. In a reviewed layer,
    rejected labels are none of the classes, and unreviewed ones are left out. Raises
    `ExamplesError` if nothing can be learned from the file.
    """
    path = without_secrets(address)
    what = f"Parameter `examples`: {path}"
    frame = read_vectors(address, what, ExamplesError, layer=LABELS)
    notes: list[str] = []
    geometry, rows = only_polygonal(frame.geometry)
    if not len(rows):
        found = ", ".join(sorted(set(frame.geometry.geom_type.dropna()))) or "nothing"
        raise ExamplesError(
            f"{what} holds {found}, but no polygons. A class is learned from shapes: draw "
            "the outlines of a few objects."
        )
    if len(rows) < len(frame):
        notes.append(f"{path}: {len(frame) - len(rows)} rows are not polygons and were left out.")
    frame = frame.iloc[rows].set_geometry(geometry, crs=frame.crs)
    frame["class_id"] = _class_ids(frame, what)
    frame = frame[frame["class_id"].notna()]
    if frame.empty:
        raise ExamplesError(
            f"{what} holds no judged label: accept or reject some in QGIS first, or give "
            "polygons a class_id."
        )
    unknown = sorted(set(frame["class_id"]) - {0, *classes})
    if unknown:
        raise ExamplesError(
            f"{what} has class_id {', '.join(map(str, unknown))}, which the parameter "
            f"`classes` does not name (it has {', '.join(map(str, sorted(classes)))}). Add them "
            "there, or correct the file; 0 means none of these."
        )
    name = Path(path).name
    numbered = [f"{name}:{row}" for row in range(len(frame))]
    label = frame.get("label", pd.Series(numbered, frame.index))
    said_by = frame.get("said_by", name)
    frame = frame.assign(label=label.astype(str), said_by=said_by)
    if "features_version" not in frame or not set(FEATURES) <= set(frame):
        return Labels(frame[["class_id", "label", "said_by", "geometry"]], notes=tuple(notes))
    fits = (frame["features_version"] == FEATURES_VERSION).to_numpy()
    examples = None
    if fits.any():
        typed = frame[fits].astype(dict(COLUMNS))
        examples = Examples(typed[[*COLUMNS, *FEATURES, "geometry"]].reset_index(drop=True))
    if not fits.all():
        notes.append(
            f"{path}: {np.count_nonzero(~fits)} examples have features of another version of SAM "
            "Workbench; they count only where they lie on this scene."
        )
    others = frame[~fits]
    return Labels(others[["class_id", "label", "said_by", "geometry"]], examples, tuple(notes))


def _class_ids(frame: gpd.GeoDataFrame, what: str) -> pd.Series:
    """The class that each row gives, 0 for none of these, null if it gives none."""
    if "class_id" in frame and frame["class_id"].notna().any():
        number = pd.to_numeric(frame["class_id"], errors="coerce")
        bad = frame["class_id"].notna() & ~((number == number.round()) & (number.abs() < 2**53))
        if bad.any():
            raise ExamplesError(
                f"{what} has class_id {frame['class_id'][bad].iloc[0]!r}: whole numbers "
                "are needed, those of the parameter `classes`, or 0 for none of these."
            )
        class_id = number.astype("Int64")
    else:
        class_id = pd.Series(1, frame.index, dtype="Int64")
    if "status" in frame:
        class_id = class_id.mask(frame["status"] == "rejected", 0)
        class_id = class_id.where(frame["status"].isin(["accepted", "edited", "rejected"]))
    return class_id


# ---------------------------------------------------------------------------------- matching


def match_labels(
    labels: gpd.GeoDataFrame,
    described: gpd.GeoDataFrame,
    area: shapely.Geometry | None,
    known: NDArray[np.object_] | None = None,
) -> Examples:
    """Find the candidates that show labelled objects, and inside `area` all that show none.

    `labels` have `class_id`, `label` and `said_by`; `described` is as for `examples_from`, in the
    CRS of the labels, the area and the `known` objects `(k,)`, which others show. A candidate shows
    an object if their IoU is at least 0.6; if none of a tile reaches that, its best one counts from
    0.5 on. All objects inside the area are labelled: a candidate there whose IoU with each of them,
    known ones included, is below 0.4 is none of these.
    """
    geometry = described.geometry.to_numpy()
    pairs = pairs_of(geometry, labels.geometry.to_numpy(), at_least=UNCLEAR)
    order = np.argsort(-pairs.iou, kind="stable")
    rows, first = np.unique(pairs.predicted[order], return_index=True)
    label, iou = pairs.reference[order][first], pairs.iou[order][first]
    found = np.full(len(geometry), -1)
    found[rows[iou >= SAME]] = label[iou >= SAME]
    # otherwise most labels would teach nothing where candidates fit badly; tile by tile, so that
    # the result does not depend on which tiles are matched together
    _, tile = np.unique(described["tile"].to_numpy(str)[rows], return_inverse=True)
    seen = label * len(geometry) + tile
    rest = np.flatnonzero((iou >= BEST) & ~np.isin(seen, seen[iou >= SAME]))
    rest = rest[np.argsort(-iou[rest], kind="stable")]
    best = rest[np.unique(seen[rest], return_index=True)[1]]
    found[rows[best]] = label[best]
    shown = np.flatnonzero(found >= 0)
    which = labels.iloc[found[shown]]
    positive = examples_from(
        described.iloc[shown], which["class_id"].to_numpy(), which["label"].to_numpy(),
        which["said_by"].to_numpy(),
    )  # fmt: skip
    if area is None:
        return positive
    clear = np.ones(len(geometry), bool)
    clear[rows] = False
    if known is not None:
        clear[pairs_of(geometry, known, at_least=UNCLEAR).predicted] = False
    shapely.prepare(area)
    clear[clear] = lies_in(geometry[clear], area)
    none = described.iloc[np.flatnonzero(clear)]
    return join([positive, examples_from(none, 0, "", "labelled area")])


def check(examples: Examples) -> list[str]:
    """Refuse examples that nothing can be learned from; return notes on classes with too few."""
    known = set(examples.class_id.tolist())
    if not known - {0}:
        raise ExamplesError(
            "no candidate shows a labelled object: none of them covers one with an IoU of "
            f"{BEST:g}. Check that the labels lie on this scene, or label objects that the model "
            "outlines."
        )
    if len(known) == 1:
        raise ExamplesError(
            f"all examples are of class {known.pop()}, and nothing says what is none of these. "
            "Give a labelled_area in which all objects are labelled, or polygons with class_id 0."
        )
    return [
        f"Class {class_id}: candidates show only {count} labelled "
        f"object{'s' if count > 1 else ''}. Its scores mean little with fewer than {ENOUGH}."
        for class_id, count in examples.objects().items()
        if class_id and count < ENOUGH
    ]
