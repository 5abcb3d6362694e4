"""YAML with plain values only, even if a stranger has written it."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 1_000_000


def read_yaml(text: str) -> Any:
    """Read YAML; raise `ValueError` for everything that is not a plain value.

    That includes tags that would make objects, values that contain themselves, and aliases that
    repeat others until no memory could hold them.
    """
    try:
        value = yaml.safe_load(text)
    except Exception as error:  # where a tag does not fit, its constructors may raise anything
        words = str(error) if isinstance(error, yaml.YAMLError | ValueError) else repr(error)
        raise ValueError(words) from error
    _refuse_endless(value)
    return value


def _refuse_endless(value: Any) -> None:
    """An alias costs nothing to read, but writing it repeats all that it stands for."""
    waiting, n = [value], 0
    while waiting:
        value, n = waiting.pop(), n + 1
        if n + len(waiting) > MAX_VALUES:
            raise ValueError(
                f"it has more than {MAX_VALUES:,} values with its aliases, or contains itself"
            )
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
