"""How long a run will take, and how much it will store."""

from __future__ import annotations

from dataclasses import dataclass

from workbench._support.text import duration


@dataclass(frozen=True)
class Forecast:
    """Time and storage of a run, estimated from tiles that were timed; None: not known yet."""

    seconds_per_tile: float | None = None
    bytes_per_tile: float | None = None

    def text(self, n_tiles: int) -> str:
        """For example "24 tiles · about 3 min · 12 MB of candidates"."""
        parts = [f"{n_tiles:,} tile{'s' if n_tiles != 1 else ''}"]
        if self.seconds_per_tile is not None:
            parts.append(f"about {duration(self.seconds_per_tile * n_tiles)}")
        if self.bytes_per_tile is not None:
            parts.append(f"{_size(self.bytes_per_tile * n_tiles)} of candidates")
        return " · ".join(parts)


def _size(n: float) -> str:
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        if n >= scale or unit == "kB"
    )
    return f"{n / scale:.0f} {unit}" if n >= 10 * scale else f"{n / scale:.1f} {unit}"
