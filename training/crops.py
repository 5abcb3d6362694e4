"""Training examples: crops of random scenes with point prompts and the masks they may mean."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scenes import SIZE_PX, TrainingScene, pooled_scene

MASK_STRIDE = 4  # of the decoder's masks
MIN_VISIBLE_PX = 24
PAIRS = ((0, 1), (0, 2), (0, 4), (0, 8), (1, 0), (2, 0), (4, 0), (8, 0))  # in steps of MASK_STRIDE


@dataclass(frozen=True)
class Example:
    """`p` prompts on one crop of `s` × `s` pixels; masks are at a quarter of the crop's size.

    `image` `(s, s, 3)`; `points` `(p, 2)` XY in pixels; `masks` `(p, 2, s/4, s/4)`: how many of
    its 16 pixels belong to the topmost object and to its whole; `valid` `(p, 2)` whether there is
    such an object (the whole only where it differs); `same` `(2·8, s/4, s/4)` and `on_object`
    `(s/4, s/4)` are what the encoder's features must tell, cell by cell.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    masks: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    same: NDArray[np.bool_]
    on_object: NDArray[np.bool_]


def make_example(
    seed: tuple[int, ...], pool: Path, n_scenes: int, size: int, n_points: int
) -> Example:
    """Make one example, equal in every bit for equal arguments."""
    rng = np.random.default_rng(seed)
    rgb, labels, part_of = _view(pool, n_scenes, size, rng)
    if rng.random() < 0.3:
        rgb, labels, part_of = _with_shapes(rgb, labels, part_of, rng)
    if rng.random() < 0.6:
        rgb = _repainted(rgb, labels, len(part_of), rng)
    rgb = _photographed(rgb, rng)
    if rng.random() < 0.08:
        rgb, labels = _with_collar(rgb, labels, rng)
    wholes = np.append(part_of, -1)[labels]  # -1 stays -1
    points = _points(labels, wholes, n_points, rng)
    masks, valid = _masks(labels, wholes, points)
    middle = slice(MASK_STRIDE // 2, None, MASK_STRIDE)
    cells = labels[middle, middle], wholes[middle, middle]
    return Example(
        image=np.ascontiguousarray(rgb),
        points=points.astype(np.float32),
        masks=masks,
        valid=valid,
        same=np.concatenate([_same(level) for level in cells]),
        on_object=cells[0] >= 0,
    )


# ----------------------------------------------------------------------------------- geometry


def _view(
    pool: Path, n_scenes: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int16]]:
    """Cut from one scene, or put together from four what is larger than a scene."""
    if size <= SIZE_PX:
        return _crop(pooled_scene(int(rng.integers(n_scenes)), pool), size, rng)
    quarters, wholes, n = [], [], 0
    for _ in range(4):
        scene = pooled_scene(int(rng.integers(n_scenes)), pool)
        rgb, labels, part_of = _crop(scene, size // 2, rng)
        quarters.append((rgb, np.where(labels >= 0, labels + n, labels).astype(np.int16)))
        wholes.append(part_of + n)
        n += len(part_of)
    rgb, labels = (
        np.concatenate([np.concatenate(half, axis=1) for half in (parts[:2], parts[2:])])
        for parts in zip(*quarters, strict=True)
    )
    return rgb, labels, np.concatenate(wholes).astype(np.int16)


def _crop(
    scene: TrainingScene, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int16]]:
    """Cut a square of random size and place, bring it to `size` and turn or mirror it."""
    height, width = scene.labels.shape
    side = int(size * np.exp(rng.uniform(np.log(0.55), np.log(1.6))))
    side = min(side, height, width)
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    rgb = scene.rgb[y : y + side, x : x + side]
    labels = scene.labels[y : y + side, x : x + side]
    if side != size:
        how = cv2.INTER_AREA if side > size else rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])
        rgb = cv2.resize(rgb, (size, size), interpolation=int(how))
        labels = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    turns = int(rng.integers(4))
    rgb, labels = np.rot90(rgb, turns), np.rot90(labels, turns)
    if rng.random() < 0.5:
        rgb, labels = rgb[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(rgb), np.ascontiguousarray(labels), scene.part_of


def _with_shapes(
    rgb: NDArray[np.uint8],
    labels: NDArray[np.int16],
    part_of: NDArray[np.int16],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int16]]:
    """Lay shapes of any form and texture over the scene: new objects, some with two parts."""
    size, rgb, labels = len(labels), rgb.copy(), labels.copy()
    n, wholes = len(part_of), list(part_of)
    for _ in range(int(rng.integers(1, 12))):
        outline = _outline(size, rng)
        inside = np.zeros_like(labels, np.uint8)
        cv2.fillPoly(inside, [outline], 1)
        here = inside.astype(bool)
        if here.sum() < MIN_VISIBLE_PX:
            continue
        whole = n
        labels[here] = n
        wholes.append(whole)
        rgb[here] = _texture(size, rng)[here]
        n += 1
        if rng.random() < 0.3:  # a part: what lies on one side of a line
            (cx, cy), angle = outline.mean(axis=0), rng.uniform(0, 2 * np.pi)
            y, x = np.mgrid[:size, :size]
            part = here & ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle) > 0)
            if MIN_VISIBLE_PX < part.sum() < here.sum() - MIN_VISIBLE_PX:
                labels[part] = n
                wholes.append(whole)
                light = 1 + rng.choice([-1, 1]) * rng.uniform(0.06, 0.4)
                rgb[part] = np.clip(rgb[part] * light, 0, 255).astype(np.uint8)
                n += 1
    return rgb, labels, np.array(wholes, np.int16)


