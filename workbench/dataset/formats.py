"""The pixels of a label as an annotation: COCO's polygons or RLE, rings of YOLO-seg.

Both give back exactly these pixels. COCO, read by `pycocotools`: polygons along pixel edges, or RLE
if there are holes. YOLO, filled by `cv2.fillPoly` as its readers do: outlines through the centres
of border pixels. A row of YOLO holds one ring, so each part of a label is a row, and a hole is
joined to its ring by a cut.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.candidates.rle import decode_runs
from workbench.polygons.trace import trace


def coco_shape(rle: bytes, mask: NDArray[np.bool_], *, crowd: bool) -> dict[str, Any]:
    """Return the fields of a COCO annotation for a `(h, w)` mask, which `rle` encodes."""
    parts = trace(decode_runs([rle], *mask.shape)).parts()
    corners = np.concatenate([part[0] for part in parts])
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    holes = any(len(part) > 1 for part in parts)
    return {
        # COCO has no polygons with holes, and wants crowds as RLE
        "segmentation": {"size": list(mask.shape), "counts": rle.decode()} if holes or crowd
        else [part[0][:-1].ravel().tolist() for part in parts],
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(crowd),
    }  # fmt: skip


def yolo_lines(number: int, mask: NDArray[np.bool_]) -> list[str]:
    """Return a line of a YOLO-seg file for each part of a `(h, w)` mask, of class `number`."""
    height, width = mask.shape
    lines = []
    for ring in yolo_rings(mask):
        # just short of the pixel's centre: readers that round and readers that truncate both
        # come back to this pixel
        values = ((ring + 0.49) / (width, height)).ravel()
        lines.append(" ".join([str(number), *(f"{value:.7f}" for value in values)]))
    return lines


def yolo_rings(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Outline each part of a `(h, w)` mask as one ring `(n, 2)` of x, y through pixel centres.

    `cv2.fillPoly` of all rings gives the mask: a hole is joined to its ring by a cut along pixels
    of the mask. Parts are 8-connected.
    """
    padded = np.pad(mask, 1)
    contours, hierarchy = cv2.findContours(
        padded.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    if not contours:
        return []
    parents = hierarchy[0, :, 3]
    rings = []
    for outer in np.flatnonzero(parents < 0).tolist():
        ring = contours[outer][:, 0].astype(np.int64)
        holes = [
            contours[i][:, 0].astype(np.int64) for i in np.flatnonzero(parents == outer).tolist()
        ]
        # from left to right, so that the ring already has what lies left of a hole
        for hole in sorted(holes, key=lambda h: (h[:, 0].min(), h[:, 1].min())):
            start = int(np.argmin(hole[:, 0]))
            x, y = hole[start]
            row = padded[y, : x + 1]
            end = int(np.flatnonzero(~row)[-1]) + 1  # the first pixel of this run of the mask
            at = int(np.flatnonzero((ring == (end, y)).all(axis=1))[0])
            loop = np.concatenate([hole[start:], hole[: start + 1]])
            ring = np.concatenate([ring[: at + 1], loop, ring[at:]])
        rings.append(_corners(ring) - 1)
    return rings


def _corners(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out the points along straight runs, but keep the three that a reader needs."""
    before, after = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    turns |= (before * after).sum(axis=1) >= 0  # there and back
    kept = ring[turns]
    return kept if len(kept) >= 3 else np.resize(kept, (3, 2))
