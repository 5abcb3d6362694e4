"""The embedded model `tiny`: SAM with a small convolutional image encoder.

Prompt encoder and mask decoder are the official classes at three eighths of their width.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

IMG_SIZE = 1024
STRIDE = 16  # of the embedding; the decoder's masks have a quarter of it
WIDTH = 96
CHANNELS = (64, 128, 160, 160, 160)  # at strides 4, 8, 16, 32 and 64
BLOCKS = (2, 2, 2, 2, 1)
PIXEL_MEAN, PIXEL_STD = [124.0, 116.0, 104.0], [58.0, 57.0, 57.0]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of `(n, c, h, w)`, each pixel on its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in channels-last memory nothing is copied."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3 × 3 convolutions with a short cut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, c, h, w)` to the same shape."""
        return x + self.conv2(relu(self.conv1(self.norm(x))))


class ImageEncoder(nn.Module):
    """A convolutional pyramid whose levels are summed at stride 16.

    Takes normalised images `(n, 3, h, w)`, h and w multiples of 64, and gives embeddings
    `(n, 96, h / 16, w / 16)`. Nothing in it depends on the image's size, so it can be trained on
    crops. `img_size` is the side that `Sam` resizes and pads to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMG_SIZE
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        before = (32, *CHANNELS[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(before, CHANNELS, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(channels) for _ in range(blocks)))
            for channels, blocks in zip(CHANNELS, BLOCKS, strict=True)
        )
        # finer levels are folded into the cells of stride 16, coarser ones are spread over them
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, WIDTH, fold, stride=fold)
            for channels, fold in zip(CHANNELS, (4, 2, 1, 1, 1), strict=True)
        )
        self.smooth = nn.ModuleList(Block(WIDTH) for _ in range(2))
        self.norm = ChannelNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised images."""
        x = relu(self.stem(x.contiguous(memory_format=torch.channels_last)))
        levels = []
        for down, stage, lateral in zip(self.down, self.stages, self.lateral, strict=True):
            x = stage(down(x))
            levels.append(lateral(x))
        *finer, at_16, at_32, at_64 = levels
        wide = self.smooth[0](at_32 + _doubled(at_64))
        return self.norm(self.smooth[1](sum(finer, at_16) + _doubled(wide)))


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def build_tiny() -> Sam:
    """Build the model with random weights."""
    side = IMG_SIZE // STRIDE
    return Sam(
        image_encoder=ImageEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(side, side),
            input_image_size=(IMG_SIZE, IMG_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=512),
            iou_head_hidden_dim=128,
        ),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
