"""Train the network that finds borders: it learns from crops where objects begin and end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from crops import Example, Texture, make_example
from numpy.typing import NDArray
from scenes import pooled_scene
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from workbench._support.files import atomic_path
from workbench.segmenters.sam.bordernet import BorderNet, Conv

WEIGHT_DECAY = 0.02
SAVE_EVERY_S = 60
AVERAGE_DECAY = 0.998
PIXEL_MEAN, PIXEL_STD = (124.0, 116.0, 104.0), (58.0, 57.0, 57.0)
BORDER_WEIGHT = 2.0  # a pixel at a border counts as so many others
SCENES_KEPT = 600  # in memory, 5 MB each


@dataclass(frozen=True)
class BorderPlan:
    """All that a training depends on, but for the machine's arithmetic.

    The learning rate rises over `warm_up` steps, stays, and falls to nothing over the last `decay`.
    Scenes come in one by one: `n_scenes` at first, one more every `every` steps.
    """

    steps: int
    warm_up: int
    decay: int
    rate: float
    crop_px: int
    images: int
    n_scenes: int
    every: int
    most_scenes: int
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        left = (self.steps - step) / max(self.decay, 1)
        return self.rate * min((step + 1) / max(self.warm_up, 1), 1.0, max(left, 0.01))

    def scenes_at(self, step: int) -> int:
        """How many scenes a step may choose from."""
        return min(self.n_scenes + step // self.every, self.most_scenes)


kept_scene = lru_cache(SCENES_KEPT)(pooled_scene)


def batch_of(
    plan: BorderPlan, step: int, pool: Path, textures: Sequence[Texture]
) -> dict[str, Tensor]:
    """Make the examples of a step, always the same, and stack them."""
    n_scenes = plan.scenes_at(step)
    examples = []
    for i in range(plan.images):
        rng = np.random.default_rng((plan.seed, step, i))
        scene = kept_scene(int(rng.integers(n_scenes)), pool)
        examples.append(make_example(scene, textures, plan.crop_px, rng))
    return {
        "image": torch.from_numpy(np.stack([one.image for one in examples])),
        "maps": torch.from_numpy(np.stack([_answers(one) for one in examples])),
    }


def _answers(example: Example) -> NDArray[np.bool_]:
    """What the maps should show, `(3, s, s)`."""
    return np.stack(
        [border_pixels(example.labels), border_pixels(example.wholes), example.labels >= 0]
    )


def border_pixels(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Mark the pixels `(h, w)` that have a neighbour, left, right, above or below, of another."""
    found = np.zeros(labels.shape, bool)
    for one, two in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = labels[one] != labels[two]
        found[one] |= differ
        found[two] |= differ
    return found


def loss_of(batch: dict[str, Tensor], maps: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and figures to watch."""
    target = batch["maps"].float()
    by_pixel = binary_cross_entropy_with_logits(maps.float(), target, reduction="none")
    weight = 1 + (BORDER_WEIGHT - 1) * target[:, :2]
    part, whole = ((by_pixel[:, :2] * weight).sum((0, 2, 3)) / weight.sum((0, 2, 3))).unbind()
    on_object = by_pixel[:, 2].mean()
    loss = part + whole + 0.3 * on_object
    watched = {"loss": loss, "part": part, "whole": whole, "object": on_object}
    return loss, {name: value.item() for name, value in watched.items()}


def normalised(image: Tensor) -> Tensor:
    """Bring images `(n, h, w, 3)` of 8 bits to `(n, 3, h, w)` as the model's `preprocess` does."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return ((image.float() - mean.to(image.device)) / std.to(image.device)).permute(0, 3, 1, 2)


def train_borders(
    plan: BorderPlan,
    folder: Path,
    pool: Path,
    textures: Sequence[Texture],
    device: str,
    until: int,
) -> None:
    """Train until a step; what `folder` holds already is not done again."""
    torch.manual_seed(plan.seed)
    net = BorderNet(norm=nn.BatchNorm2d).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(_groups(net), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    start, seconds, checkpoint = 0, 0.0, folder / "borders.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start, seconds = saved["average"], saved["step"], saved["seconds"]

    def save(step: int) -> None:
        state = {
            "model": net.state_dict(), "optimizer": optimizer.state_dict(),
            "average": average, "step": step, "seconds": seconds,
        }  # fmt: skip
        with atomic_path(checkpoint) as temporary:
            torch.save(state, temporary)

    recent: list[dict[str, float]] = []
    began = last_save = time.monotonic()
    for step in range(start, until):
        batch = batch_of(plan, step, pool, textures)
        batch = {name: value.to(device) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        with torch.autocast(device, torch.bfloat16):
            maps = net(normalised(batch["image"]))
        loss, watched = loss_of(batch, maps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        share = 1 - min(AVERAGE_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, share)
                else:
                    average[name].copy_(value)
        now = time.monotonic()
        seconds, began = seconds + now - began, now
        recent.append(watched)
        if (step + 1) % 50 == 0:
            _log(folder, step + 1, seconds, recent)
            recent = []
        if now - last_save > SAVE_EVERY_S or step + 1 == until:
            save(step + 1)
            last_save = time.monotonic()


def trained_borders(folder: Path) -> BorderNet:
    """Return the averaged network, its normalisations folded into the convolutions."""
    saved = torch.load(folder / "borders.pt", map_location="cpu", weights_only=True)
    net = BorderNet(norm=nn.BatchNorm2d)
    net.load_state_dict(saved["average"])
    net.eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, Conv):
                layer.conv = nn.utils.fuse_conv_bn_eval(layer.conv, layer.norm)
                layer.norm = nn.Identity()
    return net.requires_grad_(False)


def _log(folder: Path, step: int, seconds: float, recent: list[dict[str, float]]) -> None:
    means = {name: round(float(np.mean([one[name] for one in recent])), 4) for name in recent[0]}
    line = json.dumps({"step": step, "minutes": round(seconds / 60, 1), **means})
    print(line, flush=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def _groups(net: BorderNet) -> list[dict[str, object]]:
    """Matrices decay; biases and norms do not."""
    decaying = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
