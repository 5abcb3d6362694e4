"""What a run is going to take: how much there is before it begins, and time and disk soon after."""

from __future__ import annotations

from collections.abc import Sequence

from workbench._support.text import duration
from workbench.runs.plan import Plan
from workbench.runs.tile_stream import SegmentedTile

MEASURED_TILES = 10  # after so many the rest can be foretold


def forecast(plan: Plan, done: int) -> str:
    """Say how much there is to do; `done` tiles were stored by an earlier run."""
    pixels = sum(tile.core.width * tile.core.height for part in plan.scenes for tile in part.tiles)
    rasters = f"{plan.n_read:,} raster{'s' * (plan.n_read != 1)}"
    if plan.left_out:
        rasters += f" ({len(plan.left_out):,} more cannot be read and are left out)"
    stored = f", {done:,} of them stored already" if done else ""
    return f"{rasters}, {plan.n_tiles:,} tiles{stored}, {pixels / 1e6:,.4g} megapixels"


def outlook(done: Sequence[SegmentedTile], todo: int, seconds: float) -> str:
    """Say how long the rest takes and what it fills, after the first tiles in some seconds."""
    size = sum(tile.candidates.table.nbytes for tile in done)
    rest = (todo - len(done)) / len(done)
    return (
        f"after {len(done)} tiles: about {duration(rest * seconds)} more, candidates of at most "
        f"{rest * size / 1e9:.2g} GB"
    )
