"""Train the embedded model `tiny`: one command, seeded, goes on where it was interrupted.

    python training/train.py [--imagery FOLDER …]

First the network that finds borders, then the one that scores regions, both on made scenes. The
pictures in the folders lend them the textures of real ground; nobody needs to have labelled them.
Writes `tiny.pth`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from borders import BorderPlan, train_borders, trained_borders
from crops import Texture
from imagery import textures
from scores import ScorePlan, train_scores

from workbench._support.files import atomic_path
from workbench.segmenters.sam.tiny import RegionEncoder, build_tiny


@dataclass(frozen=True)
class Plan:
    """Both trainings."""

    borders: BorderPlan
    scores: ScorePlan


PLAN = Plan(
    BorderPlan(
        steps=12_000, warm_up=50, decay=4500, rate=2.5e-3, crop_px=256, images=8, n_scenes=12,
        every=15, most_scenes=600,
    ),
    ScorePlan(
        crops=2000, calibration_crops=24, crop_px=512, regions=2500, n_scenes=600, steps=2500
    ),
)  # fmt: skip
TRIAL = Plan(
    BorderPlan(
        steps=4, warm_up=1, decay=2, rate=1e-3, crop_px=64, images=2, n_scenes=2, every=100,
        most_scenes=2,
    ),
    ScorePlan(crops=2, calibration_crops=1, crop_px=128, regions=500, n_scenes=2, steps=20),
)  # fmt: skip


def train(
    plan: Plan, folder: Path, pool: Path, found: Sequence[Texture], device: str, until: int
) -> Path | None:
    """Train, as far as `folder` does not hold it already, and write the weights there.

    Before the last step of the first network there is nothing to write.
    """
    train_borders(plan.borders, folder, pool, found, device, until)
    if until < plan.borders.steps:
        return None
    encoder = RegionEncoder().eval()
    encoder.borders = trained_borders(folder)
    train_scores(plan.scores, encoder, folder / "regions", pool, found)
    return export(encoder, folder / "tiny.pth")


def export(encoder: RegionEncoder, path: Path) -> Path:
    """Write the model's weights."""
    model = build_tiny()
    model.image_encoder = encoder
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    file = io.BytesIO()  # torch.save puts a file's name into the file
    torch.save(weights, file)
    with atomic_path(path) as temporary:
        temporary.write_bytes(file.getvalue())
    return path


def main() -> None:
    """Train as the command line says, and write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs = Path(__file__).resolve().parent.parent / "runs" / "training"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--folder", type=Path, default=runs / "tiny", help="checkpoints and log")
    parser.add_argument("--pool", type=Path, default=runs / "pool", help="scenes made so far")
    parser.add_argument("--imagery", type=Path, nargs="+", default=[], help="folders of pictures")
    parser.add_argument("--device", default=device, help="of the network that finds borders")
    parser.add_argument("--until", type=int, help="stop that after this step; a later call goes on")
    parser.add_argument("--trial", action="store_true", help="a few steps, to see that all works")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    plan = TRIAL if given.trial else PLAN
    until = min(given.until or plan.borders.steps, plan.borders.steps)
    given.folder.mkdir(parents=True, exist_ok=True)
    found = textures(given.imagery)
    weights = train(plan, given.folder, given.pool, found, given.device, until)
    print(f"Weights: {weights}" if weights else f"Stopped after step {until}.")


if __name__ == "__main__":
    main()
