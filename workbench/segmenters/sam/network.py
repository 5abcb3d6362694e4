"""What the engine needs of a network: an image gives features, prompts give masks with scores.

Grid, crops, floors, stability, suppression and seams are the same code for every network. Each
family of models has one class that offers a `Network`; `SegmentAnything` is the first SAM's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn.functional import interpolate

from workbench.segmenters.sam.decoder import LogitsOf, decoder_of
from workbench.segmenters.sam.encoder import Predictor


@dataclass(frozen=True)
class InputFrame:
    """How an image lies in the square that a network sees.

    The image is scaled until its longer side is that of the square, and lies at the top left. The
    rest of the square is padding.
    """

    side: int
    original_size: tuple[int, int]  # height and width of the image

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the scaled image."""
        size: tuple[int, int] = ResizeLongestSide.get_preprocess_shape(
            *self.original_size, self.side
        )
        return size

    def scaled(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Scale an RGB image, `(h, w, 3)`, as SAM does."""
        pixels: NDArray[np.uint8] = ResizeLongestSide(self.side).apply_image(image)
        return pixels

    def placed(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring XY points, `(..., 2)`, from image pixels to pixels of the square."""
        placed: NDArray[np.float64] = ResizeLongestSide(self.side).apply_coords(
            points, self.original_size
        )
        return placed

    def enlarged(self, logits: Tensor) -> Tensor:
        """Bring the logits of masks, `(b, c, h, w)`, from the square to the size of the image."""
        return self.cut_out(
            interpolate(logits, (self.side,) * 2, mode="bilinear", align_corners=False)
        )

    def cut_out(self, logits: Tensor) -> Tensor:
        """Bring the logits of the whole square, `(b, c, side, side)`, to the size of the image."""
        height, width = self.input_size
        logits = logits[..., :height, :width]
        # to the same size it would change no bit
        if self.input_size != self.original_size:
            logits = interpolate(logits, self.original_size, mode="bilinear", align_corners=False)
        return logits


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts for `b` masks, in pixels of the square."""

    points: Tensor | None  # (b, n, 2), XY
    labels: Tensor | None  # (b, n): 1 on the object, 0 beside it
    boxes: Tensor | None = None  # (b, 4), XYXY
    mask: Tensor | None = None  # (1, 1, side / 4, side / 4): logits of one mask, for all prompts

    def __len__(self) -> int:
        given = self.points if self.points is not None else self.boxes
        return 0 if given is None else len(given)


# prompts -> (b, masks) predicted IoUs, and a way to the (n, h, w) logits of some of the masks
Ask = Callable[[Prompts], tuple[Tensor, LogitsOf]]


class Network(Protocol):
    """A promptable network. Not to inherit from: it has nothing to give."""

    @property
    def side(self) -> int:
        """Side of the square that it sees, pixels."""

    @property
    def masks_per_prompt(self) -> int:
        """How many masks it offers for each prompt."""

    @property
    def mask_threshold(self) -> float:
        """A pixel with a higher logit is part of the mask."""

    def look(self, image: Tensor) -> Ask:
        """Embed a scaled RGB image, `(1, 3, h, w)` and 0 to 255; return a way to prompt it.

        May run under autocast. Prompts must be embedded in fp32 all the same: bf16 would move them
        by pixels.
        """


class SegmentAnything:
    """The first SAM, and whatever has its signature: a `Network`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.side = int(model.image_encoder.img_size)
        self.masks_per_prompt = int(model.mask_decoder.num_multimask_outputs)
        self.mask_threshold = float(model.mask_threshold)

    def look(self, image: Tensor) -> Ask:
        """Embed an image with our encoder, and decode with our decoder."""
        model = self.model
        predictor = Predictor(model)
        height, width = (int(side) for side in image.shape[-2:])
        predictor.set_torch_image(image, (height, width))
        no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        # half a million sines that all prompts share; in bf16 they would be far off
        positions = model.prompt_encoder.get_dense_pe()
        decoder = partial(decoder_of, model.mask_decoder, predictor.features, positions)
        decode = decoder(no_mask)

        def ask(prompts: Prompts) -> tuple[Tensor, LogitsOf]:
            if prompts.mask is None:
                return decode(self._embedded(prompts))
            return decoder(model.prompt_encoder.mask_downscaling(prompts.mask))(
                self._embedded(prompts)
            )

        return ask

    def _embedded(self, prompts: Prompts) -> Tensor:
        """Embed prompts as `(b, n, c)`; without a box, SAM adds a padding point."""
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        with torch.autocast(self.model.device.type, enabled=False):
            sparse, _ = self.model.prompt_encoder(points=points, boxes=prompts.boxes, masks=None)
        embedded: Tensor = sparse
        return embedded
