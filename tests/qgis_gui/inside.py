"""Runs inside the QGIS desktop (`qgis --code`): executes the Python that a test sends it.

A request is a file `N.py` in the folder WORKBENCH_GUI_TEST, the answer a file `N.json` beside it.
Requests are served by a timer, so also while a dialog is open.
"""

import json
import os
import traceback
from pathlib import Path

from qgis.PyQt.QtCore import QTimer

FOLDER = Path(os.environ["WORKBENCH_GUI_TEST"])
NAMES = {"__name__": "gui_test"}
served = set()


def serve():
    for request in sorted(FOLDER.glob("*.py")):
        if request.name in served:
            continue
        served.add(request.name)
        NAMES["answer"] = None
        try:
            exec(compile(request.read_text(encoding="utf-8"), request.name, "exec"), NAMES)
            content = {"answer": NAMES["answer"]}
        except BaseException:
            content = {"error": traceback.format_exc()}
        temporary = request.with_suffix(".part")
        temporary.write_text(json.dumps(content, default=str), encoding="utf-8")
        temporary.rename(request.with_suffix(".json"))


timer = QTimer()
timer.timeout.connect(serve)
timer.start(15)
NAMES["keep"] = timer  # qgis deletes what nobody holds
import builtins  # noqa: E402

builtins.workbench_gui_test_timer = timer
