"""Masks of a tile on their way from the network to `Candidates`: crops, pruning and encoding.

Nothing here touches the network, so it may be done while the next tile is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.rle import encode_edges
from workbench.candidates.select import prune
from workbench.candidates.table import Candidates, Rules, concat
from workbench.segmenters.sam.measure import Measured, joined

# of masks that are encoded together: 50 bytes for each edge; a usual tile has half as many
EDGES_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop of a tile with its prompts."""

    box: tuple[int, ...]  # XYXY, tile pixels, last pixel exclusive
    number: int
    grid: NDArray[np.float64]  # (n, 2), 0 to 1
    masks_per_point: int
    rules: Rules

    @property
    def points(self) -> NDArray[np.float64]:
        """The prompts, `(n, 2)` crop pixels."""
        x0, y0, x1, y1 = self.box
        return self.grid * np.array([[x1 - x0, y1 - y0]])

    @property
    def first_ordinal(self) -> int:
        """Where the masks of this crop begin in the generator's order."""
        return self.number * len(self.grid) * self.masks_per_point


@dataclass(frozen=True, eq=False)
class Proposals:
    """Masks of a crop that passed, in the generator's order."""

    crop: Crop
    ordinals: NDArray[np.int64]  # (n,)
    ious: NDArray[np.float32]  # (n,)
    masks: Measured

    def table(self) -> Candidates:
        """Put them into tile pixels, without their RLEs."""
        crop, n = self.crop, len(self.ordinals)
        x0, y0, x1, y1 = (self.masks.boxes + np.tile(crop.box[:2], 2)).T
        points = crop.points[(self.ordinals - crop.first_ordinal) // crop.masks_per_point]
        point_x, point_y = (points + crop.box[:2]).T
        crop_x0, crop_y0, crop_x1, crop_y1 = np.tile(crop.box, (n, 1)).T
        return Candidates.from_columns(
            crop.rules,
            {
                "tile_row": np.zeros(n, int),
                "tile_col": np.zeros(n, int),
                "ordinal": self.ordinals,
                "pred_iou": self.ious,
                "stability_score": self.masks.stability,
                "x0": x0,
                "y0": y0,
                "x1": x1,
                "y1": y1,
                "area_px": self.masks.areas,
                "point_x": point_x,
                "point_y": point_y,
                "crop_x0": crop_x0,
                "crop_y0": crop_y0,
                "crop_x1": crop_x1,
                "crop_y1": crop_y1,
                "rle": [b""] * n,
            },
        )

    def encode(self, alive: NDArray[np.bool_]) -> list[bytes]:
        """Encode some of the masks, `(n,)`."""
        masks, rules = self.masks.take(alive), self.crop.rules
        x, y = masks.edges.T.astype(np.int64)
        place = (x + self.crop.box[0]) * rules.height + y + self.crop.box[1]
        mask = np.repeat(np.arange(len(masks)), masks.n_edges)
        return encode_edges(mask, place, len(masks), rules.height, rules.width)


def survivors(found: Sequence[Proposals], rules: Rules) -> Candidates:
    """Prune the proposals of a tile, and encode what is left."""
    tables = [some.table() for some in _joined(found)]
    kept = prune(concat([Candidates.empty(rules), *tables]))
    alive = kept.column("ordinal")
    rles = [rle for some in _joined(found) for rle in some.encode(np.isin(some.ordinals, alive))]
    return kept.with_column("rle", rles)


def _joined(found: Sequence[Proposals]) -> Iterator[Proposals]:
    """Join those of each crop, as many at a time as memory should hold."""
    pieces = np.cumsum([len(some.masks.edges) for some in found]) // EDGES_AT_ONCE
    keys = ((some.crop.number, piece) for some, piece in zip(found, pieces, strict=True))
    for _, group in groupby(zip(keys, found, strict=True), itemgetter(0)):
        parts = [some for _, some in group]
        yield Proposals(
            parts[0].crop,
            np.concatenate([part.ordinals for part in parts]),
            np.concatenate([part.ious for part in parts]),
            joined([part.masks for part in parts]),
        )
