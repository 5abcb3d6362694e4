"""Thresholds by the decisions of a review, where no tile is fully reviewed."""

from __future__ import annotations

from collections import defaultdict

import geopandas as gpd

from workbench.evaluation.judged import JudgedAdvice, advise_judged
from workbench.review.changes import changes
from workbench.runs.folder import store_in
from workbench.runs.result import Run

_GOOD = {"accepted": True, "edited": True, "rejected": False, "deleted": False}


def advise_by_decisions(run: Run, labels: gpd.GeoDataFrame) -> JudgedAdvice:
    """Advise thresholds that keep what was accepted and edited and drop what was rejected.

    Each decision counts where it was made. What nobody judged and what somebody drew says nothing.
    Raises `ReviewError` unless some labels are kept and some are rejected.
    """
    told = changes(labels, run.layer)
    verdicts: dict[str, dict[int, bool]] = defaultdict(dict)  # by tile and ordinal
    for id, change in zip(told["id"], told["change"], strict=True):
        if change in _GOOD:
            tile, _, ordinal = str(id).rpartition("/")
            verdicts[tile][int(ordinal)] = _GOOD[change]
    ledger = run.tiles[run.tiles["tile"].isin(list(verdicts))]
    index = zip(ledger["source"], ledger["tile_row"], ledger["tile_col"], strict=True)
    name_of = dict(zip(index, ledger["tile"], strict=True))
    tiles = [
        (stored.of_tile(record.tile_row, record.tile_col), verdicts[name_of[record.index]])
        for stored, records in store_in(run.folder).read(name_of)
        for record in records
    ]
    return advise_judged(tiles, run.job.thresholds)
