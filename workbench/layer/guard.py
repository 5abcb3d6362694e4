"""What a person has changed in a layer since it was written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyogrio
import shapely

from workbench.errors import RunFolderError
from workbench.layer.files import GPKG_ERRORS, read_batches
from workbench.layer.schema import (
    BATCH,
    LABELS,
    as_column,
    as_multi,
)


def count_reviewed(gpkg: Path) -> int:
    """Count the labels that a person has changed, drawn or deleted since `write_layer`.

    The `.parquet` beside it shows what was written. Without it, every label counts that is not
    `unreviewed`. Raises `RunFolderError` for a file that `write_layer` has not written.
    """
    try:
        with pyogrio.open_arrow(gpkg, layer=LABELS, batch_size=BATCH, use_pyarrow=True) as (_, now):
            frames = (gpd.GeoDataFrame.from_arrow(batch) for batch in now)
            written = gpkg.with_suffix(".parquet")
            if not written.exists():
                return sum(int((frame["status"] != "unreviewed").sum()) for frame in frames)
            differ: Counter[tuple[str, bytes]] = Counter()
            for batches in zip_longest(frames, read_batches(written)):
                for sign, batch in zip((1, -1), batches, strict=True):
                    for label in [] if batch is None else label_digests(batch):
                        differ[label] += sign
                        if not differ[label]:  # unchanged, as nearly all are
                            del differ[label]
    except (*GPKG_ERRORS, pa.ArrowException, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{gpkg} is no layer of pre-labels that a run has written, or is damaged ({error}). "
            "Move it out of the run folder, or choose another out_dir."
        ) from error
    before = {label for (label, _), sign in differ.items() if sign < 0}
    after = {label for (label, _), sign in differ.items() if sign > 0}
    return (+differ).total() + len(
        before - after
    )  # a label that was split in QGIS has its id twice


def label_digests(batch: gpd.GeoDataFrame) -> Iterator[tuple[str, bytes]]:
    """Yield the id of each label, and a digest of what a review may change in it."""
    classes = as_column(batch["class_id"], "Int64").astype(object).map(str)
    shapes = shapely.to_wkb(as_multi(np.asarray(batch.geometry.array)))
    for label, class_id, status, shape in zip(
        batch["id"], classes, batch["status"], shapes, strict=True
    ):
        yield label, hashlib.sha256(f"{class_id} {status} ".encode() + shape).digest()
