"""Annotations give back the pixels that they are made of."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from workbench.candidates.rle import encode_masks
from workbench.dataset.formats import coco_shape, yolo_rings

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14))


@settings(deadline=None, max_examples=60)
@given(masks)
def test_yolo_rings_fill_to_the_mask(mask: np.ndarray) -> None:
    filled = np.zeros(mask.shape, np.uint8)
    for ring in yolo_rings(mask):
        assert len(ring) >= 3
        cv2.fillPoly(filled, [ring.astype(np.int32)], 1)
    np.testing.assert_array_equal(filled.astype(bool), mask)


def test_yolo_joins_holes_by_a_cut_and_splits_parts() -> None:
    mask = np.zeros((9, 20), bool)
    mask[1:8, 1:8] = True
    mask[3:5, 3:5] = False
    assert len(yolo_rings(mask)) == 1
    mask[2:6, 12:18] = True
    assert len(yolo_rings(mask)) == 2


@settings(deadline=None, max_examples=60)
@given(masks.filter(np.any), st.booleans())
def test_coco_shapes_fill_to_the_mask(mask: np.ndarray, crowd: bool) -> None:
    made = coco_shape(encode_masks(mask[None])[0], mask, crowd=crowd)
    shape, size = made["segmentation"], mask.shape
    rle = shape if isinstance(shape, dict) else coco.merge(coco.frPyObjects(shape, *size))
    np.testing.assert_array_equal(coco.decode(rle).astype(bool), mask)
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    assert made["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
    assert made["area"] == mask.sum()
    assert made["iscrowd"] == int(crowd)
