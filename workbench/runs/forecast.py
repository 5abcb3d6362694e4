"""How much work a run is, and, after its first tiles, how much time and disk it will take."""

from __future__ import annotations

from dataclasses import dataclass

from workbench._support.text import duration
from workbench.runs.plan import Plan

MEASURED_TILES = 10  # tiles that are timed before an estimate is shown


@dataclass(frozen=True)
class Forecast:
    """Time and storage of a run, estimated from tiles that were timed; None: not known yet.

    Bytes are those of candidates in memory; compressed on disk they are fewer.
    """

    seconds_per_tile: float | None = None
    bytes_per_tile: float | None = None

    def after(self, seconds: float, n_bytes: int) -> Forecast:
        """Return the estimate after another timed tile: a running mean; later tiles count more.

        The first tiles of a session are slow, and the next ones will most likely be like the last.
        """
        if self.seconds_per_tile is None or self.bytes_per_tile is None:
            return Forecast(seconds, n_bytes)
        return Forecast(
            0.8 * self.seconds_per_tile + 0.2 * seconds, 0.8 * self.bytes_per_tile + 0.2 * n_bytes
        )

    def text(self, n_tiles: int) -> str:
        """For example "24 tiles · about 3 min · up to 12 MB of candidates"."""
        parts = [f"{n_tiles:,} tile{'s' if n_tiles != 1 else ''}"]
        if self.seconds_per_tile is not None:
            parts.append(f"about {duration(self.seconds_per_tile * n_tiles)}")
        if self.bytes_per_tile is not None:
            parts.append(f"up to {_size(self.bytes_per_tile * n_tiles)} of candidates")
        return " · ".join(parts)


def work_of(plan: Plan, done: int) -> str:
    """Say how much there is to do; `done` tiles and windows were stored by an earlier run."""
    cores = [tile.core for part in plan.by_grid for tile in part.tiles]
    pixels = sum(core.width * core.height for core in cores)
    rasters = f"{plan.n_read:,} raster{'s' * (plan.n_read != 1)}"
    if plan.left_out:
        rasters += f" ({len(plan.left_out):,} more cannot be read and are left out)"
    stored = f", {done:,} of them stored already" if done else ""
    if plan.asked is None:
        return f"{rasters}, {plan.n_tiles:,} tiles{stored}, {pixels / 1e6:,.4g} megapixels"
    asked, windows = len(plan.asked.prompts.asked), len(plan.asked.windows)
    grid = f"{len(cores):,} tiles of {pixels / 1e6:,.4g} megapixels, " if cores else ""
    return f"{rasters}, {grid}{asked:,} prompts in {windows:,} windows{stored}"


def _size(n: float) -> str:
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        if n >= scale or unit == "kB"
    )
    return f"{n / scale:.0f} {unit}" if n >= 10 * scale else f"{n / scale:.1f} {unit}"
