"""Switching between settings of the tuner: A and B, defaults, presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench._support.files import atomic_path
from workbench.errors import OutputError, WorkbenchError
from workbench.runs.job import Job
from workbench.widgets.controls import button, row
from workbench.widgets.history import TUNED
from workbench.widgets.safe_html import SafeHTML, paragraph, sentence
from workbench.widgets.session import Session


class Settings:
    """Buttons that switch between sets of thresholds and cleaning.

    Presets are job files in `presets/` beside the run folder.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.message = session, SafeHTML()
        self.flip = button("A ⇄ B", self._flip, "switch to B and back")
        self.preset = widgets.Combobox(
            placeholder="name of a preset", layout=widgets.Layout(width="150px"),
            continuous_update=False,  # otherwise a quick click arrives before the last letters
        )  # fmt: skip
        self.preset.options = self._preset_names()
        self.widget = widgets.VBox(
            [
                row(
                    button("Keep as B", self._keep, "remember this setting to compare with"),
                    self.flip,
                    button("Defaults", self._reset, "reset all sliders to their defaults"),
                ),
                row(
                    self.preset, button("Save preset", self._save_preset, "as a job file"),
                    button("Load", self._load_preset, "take thresholds and cleaning from a preset"),
                ),
                self.message,
            ]
        )  # fmt: skip
        session.observe(self._job_changed, "job")
        session.observe(self._show_other, "other")
        self._show_other()

    def close(self) -> None:
        """Stop following the session."""
        self.session.unobserve(self._job_changed, "job")
        self.session.unobserve(self._show_other, "other")

    def _show_other(self, _: Any = None) -> None:
        self.flip.disabled = self.session.other is None

    def _job_changed(self, change: Any) -> None:
        if _tuned(change["old"]) != _tuned(change["new"]):
            self.message.value = ""  # it was about the setting before

    def _go_to(self, job: Job) -> None:
        try:
            self.session.change(**_tuned(job))
        except WorkbenchError as error:
            self.message.value = sentence(str(error))

    def _keep(self) -> None:
        self.session.other = self.session.job
        self.message.value = paragraph("Kept as B. Move the sliders, then switch with A ⇄ B.")

    def _flip(self) -> None:
        session = self.session
        if session.other is not None:
            with session.hold_trait_notifications():  # one step
                here = session.job
                self._go_to(session.other)
                session.other = here

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
