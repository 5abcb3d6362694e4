"""A device whose memory does not hold a batch: smaller batches, and a note in the run folder."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
import yaml
from known_runs import job_for
from small_sams import picture, small_sam

from workbench.runs import cluster
from workbench.runs.finish import finish
from workbench.runs.plan import prepare
from workbench.runs.run import run
from workbench.segmenters.sam import SamSegmenter

pytestmark = pytest.mark.usefixtures("one_thread")


def narrow_sam(largest: int, seen: list[int]):
    """A model on a device that holds only so many prompts; `seen` grows with the batches."""
    model = small_sam()

    def hold(decoder, args, given) -> None:
        seen.append(len(given["sparse_prompt_embeddings"]))
        if seen[-1] > largest:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model.mask_decoder.register_forward_pre_hook(hold, with_kwargs=True)
    return model


def segmenter_of(largest: int, batch: int, seen: list[int]) -> SamSegmenter:
    return SamSegmenter(
        lambda: narrow_sam(largest, seen), "small", "", points_per_side=4, points_per_batch=batch
    )


def test_batches_are_halved_until_memory_holds_them_and_stay_so():
    seen: list[int] = []
    segmenter = segmenter_of(4, 12, seen)
    assert segmenter.key["points_per_batch"] == 12
    image = picture(96, 128)
    candidates = segmenter.propose(image)
    assert seen == [12, 6, 3, 3, 3, 3, 3, 1]
    assert segmenter.key["points_per_batch"] == 3
    seen.clear()
    assert segmenter.propose(image).table == candidates.table
    assert max(seen) == 3
    # no mask twice, and none from the larger batches
    assert segmenter_of(4, 3, []).propose(image).table == candidates.table
    assert len(candidates)


def test_a_device_that_does_not_hold_one_prompt_is_an_error():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        segmenter_of(0, 4, []).propose(picture(64, 64))


def test_a_run_goes_on_in_smaller_batches_and_says_so(raster, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    batches = []

    def segmenter(job, before):
        batches.append(before.get("points_per_batch", 12))
        return segmenter_of(4, batches[-1], [])

    monkeypatch.setattr("workbench.runs.choose.segmenter_for", segmenter)
    job = job_for(raster, folder, tile_size=192)
    first = run(job)
    assert set(first.tiles["status"]) <= {"ok", "empty"}
    record = yaml.safe_load((folder / "run.yaml").read_text())
    assert record["segmenter"]["points_per_batch"] == 3
    (note,) = record["notes"]
    assert note.startswith("out of memory: points_per_batch 12 became 3; ")
    run(job)  # a resume begins with what the device holds
    assert batches == [12, 3]
    assert yaml.safe_load((folder / "run.yaml").read_text()) == record


def test_a_worker_that_halved_its_batches_keeps_its_model_and_says_so(
    raster, tmp_path, monkeypatch
):
    loads = []

    class Counted(SamSegmenter):
        def load(self):
            loads.append(1)
            super().load()

    def make(job, before):
        return Counted(
            lambda: narrow_sam(4, []), "small", "", points_per_side=4,
            points_per_batch=before.get("points_per_batch", 12),
        )  # fmt: skip

    monkeypatch.setattr("workbench.runs.choose.segmenter_for", make)
    monkeypatch.setattr(cluster, "_loaded", [])
    job = job_for(raster, tmp_path / "run", tile_size=192)
    with closing(prepare(job)) as plan:
        share = cluster.SharedRun(job, plan.folder, plan.lock.owner, make)
        key = cluster._key_here(share, {})
        loads.clear()
        (part,) = plan.scenes
        for tile in part.tiles:
            chunk = cluster.Chunk(share, key, replace(part, tiles=(tile,)))
            (record,) = cluster._segment_chunk(chunk)
            assert record.status in ("ok", "empty")
        assert not loads
        finish(plan)
    (note,) = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["notes"]
    assert note.startswith("out of memory: points_per_batch 12 became 3; ")
