"""The embedded model `tiny`: regions between learned borders, behind SAM's interface.

The image encoder finds borders with a small network (`bordernet`), merges what lies between them to
regions (`regions`), scores those with another network, and packs all of it into the one tensor that
SAM calls the embedding. Prompts choose among the regions, so a mask is as fine as the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle

from workbench.segmenters.sam.bordernet import MULTIPLE, BorderNet
from workbench.segmenters.sam.decoder import LogitsOf, Numbered
from workbench.segmenters.sam.encoder import Predictor
from workbench.segmenters.sam.network import Ask, Prompts, SegmentAnything
from workbench.segmenters.sam.regions import (
    LIKELY,
    MIN_AREA_PX,
    N_TRAITS,
    N_TREES,
    OUTLINE_TRAIT,
    Regions,
    distinct,
    regions_of,
    superpixels_of,
)

IMG_SIZE = 1024
STRIDE = 16  # of the embedding
MASK_STRIDE = 2  # of the decoder's masks: at 4, a region of 20 × 20 pixels loses a fifth
FOLD = STRIDE // MASK_STRIDE  # of a mask prompt into the cells of the embedding
PIXEL_MEAN, PIXEL_STD = [124.0, 116.0, 104.0], [58.0, 57.0, 57.0]
MASKS = 6  # for each prompt

MOST_REGIONS = 2000  # of a picture; those with the best scores
NMS_IOU = 0.75  # above which the better one of two regions stands for both
# how much less a region is wanted by a point at its edge than by one in its middle: a large region
# lies under many points, and needs to be the answer to a few
CENTRED = 0.7
# All but the best mask of a point are rather regions whose middle is near, and small ones may miss
# it by a little: so each prompt of a grid adds its own, and 32 pixels apart overlook hardly any.
NEAR_PX, NEARBY, REACH_PX = 64, 0.8, 16
COLUMNS = 10  # of the table of regions
HIDDEN = 256
USUAL = 5  # standard deviations
# a mask whose outline is all likely has the higher stability score, one whose outline is not at all
# the lower one
STABILITY = (0.8, 0.99)
STEEPNESS = (1.3, 50.0)  # of logits: less, and no pixel would be sure

# labels of points, as SAM has them
BACKGROUND, FOREGROUND, FIRST_CORNER, SECOND_CORNER = 0, 1, 2, 3


class RegionEncoder(nn.Module):
    """Finds the regions of images and packs them into embeddings.

    Takes normalised images `(n, 3, h, w)`, h and w multiples of 16, and gives embeddings
    `(n, c, h / 16, w / 16)`, which `_unpacked` reads. Rows and columns at the end that hold
    nothing but the padding of `Sam.preprocess` belong to no region.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMG_SIZE
        self.borders = BorderNet()
        self.score = Scorer(N_TRAITS)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images."""
        return torch.stack([self._embedded(image) for image in images])

    def _embedded(self, image: Tensor) -> Tensor:
        height, width = (_without_padding(image, axis) for axis in (1, 2))
        regions = self.regions(image[:, :height, :width])
        return packed(regions, self.scores(regions), image.shape[1:]).to(image.device)

    def regions(self, image: Tensor) -> Regions:
        """Find the regions of a normalised image `(3, h, w)` of any size."""
        mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        rgb = (image * std + mean).permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
        return regions_of(superpixels_of(rgb.cpu().numpy(), self.maps(image)))

    def maps(self, image: Tensor) -> NDArray[np.float32]:
        """What `BorderNet` sees in an image, `(3, h, w)`, 0 to 1."""
        height, width = image.shape[1:]
        more = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        logits = self.borders(pad(image[None], more, mode="replicate"))[0, :, :height, :width]
        maps: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
        return maps

    def scores(self, regions: Regions) -> NDArray[np.float32]:
        """Predict the IoU of each region with an object, `(r,)`; 0 for what is too small."""
        traits = torch.from_numpy(regions.traits).to(self.score.mean.device)
        scores = self.score(traits).float().sigmoid().cpu().numpy()
        return np.where(regions.area >= MIN_AREA_PX, scores, np.float32(0))


class Scorer(nn.Module):
    """Reads a logit from traits `(n, traits)`, of which `mean` and `std` are known."""

    mean: Tensor
    std: Tensor

    def __init__(self, traits: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(traits))
        self.register_buffer("std", torch.ones(traits))
        self.layers = nn.Sequential(
            nn.Linear(traits, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, traits: Tensor) -> Tensor:
        """Return the logits, `(n,)`; what is far out of the usual counts as the edge of that."""
        usual = ((traits - self.mean) / self.std).clamp(-USUAL, USUAL)
        logits: Tensor = self.layers(usual)[:, 0]
        return logits


def _without_padding(image: Tensor, axis: int) -> int:
    """How much of an axis of `(3, h, w)` is left without what `Sam.preprocess` pads with: zeros."""
    used = image.ne(0).any(dim=0).any(dim=2 - axis)
    return max(int(used.nonzero()[-1]) + 1 if used.any() else 0, 1)


# ------------------------------------------------------------------------------ the one embedding


@dataclass(frozen=True, eq=False)
class Table:
    """The regions of an image, as the decoder needs them: `k` of them, the whole image last.

    A region is the pixels whose rank in its tree, of `ranks[tree]`, is at least `first` and less
    than `last`.
    """

    ranks: Tensor  # (trees, h, w) int32, -1 in the padding
    tree: Tensor  # (k,) int64
    first: Tensor  # (k,)
    last: Tensor  # (k,)
    score: Tensor  # (k,) predicted IoU
    steepness: Tensor  # (k,) the logit of a pixel well inside
    area: Tensor  # (k,) pixels
    boxes: Tensor  # (k, 4) XYXY, last pixel inclusive


def packed(regions: Regions, scores: NDArray[np.float32], size: tuple[int, ...]) -> Tensor:
    """Put the best regions of an image of `size` into channels `(c, h / 16, w / 16)`."""
    height, width = regions.ranks.shape[1:]
    ranks = np.full((N_TREES, *size), -1, np.float32)
    ranks[:, :height, :width] = regions.ranks
    cells = pixel_unshuffle(torch.from_numpy(ranks)[None], STRIDE)[0]
    root = len(regions.trees[0].area) - 1  # the whole image: something under every point
    kept = distinct(regions, scores, MOST_REGIONS, NMS_IOU)
    rows = np.append(kept[kept != root][: MOST_REGIONS - 1], root)
    table = np.zeros((MOST_REGIONS, COLUMNS), np.float32)
    table[: len(rows)] = np.column_stack(
        [
            regions.tree[rows],
            regions.first[rows],
            regions.last[rows],
            scores[rows],
            _steepness(regions, rows),
            regions.area[rows],
            regions.boxes[rows],
        ]
    )
    flat = np.zeros(-(-table.size // cells[0].numel()) * cells[0].numel(), np.float32)
    flat[: table.size] = table.ravel()
    return torch.cat([cells, torch.from_numpy(flat).view(-1, *cells.shape[1:])])


def _steepness(regions: Regions, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How fast logits rise across an outline: where it is doubtful, slowly.

    Coverage rises by 2 within a pixel of the mask at a straight border. So `stability_score`, the
    share of logits above -1 that are above 1, is 1 less the outline's length by area and steepness.
    """
    likely = regions.traits[rows, OUTLINE_TRAIT : OUTLINE_TRAIT + LIKELY].mean(axis=1)
    low, high = STABILITY
    stability = low + (high - low) * likely
    by_area = MASK_STRIDE * regions.outline[rows] / regions.area[rows]
    return np.clip(by_area / (1 - stability), *STEEPNESS)


