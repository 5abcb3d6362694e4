"""Training examples: crops of random scenes, painted and photographed anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scenes import TrainingScene, noise

Texture = NDArray[np.uint8]  # (n, n, 3), of one kind of ground


@dataclass(frozen=True)
class Example:
    """One crop of `s` × `s` pixels.

    `image` `(s, s, 3)`; `labels` `(s, s)` numbers the topmost object, `wholes` `(s, s)` the whole
    that it belongs to; both are -1 on ground that is no object.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int16]
    wholes: NDArray[np.int16]


def make_example(
    scene: TrainingScene,
    textures: Sequence[Texture],
    size: int,
    rng: np.random.Generator,
    plain_share: float = 0,
) -> Example:
    """Make one example, equal in every bit for equal arguments.

    With a probability of `plain_share` objects have one colour each, and no texture.
    """
    pixels, labels = _crop(scene, size, rng)
    if rng.random() < plain_share:
        rgb = _drawn(_plain(labels, scene.part_of, rng), rng)
    else:
        rgb = _photographed(_painted(pixels, labels, len(scene.part_of), textures, rng), rng)
    if rng.random() < 0.05:
        rgb, labels = _with_collar(rgb, labels, rng)
    return Example(np.ascontiguousarray(rgb), labels, np.append(scene.part_of, -1)[labels])


# ----------------------------------------------------------------------------------- geometry


def _crop(
    scene: TrainingScene, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Cut a square of random size and place, bring it to `size` and turn or mirror it."""
    height, width = scene.labels.shape
    side = int(size * np.exp(rng.uniform(np.log(0.45), np.log(2.0))))
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
    return rgb.astype(np.float32), np.ascontiguousarray(labels)


# --------------------------------------------------------------------------------- appearance


def _painted(
    rgb: NDArray[np.float32],
    labels: NDArray[np.int16],
    n: int,
    textures: Sequence[Texture],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Change brightness, colour and texture object by object."""
    size = len(labels)
    if rng.random() < 0.6:
        spread = np.exp(rng.uniform(np.log(2), np.log(45)))
        offsets = rng.normal(0, 1, (n + 1, 1)) * spread + rng.normal(0, 0.4, (n + 1, 3)) * spread
        rgb = rgb + offsets.astype(np.float32)[labels]
    if rng.random() < 0.3:
        return rgb
    kinds = int(rng.integers(1, 6))
    patterns, whole = np.empty((kinds, size, size, 3), np.float32), rng.random(kinds) < 0.5
    for i in range(kinds):
        if textures and rng.random() < 0.8:
            patterns[i] = _tiled(textures[int(rng.integers(len(textures)))], size, rng)
        else:
            whole[i], patterns[i] = False, _grain(size, rng)[..., None]
        if not whole[i]:
            patterns[i] -= patterns[i].mean((0, 1))
    kind = rng.integers(0, kinds, n + 1)
    strength = rng.random(n + 1) ** 0.7 * rng.uniform(0.3, 1.0)
    strength[rng.random(n + 1) < rng.random() ** 2] = 0
    chosen = kind[labels]
    y, x = np.mgrid[:size, :size]
    pattern = patterns[chosen, y, x]
    share = strength.astype(np.float32)[labels][..., None]
    return np.where(whole[chosen][..., None], rgb + share * (pattern - rgb), rgb + share * pattern)


def _plain(
    labels: NDArray[np.int16], part_of: NDArray[np.int16], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Give each object one of a few colours."""
    colours = rng.uniform(0, 255, (int(rng.integers(1, 7)), 3))
    if rng.random() < 0.3:  # all but alike
        colours = colours.mean(axis=1, keepdims=True) + rng.normal(0, 6, colours.shape)
    chosen = rng.integers(len(colours), size=len(part_of))
    if rng.random() < 0.7:  # parts look as their whole does
        chosen = chosen[part_of]
    tones = rng.normal(0, rng.choice([0, 8]), (len(part_of), 1))
    of_objects = np.vstack([colours[chosen] + tones, rng.uniform(0, 255, 3)])
    return np.asarray(of_objects[labels], np.float32)


def _drawn(rgb: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A good camera in even light, or any other."""
    if rng.random() < 0.35:
        return _photographed(rgb, rng)
    if rng.random() < 0.5:
        rgb = cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.7:
        noise = rng.standard_normal(rgb.shape, dtype=np.float32)
        rgb = rgb + noise * np.float32(rng.uniform(0.5, 6))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def _tiled(texture: Texture, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Cover a square with a texture, mirrored from tile to tile, at some scale and angle."""
    turned = np.rot90(texture, int(rng.integers(4)))
    side = int(len(texture) * np.exp(rng.uniform(np.log(0.6), np.log(2.2))))
    tile = cv2.resize(turned, (side, side), interpolation=cv2.INTER_AREA)
    y, x = rng.integers(0, 2 * side, 2)
    room = size + 2 * side
    whole = cv2.copyMakeBorder(tile, 0, room, 0, room, cv2.BORDER_REFLECT)
    return np.asarray(whole[y : y + size, x : x + size], np.float32)


def _grain(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of some grain or stripes."""
    field = noise(size, float(np.exp(rng.uniform(0, np.log(size / 3)))), rng)
    if rng.random() < 0.3:
        angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(40)))
        y, x = np.mgrid[:size, :size]
        field = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
    return np.asarray(field * rng.uniform(2, 25), np.float32)


def _photographed(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another camera: white balance, contrast, saturation, blur, noise, compression."""
    if rng.random() < 0.7:
        x = (x - 128) * np.float32(np.exp(rng.normal(0, 0.25))) + np.float32(
            128 + rng.normal(0, 20)
        )
        x = x * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    if rng.random() < 0.4:
        grey = x.mean(axis=2, keepdims=True)
        x = grey + (x - grey) * np.float32(rng.choice([0.0, rng.uniform(0.2, 1.6)], p=[0.25, 0.75]))
    if rng.random() < 0.15:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.25:  # large soft shadows and uneven light
        x = x * (1 + np.float32(rng.uniform(0.05, 0.3)) * noise(len(x), len(x) / 2, rng)[..., None])
    if rng.random() < 0.3:
        bright = np.clip(x, 0, 255) / np.float32(255)
        x = np.float32(255) * bright ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.4:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 1.6)))
    elif rng.random() < 0.25:
        x = x + np.float32(rng.uniform(0.3, 1.2)) * (x - cv2.GaussianBlur(x, (0, 0), 1.5))
    if rng.random() < 0.5:
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(rng.uniform(1, 10))
    image = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
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
