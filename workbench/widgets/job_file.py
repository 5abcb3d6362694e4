"""The job of a session as a batch command to copy, and as a file to save."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from workbench._support.files import atomic_path
from workbench.errors import OutputError, WorkbenchError
from workbench.runs.folder import refuse_to_lose_review
from workbench.runs.job import Job
from workbench.widgets.controls import button, row
from workbench.widgets.safe_html import Markup, SafeHTML, sentence
from workbench.widgets.session import Session


class CopyButton(anywidget.AnyWidget):
    """A button that copies `text` to the clipboard."""

    _esm = Path(__file__).with_name("copy.js")

    text = traitlets.Unicode().tag(sync=True)


class JobFile:
    """Shows the command that runs the job, and saves the job; `message` says what happened."""

    def __init__(self, session: Session, message: SafeHTML) -> None:
        self._session, self._message = session, message
        self._saved: tuple[Path, Job] | None = None  # the last job file, and what it holds
        self.command = SafeHTML()
        self.copy = CopyButton()
        self.path = widgets.Text(
            str(session.folder.with_name(f"{session.folder.name}-job.yaml")),
            description="job file", layout={"flex": "1"}, style={"description_width": "60px"},
        )  # fmt: skip
        save = button("Save", self.save, "the parameters, as YAML")
        self.widget = widgets.VBox([self.command, row(self.copy, self.path, save)])
        session.observe(self._show_command, "job")
        self._show_command()

    def close(self) -> None:
        """Stop following the session."""
        self._session.unobserve(self._show_command, "job")

    def save(self) -> None:
        """Write the job file."""
        path = Path(self.path.value).expanduser().absolute()
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(self._job().to_yaml(), encoding="utf-8")
        except OutputError as error:
            self._message.value = sentence(str(error))
            return
        self._saved = path, self._job()
        self._show_command()
        self._message.value = "Saved. The command above runs it as a batch job."
        try:
            if not self._job().refresh:
                refuse_to_lose_review(self._session.folder)
        except WorkbenchError as error:
            self._message.value = sentence(f"Saved, but this job cannot run: {error}")

    def _show_command(self, _: Any = None) -> None:
        job, output = self._job(), f"{self._session.folder.name}.ipynb"
        if self._saved is not None and self._saved[1] == job:
            words = ["papermill", _notebook(), output, "-f", str(self._saved[0])]
            if job.scheduler is not None:  # which is never written to a file
                words += ["-p", "scheduler", job.scheduler]
            text = shlex.join(words)
        else:
            given = self._session.given.changed(interactive=None)
            text = job.command(_notebook(), output, given)
        text += " --log-output --no-progress-bar"  # otherwise papermill hides what a run prints
        self.copy.text = text
        self.command.value = Markup(
            '<pre style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0">{}</pre>'
        ).format(text)

    def _job(self) -> Job:
        # the kernel works in the notebook's folder, papermill in the caller's
        return self._session.job.changed(out_dir=str(self._session.folder), interactive=None)


def _notebook() -> str:
    """The path of the notebook that is open."""
    open_here = Path(os.environ.get("JPY_SESSION_NAME", ""))
    known = open_here.suffix == ".ipynb" and open_here.exists()
    return str(open_here.absolute()) if known else "notebooks/prelabel.ipynb"
