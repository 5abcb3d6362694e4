"""Optional parts of a result: if one fails, that is reported and the rest goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from workbench._support.secrets import without_secrets
from workbench.errors import OutputError

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
Made = TypeVar("Made")


class Attempts:
    """Makes optional parts of a result; one that fails does not stop the others.

    `missed` has the reasons, by the names of what could not be made.
    """

    def __init__(self) -> None:
        self.missed: dict[str, str] = {}

    def make(self, name: str, make: Callable[[], Made]) -> Made | None:
        """Return what `make` returns; None if it fails, or if an earlier part of `name` has failed.

        Raises `OutputError`: where one file cannot be written, the result cannot be either.
        """
        if name in self.missed:
            return None
        try:
            return make()
        except OutputError:
            raise
        except Exception as error:  # whatever it is, the work of hours must not be lost for it
            reason = without_secrets(str(error) or repr(error))
            self.missed[name] = reason
            _log.warning("%s could not be made: %s", name, reason)
            return None

    def each(self, name: str, function: Callable[[Given], object]) -> Callable[[Given], object]:
        """Return a function that makes a part of `name` at each call."""
        return lambda given: self.make(name, lambda: function(given))
