"""Calling polygons good or bad, and the thresholds that these verdicts suggest."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets

from workbench.errors import ReviewError
from workbench.evaluation.judged import advise_judged
from workbench.tuning.preview import Preview
from workbench.tuning.process import Index
from workbench.widgets.safe_html import Markup
from workbench.widgets.session import Session
from workbench.widgets.tuner_text import advice_text

EXPLAIN = "explain"  # a click explains


class Judging:
    """What a click on the map means, and the candidates that clicks have called good or bad."""

    def __init__(self, session: Session, let_go: Callable[[], None]) -> None:
        """`let_go` is called when clicks begin to judge, so that they have no other meaning."""
        self._session, self._let_go = session, let_go
        self.mode = widgets.ToggleButtons(
            options=[("Explain", EXPLAIN), ("Good", "good"), ("Bad", "bad")],
            tooltips=[f"click, or Enter at the cross of the map: {what}" for what in (
                "why a polygon is there or not", "call it good", "call it bad")],
            style={"button_width": "76px"},
        )  # fmt: skip
        self.mode.observe(lambda change: change["new"] == EXPLAIN or self._let_go(), "value")

    @property
    def explains(self) -> bool:
        """Whether a click explains."""
        return bool(self.mode.value == EXPLAIN)

    def explain(self) -> None:
        """Let clicks explain again."""
        self.mode.value = EXPLAIN

    def judge(self, row: int, preview: Preview) -> None:
        """Call a candidate good or bad, as the mode says; the same verdict again takes it back."""
        key, judged = preview.key(row), dict(self._session.judged)
        good = self.mode.value == "good"
        if judged.get(key) is good:
            del judged[key]
        else:
            judged[key] = good
        self._session.judged = judged

    def advise(self, preview: Preview) -> Markup:
        """Move the sliders to the thresholds that fit the judged polygons, and say what changes.

        Raises `ReviewError` unless some are good and some are bad.
        """
        session, by_tile = self._session, dict[Index, dict[int, bool]]()
        for key, good in session.judged.items():
            if preview.row(key) >= 0:
                by_tile.setdefault(key[:3], {})[key[3]] = good
        tiles = [(s.candidates, by_tile.get(s.record.index, {})) for s in preview.samples]
        if not any(by_tile.values()):
            raise ReviewError(NOTHING_JUDGED)
        advice = advise_judged(tiles, session.job.thresholds)
        if advice.is_change:
            session.change(
                pred_iou_thresh=advice.advised.pred_iou_thresh,
                stability_score_thresh=advice.advised.stability_score_thresh,
            )
        return advice_text(advice)


NOTHING_JUDGED = (
    "Nothing was judged yet. Click Good, then polygons that are right; click Bad, then polygons "
    "that are wrong. Advise needs at least one of each."
)
