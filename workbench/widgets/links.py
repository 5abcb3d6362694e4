"""Links to the files of a run, which JupyterLab opens beside the notebook."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class RunLinks(anywidget.AnyWidget):
    """Links to report, QGIS project and folder of a run.

    The browser finds out which part of the disk the server shows. Files outside of it are
    shown only as a path, and so are all files in programs other than JupyterLab.
    """

    _esm = Path(__file__).with_suffix(".js")

    folder = traitlets.Unicode(help="absolute; empty: show nothing").tag(sync=True)
    home = traitlets.Unicode(str(Path.home()), help="what ~ stands for").tag(sync=True)
