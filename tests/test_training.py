"""Training of the embedded model: a trial of a few steps on two small scenes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.segmenters.sam import load_model, sam_segmenter

SCRIPT = Path(__file__).parent.parent / "training" / "train.py"


def trained(folder: Path, pool: Path, *more: str) -> bytes:
    command = [sys.executable, str(SCRIPT), "--trial", "--folder", str(folder), "--pool", str(pool)]
    subprocess.run(
        [*command, "--processes", "1", "--workers", "0", *more],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return (folder / "tiny.pth").read_bytes()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


def test_what_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, pool: Path) -> None:
    at_once = trained(tmp_path / "at_once", pool)
    in_parts = tmp_path / "in_parts"
    half = trained(in_parts, pool, "--until", "3")
    assert half != at_once
    assert trained(in_parts, pool) == at_once
    model = load_model("tiny", in_parts / "tiny.pth")
    assert model.image_encoder.img_size == 1024
    sam_segmenter("tiny", checkpoint=in_parts / "tiny.pth").load()
