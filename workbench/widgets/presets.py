"""Switching between settings of the tuner: undo, A and B, defaults, presets."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench._support.files import atomic_path
from workbench.errors import OutputError, WorkbenchError
from workbench.runs.job import Job
from workbench.widgets.controls import TUNED, button, row
from workbench.widgets.safe_html import SafeHTML, paragraph, sentence
from workbench.widgets.session import Session


class Settings:
    """Buttons that switch between sets of thresholds and cleaning.

    Presets are job files in `presets/` beside the run folder.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.message = session, SafeHTML()
        self._past: list[tuple[Job, Job | None]] = []  # the shown setting, and B
        self._pushed = ("", 0.0)
        self._undone: dict[str, Any] = {}
        self._other: Job | None = None
        self.flip = button("A ⇄ B", self._flip, "switch to B and back", disabled=True)
        self.undo = button("Undo", self._undo, "undo the last change", disabled=True)
        self.preset = widgets.Combobox(
            placeholder="name of a preset", layout=widgets.Layout(width="150px"),
            continuous_update=False,  # else a quick click arrives before the last letters
        )  # fmt: skip
        self.preset.options = self._preset_names()
        self.widget = widgets.VBox(
            [
                row(
                    button("Keep as B", self._keep, "remember this setting to compare with"),
                    self.flip, self.undo,
                    button("Defaults", self._reset, "reset all sliders to their defaults"),
                ),
                row(
                    self.preset, button("Save preset", self._save_preset, "as a job file"),
                    button("Load", self._load_preset, "take thresholds and cleaning from a preset"),
                ),
                self.message,
            ]
        )  # fmt: skip
        session.observe(self.changed, "job")

    def close(self) -> None:
        """Stop following the session."""
        self.session.unobserve(self.changed, "job")

    def changed(self, change: Any) -> None:
        """Remember the job for undo; one drag of a slider is one step."""
        before, job = change["old"], change["new"]
        what = ",".join(name for name in TUNED if getattr(before, name) != getattr(job, name))
        if what:
            self.message.value = ""  # it was about the setting before
        if not what or _tuned(job) == self._undone:
            return  # an undo is not a step
        now = time.monotonic()
        if self._pushed[0] != what or now - self._pushed[1] > 1.0:
            self._past.append((before, self._other))
            self.undo.disabled = False
        self._pushed = (what, now)

    def _go_to(self, job: Job) -> None:
        self._pushed = ("", 0.0)  # so that this is a separate step
        try:
            self.session.change(**_tuned(job))
        except WorkbenchError as error:
            self.message.value = sentence(str(error))

    def _undo(self) -> None:
        if self._past:
            job, self._other = self._past.pop()
            self._undone = _tuned(job)
            self._go_to(job)
            self._undone, self._pushed = {}, ("", 0.0)
        self.undo.disabled = not self._past

    def _keep(self) -> None:
        self._other = self.session.job
        self.flip.disabled = False
        self.message.value = paragraph("Kept as B. Move the sliders, then switch with A ⇄ B.")

    def _flip(self) -> None:
        if self._other is not None:
            here = self.session.job
            self._go_to(self._other)
            self._other = here  # last, so that undo restores both

    def _reset(self) -> None:
        self._go_to(Job.create())

    @property
    def _presets(self) -> Path:
        return self.session.folder.parent / "presets"

    def _preset_names(self) -> list[str]:
        return sorted(path.stem for path in self._presets.glob("*.yaml"))

    def _save_preset(self) -> None:
        name = self.preset.value.strip()
        if not re.fullmatch(r"[\w .-]+", name):
            self.message.value = sentence(
                "Use letters, digits, spaces, dots or dashes for the name."
            )
            return
        path = self._presets / f"{name}.yaml"
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(self.session.job.to_yaml(), encoding="utf-8")
        except OutputError as error:
            self.message.value = sentence(str(error))
            return
        self.preset.options = self._preset_names()
        self.message.value = paragraph(f"Saved {path}")

    def _load_preset(self) -> None:
        name = self.preset.value.strip()
        if name not in self._preset_names():
            saved = ", ".join(self._preset_names()) or "none yet"
            known = f"There is no preset {name!r}" if name else "Choose a preset, or type its name"
            self.message.value = sentence(f"{known}. Saved: {saved}.")
            return
        try:
            self._go_to(Job.from_yaml(self._presets / f"{name}.yaml"))
        except WorkbenchError as error:
            self.message.value = sentence(str(error))


def _tuned(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in TUNED}
