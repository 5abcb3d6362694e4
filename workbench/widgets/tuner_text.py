"""What the tuner says of polygons: figures, reasons and the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.tuning.preview import Fate, Key, Preview, Verdict, View
from workbench.widgets.safe_html import Markup, paragraph

FATES = {
    Fate.KEPT: "✓",
    Fate.BELOW: "below",
    Fate.SUPPRESSED: "overlapped",
    Fate.CLEANED: "cleaned",
    Fate.OUTSIDE: "outside",
    Fate.WHOLE_TILE: "too large",
    Fate.DUPLICATE: "repeated",
    Fate.OVERLAP: "overlapped",
    Fate.MERGED: "merged",
}
# the fates as the score plane shows them, some in one colour
IN_PLANE = np.arange(len(Fate), dtype=np.uint8)
IN_PLANE[[Fate.WHOLE_TILE, Fate.DUPLICATE, Fate.OVERLAP, Fate.MERGED]] = Fate.SUPPRESSED
MOST_VERDICTS = 10  # candidates that are listed for one place


def figures_text(preview: Preview, view: View, judged: Mapping[Key, bool], forecast: str) -> Markup:
    """Count and measure a view in a line; `forecast` is for the whole area, or empty."""
    if not preview.samples:
        return paragraph("Click a tile, or propose some, to see polygons.")
    figures = preview.figures(view)
    n = len(preview.samples)
    tiles = f"polygons on {n} tile{'s' if n != 1 else ''}"
    parts: list[str] = [Markup("<b>{:,}</b> {}").format(figures.n, tiles)]
    if figures.n:
        parts.append(f"{figures.covered:.0%} of the tiles covered")
        parts.append(f"median {figures.median_area_m2:,.3g} m²")
    if figures.n_seam:
        parts.append(f"{figures.n_seam} dashed: they reach other tiles and are not merged yet")
    shown = {preview.key(int(row)) for row in view.kept} if judged else set()
    verdicts = [good for key, good in judged.items() if key in shown]
    if verdicts:
        share = sum(verdicts) / len(verdicts)
        parts.append(Markup("<b>{:.0%}</b> of {} judged are good").format(share, len(verdicts)))
    if forecast:
        parts.append(f"whole area: {forecast}")
    return paragraph(Markup(" · ").join(parts))


def verdicts_table(verdicts: Sequence[Verdict]) -> str:
    """List the candidates of one place, and why each is shown or not."""
    if not verdicts:
        return "No candidate here."
    line = Markup("<tr><td>{}</td><td>{:.3f}</td><td>{:.3f}</td><td>{}</td><td>{}</td></tr>")
    lines = [
        line.format(
            FATES[verdict.fate],
            verdict.pred_iou,
            verdict.stability_score,
            f"{verdict.area_m2:,.{0 if verdict.area_m2 >= 10 else 1}f}",
            verdict.reason,
        )
        for verdict in verdicts[:MOST_VERDICTS]
    ]
    more = len(verdicts) - MOST_VERDICTS
    return Markup(
        '<table style="line-height: 1.3"><tr><th></th><th>predicted IoU</th><th>stability</th>'
        "<th>m²</th><th></th></tr>{}</table>{}"
    ).format(Markup("").join(lines), f"and {more} more" if more > 0 else "")


def confidence_swatches(confidence: Sequence[Sequence[Any]]) -> Markup:
    """Name the colours of the classes of confidence."""
    highs = [*(low for low, _ in confidence[1:]), 1.0]
    swatch = Markup('<span style="border-bottom: 4px solid {}; padding: 0 3px">{:g}–{:g}</span>')
    return Markup(" ").join(
        swatch.format(colour, low, high)
        for (low, colour), high in zip(confidence, highs, strict=True)
    )


def class_swatches(classes: Sequence[tuple[str, str]]) -> Markup:
    """Name the colours of classes, given as name and colour."""
    swatch = Markup('<span style="border-bottom: 4px solid {}; padding: 0 3px">{}</span>')
    named = Markup(" ").join(swatch.format(colour, name) for name, colour in classes)
    return Markup("{} &ensp; thin and grey: none of the classes").format(named)


def legend(colours: Markup, area_colour: str) -> Markup:
    """Name the colours of polygons, and of the lines on the map."""
    return paragraph(
        Markup(
            "{} &ensp; dashed: reaches another tile, not merged yet<br>"
            'lines: <span style="color: {}">area</span> &ensp; '
            '<span style="color: #ffffff; background: #757575; padding: 0 3px">tiles; '
            "thick: computed tiles</span>"
        ).format(colours, area_colour),
        "font-size: 12px",
    )
