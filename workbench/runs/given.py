"""The text of parameters as somebody typed it, where papermill has made numbers of it.

papermill's `-p` and YAML read `2024_05` as 202405, `0079` as 79 and `12:30` as 750. A kernel sees
only the number. The command line of the papermill that has started it still has the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from workbench.errors import JobError

_PAIRS = ("-p", "--parameters")
_YAML = ("-y", "--parameters_yaml")
_FILES = ("-f", "--parameters_file")


def holds_number(value: Any) -> bool:
    """Whether a value, or one in a list or map of them, is a number, a date or a truth value."""
    if isinstance(value, Mapping):
        return any(map(holds_number, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_number, value))
    return value is not None and not isinstance(value, str | Path)


def text_of_parameter(name: str, value: Any) -> Any:
    """Return a parameter that is to be text, as it was typed; raise `JobError` if nobody knows."""
    if not holds_number(value):
        return value
    for words, folder in _papermills():
        for text, meant in _given(words, folder, name):
            if meant == value or (meant != meant and value != value):  # not a number
                return text
    raise JobError(
        f"Parameter `{name}`: papermill has made {value!r} of what was given, so nobody knows "
        "whether it was typed like that (2024_05 becomes 202405, 0079 becomes 79). Give it as "
        f"text: `-r {name} …` instead of `-p`, quotes in YAML, or quotes in the notebook."
    )


def texts_in_yaml(text: str) -> Any:
    """Read YAML with every value as the text that it is."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def _papermills() -> Iterator[tuple[Sequence[str], Path]]:
    """The command lines and folders of the papermills above this process, the nearest first."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                words = process.cmdline()
                # `papermill …`, `python -m papermill …`
                if any(Path(word).name.startswith("papermill") for word in words[:4]):
                    yield words, Path(process.cwd())


def _given(words: Sequence[str], folder: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """What a command line says of a parameter, the last first: its text and what it became."""
    found: list[tuple[Any, Any]] = []
    documents = []
    for option, *rest in zip(words, words[1:], [*words[2:], ""], strict=False):
        if option in _PAIRS and rest[0] == name:
            found.append((rest[1], _as_number(rest[1])))
        elif option in _YAML:
            documents.append(rest[0])
        elif option in _FILES:
            with suppress(OSError, ValueError):
                documents.append((folder / rest[0]).read_text(encoding="utf-8"))
    for document in documents:
        with suppress(yaml.YAMLError, ValueError, TypeError, KeyError):
            found.append((texts_in_yaml(document)[name], yaml.safe_load(document)[name]))
    yield from reversed(found)


def _as_number(text: str) -> Any:
    """What papermill makes of the text of `-p`."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
