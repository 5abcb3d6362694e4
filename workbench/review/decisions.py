"""Thresholds recommended from single decisions, where no tile is fully reviewed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import geopandas as gpd

from workbench.candidates.table import Candidates
from workbench.evaluation.judged import JudgedAdvice, advise_judged
from workbench.review.changes import changes
from workbench.runs.folder import store_in
from workbench.runs.result import Run

_GOOD = {"accepted": True, "edited": True, "rejected": False, "deleted": False}


def advise_by_decisions(run: Run, labels: gpd.GeoDataFrame) -> JudgedAdvice:
    """Advise thresholds that keep what was accepted and edited and drop what was rejected.

    Only labels that were judged count. Drawn labels do not, and neither do labels of an earlier
    model that a refresh has kept. Raises `ReviewError` unless some labels are kept and some are
    rejected.
    """
    told = changes(labels, run.layer)
    # by tile and ordinal, with the score that tells whether it is that candidate
    verdicts: dict[str, dict[int, tuple[bool, float]]] = defaultdict(dict)
    for id, change, score in zip(told["id"], told["change"], told["confidence"], strict=True):
        if change in _GOOD:
            tile, _, ordinal = str(id).rpartition("/")
            verdicts[tile][int(ordinal)] = _GOOD[change], score
    ledger = run.tiles[run.tiles["tile"].isin(list(verdicts))]
    index = zip(ledger["source"], ledger["tile_row"], ledger["tile_col"], strict=True)
    name_of = dict(zip(index, ledger["tile"], strict=True))
    tiles = [
        (candidates, _of_these(candidates, verdicts[name_of[record.index]]))
        for stored, records in store_in(run.folder).read(name_of)
        for record in records
        for candidates in [stored.of_tile(record.tile_row, record.tile_col)]
    ]
    return advise_judged(tiles, run.job.thresholds)


def _of_these(
    candidates: Candidates, verdicts: Mapping[int, tuple[bool, float]]
) -> dict[int, bool]:
    """The verdicts on stored candidates; those of another model may have the same numbers."""
    scores = candidates.column("pred_iou").astype(float).tolist()
    score_of = dict(zip(candidates.column("ordinal").tolist(), scores, strict=True))
    return {n: good for n, (good, score) in verdicts.items() if score_of.get(n) == score}
