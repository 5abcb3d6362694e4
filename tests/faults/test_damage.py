"""Damaged rasters and candidates, and what has changed between runs."""

import pytest
import torch
from damage import break_block, flip_bytes, write_in_blocks
from known_objects import objects, write_labels
from known_runs import counted_calls, equal_layers, files_in, job_for

from workbench import run
from workbench.errors import RunFailedError, RunFolderError
from workbench.layer.files import read_layer
from workbench.raster.scene import Scene
from workbench.runs import segment as pipeline
from workbench.segmenters.sam.checkpoints import MODELS


@pytest.mark.usefixtures("known_objects_only")
def test_unreadable_blocks_cost_their_tiles_and_only_these_are_tried_again(tmp_path, monkeypatch):
    raster = write_in_blocks(tmp_path / "scene.tif", objects((400, 500), 1))
    whole = run(job_for(raster, tmp_path / "whole"))
    break_block(raster, 2, 3)
    reads, read = [], Scene.read
    monkeypatch.setattr(Scene, "read", lambda *args: reads.append(1) or read(*args))
    calls = counted_calls(monkeypatch)
    job = job_for(raster, tmp_path / "run")
    failed = (
        r"6 of 42 tiles failed, the first is scene/r1c2: SceneError: .*scene\.tif.*copy or down"
    )
    with pytest.raises(RunFailedError, match=failed):
        run(job)
    assert len(calls) == 42 - 6
    assert len(reads) == 42
    layer = read_layer(tmp_path / "run" / "prelabels.gpkg")
    assert len(layer) > 0
    assert {path.name for path in files_in(tmp_path / "run")} >= {"report.html", "review.qgz"}
    far = layer[~layer["at_edge"]]["id"]  # what is not cut at a failed tile is as it was
    assert far.isin(whole.layer["id"]).all()
    with pytest.raises(RunFailedError, match="6 of 42"):
        run(job)
    assert len(reads) == 42 + 6
    assert len(calls) == 42 - 6


@pytest.mark.usefixtures("known_objects_only")
def test_any_changed_byte_of_candidates_is_noticed_or_harmless(raster, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "FLUSH_TILES", 8)
    job = job_for(raster, tmp_path / "run")
    before = run(job).layer
    damaged, _ = files_in(tmp_path / "run" / "candidates")
    flips = flip_bytes(damaged, 53)
    assert flips.tried > 100
    assert flips.detected > flips.tried / 2
    assert flips.misread == 0
    calls = counted_calls(monkeypatch)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert equal_layers(run(job).layer, before)
    assert 0 < len(calls) < 15  # that file's tiles
    assert len(files_in(tmp_path / "run" / "candidates")) == 2


def test_a_run_does_not_go_on_with_another_checkpoint_or_raster(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", objects((96, 96), 1))
    weights = torch.load(MODELS["tiny"].weights.fetch(), weights_only=True)
    torch.save(weights, tmp_path / "mine.pth")
    job = job_for(
        raster, tmp_path / "run", model="tiny", checkpoint=str(tmp_path / "mine.pth"),
        points_per_side=2,
    )  # fmt: skip
    run(job)
    before = {path: path.read_bytes() for path in files_in(tmp_path / "run")}
    name = next(iter(weights))
    torch.save({**weights, name: weights[name] + 0.001}, tmp_path / "mine.pth")
    with pytest.raises(RunFolderError, match=r"another segmenter.*(?s:.*)sha256: \w+ there, "):
        run(job)
    torch.save(weights, tmp_path / "mine.pth")
    run(job)
    write_labels(raster, objects((96, 96), 2))
    with pytest.raises(RunFolderError, match=r"scene\.tif when the raster had another"):
        run(job)
    assert {path.name for path in before} == {path.name for path in files_in(tmp_path / "run")}
