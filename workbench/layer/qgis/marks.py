"""Marks that tell others who has a GeoPackage open in QGIS.

A mark is a small file beside the GeoPackage. The plugin in `qgis_plugin/` writes it and touches it
regularly. It has a copy of this module, so the module must run with the Python of QGIS 3.22 and
later, and without this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = ".reviewer-"  # between the name of the GeoPackage and that of computer and process
BEAT, GONE = 20, 90  # seconds: how often a mark is touched, and when its owner counts as gone


def marks_beside(file: Path, now: float) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield the path of each mark beside a file, and its content; None if its owner has gone.

    `now` is the time by the clock of the disk.
    """
    for path in sorted(file.parent.glob(f"{file.name}{MARK}*")):
        try:
            is_old = now - path.stat().st_mtime > GONE
            said = None if is_old else json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # they have just left
            continue
        except ValueError:  # it is just being written
            said = {}
        yield path, said if said is None or isinstance(said, dict) else {}


def opened_text(file: Path, mark: Mapping[str, Any]) -> str:
    """Say who has a file open, and since when."""
    who, since = mark.get("who", "Somebody"), mark.get("since", "some time")
    return f"{who} has had {file.name} open since {since}"
