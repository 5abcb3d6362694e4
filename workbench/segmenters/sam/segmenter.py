"""SAM as a `Segmenter`: masks from a grid of point prompts.

Prompts, crops and filters are those of `segment_anything.SamAutomaticMaskGenerator`. So is the
arithmetic, bit for bit in fp32, except in `encoder` and `decoder`. What differs is when something
is computed and how long it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import (
    build_point_grid,
    generate_crop_boxes,
    is_box_near_crop_edge,
)
from torch import nn

from workbench._support.cores import usable_cores
from workbench.candidates.table import SAM_RULES, Candidates, Rules, concat
from workbench.errors import JobError, WorkbenchError
from workbench.segmenters.keys import sam_key
from workbench.segmenters.protocol import Watch
from workbench.segmenters.sam.checkpoints import (
    MODELS,
    fetch_checkpoint,
    load_model,
)
from workbench.segmenters.sam.decoder import LogitsOf, Numbered
from workbench.segmenters.sam.device import (
    DTYPES,
    device_kind,
    prompts_at_once,
    resolve_device,
    resolve_precision,
)
from workbench.segmenters.sam.extras import INSTALL
from workbench.segmenters.sam.loaded import LoadedNetwork
from workbench.segmenters.sam.measure import Measured, joined
from workbench.segmenters.sam.network import Ask, InputFrame, Network, SegmentAnything
from workbench.segmenters.sam.proposals import Crop, Proposals, survivors
from workbench.segmenters.sam.workers import each_by_one_thread
from workbench.segmenters.weights import refuse_missing

CROP_OVERLAP_RATIO = 512 / 1500  # as SamAutomaticMaskGenerator


T = TypeVar("T")


@dataclass(eq=False)
class SamSegmenter:
    """A SAM model with its prompt grid and rules; a `Segmenter`.

    The model is loaded when first used, and lives as long as this object does, which may cast its
    weights; the key is known before. The rules hold for tiles of any size. `points_per_batch` None
    is the device's own, `threads` None is torch's, but no more than there are cores to use.

    `batch` is the one thing that changes: where memory does not hold a batch of prompts, it is
    halved for good, and `key` has the new size.
    """

    load_model: Callable[[], nn.Module]
    name: str
    weights_sha256: str
    points_per_side: int = 32
    rules: Rules = SAM_RULES
    device: str = "cpu"
    precision: str = "fp32"
    points_per_batch: int | None = None
    threads: int | None = None
    network_of: Callable[[Any], Network] = SegmentAnything  # how the engine speaks to the model
    batch: int = field(init=False)  # prompts that go through the decoder at once

    def __post_init__(self) -> None:
        self.batch = self.points_per_batch or prompts_at_once(self.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model, in evaluation mode on its device and ready for its precision."""
        torch.set_num_threads(self._threads)
        model = self.load_model().to(self.device).eval()
        if self.precision != "fp32":
            # autocast would do it for every batch; this gives the same bits with a seventh fewer
            # kernels
            for layer in model.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    layer.weight.data = layer.weight.data.to(DTYPES[self.precision])
        return model

    @cached_property
    def loaded(self) -> LoadedNetwork:
        """The model as the engine speaks to it, on its device."""
        return LoadedNetwork(self.network_of(self.model), self.device, self.precision)

    def load(self) -> None:
        """Load the model now. Whatever is wrong with weights or device raises here."""
        resolve_device(self.device)
        _ = self.model
        if self._device_type != "cpu":
            # compile kernels and pool memory now, so that the first tile does not wait for it
            self.propose(np.zeros((64, 64, 3), np.uint8))

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on, except torch's version."""
        return sam_key(
            self.name,
            weights_sha256=self.weights_sha256,
            points_per_side=self.points_per_side,
            rules=self.rules,
            device=self._device_type,
            precision=self.precision,
            points_per_batch=self.batch,
            threads=self._threads,
        )

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return the pruned candidates of one RGB tile `(h, w, 3)`, at tile row and column 0.

        `watch` is called after each batch of prompts; the candidates so far are pruned as if they
        were all. Raises `WorkbenchError` if the network overflows its precision.
        """
        return self.begin(image, watch)()

    @torch.inference_mode()
    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Run the network; the rest of `propose` is work for the host alone.

        If the device's memory does not hold a batch of prompts, this tile is done again in batches
        of half the size, and so are all tiles after it.
        """
        return self._in_memory(lambda: self._begin(image, watch))

    @torch.inference_mode()
    def answer(
        self,
        image: NDArray[np.uint8],
        points: NDArray[np.float64],
        boxes: NDArray[np.float64] | None = None,
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """Return the masks of given prompts on one RGB tile `(h, w, 3)`, and each mask's prompt.

        A prompt is a point on an object, `points` `(n, 2)` XY, and may have a box as well, `boxes`
        `(n, 4)` XYXY, both in tile pixels. Masks above the floors are not pruned, so a prompt has
        as many as the network offers, or fewer.
        """
        height, width = image.shape[:2]
        rules = self.rules.for_tile(height, width)
        crop = Crop(
            (0, 0, width, height),
            0,
            points / (width, height),
            self.loaded.network.masks_per_prompt,
            rules,
        )

        def found() -> list[Proposals]:
            return [some for _, some in self._proposals(image, crop, boxes)]

        answers = self._in_memory(found)
        table = concat([Candidates.empty(rules), *(some.table() for some in answers)])
        rles = [rle for some in answers for rle in some.encode(np.ones(len(some.ordinals), bool))]
        return table.with_column("rle", rles), table.column("ordinal") // crop.masks_per_point

    def _in_memory(self, work: Callable[[], T]) -> T:
        """Do some work, in smaller batches if the device's memory does not hold it."""
        while True:
            try:
                return work()
            except torch.cuda.OutOfMemoryError:
                if self.batch == 1:
                    raise
            # not in the handler, because the traceback there still holds the tensors
            self.batch //= 2
            torch.cuda.empty_cache()

    def _begin(self, image: NDArray[np.uint8], watch: Watch | None) -> Callable[[], Candidates]:
        height, width = image.shape[:2]
        rules = self.rules.for_tile(height, width)
        grid = build_point_grid(self.points_per_side)  # the same in every crop layer
        masks_per_point = self.loaded.network.masks_per_prompt
        boxes, _ = generate_crop_boxes((height, width), rules.crop_n_layers, CROP_OVERLAP_RATIO)
        found: list[Proposals] = []
        for i, box in enumerate(boxes):
            crop = Crop(tuple(box), i, grid, masks_per_point, rules)
            for share, some in self._proposals(image, crop):
                found.append(some)
                if watch is not None:
                    # a copy, since it may be called in another thread
                    watch((i + share) / len(boxes), partial(survivors, [*found], rules))
        return partial(survivors, found, rules)

    def _proposals(
        self, image: NDArray[np.uint8], crop: Crop, boxes: NDArray[np.float64] | None = None
    ) -> Iterator[tuple[float, Proposals]]:
        """Yield for each batch the share of a crop that is done, and its masks that pass.

        Masks pass if they are above the floors and clear of inner crop edges.
        """
        x0, y0, x1, y1 = crop.box
        frame = InputFrame(self.loaded.network.side, (y1 - y0, x1 - x0))
        ask = self.loaded.look(frame, image[y0:y1, x0:x1])
        known: dict[int, Measured] = {}

        @torch.inference_mode()
        def passing(first: int) -> Proposals:
            batch = slice(first, first + self.batch)
            around = None if boxes is None else boxes[batch]
            return self._answer(ask, known, frame, crop, first, crop.points[batch], around)

        firsts = range(0, len(crop.grid), self.batch)
        threads = self._threads if self._device_type == "cpu" else 1
        for done, some in enumerate(each_by_one_thread(passing, firsts, threads), 1):
            yield min(done * self.batch, len(crop.grid)) / len(crop.grid), some

    def _answer(
        self,
        ask: Ask,
        known: dict[int, Measured],
        frame: InputFrame,
        crop: Crop,
        first: int,
        points: NDArray[np.float64],
        boxes: NDArray[np.float64] | None,
    ) -> Proposals:
        """Ask with one batch of a crop's prompts, of which `first` is the first.

        `known` are the crop's masks that have been measured, by their numbers if they have any.
        """
        with self.loaded.autocast():
            # the decoder does not even upscale masks below the floor
            pred_iou, logits_of = ask(self.loaded.prompts(frame, points, boxes))
            floor = crop.rules.pred_iou_floor
            wanted = (pred_iou.float() > floor) | (floor <= 0)
        self._refuse_overflow(pred_iou)
        rows = wanted.flatten().nonzero()[:, 0]
        ordinals = rows + crop.first_ordinal + first * crop.masks_per_point
        ious = pred_iou.flatten()[rows].float()
        if isinstance(logits_of, Numbered):
            numbers = logits_of.numbers[wanted].tolist()
            unknown = sorted(number for number in {*numbers} if number not in known)
            new = torch.tensor(unknown, dtype=torch.long)
            masks = self._measured(logits_of.drawn, new.to(wanted.device), frame, crop)
            known.update(zip(new.tolist(), masks.one_by_one(), strict=True))
            masks = joined([known[number] for number in numbers])
        else:
            masks = self._measured(logits_of, wanted, frame, crop)
        return self._passing(ordinals, ious, masks, crop)

    def _measured(
        self, logits_of: LogitsOf, wanted: torch.Tensor, frame: InputFrame, crop: Crop
    ) -> Measured:
        with self.loaded.autocast():
            low_res = logits_of(wanted).float()
        self._refuse_overflow(low_res)
        return self.loaded.measure(frame, low_res, crop.masks_per_point)

    def _refuse_overflow(self, values: torch.Tensor) -> None:
        # both keep NaN, and take a fifteenth of the time that isfinite() of each value takes
        if len(values) and not torch.stack([values.min(), values.max()]).isfinite().all():
            raise WorkbenchError(
                f"{self.name} gave values that are not finite in precision {self.precision}. "
                "Set precision to fp32. If it is fp32 already, the weights are damaged: download "
                "them again."
            )

    def _passing(
        self,
        ordinals: torch.Tensor,
        ious: torch.Tensor,
        masks: Measured,
        crop: Crop,
    ) -> Proposals:
        """Those that are stable and clear of inner crop edges."""
        tile_box = [0, 0, crop.rules.width, crop.rules.height]
        boxes = torch.from_numpy(masks.boxes)
        keep = ~is_box_near_crop_edge(boxes, list(crop.box), tile_box).numpy()
        if crop.rules.stability_floor > 0:
            keep &= masks.stability >= np.float32(crop.rules.stability_floor)
        return Proposals(
            crop, ordinals.cpu().numpy()[keep], ious.cpu().numpy()[keep], masks.take(keep)
        )

    @property
    def _device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def _threads(self) -> int:
        return self.threads or min(torch.get_num_threads(), usable_cores())


def sam_segmenter(
    model: str,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    points_per_side: int = 32,
    rules: Rules = SAM_RULES,
    points_per_batch: int | None = None,
    threads: int | None = None,
) -> SamSegmenter:
    """Choose a model with its own weights, or those of a local `checkpoint`.

    Nothing is downloaded or loaded before `load`, so that a store of candidates can be recognised
    on a machine that has neither the weights nor the device.

    Args:
        model: One of `MODELS`: `tiny`, `vit_b`, `vit_l`, `vit_h`; with the extra `models`
            `mobile_sam`, `edgetam`, `sam2.1_tiny`, `sam2.1_small`, `sam2.1_base_plus`,
            `sam2.1_large`.
        checkpoint: Local weights file; all other arguments are as in `Job`.

    Returns:
        The segmenter. Call `load` before `propose`.

    Raises:
        JobError: The model, device or precision is unknown.
        CheckpointError: There is no file `checkpoint`.

    Example:
        >>> segmenter = sam_segmenter("tiny", points_per_side=16)
    """
    if model not in MODELS:
        more = [name for name, entry in MODELS.items() if not entry.is_ready]
        raise JobError(
            f"model {model!r} is unknown. Take one of {', '.join(MODELS)}."
            + (f" Of these {', '.join(more)} need the extra `models`: {INSTALL}." if more else "")
        )
    if "auto" in (device, precision):
        device = resolve_device(device)
    device_kind(device)
    precision = resolve_precision(precision, device)
    if checkpoint is None:
        path, sha256 = None, MODELS[model].weights.sha256
    else:
        path = Path(checkpoint).expanduser()
        refuse_missing(path)
        sha256 = pooch.file_hash(str(path))  # part of the key, so of the store
    return SamSegmenter(
        load_model=partial(_load_weights, model, path),
        network_of=MODELS[model].network_of,
        name=model,
        weights_sha256=sha256,
        points_per_side=points_per_side,
        rules=rules,
        device=device,
        precision=precision,
        points_per_batch=points_per_batch,
        threads=threads,
    )


def _load_weights(model: str, path: Path | None) -> nn.Module:
    if path is None:
        MODELS[model].require()  # before a long download
        path = fetch_checkpoint(model)
    return load_model(model, path)
