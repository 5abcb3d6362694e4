"""Train the embedded model `tiny`: one command, seeded, goes on where it was interrupted.

python training/train.py

Recipe of SAM (Kirillov et al. 2023, section 3 and appendix A): point prompts, for each answer the
best of the three masks by focal and dice loss, and a head that learns the masks' true IoU. Besides,
a layer that exists in training only asks the image encoder which cells show the same object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from crops import MASK_STRIDE, PAIRS, Example, make_example
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, softplus
from torch.utils.data import DataLoader, Dataset

from workbench._support.files import atomic_path
from workbench.segmenters.sam.tiny import IMG_SIZE, STRIDE, WIDTH, ChannelNorm, build_tiny

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder

WEIGHT_DECAY = 0.05
AVERAGE_DECAY = 0.998
READER_SHARE = 4.0
TOKENS_AT_ONCE = 1 << 15  # of the decoder on a CPU
# how far logits lie from 0 is a matter of taste, but stability is measured with it: so that good
# masks have about the stability that SAM gives them
LOGIT_SCALE = 5.0


@dataclass(frozen=True)
class View:
    """Crops of one size: how many at a time, and how many prompts on each."""

    crop_px: int
    images: int
    points: int


@dataclass(frozen=True)
class Stage:
    """So many steps, on crops of the given sizes in turn; the learning rate changes evenly."""

    steps: int
    views: tuple[View, ...]
    rate: float
    last_rate: float


@dataclass(frozen=True)
class Plan:
    """All that a training depends on, but for the machine's arithmetic."""

    stages: tuple[Stage, ...]
    n_scenes: int
    seed: int = 1

    @property
    def steps(self) -> list[tuple[View, float]]:
        """What each step looks at, and its learning rate."""
        return [
            (
                stage.views[i % len(stage.views)],
                stage.rate + (stage.last_rate - stage.rate) * i / stage.steps,
            )
            for stage in self.stages
            for i in range(stage.steps)
        ]


# Small crops teach much at once. Large ones teach to find one object among many: a model that has
# seen crops of 128 pixels only finds next to nothing in a tile.
PLAN = Plan(
    stages=(
        Stage(300, (View(128, 24, 24),), 0.0, 1e-3),
        Stage(900, (View(128, 24, 24),), 1e-3, 1e-3),
        Stage(1000, (View(256, 16, 16),), 1e-3, 1e-3),
        Stage(275, (View(512, 6, 32),), 1e-3, 1e-3),
        Stage(425, (View(512, 6, 32),), 1e-3, 5e-4),
        Stage(200, (View(768, 4, 16),), 5e-4, 2.6e-4),
        Stage(200, (View(1024, 2, 24),), 2.6e-4, 2e-5),
        Stage(300, (View(1024, 2, 24), View(512, 6, 32), View(256, 16, 16)), 2e-5, 8e-4),
        Stage(1700, (View(1024, 2, 24), View(512, 6, 32), View(256, 16, 16)), 8e-4, 8e-4),
        Stage(900, (View(1024, 2, 24), View(512, 6, 32), View(256, 16, 16)), 8e-4, 1e-5),
    ),
    n_scenes=1200,
)
TRIAL = Plan(
    stages=(Stage(3, (View(64, 2, 4),), 1e-5, 1e-4), Stage(2, (View(128, 2, 4),), 1e-4, 1e-5)),
    n_scenes=2,
)


