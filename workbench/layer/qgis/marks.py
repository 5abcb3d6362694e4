"""The marks by which those who have a GeoPackage open in QGIS tell others that they are there.

The plugin in `qgis_plugin/` leaves a small file beside the GeoPackage and touches it again and
again; it has a copy of this module. So it runs with the Python of QGIS 3.22 and later, and without
this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = ".reviewer-"  # and who; follows the name of the GeoPackage
BEAT, GONE = 20, 90  # seconds: how often they show that they are there, and when they count as gone


def marks_beside(file: Path, now: float) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield the mark of each one who has a file open: its path, and what it says.

    `now` is the time by the clock of the disk. What somebody who has gone left is None.
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
