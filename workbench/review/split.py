"""A review for several people: the labels of a run as one package for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_folder, atomic_path
from workbench._support.palette import ConfidenceClasses, confidence_classes
from workbench.errors import ReviewError
from workbench.layer import qgis
from workbench.layer.cores import home_in
from workbench.layer.files import write_layer
from workbench.layer.schema import as_layer
from workbench.review.read import read_review
from workbench.runs.looks import class_colors
from workbench.runs.record import read_record, write_job, write_record
from workbench.runs.result import Run, read_run


@dataclass(frozen=True)
class LayerLooks:
    """How QGIS shows the labels of a run, and of each part of it."""

    confidence: ConfidenceClasses
    learned: dict[int, str] | None

    @classmethod
    def of(cls, run: Run) -> LayerLooks:
        """The looks that the run gave its own project."""
        learned = class_colors(run.folder, run.job) if run.job.knows_classes else None
        return cls(confidence_classes(run.layer["confidence"]), learned)

    def styles(self, run: Run) -> Any:
        """The styles that a GeoPackage of these labels holds."""
        return qgis.styles(run.job.classes, run.job.planar, self.confidence, self.learned)


def split_review(
    run_dir: str | Path,
    reviewers: int | Sequence[str],
    out_dir: str | Path,
    *,
    shared: float = 0.1,
) -> pd.DataFrame:
    """Give each reviewer a part of the tiles of a run, in a folder that opens in QGIS alone.

    Each part holds about as many labels that wait for review as the others, in neighbouring tiles.
    Labels that are already reviewed are included as they are. A package has its own `review.qgz`,
    which shows the imagery where the run found it, and is a run folder without candidates. The run
    folder itself is only read. `join_reviews` puts the packages together again.

    Args:
        run_dir: The run folder.
        reviewers: How many there are, or their names, which become the names of the folders.
        out_dir: Where to make the folders.
        shared: Share of the tiles that two reviewers get, to see how far they agree. At least one
            tile of each reviewer, unless it is 0.

    Returns:
        A row for each reviewer, by name: `folder`, the numbers of `tiles`, of `shared` ones among
        them, of `labels`, and of labels that are still `unreviewed`.

    Raises:
        ReviewError: There are fewer tiles with labels than reviewers, a folder exists already, or
            the layer is open in QGIS.
        RunFolderError: The folder holds no finished run.

    Example:
        >>> split_review("runs/ortho", ["anna", "ben"], "packages", shared=0.2)
    """
    run, out_dir = read_run(run_dir), Path(out_dir)
    names = _names(reviewers)
    if not 0 <= shared <= 1:
        raise ReviewError(f"shared is {shared}: give a share of the tiles, from 0 to 1.")
    for name in names:
        if (out_dir / name).exists():
            raise ReviewError(
                f"{out_dir / name} exists already. Choose another out_dir, or move it away: it may "
                "hold a review."
            )
    labels = read_review(run.folder / "prelabels.gpkg", run).labels
    labels = as_layer(labels[~shapely.is_empty(labels.geometry.to_numpy())])
    tile_of = _nearest_tile(labels, run.tiles)
    waiting = labels["status"].eq("unreviewed").to_numpy()
    n_waiting = np.bincount(tile_of[waiting], minlength=len(run.tiles))
    n_labels = np.bincount(tile_of, minlength=len(run.tiles))
    owner = _owners(run.tiles, n_waiting, n_labels, len(names))
    second = _second_owners(owner, n_labels, len(names), shared)
    looks, rows = LayerLooks.of(run), {}
    for number, name in enumerate(names):
        mine = (owner == number) | (second == number)
        some = labels[mine[tile_of]].reset_index(drop=True)
        _write_package(run, run.tiles[mine].reset_index(drop=True), some, out_dir / name, looks)
        rows[name] = {
            "folder": str(out_dir / name),
            "tiles": int(mine.sum()),
            "shared": int((mine & (second >= 0)).sum()),
            "labels": len(some),
            "unreviewed": int(some["status"].eq("unreviewed").sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _names(reviewers: int | Sequence[str]) -> list[str]:
    if isinstance(reviewers, int):
        reviewers = [f"reviewer-{n}" for n in range(1, reviewers + 1)]
    names = list(reviewers)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ReviewError(f"reviewers are {reviewers}: give two or more, each with another name.")
    for name in names:
        if not name or Path(name).name != name or name.startswith("."):
            raise ReviewError(f"reviewer {name!r} cannot be the name of a folder. Rename it.")
    return names


def _nearest_tile(labels: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """The row of the tile of each label `(n,)`; for a label outside all tiles, the nearest."""
    home = home_in(tiles, labels)
    outside = np.flatnonzero(home < 0)
    if len(outside):
        tree = shapely.STRtree(tiles.geometry.to_numpy())
        home[outside] = tree.nearest(labels.geometry.to_numpy()[outside])
    return home


def _owners(
    tiles: gpd.GeoDataFrame,
    n_waiting: NDArray[np.int64],
    n_labels: NDArray[np.int64],
    n: int,
) -> NDArray[np.int64]:
    """Divide tiles `(t,)` among `n` reviewers, row by row, so that all have the same work."""
    if np.count_nonzero(n_labels) < n:
        raise ReviewError(
            f"{np.count_nonzero(n_labels)} tiles have labels, too few for {n} reviewers. Take "
            "fewer reviewers, or run with a smaller tile_size."
        )
    row, col = tiles["tile_row"].to_numpy(), tiles["tile_col"].to_numpy()
    # every other row backwards, so that neighbours follow each other
    snake = np.where(row % 2, -col, col)
    order = np.lexsort((snake, row, tiles["source"].to_numpy(str)))
    effort = n_waiting if np.count_nonzero(n_waiting) >= n else n_labels
    done = np.cumsum(effort[order]) - effort[order] / 2  # the middle of each tile's work
    part = np.minimum((done / effort.sum() * n).astype(int), n - 1)
    if len(np.unique(part[effort[order] > 0])) < n:  # a few tiles hold nearly everything
        busy = np.flatnonzero(effort[order] > 0)
        part[:] = np.searchsorted(busy, np.arange(len(order)), "right") - 1
        part = np.clip(part, 0, len(busy) - 1) * n // len(busy)
    owner = np.empty(len(order), np.int64)
    owner[order] = part
    return owner


def _second_owners(
    owner: NDArray[np.int64], n_labels: NDArray[np.int64], n: int, shared: float
) -> NDArray[np.int64]:
    """The second reviewer (the next one) for some tiles `(t,)` of each; -1: the tile has none."""
    second = np.full(len(owner), -1)
    for number in range(n if shared else 0):
        own = np.flatnonzero((owner == number) & (n_labels > 0))
        wanted = max(1, round(shared * len(own)))
        # spread over the part
        chosen = own[((np.arange(wanted) + 0.5) * len(own) / wanted).astype(int)]
        second[chosen] = (number + 1) % n
    return second


def _write_package(
    run: Run, tiles: gpd.GeoDataFrame, labels: gpd.GeoDataFrame, folder: Path, looks: LayerLooks
) -> None:
    here = set(tiles["source"])
    scenes = [scene for scene in run.scenes if scene.name in here]
    record = read_record(run.folder)
    assert record is not None, "read_run has read it"
    with atomic_folder(folder) as making:
        write_layer([labels], lambda _: tiles, making, styles=lambda: looks.styles(run))
        with atomic_path(making / "tiles.parquet") as path:
            tiles.to_parquet(path, index=False)
        write_record(making, record)
        write_job(run.job.changed(out_dir=str(folder.absolute())), making)
    # now that the folder has its name: the project names the imagery from there
    qgis.write_project(
        folder / "review.qgz",
        gpkg=folder / "prelabels.gpkg",
        rasters=[qgis.scene_raster(scene) for scene in scenes if scene.problem() is None],
        crs=run.layer.crs,
        bounds=tuple(tiles.total_bounds),
        classes=run.job.classes,
        title=folder.name,
        tiles=tiles,
        aoi=shapely.union_all(tiles.geometry.to_numpy()),
        planar=run.job.planar,
        confidence=looks.confidence,
        learned=looks.learned,
    )
