"""Write docs/licences.md: the licence of every package that a run needs, from its metadata.

Those of the extras `cluster`, `models` and `regularize` are among them.

    python docs/licences.py

Before you commit a new name, look at its licence yourself.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).with_name("licences.md")
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
# their metadata names no licence; taken from the LICENSE in their repositories
BY_HAND = {"segment-anything": "Apache-2.0", "ptyprocess": "ISC", "isoduration": "ISC"}
TABLE = "| package | licence |\n|---|---|\n"  # the last thing on the page


def needed() -> dict[str, str]:
    """Return the names of all packages that a run needs here, by canonical name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["cluster"], *extras["models"], *extras["regularize"]]
    waiting = [Requirement(text) for text in texts]
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        key = canonicalize_name(one.name)
        if (key, frozenset(one.extras)) in seen:
            continue
        seen.add((key, frozenset(one.extras)))
        try:
            found[key] = metadata(one.name)["Name"]
        except PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, requires(one.name) or []):
            marker = requirement.marker
            if not marker or any(marker.evaluate({"extra": e}) for e in one.extras | {""}):
                waiting.append(requirement)
    return found


def licence_of(name: str) -> str:
    """Return the licence from the metadata, best source first."""
    about = metadata(name)
    if name in BY_HAND:
        return BY_HAND[name]
    if about["License-Expression"]:
        return about["License-Expression"]
    classifiers = [
        line.split(" :: ")[-1]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    text = (about["License"] or "").strip()
    if 0 < len(text) <= 60 and "\n" not in text:
        return text
    return ", ".join(classifiers) or re.split(r"[\n.]", text)[0] or "not stated"


def table() -> str:
    """The rows of the table."""
    names = needed()
    return "".join(f"| {names[key]} | {licence_of(key)} |\n" for key in sorted(names))


if __name__ == "__main__":
    head, _ = PAGE.read_text(encoding="utf-8").split(TABLE)
    PAGE.write_text(head + TABLE + table(), encoding="utf-8")
