"""Candidates: every mask that a Segmenter proposed above its floors, and what is chosen of them.

The expensive step (the network) ends in this table, the cheap ones (thresholds, non-maximum
suppression, polygons) start from it. Filtering and suppression follow
`segment_anything.SamAutomaticMaskGenerator` row for row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco

from workbench.candidates.rle import decode_runs

SCHEMA = pa.schema(
    [
        ("tile_row", pa.int32()),
        ("tile_col", pa.int32()),
        ("ordinal", pa.int32()),  # the generator's order within the tile; breaks ties
        ("pred_iou", pa.float32()),
        ("stability_score", pa.float32()),
        ("x0", pa.int32()),  # boxes are SAM's: XYXY, tile pixels, last pixel inclusive
        ("y0", pa.int32()),
        ("x1", pa.int32()),
        ("y1", pa.int32()),
        ("area_px", pa.int32()),
        ("point_x", pa.float64()),  # the prompt, tile pixels
        ("point_y", pa.float64()),
        ("crop_x0", pa.int32()),  # XYXY, tile pixels, last pixel exclusive
        ("crop_y0", pa.int32()),
        ("crop_x1", pa.int32()),
        ("crop_y1", pa.int32()),
        ("rle", pa.binary()),  # COCO compressed counts of the whole tile
    ]
)


@dataclass(frozen=True)
class Rules:
    """What a table of candidates was made under; `height` and `width` are the tile's, in pixels."""

    height: int
    width: int
    pred_iou_floor: float = 0.5
    stability_floor: float = 0.5
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    crop_n_layers: int = 0

    def for_tile(self, height: int, width: int) -> Rules:
        """Return the same rules for tiles of another size."""
        return replace(self, height=height, width=width)

    @property
    def limits(self) -> dict[str, float]:
        """The rules without the tile's size, by name."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("height", "width")}


SAM_RULES = Rules(1024, 1024)  # at the defaults, for tiles of the size that SAM sees


@dataclass(frozen=True)
class Candidates:
    """An Arrow table with the columns of `SCHEMA`, and the rules that it was made under."""

    table: pa.Table
    rules: Rules

    @classmethod
    def from_columns(cls, rules: Rules, columns: Mapping[str, Any]) -> Candidates:
        """Build from arrays of equal length, one for each column of `SCHEMA`."""
        arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
        return cls(pa.Table.from_arrays(arrays, schema=SCHEMA), rules)

    @classmethod
    def empty(cls, rules: Rules) -> Candidates:
        """Build a table without rows."""
        return cls(SCHEMA.empty_table(), rules)

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> NDArray[Any]:
        """Return one numeric column as `(n,)`."""
        return self.table.column(name).to_numpy()

    @property
    def boxes(self) -> NDArray[np.int32]:
        """`(n, 4)`, XYXY, tile pixels, last pixel inclusive."""
        return np.column_stack([self.column(name) for name in ("x0", "y0", "x1", "y1")])

    @property
    def crop_boxes(self) -> NDArray[np.int32]:
        """`(n, 4)`, XYXY, tile pixels, last pixel exclusive."""
        return np.column_stack(
            [self.column(name) for name in ("crop_x0", "crop_y0", "crop_x1", "crop_y1")]
        )

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Keep some rows: `(n,)` booleans, or row numbers in the order wanted."""
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        return replace(self, table=self.table.take(pa.array(rows, type=pa.int64())))

    def of_tile(self, row: int, col: int) -> Candidates:
        """Keep the rows of one tile."""
        return self.take((self.column("tile_row") == row) & (self.column("tile_col") == col))

    def at_tile(self, row: int, col: int) -> Candidates:
        """Say which tile the rows belong to."""
        rows, cols = np.full(len(self), row), np.full(len(self), col)
        return self.with_column("tile_row", rows).with_column("tile_col", cols)

    def with_column(self, name: str, values: Any) -> Candidates:
        """Replace a column by `(n,)` values."""
        field = SCHEMA.field(name)
        column = pa.array(values, type=field.type)
        return replace(
            self, table=self.table.set_column(SCHEMA.get_field_index(name), field, column)
        )

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Decode the masks one by one, each `(height, width)` of the tile."""
        size = [self.rules.height, self.rules.width]
        for counts in self.table.column("rle").to_pylist():
            yield coco.decode({"size": size, "counts": counts}).view(bool)

    def covering(self, column: int, line: int) -> NDArray[np.int64]:
        """The rows whose mask covers a pixel of the tile."""
        x0, y0, x1, y1 = self.boxes.T
        near = np.flatnonzero((x0 <= column) & (column <= x1) & (y0 <= line) & (line <= y1))
        counts = self.take(near).table.column("rle").to_pylist()
        runs = decode_runs(counts, self.rules.height, self.rules.width)
        here = (runs.x == column) & (runs.y0 <= line) & (line < runs.y1)
        return np.asarray(near[np.unique(runs.mask[here])])


def concat(tables: Sequence[Candidates]) -> Candidates:
    """Stack the candidates of several tiles, all made under the same rules."""
    rules = {candidates.rules for candidates in tables}
    if len(rules) != 1:
        raise ValueError(f"candidates of {len(rules)} sets of rules cannot be stacked")
    return Candidates(pa.concat_tables([c.table for c in tables]).combine_chunks(), rules.pop())
