"""What only a GPU can show; `benchmarks/gpu.py` runs these where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from small_sams import picture, small_sam

from workbench.candidates.table import Rules
from workbench.segmenters.sam import SamSegmenter

ROOT = Path(__file__).parent.parent


def candidates(device: str, precision: str = "fp32") -> list[dict]:
    rules = Rules(200, 160, 0.4, 0.4, crop_n_layers=1)
    segmenter = SamSegmenter(
        small_sam, "", "", 8, rules, device, precision, points_per_batch=16, threads=1
    )
    segmenter.load()
    table = segmenter.propose(picture(200, 160)).table
    return [{"size": (200, 160), "counts": rle} for rle in table.column("rle").to_pylist()]


@pytest.mark.parametrize(("precision", "iou", "share"), [("fp32", 0.99, 0.99), ("auto", 0.9, 0.9)])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_finds_the_masks_that_the_cpu_finds(precision: str, iou: float, share: float) -> None:
    from workbench.segmenters.sam.device import resolve_precision

    expected = candidates("cpu")
    found = candidates("cuda", resolve_precision(precision, "cuda"))
    assert len(expected) > 10
    ious = np.asarray(coco.iou(expected, found, [0] * len(found)))
    assert (ious.max(axis=1) >= iou).mean() >= share


@pytest.mark.slow
def test_the_figures_of_a_gpu_can_be_taken_and_gone_on_with(tmp_path: Path) -> None:
    """On the CPU, with 16 prompts: it says nothing of a GPU, but it runs."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--folder", str(tmp_path), "--only", "tiny", "tests"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--minutes", "0"], check=True, capture_output=True, text=True, env=environment
    )
    assert "run the same command again" in done.stdout
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "failed" not in (tmp_path / "gpu.json").read_text()
    page = (tmp_path / "gpu.md").read_text()
    assert "| tiny | engine, fp32 |" in page
    assert "| tiny | official, best setting |" in page
    assert "100.0 %" in page  # the official generator's masks are the engine's
    assert "quick: no measurement" in page
    written = (tmp_path / "gpu.json").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert (tmp_path / "gpu.json").stat().st_mtime_ns == written  # nothing is done twice