def _unpacked(embedding: Tensor) -> Table:
    """Read an embedding `(c, h, w)`."""
    n_cells = N_TREES * STRIDE**2
    ranks = pixel_shuffle(embedding[None, :n_cells].float(), STRIDE)[0].int()
    flat = embedding[n_cells:].float().flatten()
    table = flat[: MOST_REGIONS * COLUMNS].view(MOST_REGIONS, COLUMNS)
    table = table[table[:, 5] > 0]
    tree, first, last = table[:, :3].long().unbind(1)
    score, steepness, area = table[:, 3:6].unbind(1)
    return Table(ranks, tree, first, last, score, steepness, area, table[:, 6:])


# --------------------------------------------------------------------------------------- prompts


class RegionPrompts(nn.Module):
    """Passes prompts on as they are, in the shapes that SAM's prompt encoder gives.

    Sparse embeddings `(n, points, 3)` are x, y (pixels) and label; dense ones `(n, 64, 64, 64)`
    a mask's 512 × 512 logits, zeros where none is given.
    """

    def __init__(self) -> None:
        super().__init__()
        side = IMG_SIZE // STRIDE
        self.embed_dim = FOLD**2
        self.input_image_size = (IMG_SIZE, IMG_SIZE)
        self.image_embedding_size = (side, side)
        self.mask_input_size = (IMG_SIZE // MASK_STRIDE, IMG_SIZE // MASK_STRIDE)
        self.no_mask_embed = nn.Embedding(1, self.embed_dim)
        nn.init.zeros_(self.no_mask_embed.weight)

    def get_dense_pe(self) -> Tensor:
        """Positions of the embedding's cells: not needed, so none."""
        return torch.zeros(
            1, 1, *self.image_embedding_size, device=self.no_mask_embed.weight.device
        )

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Pass on points `(n, p, 2)` with labels `(n, p)`, boxes `(n, 4)`, masks `(n, 1, h, w)`."""
        device = self.no_mask_embed.weight.device
        parts = []
        if points is not None:
            coords, labels = points
            parts.append(torch.cat([coords.float(), labels[..., None].float()], dim=2))
        if boxes is not None:
            corners = boxes.reshape(-1, 2, 2).float()
            kinds = torch.tensor([FIRST_CORNER, SECOND_CORNER], device=corners.device)
            parts.append(torch.cat([corners, kinds.expand(len(corners), 2)[..., None]], dim=2))
        if masks is None:
            n = len(parts[0]) if parts else 1
            weight = self.no_mask_embed.weight.float()
            dense = weight.view(1, -1, 1, 1).expand(n, -1, *self.image_embedding_size)
        else:
            masks = interpolate(masks.float(), self.mask_input_size, mode="bilinear")
            dense = pixel_unshuffle(masks, FOLD)
        sparse = torch.cat(parts, dim=1) if parts else torch.zeros(len(dense), 0, 3, device=device)
        return sparse.to(device), dense


# --------------------------------------------------------------------------------------- decoder


class RegionDecoder(nn.Module):
    """Chooses regions by prompts and draws them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_multimask_outputs = MASKS
        self.num_mask_tokens = MASKS + 1

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logits `(n, 6 or 1, h / 2, w / 2)` and predicted IoU `(n, 6 or 1)`.

        Of several, the smallest region comes first; of one, it is the best.
        """
        chooser = Chooser(image_embeddings)
        scores, rows = chooser.chosen(sparse_prompt_embeddings, dense_prompt_embeddings)
        if not multimask_output:
            rows, scores = rows[:, :1], scores[:, :1]
        else:
            scores, rows = chooser.by_size(scores, rows)
        return chooser.drawn(rows.flatten()).unflatten(0, rows.shape), scores


class Chooser:
    """The regions of one image, ready for many prompts."""

    def __init__(self, embedding: Tensor) -> None:
        """Read an embedding `(1, c, h, w)`."""
        self.device = embedding.device
        self.table = _unpacked(embedding[0])
        self.ranks: NDArray[np.int32] = self.table.ranks.cpu().numpy()
        self._numbers = (
            torch.stack(
                [self.table.tree, self.table.first, self.table.last, *self.table.boxes.long().T], 1
            )
            .cpu()
            .numpy()
        )
        self._steepness = self.table.steepness.cpu().numpy()

    def __call__(self, sparse: Tensor, dense: Tensor | None = None) -> tuple[Tensor, LogitsOf]:
        """`MASKS` masks for each of some prompts `(n, points, 3)`, as `decoder.Decode`."""
        scores, rows = self.by_size(*self.chosen(sparse, dense))
        return scores, Numbered(rows, self.drawn)

    def chosen(self, sparse: Tensor, dense: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and rows of the `MASKS` regions that suit each prompt best, the best first."""
        value = self.table.score.expand(len(sparse), -1)
        corners = sparse[:, :, 2] >= FIRST_CORNER
        kind = sparse[:, :, 2, None]
        inside = self._inside(sparse[:, :, :2])  # (n, points, k)
        wrong = ((kind == FOREGROUND) & ~inside) | ((kind == BACKGROUND) & inside)
        if corners.any():
            box = sparse[corners].view(len(sparse), 2, 3)[:, :, :2].flatten(1)
            value = _fit(value, _box_iou(box, self.table.boxes))
        if dense is not None and dense.any():
            value = _fit(value, self._mask_iou(dense))
        off_centre, away = self._from_middle(sparse)
        misses = wrong.sum(1)
        best = (value * (1 - CENTRED * off_centre) - misses).argmax(dim=1, keepdim=True)
        asked = kind >= BACKGROUND
        if (asked.sum(1) == 1).all() and (kind[asked] == FOREGROUND).all():
            misses = misses * (away * NEAR_PX > REACH_PX)
        liked = value * (1 - NEARBY * away) - misses
        order = liked.scatter(1, best, np.inf).topk(min(MASKS, value.shape[1]), dim=1).indices
        if order.shape[1] < MASKS:
            order = order[:, [*range(order.shape[1]), *[0] * (MASKS - order.shape[1])]]
        # of those that miss a point, less than of any that does not
        missed = misses.gather(1, order)
        order = torch.where(missed == missed.amin(dim=1, keepdim=True), order, order[:, :1])
        return value.gather(1, order), order

    def by_size(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Put the regions of each prompt in the order of their size."""
        order = self.table.area[rows].argsort(dim=1, stable=True)
        return scores.gather(1, order), rows.gather(1, order)

    def _from_middle(self, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """How far the points on the object are from the middle of each region's box: `(n, k)`.

        Once as a share of the way to the box, once of `NEAR_PX`; 1 is far, and 0 without points.
        """
        low, high = self.table.boxes[:, :2], self.table.boxes[:, 2:] + 1
        off = (2 * sparse[:, :, None, :2] - low - high).abs()  # (n, points, k, 2)
        on_object = (sparse[:, :, 2, None] == FOREGROUND).float()
        share = on_object / on_object.sum(1, keepdim=True).clamp(min=1)
        scales = (high - low, 2 * NEAR_PX)
        by_size, by_px = (((off / one).amax(3).clamp(max=1) * share).sum(1) for one in scales)
        return by_size, by_px

    def _inside(self, xy: Tensor) -> Tensor:
        """Whether points `(n, p, 2)` lie in each region: `(n, p, k)`."""
        table = self.table
        height, width = table.ranks.shape[1:]
        x = xy[..., 0].floor().long().clamp(0, width - 1)
        y = xy[..., 1].floor().long().clamp(0, height - 1)
        rank = table.ranks[:, y, x][table.tree].movedim(0, -1)  # of each point in each one's tree
        return (rank >= table.first) & (rank < table.last)

    def _mask_iou(self, dense: Tensor) -> Tensor:
        """The IoU of each mask prompt with each region: `(n, k)`."""
        table = self.table
        masks = pixel_shuffle(dense.float(), FOLD)[:, 0].flatten(1) > 0
        middle = slice(MASK_STRIDE // 2, None, MASK_STRIDE)
        ranks = table.ranks[:, middle, middle].flatten(1).long()
        size = int(table.last.max()) + 1
        shared = torch.zeros(len(masks), len(table.tree), device=self.device)
        for i, mask in enumerate(masks):
            counts = torch.stack([torch.bincount(r[mask] + 1, minlength=size + 1) for r in ranks])
            below = counts.cumsum(1)  # below[t, r]: pixels whose rank is less than r
            shared[i] = below[table.tree, table.last] - below[table.tree, table.first]
        area = table.area / MASK_STRIDE**2
        return shared / (area + masks.sum(1, keepdim=True) - shared).clamp(min=1)

    def drawn(self, rows: Tensor) -> Tensor:
        """Logits `(n, h / 2, w / 2)` of regions, given by their rows `(n,)`."""
        height, width = (side // MASK_STRIDE for side in self.ranks.shape[1:])
        logits = np.empty((len(rows), height, width), np.float32)
        for out, row in zip(logits, rows.tolist(), strict=True):
            tree, first, last, x0, y0, x1, y1 = self._numbers[row].tolist()
            steepness = self._steepness[row]
            out[:] = -steepness
            x0, y0 = x0 // MASK_STRIDE, y0 // MASK_STRIDE
            x1, y1 = x1 // MASK_STRIDE + 1, y1 // MASK_STRIDE + 1
            pixels = self.ranks[
                tree,
                y0 * MASK_STRIDE : y1 * MASK_STRIDE,
                x0 * MASK_STRIDE : x1 * MASK_STRIDE,
            ]
            mask = cv2.inRange(pixels, first, last - 1)
            covered = cv2.resize(
                mask.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA
            )
            out[y0:y1, x0:x1] = (covered * np.float32(2 / 255) - 1) * steepness
        return torch.from_numpy(logits).to(self.device)


def _fit(score: Tensor, iou: Tensor) -> Tensor:
    """What a region is worth that should fit a box or mask `(n, k)`."""
    return iou * (0.5 + 0.5 * score)


def _box_iou(boxes: Tensor, regions: Tensor) -> Tensor:
    """IoU of prompts `(n, 4)` with the boxes of regions `(k, 4)`, whose last pixel is inclusive."""
    whole = torch.cat([regions[:, :2], regions[:, 2:] + 1], dim=1)
    low = torch.maximum(boxes[:, None, :2], whole[:, :2])
    high = torch.minimum(boxes[:, None, 2:], whole[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(some[..., 2:] - some[..., :2]).clamp(min=0).prod(-1) for some in (boxes, whole)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-6)


class Tiny(SegmentAnything):
    """`tiny` as the engine speaks to it: a `Network` whose masks are drawn only where wanted."""

    def look(self, image: Tensor) -> Ask:
        """Find the regions of an image; what comes back chooses among them."""
        predictor = Predictor(self.model)
        height, width = (int(side) for side in image.shape[-2:])
        predictor.set_torch_image(image, (height, width))
        choose = Chooser(predictor.features)

        def ask(prompts: Prompts) -> tuple[Tensor, LogitsOf]:
            points = None if prompts.points is None else (prompts.points, prompts.labels)
            sparse, dense = self.model.prompt_encoder(points, prompts.boxes, prompts.mask)
            return choose(sparse, None if prompts.mask is None else dense)

        return ask


def build_tiny() -> Sam:
    """Build the model with random weights."""
    return Sam(
        image_encoder=RegionEncoder(),
        prompt_encoder=RegionPrompts(),
        mask_decoder=RegionDecoder(),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
