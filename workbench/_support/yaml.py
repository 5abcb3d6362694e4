"""YAML that holds plain values, whoever has written it."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 1_000_000


def read_yaml(text: str) -> Any:
    """Read YAML; tags that would make objects, and all else that is not plain, raise `ValueError`.

    So do values that hold themselves, or repeat others until nobody could hold them.
    """
    try:
        value = yaml.safe_load(text)
    except Exception as error:  # its constructors fail in any way where a tag does not fit
        words = str(error) if isinstance(error, yaml.YAMLError | ValueError) else repr(error)
        raise ValueError(words) from error
    _refuse_endless(value)
    return value


def _refuse_endless(value: Any) -> None:
    """An alias costs nothing to read, but what it stands for is written out again and again."""
    waiting, n = [value], 0
    while waiting:
        value, n = waiting.pop(), n + 1
        if n + len(waiting) > MAX_VALUES:
            raise ValueError(
                f"with its aliases it holds more than {MAX_VALUES:,} values, or itself"
            )
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
