"""A network on its device: it looks at images, and the masks that it answers are measured there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.segmenters.sam.device import DTYPES
from workbench.segmenters.sam.measure import (
    Measured,
    joined,
    measure_enlarged,
    measure_fused,
    measure_resized,
    measure_whole,
)
from workbench.segmenters.sam.network import Ask, InputFrame, Network, Prompts

# Only a few upsampled masks of 1024 x 1024 fit the CPU's caches: 4 ms a mask three at a time, 8 ms
# twelve at a time. On other devices a whole batch is upsampled at once.
MASKS_AT_ONCE = {"cpu": 3}


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network, the device that it is on, and the precision that it computes in."""

    network: Network
    device: str
    precision: str

    def look(self, frame: InputFrame, image: NDArray[np.uint8]) -> Ask:
        """Encode an RGB image `(h, w, 3)`; what comes back answers prompts."""
        pixels = torch.as_tensor(frame.scaled(image), device=self.device)
        with self.autocast():
            return self.network.look(pixels.permute(2, 0, 1).contiguous()[None])

    def prompts(
        self,
        frame: InputFrame,
        points: NDArray[np.float64],
        boxes: NDArray[np.float64] | None = None,
    ) -> Prompts:
        """Make prompts of `(n, 2)` image pixels, each of one point on an object, and of boxes."""
        placed = self.placed(frame, points)[:, None]
        labels = torch.ones(placed.shape[:2], dtype=torch.int, device=self.device)
        if boxes is None:
            return Prompts(placed, labels)
        return Prompts(placed, labels, self.placed(frame, boxes.reshape(-1, 2, 2)).reshape(-1, 4))

    def placed(self, frame: InputFrame, points: NDArray[np.float64]) -> torch.Tensor:
        """Bring XY points, `(..., 2)`, from image pixels to pixels of the square, on the device."""
        placed = torch.as_tensor(frame.placed(points))
        if self.device_type == "mps":
            placed = placed.float()  # it has no float64
        return placed.to(self.device)

    def measure(self, frame: InputFrame, low_res: torch.Tensor, channels: int) -> Measured:
        """Bring `(n, h, w)` logits to the size of the image and measure their masks."""
        size, threshold = self.network.side, self.network.mask_threshold
        if self._fuses:
            return measure_fused(low_res, size, frame.input_size, frame.original_size, threshold)
        scale = size // low_res.shape[-1]
        whole = frame.input_size == frame.original_size == (size, size)
        if self.device_type == "cpu" and scale * low_res.shape[-1] == size:
            if whole:
                return measure_enlarged(low_res, scale, channels, threshold)
            return measure_resized(low_res, frame, scale, channels, threshold)
        parts = low_res.split(MASKS_AT_ONCE.get(self.device_type, max(1, len(low_res))))
        logits = (upsampled(frame, some, channels) for some in parts if len(some))
        return joined([measure_whole(some, threshold) for some in logits])

    def autocast(self) -> AbstractContextManager[None]:
        """What the network runs under in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, DTYPES[self.precision])

    @property
    def device_type(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return torch.device(self.device).type

    @property
    def _fuses(self) -> bool:
        return self.device_type == "cuda" and find_spec("triton") is not None


def upsampled(frame: InputFrame, low_res: torch.Tensor, channels: int) -> torch.Tensor:
    """Bring `(n, h, w)` logits, n > 0, to the size of the image.

    Done in as many channels as the decoder has: for other numbers of channels torch may take
    another kernel, which rounds differently (seen on the CPU with one thread).
    """
    n = len(low_res)
    padding = low_res[:1].expand(-n % channels, -1, -1)
    logits = torch.cat([low_res, padding]).unflatten(0, (-1, channels))
    return frame.enlarged(logits).flatten(0, 1)[:n]
