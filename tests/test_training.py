"""Training of the embedded model: a trial of a few steps on two small scenes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from workbench.segmenters.sam import load_model, sam_segmenter
from workbench.segmenters.sam.checkpoints import MODELS

SCRIPT = Path(__file__).parent.parent / "training" / "train.py"


def trained(folder: Path, pool: Path, *more: str) -> bytes:
    command = [sys.executable, str(SCRIPT), "--trial", "--folder", str(folder), "--pool", str(pool)]
    subprocess.run([*command, *more], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    path = folder / "tiny.pth"
    return path.read_bytes() if path.exists() else b""


def training_module(name: str) -> ModuleType:
    """A module of the folder, which is no package."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


def test_what_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, pool: Path) -> None:
    at_once = trained(tmp_path / "at_once", pool)
    in_parts = tmp_path / "in_parts"
    assert not trained(in_parts, pool, "--until", "3")
    assert trained(in_parts, pool) == at_once
    (in_parts / "tiny.pth").unlink()
    (in_parts / "regions" / "0001.npz").unlink()
    assert trained(in_parts, pool) == at_once
    model = load_model("tiny", in_parts / "tiny.pth")
    assert model.image_encoder.img_size == 1024
    sam_segmenter("tiny", checkpoint=in_parts / "tiny.pth").load()


def test_pictures_lend_their_textures(tmp_path: Path, pool: Path) -> None:
    """Each picture gives its most even places; what is no picture is passed over."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 30, (200, 300, 3), np.uint8)
    picture[:, 150:] += 100
    cv2.imwrite(str(folder / "a.png"), picture)
    (folder / "notes.txt").write_text("no picture")
    found = training_module("imagery").textures([folder])
    assert len(found) == 4
    assert all(np.ptp(one.mean((0, 2))) < 20 for one in found)  # none lies across the edge
    without = trained(tmp_path / "without", pool)
    assert trained(tmp_path / "with", pool, "--imagery", str(folder)) != without


def test_crowns_of_a_grove_are_apart_and_rough() -> None:
    scenes = training_module("scenes")
    for number in range(scenes.FIRST_GROVE, scenes.FIRST_GROVE + 30, 3):
        scene = scenes.make_scene(number)
        assert np.array_equal(scene.rgb, scenes.make_scene(number).rgb)
        area = np.bincount(scene.labels[scene.labels >= 0])
        assert 0.1 < (scene.labels >= 0).mean() < 0.95
        # few are hidden, and each is one piece but for its ragged edge
        assert (area > 0).mean() > 0.9
        pieces = cv2.connectedComponentsWithStats((scene.labels == area.argmax()).view(np.uint8))
        assert pieces[2][1:, cv2.CC_STAT_AREA].max() > 0.9 * area.max()


def test_half_a_roof_is_worth_less_than_the_roof() -> None:
    train, scores, crops = (training_module(name) for name in ("train", "scores", "crops"))
    image = np.full((128, 128, 3), (60, 110, 60), np.uint8)
    labels, wholes = (np.full((128, 128), -1, np.int16) for _ in range(2))
    for part, (columns, colour) in enumerate(
        ((slice(32, 64), (200, 90, 70)), (slice(64, 96), (130, 50, 40))), start=1
    ):
        image[40:88, columns], labels[40:88, columns], wholes[40:88, columns] = colour, part, 0
    plan = train.TRIAL.scores
    encoder = load_model("tiny", MODELS["tiny"].weights.path).image_encoder
    regions = scores.regions_in(encoder, crops.Example(image, labels, wholes))
    rows = np.flatnonzero(regions.area >= scores.MIN_AREA_PX)
    whole, part = (scores.true_iou(regions, rows, x) for x in (wholes, labels))
    worth, halves = plan.worth(whole, part), part > 0.9
    assert halves.any()
    assert worth[halves].max() < 0.7
    assert worth.max() > 0.9
