"""Labels that stay when the rest of their layer is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import geopandas as gpd
import pandas as pd
import pyarrow as pa

from workbench.layer.schema import COLUMNS


@dataclass(frozen=True, eq=False)
class Kept:
    """What a person has touched in a layer.

    `now` are these labels as they are, with all columns of the file, also those that a person has
    added. `before` are the same labels as the run wrote them, without those that were drawn, and
    with those that were deleted: a later review is compared with them.
    """

    now: gpd.GeoDataFrame
    before: gpd.GeoDataFrame

    @property
    def deleted(self) -> gpd.GeoDataFrame:
        """The labels that a person has deleted, as the run wrote them."""
        return self.before[~self.before["id"].isin(self.now["id"])]

    @cached_property
    def ids(self) -> set[str]:
        """The ids of all labels that a person has touched, deleted ones included."""
        return {*self.now["id"], *self.before["id"]}

    def among(self, batches: Iterable[gpd.GeoDataFrame]) -> Iterator[gpd.GeoDataFrame]:
        """Put the labels among the batches of a new layer, so that those of a raster follow.

        The first batch is empty, with the columns of the new layer.
        """
        rest = self.now.sort_values("source", kind="stable")
        for number, batch in enumerate(batches):
            if number == 0:
                yield batch[:0]
            for source, new in batch.groupby("source", sort=True):
                first = (rest["source"] <= source).to_numpy(bool)
                if first.any():
                    yield rest[first].reset_index(drop=True)
                    rest = rest[~first]
                yield new.reset_index(drop=True)
        if len(rest):
            yield rest.reset_index(drop=True)

    def new_in(self, batch: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """The rows of a batch that are not kept."""
        return batch[~batch["id"].isin(self.now["id"])]

    def schema(self, layer: pa.Schema) -> pa.Schema:
        """The columns of a layer as Arrow types, and those that a person has added."""
        more = pd.DataFrame(self.now.drop(columns=[*COLUMNS, self.now.geometry.name]))
        fields = [
            field.with_type(pa.string()) if pa.types.is_null(field.type) else field
            for field in pa.Schema.from_pandas(more, preserve_index=False)
            if field.name not in layer.names
        ]
        named = {name: layer.field(name) for name in layer.names}
        geometry = named.pop("geometry")
        return pa.schema([*named.values(), *fields, geometry], metadata=layer.metadata)
