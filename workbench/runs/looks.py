"""Names and colours of the classes of a run folder, in the tuner and in QGIS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from workbench._support.files import atomic_path
from workbench._support.palette import CLASS_COLORS
from workbench._support.yaml import read_yaml
from workbench.runs.job import USUAL_CLASSES, Job

LOOKS = "classes.yaml"
Looks = Mapping[int, tuple[str, str]]  # name and colour of each class


def color_of(number: int) -> str:
    """The colour of a class unless somebody has chosen another."""
    return CLASS_COLORS[(number - 1) % len(CLASS_COLORS)]


def read_looks(folder: Path) -> Looks:
    """Read what `write_looks` has written; a missing or damaged file gives nothing."""
    try:
        read = read_yaml((folder / LOOKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    looks: dict[int, tuple[str, str]] = {}
    for number, look in read.items() if isinstance(read, dict) else ():
        if isinstance(number, int) and isinstance(look, dict):
            name, color = look.get("name"), look.get("color")
            if isinstance(name, str) and isinstance(color, str) and is_color(color):
                looks[number] = name, color
    return looks


def write_looks(folder: Path, classes: Mapping[int, str], colors: Mapping[int, str]) -> None:
    """Write names and colours, whole or not at all; raises `OutputError`."""
    looks = {
        number: {"name": name, "color": colors.get(number, color_of(number))}
        for number, name in classes.items()
    }
    with atomic_path(folder / LOOKS) as temporary:
        text = yaml.safe_dump(looks, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def with_looks(job: Job, looks: Looks) -> tuple[Job, dict[int, str]]:
    """Give a job the classes of a run folder, and return all colours.

    Names that are given in the job count more, unless they are the usual ones.
    """
    names = {number: name for number, (name, _) in looks.items()}
    classes = names | ({} if job.classes == USUAL_CLASSES and names else job.classes)
    named = job if classes == job.classes else job.changed(classes=classes)
    return named, _colors(classes, looks)


def class_colors(folder: Path, job: Job) -> dict[int, str]:
    """The colour of each class of a job, as a person has chosen it in this run folder."""
    return _colors(job.classes, read_looks(folder))


def _colors(classes: Iterable[int], looks: Looks) -> dict[int, str]:
    return {number: looks[number][1] if number in looks else color_of(number) for number in classes}


def is_color(value: str) -> bool:
    """Whether a text is a colour as `#rrggbb`."""
    return re.fullmatch(r"#[0-9a-f]{6}", value) is not None
