"""How far several reviewers agree about what two of them have judged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from workbench.candidates.offer import Offer
from workbench.evaluation.matching import pairs_of
from workbench.layer.cores import home_in
from workbench.polygons.overlap import iou_of
from workbench.review.answers import KEPT, Answers, only_shapes
from workbench.runs.result import Run


def agreement(came: Sequence[Answers], run: Run) -> pd.DataFrame:
    """A row for each two reviewers that were given some tiles in common."""
    rows = {}
    for one, other in combinations(came, 2):
        both = set(one.given["id"]) & set(other.given["id"])
        if both:
            rows[f"{one.name}, {other.name}"] = _agree(one, other, both, run)
    return pd.DataFrame.from_dict(rows, orient="index")


def _agree(one: Answers, other: Answers, both: set[str], run: Run) -> dict[str, float]:
    judged = [
        label
        for label in sorted(both & set(one.answers) & set(other.answers))
        if "unreviewed" not in (one.verdict(label), other.verdict(label))
    ]
    status = [[_status(each.verdict(label)) for label in judged] for each in (one, other)]
    kept = [
        label for label in judged if one.verdict(label) in KEPT and other.verdict(label) in KEPT
    ]
    classes = [[str(each.classes(label)) for label in kept] for each in (one, other)]
    shapes = [np.array([each.shape(label) for label in kept], object) for each in (one, other)]
    same_class = dict(zip(kept, np.equal(*map(np.array, classes)), strict=True)) if kept else {}
    same = sum(
        a == b and bool(same_class.get(label, True))
        for label, a, b in zip(judged, *status, strict=True)
    )
    tiles = run.tiles.iloc[np.unique(home_in(run.tiles, one.given[one.given["id"].isin(both)]))]
    drawn = [_in_tiles(each, tiles) for each in (one, other)]
    twice = len(np.unique(pairs_of(*drawn, at_least=Offer.duplicate_iou or 1.0).predicted))
    return {
        "tiles": len(tiles),
        "labels": len(judged),
        "same": int(same),
        "status_kappa": kappa(*status),
        "class_kappa": kappa(*classes),
        "iou": float(iou_of(*shapes).mean()) if kept else float("nan"),
        "drawn_by_both": twice,
        "drawn_by_one": len(drawn[0]) + len(drawn[1]) - 2 * twice,
    }


def _status(verdict: str) -> str:
    return "rejected" if verdict == "deleted" else verdict


def _in_tiles(package: Answers, tiles: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The shapes that somebody drew in some tiles."""
    rows = package.back.iloc[package.drawn]
    return only_shapes(rows[home_in(tiles.reset_index(drop=True), rows) >= 0])


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa; NaN where all answers are the same, which chance explains as well."""
    if len({*one, *other}) < 2:
        return float("nan")
    return float(cohen_kappa_score(one, other))
