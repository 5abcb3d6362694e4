"""The buttons of the pre-labels: their names, and the Python that QGIS runs for them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

PLUGIN = "sam_workbench_review"  # the name of the plugin's package
_IDS = uuid.UUID("5b0b2f3a-0f0c-4a26-9d4e-2f5c6c1f7d10")  # action ids are the same in every run


@dataclass(frozen=True)
class Action:
    """A button of the form and the table, also for a click on the map; `code` is Python.

    With `selection`, it is in the actions menu of the attribute table instead.
    """

    name: str
    code: str
    selection: bool = False

    @property
    def id(self) -> str:
        """The same in every run."""
        return f"{{{uuid.uuid5(_IDS, self.name)}}}"


def actions_of(classes: Mapping[int, str]) -> tuple[Action, ...]:
    """Return the buttons of the pre-labels; what they call is in `actions`."""
    # with several classes, a label without one is not exported: warn at the first
    ask = ", classes_matter=True" if len(classes) > 1 else ""
    one, some = "review('[% @layer_id %]', '[% $id %]', ", "review_selected('[% @layer_id %]', "
    return (
        Action("Accept", _code(f"{one}'accepted'{ask})")),
        Action("Reject", _code(f"{one}'rejected')")),
        Action("Reopen", _code(f"{one}'unreviewed')")),
        Action("Accept selected labels", _code(f"{some}'accepted'{ask})"), selection=True),
        Action("Reject selected labels", _code(f"{some}'rejected')"), selection=True),
        Action("Reopen selected labels", _code(f"{some}'unreviewed')"), selection=True),
        Action("Zoom to each label: on or off", _code("switch_zoom()"), selection=True),
    )


def _code(call: str) -> str:
    """Return the Python of an action, with the rules of the plugin if that is installed."""
    module = files(__package__).joinpath("actions.py").read_text(encoding="utf-8")
    return f"{module}\n\n{_FROM_PLUGIN}\n{call}\n"


_FROM_PLUGIN = f"""\
try:
    from {PLUGIN}.actions import review, review_selected, switch_zoom
except ImportError:
    pass
"""
