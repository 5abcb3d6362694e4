"""Candidates of concepts: the ordinal of each says which class it is of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.table import Candidates

MOST_OBJECTS = 1000  # of one class in a tile; a model for concepts finds fewer
QUERIES = 200  # of SAM 3: as many objects of a class it can find in a tile
LARGEST_CLASS = 2_000_000  # so that ordinals fit 32 bits


def concept_ordinals(class_id: int, number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ordinals of candidates of a class, by their number `(n,)` in the model's own order."""
    return class_id * MOST_OBJECTS + number


def concept_of(candidates: Candidates) -> NDArray[np.int64]:
    """The class of each candidate of a model for concepts, `(n,)`."""
    return concepts_of_ordinals(candidates.column("ordinal"))


def concepts_of_ordinals(ordinals: NDArray[np.int32]) -> NDArray[np.int64]:
    """The class that each ordinal `(n,)` stands for."""
    return np.asarray(ordinals, np.int64) // MOST_OBJECTS
