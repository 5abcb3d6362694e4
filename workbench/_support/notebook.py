"""What depends on a person having the notebook open."""

from __future__ import annotations

import html
import os
import time
import traceback
from types import TracebackType
from typing import Any

from workbench.errors import WorkbenchError

_RED, _PLAIN = "\x1b[1;31m", "\x1b[0m"
# *Run All* scrolls to the last cell, away from the error: back to it, more than once, for the page
# is still being laid out. Not when the notebook is opened again later.
_BACK_HERE = """<script>
{ const here = document.currentScript.parentElement;
  const show = () => (here.closest(".jp-Cell-outputWrapper") ?? here)
    .scrollIntoView({ block: "nearest" });
  if (Math.abs(Date.now() - %d) < 60000) for (const ms of [0, 300, 900]) setTimeout(show, ms); }
</script>"""


def is_at_notebook() -> bool:
    """Whether a person has this notebook open; false under papermill and nbclient."""
    started_by_ui = {"JPY_SESSION_NAME", "__vsc_ipynb_file__"} & set(os.environ)
    return bool(started_by_ui) and _kernel_allows_input()


def show_errors_in_short() -> None:
    """Let a cell show an error that the user can mend as one red sentence, its traceback folded."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((WorkbenchError,), _show_in_short)


def _show_in_short(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,
    tb_offset: int | None = None,
) -> list[str]:
    """Send the sentence as the cell's error, which stops *Run All*, and then the traceback."""
    from IPython.display import display

    sentence = [f"{_RED}{error}{_PLAIN}"]
    shell._showtraceback(kind, error, sentence)
    lines = "".join(traceback.format_exception(kind, error, trace))
    folded = f"<details><summary>Details</summary><pre>{html.escape(lines)}</pre></details>"
    back = _BACK_HERE % (1000 * time.time())
    display({"text/html": folded + back, "text/plain": ""}, raw=True)
    return sentence


def _kernel_allows_input() -> bool:
    """False under papermill and nbclient, which ask the kernel not to take standard input."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
