"""A control for each tuned parameter, bound to the session's job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from workbench.candidates.select import Thresholds
from workbench.errors import JobError
from workbench.polygons.clean import Cleaning
from workbench.runs.job import Job
from workbench.widgets.history import TUNED
from workbench.widgets.safe_html import SafeHTML, sentence
from workbench.widgets.session import Session

NAMES = {
    "pred_iou_thresh": "predicted IoU",
    "stability_score_thresh": "stability",
    "min_area_px": "min. part, px",
    "min_area_m2": "min. area, m²",
    "max_area_m2": "max. area, m²",
    "fill_holes_m2": "fill holes, m²",
    "min_solidity": "min. solidity",
    "simplify_m": "simplify, m",
    "planar": "planar",
}


def _steps(low: int, high: int) -> list[float]:
    """Ten steps for each power of ten."""
    shares = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    return [round(share * 10.0**power, 6) for power in range(low, high) for share in shares]


STEPS: dict[str, Sequence[float]] = {
    "min_area_px": _steps(1, 4),
    "min_area_m2": _steps(-1, 5),
    "max_area_m2": _steps(0, 6),
    "fill_holes_m2": _steps(-1, 4),
    "min_solidity": [i / 50 for i in range(5, 50)],
    "simplify_m": _steps(-1, 2),
}


class Controls:
    """A control for each tuned parameter; each change replaces the session's job at once.

    If the job refuses a value, the control returns to the old one, and `problem` shows why.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.problem = SafeHTML()
        self.of = {name: _control(name, session.job) for name in TUNED}
        self._following = False
        self._lock = threading.RLock()  # JupyterLab may call from two threads while a cell runs
        for name, control in self.of.items():
            control.observe(lambda change, name=name: self._changed(name, change["new"]), "value")
        session.observe(self._follow, "job")

    @property
    def thresholds(self) -> widgets.VBox:
        """SAM's two sliders."""
        return widgets.VBox([self.of[name] for name in Thresholds.__dataclass_fields__])

    @property
    def cleaning(self) -> widgets.VBox:
        """The controls for cleaning."""
        names = Cleaning.__dataclass_fields__
        return widgets.VBox([*(self.of[name] for name in names), self.problem])

    def close(self) -> None:
        """Stop following the session."""
        self.session.unobserve(self._follow, "job")

    def _changed(self, name: str, value: Any) -> None:
        off = value == AUTO if name == "simplify_m" else name in STEPS and not value
        if isinstance(value, float):
            value = round(value, 6)  # the browser's 0.92 is 0.9199999999999999
        with self._lock:
            if self._following or _same(name, value, _shown(name, self.session.job)):
                return
            try:
                self.session.change(**{name: None if off else value})
                self.problem.value = ""
            except JobError as error:
                self.problem.value = sentence(str(error))
                self._follow()

    def _follow(self, _: Any = None) -> None:
        """Show the values of the job, which another widget may have changed."""
        with self._lock:
            self._following = True
            try:
                for name, control in self.of.items():
                    _show(name, control, _shown(name, self.session.job))
            finally:
                self._following = False


def row(*children: widgets.Widget) -> widgets.HBox:
    """Put widgets side by side; they wrap to the next line."""
    return widgets.HBox(list(children), layout={"flex_flow": "row wrap", "align_items": "center"})


def button(
    text: str, does: Callable[[], None], tooltip: str, icon: str = "", disabled: bool = False
) -> widgets.Button:
    """Make a button that calls `does`."""
    made = widgets.Button(
        description=text, tooltip=tooltip, icon=icon, disabled=disabled, layout={"width": "auto"}
    )
    made.on_click(lambda _: does())
    return made


AUTO = -1.0  # on a slider: the parameter is null, and its value is found for each scene


def _shown(name: str, job: Job) -> Any:
    """The value that a control shows."""
    if name in Thresholds.__dataclass_fields__:
        return getattr(job.thresholds, name)
    value = getattr(job, name)
    return AUTO if name == "simplify_m" and value is None else value


def _control(name: str, job: Job) -> Any:
    value = _shown(name, job)
    style = {"description_width": "100px"}
    layout = widgets.Layout(width="auto")
    if name == "planar":
        return widgets.Checkbox(
            value, description=NAMES[name], indent=True, style=style, layout=layout,
            tooltip=Job.model_fields[name].description,
        )  # fmt: skip
    if name in Thresholds.__dataclass_fields__:
        rules = job.rules
        floor = rules.pred_iou_floor if name == "pred_iou_thresh" else rules.stability_floor
        return widgets.FloatSlider(
            value, min=floor, max=1.0, step=0.005, readout_format=".3f", description=NAMES[name],
            style=style, layout=layout, tooltip=Job.model_fields[name].description,
        )  # fmt: skip
    return widgets.SelectionSlider(
        options=_options(name, value), value=value or 0, description=NAMES[name], style=style,
        layout=layout, tooltip=Job.model_fields[name].description,
    )  # fmt: skip


def _options(name: str, value: Any) -> list[tuple[str, float]]:
    """Steps of a slider, including its value; 0 means off."""
    steps = {float(step) for step in STEPS[name]} | {float(value or 0)}
    named = {0.0: "off", AUTO: "one pixel"}
    steps |= {0.0, AUTO} if name == "simplify_m" else {0.0}
    return [(named.get(step, f"{step:,.10g}"), step) for step in sorted(steps)]


def _show(name: str, control: Any, value: Any) -> None:
    if name in STEPS:
        value = value or 0
        if value not in [step for _, step in control.options]:
            control.options = _options(name, value)
    # do not send back a mere rounding difference: it would undo the latest key presses
    if not _same(name, control.value, value):
        control.value = value


def _same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a control differ by the browser's rounding at most."""
    return bool(
        one == other or (name in Thresholds.__dataclass_fields__ and abs(one - other) < 1e-6)
    )
