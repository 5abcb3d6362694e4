"""Work on polygons that can be done anywhere: a portion goes in, a portion comes out.

A step is a function of a module, so that it can be named to another process, and depends on nothing
but its portion. `Each` lets steps be done: `do_here`, or by the workers of a cluster. What comes
out is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from workbench._support.files import naming


@dataclass(frozen=True, eq=False)
class Portion:
    """Some polygons, None where a step needs none, and whatever else is small."""

    polygons: gpd.GeoDataFrame | None
    more: Any = None


Step = Callable[[Portion], Portion]
# yields what becomes of each portion, in their order; portions are asked for when they are needed
Each = Callable[[Step, Iterable[Portion]], Generator[Portion, None, None]]


def do_here(step: Step, portions: Iterable[Portion]) -> Generator[Portion, None, None]:
    """Do a step in this process, one portion after the other."""
    for portion in portions:
        yield step(portion)


def polygons_of(portion: Portion) -> gpd.GeoDataFrame:
    """The polygons of a portion that has some."""
    assert portion.polygons is not None
    return portion.polygons


def write_portion(polygons: gpd.GeoDataFrame, path: Path) -> None:
    """Put polygons down for another process, which may read them when this has returned."""
    name = polygons.geometry.name
    others = pd.DataFrame(polygons.drop(columns=name))
    table = pa.Table.from_pandas(
        others.assign(**{name: shapely.to_wkb(polygons.geometry.to_numpy())}), preserve_index=False
    )
    with naming(path):
        pq.write_table(table, path, compression="lz4", write_page_checksum=True)


def read_portion(path: Path, crs: pyproj.CRS) -> gpd.GeoDataFrame:
    """Read what `write_portion` has written, to the bit."""
    table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
    frame = table.to_pandas()
    name = frame.columns[-1]
    geometry = shapely.from_wkb(frame.pop(name).to_numpy())
    return gpd.GeoDataFrame(frame, geometry=geometry, crs=crs)
