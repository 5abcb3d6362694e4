"""Features, stored beside the candidates: computed once, then read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.candidates.table import Candidates
from workbench.learning.features import FEATURES, FEATURES_VERSION

_KEYS = ("tile_row", "tile_col", "ordinal", "x0", "y0", "x1", "y1", "area_px")


@dataclass(frozen=True)
class FeatureStore:
    """A folder of Parquet files, one for each group of tiles that is requested together.

    A file is named after a hash of what it describes, so it is never taken for other candidates. A
    damaged file, or one of another version, counts as absent.
    """

    folder: Path

    def figures(
        self,
        candidates: Candidates,
        scene: str,
        describe: Callable[[], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Return the features `(n, len(FEATURES))` of candidates of a scene (its fingerprint)."""
        columns = [np.ascontiguousarray(candidates.column(name)).tobytes() for name in _KEYS]
        about = f"{FEATURES_VERSION} {scene} {candidates.rules}".encode()
        digest = hashlib.sha256(b"|".join([about, *columns])).hexdigest()
        path = self.folder / f"{digest[:24]}.parquet"
        known = _read(path, len(candidates))
        if known is not None:
            return known
        figures = describe()
        table = pa.table(dict(zip(FEATURES, figures.T, strict=True)))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        return figures

    def clear(self) -> None:
        """Delete what `figures` has written, and nothing else."""
        for path in self.folder.glob("*.parquet"):
            if _OUR_NAME.fullmatch(path.name):
                path.unlink()


_OUR_NAME = re.compile(r"[0-9a-f]{24}\.parquet")


def _read(path: Path, n: int) -> NDArray[np.float32] | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
    except (OSError, pa.ArrowException):
        return None
    if table.column_names != list(FEATURES) or table.num_rows != n:
        return None
    return np.column_stack([column.to_numpy() for column in table.columns]).astype(np.float32)
