"""The network of `tiny`: where in a picture objects end, and which pixels show one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, relu

CHANNELS = (24, 48, 80, 112, 112)  # at strides 2, 4, 8, 16 and 32
BLOCKS = (0, 1, 1, 2, 2)
MAPS = 3  # border of a part, border of a whole, on an object
MULTIPLE = 32  # of pixels that a side needs

Norm = Callable[[int], nn.Module]


def no_norm(_: int) -> nn.Module:
    """Stand where a normalisation was in training: it is folded into the weights."""
    return nn.Identity()


class Conv(nn.Module):
    """A 3 × 3 convolution and what normalises it."""

    def __init__(self, before: int, after: int, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, padding=1)
        self.norm = norm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, before, h, w)` to `(n, after, h / stride, w / stride)`."""
        y: Tensor = self.norm(self.conv(x))
        return y


class Block(nn.Module):
    """Two convolutions with a short cut around them."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = Conv(channels, channels, norm)
        self.second = Conv(channels, channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, c, h, w)` to the same shape."""
        return relu(x + self.second(relu(self.first(x))))


class BorderNet(nn.Module):
    """A U-Net from stride 2 to stride 32 and back, with maps at full resolution.

    Takes normalised images `(n, 3, h, w)`, h and w multiples of 32, and gives the logits of
    `MAPS` maps, `(n, 3, h, w)`. Nothing in it depends on the image's size, so it can be trained on
    crops.
    """

    def __init__(self, norm: Norm = no_norm) -> None:
        super().__init__()
        self.stem = Conv(12, CHANNELS[0], norm)
        self.down = nn.ModuleList(
            Conv(before, after, norm, stride=2) for before, after in pairwise(CHANNELS)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(channels, norm) for _ in range(blocks)))
            for channels, blocks in zip(CHANNELS, BLOCKS, strict=True)
        )
        self.up = nn.ModuleList(  # from the coarser level to the finer one
            nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(CHANNELS)
        )
        self.joined = nn.ModuleList(Conv(channels, channels, norm) for channels in CHANNELS[:-1])
        self.maps = nn.Conv2d(CHANNELS[0], MAPS * 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of all maps."""
        image = image.contiguous(memory_format=torch.channels_last)
        x = self.stages[0](relu(self.stem(pixel_unshuffle(image, 2))))
        levels = [x]
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            x = stage(relu(down(x)))
            levels.append(x)
        for i in reversed(range(len(self.up))):
            wide = interpolate(self.up[i](x), scale_factor=2, mode="nearest")
            x = relu(self.joined[i](levels[i] + wide))
        return pixel_shuffle(self.maps(x), 2)
