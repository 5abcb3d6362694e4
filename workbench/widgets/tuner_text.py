"""What the tuner says about polygons: figures, reasons and the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench._support.text import area_text
from workbench.evaluation.judged import JudgedAdvice
from workbench.tuning.preview import Fate, Key, Preview, Verdict, View
from workbench.widgets.safe_html import Markup, paragraph
from workbench.widgets.toolbar import BY_CLICKS

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
_SCORES = {"pred_iou_thresh": "predicted IoU", "stability_score_thresh": "stability"}
TUNER_KEYS = (
    ("1 … 9", "on the map: give the polygon under the mouse this class; again takes it back"),
    ("0", "on the map: mark it as none of the classes"),
    ("n", "on the map: go to the object whose answer would teach most"),
    ("d", "draw a shape of the palette's class: double click or Enter ends it, Esc drops it"),
    ("e", "on the map: move the corners of the shape under the mouse; Enter keeps them"),
    ("p", f"outline an object of the palette's class by clicks, with the model: {BY_CLICKS}"),
    ("m", "on the map: mend the shape under the mouse by such clicks"),
    ("Tab, wheel", "after a click: what else lies there, shown or not, the smallest first"),
)
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
        parts.append(f"median {area_text(figures.median_area_m2)}")
    if figures.n_seam:
        parts.append(f"{figures.n_seam} dashed: they reach other tiles and are not merged yet")
    seen = np.isin(view.fate, (Fate.KEPT, Fate.MERGED)) if judged else np.empty(0, bool)
    shown = {preview.key(int(row)) for row in np.flatnonzero(seen)}
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
            area_text(verdict.area_m2),
            verdict.reason,
        )
        for verdict in verdicts[:MOST_VERDICTS]
    ]
    more = len(verdicts) - MOST_VERDICTS
    return Markup(
        '<table style="line-height: 1.3"><tr><th></th><th>predicted IoU</th><th>stability</th>'
        "<th>area</th><th></th></tr>{}</table>{}"
    ).format(Markup("").join(lines), f"and {more} more" if more > 0 else "")


def advice_text(advice: JudgedAdvice) -> Markup:
    """Say what the advice has changed, what it gains, and what to do next."""
    n = advice.n_good + advice.n_bad
    before, now = (
        round(100 * (good + advice.n_bad - bad) / n)
        for good, bad in (
            (advice.before_good, advice.before_bad), (advice.shown_good, advice.shown_bad)
        )
    )  # fmt: skip
    if not advice.is_change:
        return paragraph(
            f"The sliders stay: they treat {now} of 100 judged polygons as you said, and no other "
            "thresholds are clearly better. Next: judge more, on other tiles, too; or let cleaning "
            "remove what the bad ones have in common, for example a small area."
        )
    moved = [
        f"{name} {getattr(advice.current, trait):.3f} → {getattr(advice.advised, trait):.3f}"
        for trait, name in _SCORES.items()
        if getattr(advice.current, trait) != getattr(advice.advised, trait)
    ]
    return paragraph(
        f"Moved: {', '.join(moved)}. Good ones shown: {advice.shown_good} of {advice.n_good} "
        f"({advice.before_good} before); bad ones shown: {advice.shown_bad} of {advice.n_bad} "
        f"({advice.before_bad} before). Of 100 judged polygons, {now} are now treated as you "
        f"said ({before} before). Next: look at other tiles. If they look worse, press Undo."
    )


def confidence_swatches(confidence: Sequence[Sequence[Any]]) -> Markup:
    """Name the colours of the classes of confidence."""
    highs = [*(low for low, _ in confidence[1:]), 1.0]
    swatch = Markup('<span style="border-bottom: 4px solid {}; padding: 0 3px">{:g}–{:g}</span>')
    return Markup(" ").join(
        swatch.format(colour, low, high)
        for (low, colour), high in zip(confidence, highs, strict=True)
    )


def swatches(named: Sequence[tuple[str, str]]) -> Markup:
    """Name colours, given as name and colour."""
    swatch = Markup(
        '<span style="border-bottom: 4px solid {}; padding: 0 3px; '
        'box-shadow: 0 1px 0 #757575">{}</span>'  # white is seen on white
    )
    return Markup(" ").join(swatch.format(colour, name) for name, colour in named)


def class_swatches(classes: Sequence[tuple[str, str]]) -> Markup:
    """Name the colours of classes, given as name and colour."""
    return Markup("{} &ensp; thin and grey: none of the classes").format(swatches(classes))


MEANINGS = {
    "confidence": "Colour: confidence, SAM's own guess how well a mask fits (predicted IoU, 0–1)",
    "stability": "Colour: stability, how little a mask changes with a wider edge (0–1)",
    "class": "Colour: class",
    "none": "One colour for all",
}


def legend(colour_by: str, colours: Markup, area_colour: str) -> Markup:
    """Say what the colours of polygons and the lines on the map mean."""
    if colour_by == "none":
        colours = Markup("")
    return paragraph(
        Markup(
            "{}: {} &ensp; dashed: reaches another tile, not merged yet<br>lines: "
            '<span style="color: {}">area</span> &ensp; '
            '<span style="color: #ffffff; background: #757575; padding: 0 3px">tiles; '
            "thick: computed tiles</span>"
        ).format(MEANINGS[colour_by], colours, area_colour),
        "font-size: 12px",
    )
