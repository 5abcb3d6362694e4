"""Numbers as people write them."""

from __future__ import annotations

import pandas as pd


def text_of(value: float, pattern: str, missing: str = "–") -> str:
    """Format a number; `missing` stands for NaN."""
    return missing if pd.isna(value) else pattern.format(value)


def duration(seconds: float) -> str:
    """Write seconds as a person would, as in `12 s` or `3 min 5 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def area_text(m2: float) -> str:
    """Write an area in m², hectares or km²."""
    if m2 < 10_000:
        return f"{m2:,.1f} m²" if m2 < 10 else f"{m2:,.0f} m²"
    return f"{m2 / 1e4:,.2f} ha" if m2 < 1e6 else f"{m2 / 1e6:,.2f} km²"