class Batches(Dataset[dict[str, Tensor]]):
    """Batch `i` for step `i`, always the same; each of `world` processes takes its share of it."""

    def __init__(self, plan: Plan, pool: Path, rank: int, world: int) -> None:
        self.plan, self.pool, self.rank, self.world = plan, pool, rank, world
        self.views = [view for view, _ in plan.steps]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Make the examples of a step and stack them."""
        view = self.views[step]
        examples = [
            make_example(
                (self.plan.seed, step, i),
                self.pool,
                self.plan.n_scenes,
                view.crop_px,
                view.points,
            )
            for i in range(self.rank, view.images, self.world)
        ]
        return {
            field.name: torch.from_numpy(np.stack([getattr(one, field.name) for one in examples]))
            for field in fields(Example)
        }


# ------------------------------------------------------------------------------------- network


class Trainee(nn.Module):
    """The model and the layer that reads its embedding in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sam = build_tiny()
        with torch.no_grad():
            # frequencies from the whole picture down to a few pixels, so that points can be told
            # apart from the first step on
            scales = torch.logspace(-1, 3.3, WIDTH // 2, base=2.0)
            self.sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(scales)
        for layer in self.sam.mask_decoder.transformer.layers:
            _look_nearby(layer.cross_attn_token_to_image)
            _look_nearby(layer.cross_attn_image_to_token)
        norm = self.sam.mask_decoder.output_upscaling[1]
        self.sam.mask_decoder.output_upscaling[1] = FusedNorm(norm.weight, norm.bias)
        cells = (STRIDE // MASK_STRIDE) ** 2
        self.reader = nn.Sequential(
            nn.Conv2d(WIDTH, (2 * len(PAIRS) + 1) * cells, 1),
            nn.PixelShuffle(STRIDE // MASK_STRIDE),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, batch: dict[str, Tensor], origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `(b, p, 4, h, w)`, predicted IoU `(b, p, 4)` and the reader's logits.

        `origin` `(b, 2)` says where each crop lies in the model's frame (XY, cells of the
        embedding): a crop sees the positions that it would have in a whole tile.
        """
        image = (batch["image"].permute(0, 3, 1, 2) - self.sam.pixel_mean) / self.sam.pixel_std
        embedding = self.sam.image_encoder(image)
        b, _, h, w = embedding.shape
        prompts = self.sam.prompt_encoder
        points = (batch["points"] + origin[:, None] * STRIDE).flatten(0, 1)[:, None]
        with torch.autocast(image.device.type, enabled=False):
            ones = torch.ones(points.shape[:2], device=points.device)
            sparse, _ = prompts((points, ones), None, None)
            whole_pe = prompts.get_dense_pe()
        no_mask = prompts.no_mask_embed.weight[..., None, None]
        pe = torch.cat([whole_pe[..., y : y + h, x : x + w] for x, y in origin.tolist()])
        n = batch["points"].shape[1]
        # few large tensors on a GPU, but on a CPU only so many that they stay in its caches
        some = b if image.is_cuda else max(1, TOKENS_AT_ONCE // (n * h * w))
        parts = [
            predict_masks(
                self.sam.mask_decoder,
                embedding[i : i + some] + no_mask,
                pe[i : i + some],
                sparse[i * n : (i + some) * n],
            )
            for i in range(0, b, some)
        ]
        logits, ious = (
            torch.cat(part).unflatten(0, (b, n)).float() for part in zip(*parts, strict=True)
        )
        return logits, ious, self.reader(embedding).float()


class FusedNorm(ChannelNorm):
    """SAM's `LayerNorm2d` in one operation instead of six, with its weights."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__(len(weight), eps=1e-6)
        self.weight, self.bias = weight, bias


def _look_nearby(attention: nn.Module) -> None:
    """Begin with equal projections of queries and keys, so that like positions find each other.

    A point then attends to the pixels around it from the first step on. With independent random
    projections that has to be discovered first, which took more than 500 steps.
    """
    with torch.no_grad():
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.75)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()


def predict_masks(
    decoder: MaskDecoder, embedding: Tensor, pe: Tensor, sparse: Tensor
) -> tuple[Tensor, Tensor]:
    """As `MaskDecoder.predict_masks`, for as many prompts on each of several images."""
    n = len(sparse)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(n, -1, -1), sparse], dim=1)
    pixels = embedding.repeat_interleave(n // len(embedding), dim=0)
    tokens, pixels_out = decoder.transformer(
        pixels, pe.repeat_interleave(n // len(pe), dim=0), tokens
    )
    upscaled = decoder.output_upscaling(pixels_out.transpose(1, 2).view(pixels.shape))
    hyper = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    masks = (torch.stack(hyper, dim=1) @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return masks, decoder.iou_prediction_head(tokens[:, 0])


def loss_of(
    batch: dict[str, Tensor], logits: Tensor, ious: Tensor, read: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """SAM's loss and the reader's, and figures to watch."""
    target = batch["masks"].float() / MASK_STRIDE**2  # (b, p, 2, h, w)
    valid = batch["valid"]
    n = valid.sum().clamp(min=1)
    image, prompt, _ = valid.nonzero().unbind(1)
    best = _focal_and_dice(logits[image, prompt, 1:], target[valid]).min(dim=1).values
    # the first mask is for prompts without ambiguity; here it learns the larger object
    on_object = valid.any(dim=2)
    larger = torch.where(valid[..., 1, None, None], target[:, :, 1], target[:, :, 0])
    single = _focal_and_dice(logits[on_object][:, :1], larger[on_object])
    mask_loss = (best.sum() + 0.25 * single.sum()) / n

    with torch.no_grad():
        ours, theirs = (logits > 0).flatten(3).float(), (target >= 0.5).flatten(3).float()
        shared = torch.einsum("bpmk,bptk->bptm", ours, theirs)
        union = ours.sum(3)[:, :, None] + theirs.sum(3)[..., None] - shared
        iou = shared / union.clamp(min=1) * valid[..., None]  # (b, p, 2, 4)
        true_iou = iou.max(dim=2).values  # with what the mask agrees best; 0 on empty ground
    iou_loss = mse_loss(ious, true_iou)

    asked = torch.cat([batch["same"], batch["on_object"][:, None]], dim=1).float()
    # most neighbours show the same object: the few that do not must count as much
    share = asked.mean().clamp(0.05, 0.95)
    weight = torch.where(asked > 0.5, 0.5 / share, 0.5 / (1 - share))
    read_loss = binary_cross_entropy_with_logits(read, asked, weight)
    loss = mask_loss + 2 * iou_loss + READER_SHARE * read_loss
    found = (iou.max(dim=3).values * valid).sum() / n
    first = true_iou[..., 1:].gather(2, ious[..., 1:].argmax(2, keepdim=True))[..., 0]
    of_best_score = (first * on_object).sum() / on_object.sum().clamp(min=1)
    watched = {
        "loss": loss.item(),
        "mask": mask_loss.item(),
        "iou_mse": iou_loss.item(),
        "read": read_loss.item(),
        "best_iou": found.item(),  # of the three masks the best, on the average
        "top_iou": of_best_score.item(),  # of the three that with the highest score
    }
    return loss, watched


def _focal_and_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Loss `(n, m)` of masks `(n, m, h, w)`, all of which should be the target `(n, h, w)`."""
    x, t = logits.flatten(2), target.flatten(1)[:, None]
    p = x.sigmoid()
    cross_entropy = softplus(x) - x * t
    # the difference is 1 - p_t of the focal loss, also for cells that are half covered
    focal = (cross_entropy * (p - t).square()).mean(-1)
    dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    return 10 * focal + dice


# ------------------------------------------------------------------------------------ training


def train(
    rank: int,
    world: int,
    plan: Plan,
    folder: Path,
    pool: Path,
    device: str,
    workers: int,
    until: int,
) -> None:
    """Train until a step; what `folder` holds already is not done again.

    `world` processes share each batch. On a CPU, one process with one thread per core is a third
    faster than one process with as many threads: most tensors are small.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    store = f"file://{folder.resolve()}/processes"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.manual_seed(plan.seed)
    trainee = Trainee().to(device)
    optimizer = torch.optim.AdamW(_groups(trainee), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    rates = [rate for _, rate in plan.steps]
    average = {name: value.detach().clone() for name, value in trainee.state_dict().items()}
    start, seconds, checkpoint = 0, 0.0, folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        trainee.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start, seconds = saved["average"], saved["step"], saved["seconds"]

    def save(step: int, path: Path) -> None:
        state = {
            "model": trainee.state_dict(), "optimizer": optimizer.state_dict(),
            "average": average, "step": step, "seconds": seconds,
        }  # fmt: skip
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    batches = DataLoader(
        Batches(plan, pool, rank, world), batch_size=None, sampler=range(start, until),
        num_workers=workers, prefetch_factor=8 if workers else None, worker_init_fn=_quiet,
    )  # fmt: skip
    recent: list[dict[str, float]] = []
    began = last_save = time.monotonic()
    for step, batch in enumerate(batches, start):
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        with torch.autocast(device, torch.bfloat16):
            outputs = trainee(batch, _origins(plan, step, batch).to(device))
        loss, watched = loss_of(batch, *outputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average([p.grad for p in trainee.parameters() if p.grad is not None], world)
        nn.utils.clip_grad_norm_(trainee.parameters(), 2.0)
        optimizer.step()
        share = 1 - min(AVERAGE_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            state = trainee.state_dict()
            torch._foreach_lerp_([average[name] for name in state], list(state.values()), share)
        now = time.monotonic()
        seconds, began = seconds + now - began, now
        if rank:
            continue
        recent.append(watched)
        if (step + 1) % 50 == 0:
            _log(folder, step + 1, seconds, recent)
            recent = []
        if now - last_save > 120 or step + 1 == until:
            save(step + 1, checkpoint)
            last_save = time.monotonic()
        if (step + 1) % 500 == 0:  # to prolong a training from before the decay
            save(step + 1, folder / f"checkpoint_{step + 1}.pt")
    distributed.destroy_process_group()


def _log(folder: Path, step: int, seconds: float, recent: list[dict[str, float]]) -> None:
    means = {name: round(float(np.mean([one[name] for one in recent])), 4) for name in recent[0]}
    line = json.dumps({"step": step, "minutes": round(seconds / 60, 1), **means})
    print(line, flush=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def _origins(plan: Plan, step: int, batch: dict[str, Tensor]) -> Tensor:
    """Choose for each crop where in a tile it shall lie, cells of the embedding."""
    images, size = batch["image"].shape[:2]
    room = (IMG_SIZE - size) // STRIDE
    rng = np.random.default_rng((plan.seed, step))
    return torch.from_numpy(rng.integers(0, room + 1, (images, 2)))


def _average(gradients: list[Tensor], world: int) -> None:
    if world > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = (flat / world).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def export(folder: Path) -> Path:
    """Write the averaged weights of the model, in half precision, as `tiny.pth`."""
    saved = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix("sam."): value.clone()
        for name, value in saved["average"].items()
        if name.startswith("sam.")
    }
    for name, value in weights.items():
        if "output_hypernetworks_mlps" in name and ".layers.2." in name:
            value *= LOGIT_SCALE
    weights = {name: value.half().contiguous() for name, value in weights.items()}
    file = io.BytesIO()  # torch.save puts a file's name into the file
    torch.save(weights, file)
    with atomic_path(folder / "tiny.pth") as temporary:
        temporary.write_bytes(file.getvalue())
    return folder / "tiny.pth"


def _groups(trainee: Trainee) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and embeddings do not."""
    decaying = [p for p in trainee.parameters() if p.ndim > 1 and p.shape[0] > 8]
    others = [p for p in trainee.parameters() if not (p.ndim > 1 and p.shape[0] > 8)]
    return [{"params": decaying}, {"params": others, "weight_decay": 0.0}]


def _quiet(_: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    os.nice(5)


def main() -> None:
    """Train as the command line says, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs = Path(__file__).resolve().parent.parent / "runs" / "training"
    on_cpu = not torch.cuda.is_available()
    cores = os.cpu_count() or 1
    parser.add_argument("--folder", type=Path, default=runs / "tiny", help="checkpoints and log")
    parser.add_argument("--pool", type=Path, default=runs / "pool", help="scenes made so far")
    parser.add_argument("--device", default="cpu" if on_cpu else "cuda")
    parser.add_argument("--processes", type=int, default=cores if on_cpu else 1)
    parser.add_argument("--workers", type=int, default=1 if on_cpu else cores)
    parser.add_argument("--until", type=int, help="stop after this step; the next call goes on")
    parser.add_argument("--trial", action="store_true", help="a few steps, to see that all works")
    given = parser.parse_args()
    plan = TRIAL if given.trial else PLAN
    until = min(given.until or len(plan.steps), len(plan.steps))
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "processes").unlink(missing_ok=True)  # left by an interrupted training
    multiprocessing.spawn(
        train,
        (given.processes, plan, given.folder, given.pool, given.device, given.workers, until),
        nprocs=given.processes,
    )
    print(f"Weights: {export(given.folder)}")


if __name__ == "__main__":
    main()
