"""Links to the files of a run, which JupyterLab opens beside the notebook."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class RunLinks(anywidget.AnyWidget):
    """Links to report, QGIS project and folder of a run.

    The browser finds out which part of the disk the server shows; what lies outside of it, and any
    file in other programs than JupyterLab, is named by its path only.
    """

    _esm = Path(__file__).with_suffix(".js")

    folder = traitlets.Unicode(help="absolute; empty: show nothing").tag(sync=True)
    home = traitlets.Unicode(str(Path.home()), help="what ~ stands for").tag(sync=True)