def _outline(size: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """A rectangle, an L, a polygon or a smooth blob, `(n, 2)` pixels."""
    radius = size * np.exp(rng.uniform(np.log(0.03), np.log(0.4)))
    stretch = np.array([1, np.exp(rng.normal(0, 0.5))]) * radius
    kind = rng.integers(4)
    if kind == 0:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])
    elif kind == 1:
        a, b = rng.uniform(-0.5, 0.6, 2)
        points = np.array([[-1, -1], [1, -1], [1, b], [a, b], [a, 1], [-1, 1.0]])
    elif kind == 2:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.6, 1.2)
    else:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        lobes = np.arange(2, 7)[:, None]
        swell = (
            rng.normal(0, 0.2, (5, 1)) / lobes * np.sin(lobes * angles + rng.uniform(0, 6, (5, 1)))
        )
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * (1 + 2 * swell.sum(0))[:, None]
    turn = rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    points = (points * stretch) @ np.array([[c, s], [-s, c]]) + rng.uniform(0, size, 2)
    return points.round().astype(np.int32)


def _texture(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A colour with noise of some grain or stripes."""
    colour = rng.uniform(10, 245, 3)
    if rng.random() < 0.4:
        colour = colour.mean() + rng.normal(0, 8, 3)
    field = _noise(size, float(np.exp(rng.uniform(0, np.log(size / 3)))), rng)
    if rng.random() < 0.3:
        angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(40)))
        y, x = np.mgrid[:size, :size]
        field = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
    strength = rng.uniform(0, 30)
    return np.clip(colour + strength * field[..., None], 0, 255).astype(np.uint8)


def _noise(size: int, grain_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = max(int(size / grain_px), 1) + 3
    field = rng.standard_normal((coarse, coarse), dtype=np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


# --------------------------------------------------------------------------------- appearance


def _repainted(
    rgb: NDArray[np.uint8], labels: NDArray[np.int16], n: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change brightness, colour and texture object by object."""
    size = len(labels)
    spread = np.exp(rng.uniform(np.log(2), np.log(45)))
    offsets = rng.normal(0, 1, (n + 1, 1)) * spread + rng.normal(0, 0.4, (n + 1, 3)) * spread
    out = rgb + offsets.astype(np.float32)[labels]
    for _ in range(int(rng.integers(0, 3))):
        grain = _noise(size, float(np.exp(rng.uniform(0, np.log(size / 3)))), rng)
        strengths = np.maximum(rng.normal(0, 1, n + 1), 0).astype(np.float32) * rng.uniform(2, 18)
        out += (grain * strengths[labels])[..., None]
    return np.clip(out, 0, 255).astype(np.uint8)


def _photographed(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another camera: white balance, contrast, saturation, blur, noise, compression."""
    x = rgb.astype(np.float32)
    if rng.random() < 0.7:
        x = (x - 128) * float(np.exp(rng.normal(0, 0.25))) + 128 + float(rng.normal(0, 20))
        x *= np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    if rng.random() < 0.4:
        grey = x.mean(axis=2, keepdims=True)
        x = grey + (x - grey) * float(rng.choice([0.0, rng.uniform(0.2, 1.6)], p=[0.25, 0.75]))
    if rng.random() < 0.15:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.25:  # large soft shadows and uneven light
        x *= 1 + rng.uniform(0.05, 0.3) * _noise(len(x), len(x) / 2, rng)[..., None]
    if rng.random() < 0.35:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 1.6)))
    elif rng.random() < 0.2:
        x = x + rng.uniform(0.3, 1.2) * (x - cv2.GaussianBlur(x, (0, 0), 1.5))  # sharpened
    if rng.random() < 0.5:
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(rng.uniform(1, 10))
    image = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return image


def _with_collar(
    rgb: NDArray[np.uint8], labels: NDArray[np.int16], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Black out one side, as where a raster ends."""
    rgb, labels, width = rgb.copy(), labels.copy(), int(len(labels) * rng.uniform(0.05, 0.6))
    part = [np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]][rng.integers(4)]
    rgb[part], labels[part] = 0, -1
    return rgb, labels


# ------------------------------------------------------------------------------------ answers


def _points(
    labels: NDArray[np.int16], wholes: NDArray[np.int16], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Half of the points anywhere, half on objects picked one like the other, large or small."""
    size = len(labels)
    points = rng.integers(0, size, (n, 2))
    level = labels if rng.random() < 0.5 else wholes
    order = np.argsort(level, axis=None, kind="stable")
    numbers, first, count = np.unique(level.ravel()[order], return_index=True, return_counts=True)
    able = (numbers >= 0) & (count >= MIN_VISIBLE_PX)
    if able.any():
        chosen = rng.choice(np.flatnonzero(able), n // 2)
        pixel = order[first[chosen] + (rng.random(len(chosen)) * count[chosen]).astype(int)]
        points[: len(chosen)] = np.stack([pixel % size, pixel // size], 1)
    return points


def _masks(
    labels: NDArray[np.int16], wholes: NDArray[np.int16], points: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    side = len(labels) // MASK_STRIDE

    @cache
    def pooled(level: int, number: int) -> tuple[NDArray[np.uint8], bool]:
        mask = ((labels, wholes)[level] == number).view(np.uint8)
        cells = mask.reshape(side, MASK_STRIDE, side, MASK_STRIDE).sum(axis=(1, 3), dtype=np.uint8)
        return cells, int(cells.sum(dtype=int)) >= MIN_VISIBLE_PX

    masks = np.zeros((len(points), 2, side, side), np.uint8)
    valid = np.zeros((len(points), 2), bool)
    for i, (x, y) in enumerate(points.tolist()):
        part, whole = int(labels[y, x]), int(wholes[y, x])
        if part < 0:
            continue
        masks[i, 0], valid[i, 0] = pooled(0, part)
        masks[i, 1], valid[i, 1] = pooled(1, whole)
        valid[i, 1] &= bool((masks[i, 0] != masks[i, 1]).any())
    return masks, valid


def _same(cells: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Whether a cell and the one so many rows and columns on show one object, `(8, h, w)`."""
    far = max(max(pair) for pair in PAIRS)
    wide = np.pad(cells, (0, far), mode="edge")
    h, w = cells.shape
    return np.stack([wide[dy : dy + h, dx : dx + w] == cells for dy, dx in PAIRS])
