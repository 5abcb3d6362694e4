"""Train the network of `tiny` that scores regions: made scenes tell how well each fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from crops import Example, Texture, make_example
from numpy.typing import NDArray
from scenes import pooled_scene
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from workbench._support.files import atomic_path
from workbench.segmenters.sam.regions import MIN_AREA_PX, Regions
from workbench.segmenters.sam.tiny import (
    PIXEL_MEAN,
    PIXEL_STD,
    Chooser,
    RegionEncoder,
    Scorer,
    packed,
)

PROMPT_PX = 32  # from prompt to prompt
MIN_VISIBLE_PX = 24  # of an object


@dataclass(frozen=True)
class ScorePlan:
    """All that a training depends on, but for the machine's arithmetic."""

    crops: int
    calibration_crops: int  # others than those learnt from
    crop_px: int
    regions: int  # of a crop, drawn from all of them
    n_scenes: int
    steps: int
    batch: int = 4096
    rate: float = 3e-3
    plain_share: float = 0.2  # of crops whose objects have no texture
    part_worth: float = 0.6  # of an object that is part of another, as half a roof is
    seed: int = 2

    def worth(
        self, whole_iou: NDArray[np.float32], part_iou: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What regions are worth by their IoU with objects and with parts: a part is worth less."""
        return np.maximum(whole_iou, np.float32(self.part_worth) * part_iou)


@dataclass(frozen=True)
class Described:
    """Regions of crops: traits `(n, k)`, best IoU with an object, with a part, weight `(n,)`."""

    traits: NDArray[np.float32]
    whole_iou: NDArray[np.float32]
    part_iou: NDArray[np.float32]
    weight: NDArray[np.float32]


def train_scores(
    plan: ScorePlan,
    encoder: RegionEncoder,
    folder: Path,
    pool: Path,
    textures: Sequence[Texture],
) -> None:
    """Train the scores of an encoder that finds borders; what `folder` holds is not done again."""
    examples = _Examples(plan, pool, textures)
    parts = [described(encoder, examples, i, folder) for i in range(plan.crops)]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    encoder.score = trained(plan, Described(*(np.concatenate(column) for column in columns)))
    calibrate(plan, encoder, examples)


@dataclass(frozen=True)
class _Examples:
    plan: ScorePlan
    pool: Path
    textures: Sequence[Texture]

    def __call__(self, i: int) -> Example:
        rng = np.random.default_rng((self.plan.seed, i))
        scene = pooled_scene(int(rng.integers(self.plan.n_scenes)), self.pool)
        return make_example(scene, self.textures, self.plan.crop_px, rng, self.plan.plain_share)


def described(encoder: RegionEncoder, examples: _Examples, i: int, folder: Path) -> Described:
    """Describe the regions of a crop."""
    path = folder / f"{i:04d}.npz"
    if not path.exists():
        example = examples(i)
        regions = regions_in(encoder, example)
        rows = np.flatnonzero(regions.area >= MIN_AREA_PX)
        # half of what is learned is about all regions, half about each size as much as another
        size = np.floor(np.log2(regions.area[rows])).astype(int)
        share = 1 / np.bincount(size)[size]
        weight = 0.5 + 0.5 * share / share.mean()
        some = np.random.default_rng(i).permutation(len(rows))[: examples.plan.regions]
        rows = rows[some]
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                traits=regions.traits[rows],
                whole_iou=true_iou(regions, rows, example.wholes),
                part_iou=true_iou(regions, rows, example.labels),
                weight=weight[some].astype(np.float32),
            )
    with np.load(path, allow_pickle=False) as arrays:
        return Described(**arrays)


@torch.inference_mode()
def regions_in(encoder: RegionEncoder, example: Example) -> Regions:
    """Find the regions of a crop."""
    image = (torch.from_numpy(example.image).float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(
        PIXEL_STD
    )
    return encoder.regions(image.permute(2, 0, 1))


def true_iou(
    regions: Regions, rows: NDArray[np.int64], labels: NDArray[np.int16]
) -> NDArray[np.float32]:
    """The best IoU of some regions with any object of a map of labels `(h, w)`."""
    best = np.zeros(len(rows))
    held, area = regions.held(rows), regions.area[rows]
    superpixels = regions.superpixels
    on = labels >= 0
    shape = (len(superpixels.area), int(labels.max(initial=0)) + 1)
    shared_by_superpixel = sparse.coo_matrix(
        (np.ones(on.sum()), (superpixels.labels[on], labels[on])), shape
    ).tocsr()
    size = np.asarray(shared_by_superpixel.sum(axis=0))[0]
    shared = (held @ shared_by_superpixel).tocoo()
    seen = size[shared.col] >= MIN_VISIBLE_PX
    row, col, both = shared.row[seen], shared.col[seen], shared.data[seen]
    np.maximum.at(best, row, both / (area[row] + size[col] - both))
    return best.astype(np.float32)


def trained(plan: ScorePlan, known: Described) -> Scorer:
    """Train a network that reads IoUs from traits, as logits."""
    torch.manual_seed(plan.seed)
    worth = plan.worth(known.whole_iou, known.part_iou)
    traits, target, weight = map(torch.from_numpy, (known.traits, worth, known.weight))
    net = Scorer(traits.shape[1])
    net.mean, net.std = traits.mean(dim=0), traits.std(dim=0).clamp(min=1e-3)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * (1 - step / plan.steps)
        some = torch.randint(len(target), (plan.batch,))
        logits = net(traits[some])
        # what may be chosen counts more than what never is
        share = weight[some] * (0.1 + logits.detach().sigmoid())
        loss = binary_cross_entropy_with_logits(logits, target[some], share) / share.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0:
            print({"step": step + 1, "score_loss": round(loss.item(), 4)}, flush=True)
    return net


def calibrate(plan: ScorePlan, encoder: RegionEncoder, examples: _Examples) -> None:
    """Scale the scores so that those of the regions that prompts choose are right on the average.

    The best of many regions was often lucky: its score is higher than its IoU.
    """
    logits, targets = [], []
    for i in range(plan.crops, plan.crops + plan.calibration_crops):
        example = examples(i)
        regions = regions_in(encoder, example)
        with torch.inference_mode():
            chooser = Chooser(packed(regions, encoder.scores(regions), example.labels.shape)[None])
            at = np.arange(PROMPT_PX // 2, plan.crop_px, PROMPT_PX)
            points = np.stack(np.meshgrid(at, at), -1).reshape(-1, 1, 2)
            prompts = np.concatenate([points, np.ones_like(points[..., :1])], 2)
            _, chosen = chooser.chosen(torch.from_numpy(prompts).float(), None)
        keys = zip(
            regions.tree.tolist(), regions.first.tolist(), regions.last.tolist(), strict=True
        )
        number = {key: row for row, key in enumerate(keys)}
        table = chooser.table
        asked = torch.stack([table.tree, table.first, table.last], 1)[chosen.unique()].tolist()
        rows = np.array([number[tuple(key)] for key in asked])
        whole, part = (true_iou(regions, rows, x) for x in (example.wholes, example.labels))
        targets.append(torch.from_numpy(plan.worth(whole, part)))
        logits.append(encoder.score(torch.from_numpy(regions.traits[rows])).detach())
    scale, shift = _scaling(torch.cat(logits), torch.cat(targets))
    last = encoder.score.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight *= scale
        last.bias.mul_(scale).add_(shift)


def _scaling(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, shift], max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(logits * scale + shift, targets)
        value.backward()
        return value

    optimizer.step(loss)
    return scale.detach(), shift.detach()
