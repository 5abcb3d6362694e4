"""A raster whose objects are known, and a Segmenter that returns exactly those."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray

from workbench.candidates.rle import encode_masks
from workbench.candidates.table import Candidates, Rules
from workbench.raster.scene import Scene

UTM = pyproj.CRS.from_epsg(32633)
TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)


def scene_of(width: int, height: int, transform: Affine = TRANSFORM, name: str = "s") -> Scene:
    """A scene without a file, for what only needs its grid."""
    return Scene(
        "nowhere.tif", name, UTM, transform, width, height, (1, 2, 3), None, None, False, "-"
    )


def write_labels(path: Path, labels: NDArray[Any], transform: Affine = TRANSFORM) -> Path:
    """Write object numbers (0: nothing) as colours: red + 256 green."""
    rgb = paint(labels).transpose(2, 0, 1)
    with rasterio.open(
        path, "w", driver="GTiff", width=labels.shape[1], height=labels.shape[0], count=3,
        dtype="uint8", crs="EPSG:32633", transform=transform, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(rgb)
    return path


def paint(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """The image of object numbers, as `write_labels` stores it.

    One pixel is bright, for a picture that is dark all over would be stretched.
    """
    blue = np.full(labels.shape, 7)
    blue[0, 0] = 255
    return np.dstack([labels % 256, labels // 256, blue]).astype(np.uint8)


class AtOnce:
    """A Segmenter that does all of its work in `propose`, which those that inherit have."""

    rules = Rules(96, 96)

    @property
    def key(self) -> dict[str, Any]:
        """The name of the class."""
        return {"model": type(self).__name__}

    def load(self) -> None:
        """Nothing to load."""

    def begin(self, image: NDArray[np.uint8], watch: object = None) -> Callable[[], Candidates]:
        """All of `propose` at once."""
        found = self.propose(image, watch)
        return lambda: found

    def propose(self, image: NDArray[np.uint8], watch: object = None) -> Candidates:
        """See `workbench.segmenters.protocol.Segmenter`."""
        raise NotImplementedError


@dataclass(frozen=True)
class KnownObjects(AtOnce):
    """Return the objects that `write_labels` has painted, each with a score of its own.

    `contains` names objects (keys) that also cover others (values), as a whole covers its parts;
    `split` gives the pieces of an object that falls apart in a tile as candidates of their own.
    """

    rules: Rules
    contains: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    split: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """Only what the tests tell apart."""
        return {"model": "known objects", "split": self.split}

    def propose(self, image: NDArray[np.uint8], watch: object = None) -> Candidates:
        """See `workbench.segmenters.protocol.Segmenter`."""
        labels = image[..., 0].astype(int) + 256 * image[..., 1].astype(int)
        masks, scores = [], []
        for value in np.unique(labels[labels > 0]).tolist():
            mask = np.isin(labels, (value, *self.contains.get(value, ())))
            pieces = [mask]
            if self.split:
                n, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
                pieces = [parts == i for i in range(1, n)]
            masks += pieces
            scores += [0.9 + (value % 97) / 1000] * len(pieces)
        rules = replace(self.rules, height=labels.shape[0], width=labels.shape[1])
        return candidates_of(masks, scores, rules)


def candidates_of(
    masks: Sequence[NDArray[np.bool_]], scores: Sequence[float], rules: Rules
) -> Candidates:
    """One candidate for each mask of a tile, at tile row and column 0; no mask may be empty."""
    if not len(masks):
        return Candidates.empty(rules)
    stack = np.array(masks)
    boxes = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        boxes.append((xs.min(), ys.min(), xs.max(), ys.max()))
    n, zeros = len(masks), np.zeros(len(masks))
    return Candidates.from_columns(
        rules,
        {
            "tile_row": zeros,
            "tile_col": zeros,
            "ordinal": np.arange(n),
            "pred_iou": np.array(scores, np.float32),
            "stability_score": np.full(n, 0.95, np.float32),
            **dict(zip(("x0", "y0", "x1", "y1"), np.array(boxes).T, strict=True)),
            "area_px": stack.sum(axis=(1, 2)),
            "point_x": zeros,
            "point_y": zeros,
            "crop_x0": zeros,
            "crop_y0": zeros,
            "crop_x1": np.full(n, rules.width),
            "crop_y1": np.full(n, rules.height),
            "rle": encode_masks(stack),
        },
    )


def objects(shape, seed, n=14, largest=0.9):
    """Random boxes, discs, crosses and rings of all sizes; later ones on top."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for number in range(1, n + 1):
        _draw(labels, number, rng, largest)
    return largest_parts(labels)


def objects_apart(shape, seed, n, largest=0.9):
    """As many of `n` such objects as find a place where no two boxes meet: box NMS takes none."""
    rng = np.random.default_rng(seed)
    labels, taken = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for number in range(1, n + 1):
        one = np.zeros(shape, np.uint8)
        _draw(one, 1, rng, largest)
        x, y, w, h = cv2.boundingRect(one)
        frame = np.s_[y : y + h, x : x + w]
        if not taken[frame].any():
            taken[frame] = True
            labels[one > 0] = number
    return labels


def _draw(labels, number, rng, largest):
    radius = int(rng.uniform(0.02, largest) ** 2 * min(labels.shape) / 2) + 3
    x, y = (int(rng.uniform(0, side)) for side in labels.shape[::-1])
    match rng.integers(4):
        case 0:
            cv2.rectangle(labels, (x - radius, y - radius // 2), (x + radius, y), number, -1)
        case 1:
            cv2.circle(labels, (x, y), radius, number, -1)
        case 2:
            cv2.circle(labels, (x, y), radius, number, max(2, radius // 4))
        case 3:
            cv2.line(labels, (x - radius, y - radius), (x + radius, y + radius // 2), number, 5)


def largest_parts(labels):
    """Keep one connected part of each object, as a person would outline it."""
    kept = np.zeros_like(labels)
    for number in np.unique(labels[labels > 0]):
        _, parts, stats, _ = cv2.connectedComponentsWithStats(
            (labels == number).astype(np.uint8), connectivity=4
        )
        kept[parts == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])] = number
    return kept


def same_objects(merged, truth):
    """Every object once, with its exact outline, and nothing else."""
    merged, truth = (
        sorted(frame.geometry, key=lambda g: (*g.bounds, g.area)) for frame in (merged, truth)
    )
    # a union keeps the vertices where its pieces met: compare the areas that they cover
    return len(merged) == len(truth) and all(map(shapely.equals, merged, truth))
