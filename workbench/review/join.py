"""Joins the packages of several reviewers, and measures how far they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.candidates.offer import Offer
from workbench.errors import ReviewError
from workbench.evaluation.matching import pairs_of
from workbench.layer.files import write_gpkg_layer, write_layer
from workbench.layer.kept import Kept
from workbench.layer.schema import COLUMNS, DRAWN, as_layer
from workbench.polygons.overlap import iou_of
from workbench.review.agreement import agreement
from workbench.review.answers import (
    HERE,
    KEPT,
    Answers,
    answers_here,
    only_shapes,
    read_package,
    read_with_more,
)
from workbench.review.split import LayerLooks
from workbench.runs.folder import FolderLock
from workbench.runs.refresh import Refresh, state_of
from workbench.runs.result import Run, read_run
from workbench.runs.staying import Staying

CONFLICTS = "conflicts.gpkg"
ALIKE = 0.9  # IoU from which two reviewers have drawn one outline
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Joined:
    """The result of joining packages.

    `gpkg` is the joined layer, `backup` the one that it replaced. `conflicts` has a row for each
    answer about each disputed label, also as `conflicts.gpkg` in the run folder. `agreement` has a
    row for each two reviewers. `reviewed` counts the labels taken over from each.
    """

    gpkg: Path
    backup: Path
    conflicts: gpd.GeoDataFrame
    agreement: pd.DataFrame
    reviewed: Mapping[str, int]

    def __str__(self) -> str:
        taken = ", ".join(f"{n:,} of {name}" for name, n in self.reviewed.items())
        disputed = self.conflicts["label"].nunique()
        listed = f", listed in {self.gpkg.with_name(CONFLICTS)}" if disputed else ""
        return (
            f"{self.gpkg}: reviewed labels {taken}. Conflicts about {disputed:,} labels{listed}. "
            f"The layer before: {self.backup.name}"
        )


def join_reviews(
    run_dir: str | Path, packages: Sequence[str | Path], *, prefer: str | None = None
) -> Joined:
    """Put what several reviewers decided into the layer of the run, and list where they differ.

    A label that only one reviewer touched is taken as it came back, and so are drawn labels and
    added columns. Where two agree, their answer is taken. Where they differ (one keeps the label
    and the other rejects it, two classes, or outlines with an IoU below 0.9), the label stays as it
    was given out, and each answer is listed. An object that two have drawn is kept once. The
    packages are only read, and the old layer of the run is kept beside the new one, as in a
    refresh.

    Args:
        run_dir: The run folder that was split.
        packages: The folders that came back, under any path.
        prefer: The package whose answer is taken in a conflict. None leaves the label open.

    Returns:
        The joined layer, conflicts and agreement. The columns of `agreement` are the numbers of
        shared `tiles`, of `labels` that both judged and that got the `same` status and class;
        Cohen's kappa of status and class (NaN where nothing varies); the mean `iou` of shapes
        that both kept; how many labels were `drawn_by_both` and `drawn_by_one` in shared tiles.

    Raises:
        ReviewError: A package is open in QGIS, damaged, or of another run.
        RunFolderError: The run folder holds no finished run, is open, or is being written.

    Example:
        >>> joined = join_reviews("runs/ortho", ["packages/anna", "packages/ben"])
        >>> joined.agreement["status_kappa"]
    """
    folder = Path(run_dir).absolute()
    run = read_run(folder)
    if not packages:
        raise ReviewError("no package to join: give the folders that came back.")
    came = [read_package(Path(path), run) for path in packages]
    names = [package.name for package in came]
    if len(set(names)) < len(names):
        raise ReviewError(f"two packages have one name ({', '.join(names)}). Rename a folder.")
    if prefer is not None and prefer not in names:
        raise ReviewError(f"prefer is {prefer!r}, no package: {', '.join(names)}.")
    read_at = state_of(folder / "prelabels.gpkg")
    base = read_with_more(folder / "prelabels.gpkg", run)
    merged = _Merge(base, [*came, answers_here(base, came, run)], run, prefer)
    kept = _without_doubles(merged.layer(), merged.replaced(), run)
    refresh = Refresh(folder, Staying(kept), read_at)
    lock = FolderLock(folder)
    try:
        with refresh.staged() as stage:
            write_layer(
                kept.among([run.layer[:0]]),
                lambda _: run.tiles,
                stage,
                styles=lambda: LayerLooks.of(run).styles(run),
                kept=kept,
            )
        with atomic_path(folder / CONFLICTS) as path:
            write_gpkg_layer(merged.conflicts(), path, "conflicts", "MultiPolygon")
    finally:
        lock.release()
    assert refresh.replaced is not None
    return Joined(
        folder / "prelabels.gpkg",
        refresh.replaced,
        merged.conflicts(),
        agreement(came, run),
        {package.name: len(package.answers) + len(package.drawn) for package in came},
    )


def _without_doubles(layer: gpd.GeoDataFrame, replaced: gpd.GeoDataFrame, run: Run) -> Kept:
    """Leave out labels of a refresh that duplicate reviewed labels which it had replaced."""
    before = run.layer
    if len(replaced):
        came_back = layer[layer["id"].isin(replaced["id"])].reset_index(drop=True)
        new = layer[layer["status"].eq("unreviewed") & layer["id"].isin(before["id"])]
        beside = Staying(Kept(came_back, replaced)).beside([new], run.job)
        left = {label for batch in beside for label in batch["id"]}
        doubles = set(new["id"]) - left
        layer = layer[~layer["id"].isin(doubles)].reset_index(drop=True)
        before = pd.concat([before[~before["id"].isin(doubles)], replaced], ignore_index=True)
    return Kept(layer, before)


class _Merge:
    """One answer for each label, from those of all packages."""

    def __init__(
        self, base: gpd.GeoDataFrame, packages: Sequence[Answers], run: Run, prefer: str | None
    ) -> None:
        self._base, self._packages, self._run, self._prefer = base, packages, run, prefer
        self._disputes: list[gpd.GeoDataFrame] = []

    def layer(self) -> gpd.GeoDataFrame:
        """Return the joined labels, and remember what is in dispute."""
        answers: dict[str, list[Answers]] = {}
        for package in self._packages:
            for label in package.answers:
                answers.setdefault(label, []).append(package)
        parts = [self._base[~self._base["id"].isin(list(answers))]]
        for package in self._packages:  # all together, because nearly all labels have one answer
            alone = [rows for label, rows in package.answers.items() if len(answers[label]) == 1]
            parts.append(package.back.iloc[np.sort(np.concatenate([_NO_ROWS, *alone]))])
        several = {label: given for label, given in answers.items() if len(given) > 1}
        parts += [self._decided(label, given) for label, given in several.items()]
        parts += self._drawn()
        layer = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        typed = as_layer(layer)
        more = layer.drop(columns=[*COLUMNS, layer.geometry.name])
        there = self._base.drop_duplicates("id").set_index("id")
        for name in more.columns.intersection(there.columns):  # packages need not have them
            known = typed["id"].map(there[name])
            more[name] = more[name].where(more[name].notna(), known)
        layer = gpd.GeoDataFrame(pd.concat([typed, pd.DataFrame(more)], axis=1), crs=typed.crs)
        return layer.sort_values(["source", "id"], kind="stable", ignore_index=True)

    def replaced(self) -> gpd.GeoDataFrame:
        """Touched labels that a refresh has replaced since, as they were given out."""
        known = {*self._base["id"], *self._run.layer["id"]}
        gone = [
            package.given[package.given["id"].isin(set(package.answers) - known)]
            for package in self._packages
        ]
        labels = pd.concat(gone, ignore_index=True)
        drawn = labels["id"].str.startswith(DRAWN)
        return labels[~drawn & ~labels["id"].duplicated()]

    def conflicts(self) -> gpd.GeoDataFrame:
        """Each answer about each label in dispute, a row for each."""
        columns = {
            "label": "str", "kind": "str", "tile": "str", "reviewer": "str", "status": "str",
            "class_id": "Int64", "iou": "float64", "taken": "bool",
        }  # fmt: skip
        crs = self._run.layer.crs
        empty = gpd.GeoDataFrame({name: [] for name in columns}, geometry=[], crs=crs)
        return pd.concat(self._disputes or [empty], ignore_index=True).astype(columns)

    def _decided(self, label: str, packages: list[Answers]) -> gpd.GeoDataFrame:
        """The rows of a label that somebody has touched."""
        judged = [one for one in packages if one.verdict(label) != "unreviewed"]
        kind = _difference(label, packages, judged)
        if kind is None:
            order = ("edited", "accepted", "rejected", "deleted", "unreviewed")
            return min(packages, key=lambda one: order.index(one.verdict(label))).rows(label)
        taken = next((one for one in packages if one.name == self._prefer), None)
        self._dispute(label, kind, packages, taken)
        if taken is not None:
            return taken.rows(label)
        given = packages[0].given
        return given[given["id"] == label]

    def _dispute(
        self, label: str, kind: str, packages: Sequence[Answers], taken: Answers | None
    ) -> None:
        shapes = np.array([package.shape(label) for package in packages], object)
        first = packages[0].given[packages[0].given["id"] == label]
        tile = first["source_tile"].iloc[0] if len(first) else ""
        classes = [package.classes(label) for package in packages]
        self._disputes.append(
            gpd.GeoDataFrame(
                {
                    "label": label, "kind": kind, "tile": tile,
                    "reviewer": [package.name for package in packages],
                    "status": [package.verdict(label) for package in packages],
                    "class_id": pd.array([c[0] if c else None for c in classes], "Int64"),
                    "iou": iou_of(np.repeat(shapes[:1], len(shapes)), shapes),
                    "taken": [package is taken for package in packages],
                },
                geometry=_multi(shapes), crs=self._run.layer.crs,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------ what was drawn

    def _drawn(self) -> Iterator[gpd.GeoDataFrame]:
        """The labels that each reviewer has drawn, without those that an earlier one drew."""
        twice = Offer.duplicate_iou if (d := self._run.job.duplicate_iou) is None else d
        ids = set(self._base["id"])
        given = {label for package in self._packages for label in package.given["id"]}
        before = self._base[self._base["id"].str.startswith(DRAWN) & ~self._base["id"].isin(given)]
        before = before.assign(_by=HERE)
        for package in self._packages:
            rows = package.back.iloc[package.drawn]
            shapes = only_shapes(rows)
            pairs = pairs_of(only_shapes(before), shapes, at_least=twice or 1.0)
            new = np.ones(len(rows), bool)
            new[pairs.reference] = False
            for mine, theirs in zip(pairs.reference, pairs.predicted, strict=True):
                both = [rows.iloc[[mine]], before.iloc[[theirs]]]
                if both[0]["class_id"].astype(str).item() != both[1]["class_id"].astype(str).item():
                    self._drawn_as(both, [package.name, str(before["_by"].iloc[theirs])])
            rows = rows[new].copy()
            # two programs may have numbered what was drawn alike
            rows["id"] = [_free(label, ids) for label in rows["id"]]
            ids |= set(rows["id"])
            before = pd.concat([before, rows.assign(_by=package.name)], ignore_index=True)
            yield rows

    def _drawn_as(self, both: Sequence[gpd.GeoDataFrame], names: Sequence[str]) -> None:
        """List one drawn object to which two reviewers gave two classes; the second one's stays."""
        shapes = np.concatenate([one.geometry.to_numpy() for one in both])
        self._disputes.append(
            gpd.GeoDataFrame(
                {
                    "label": both[1]["id"].item(), "kind": "class", "tile": "",
                    "reviewer": names, "status": [one["status"].item() for one in both],
                    "class_id": pd.array([one["class_id"].item() for one in both], "Int64"),
                    "iou": iou_of(shapes, shapes[::-1]), "taken": [False, True],
                },
                geometry=_multi(shapes), crs=self._run.layer.crs,
            )
        )  # fmt: skip


def _multi(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    parts = [shapely.get_parts(shape) for shape in shapes]
    return np.array([shapely.multipolygons(each) for each in parts], object)


def _free(label: str, taken: set[str]) -> str:
    n, name = 1, label
    while name in taken:
        n += 1
        name = f"{label}/{n}"
    return name


def _difference(label: str, packages: Sequence[Answers], judged: Sequence[Answers]) -> str | None:
    """How reviewers differ about a label; None if they do not.

    A reviewer who only set a class has not judged the label: only the class counts.
    """
    kept = [one for one in judged if one.verdict(label) in KEPT]
    if kept and len(kept) < len(judged):
        return "status"
    if judged and not kept:  # all refuse it
        return None
    if len({one.classes(label) for one in packages}) > 1:
        return "class"
    shapes = np.array([one.shape(label) for one in kept], object)
    if len(shapes) > 1 and (iou_of(np.repeat(shapes[:1], len(shapes)), shapes) < ALIKE).any():
        return "shape"
    return None
