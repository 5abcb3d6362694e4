"""From described examples to the class of anything that is described alike.

A classifier *is* its examples: it is fitted again from them whenever it is needed, the same each
time, and never stored.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE = 0  # the class of what is none of the classes
TREES = 300
_ROWS = 1024  # that one thread scores at a time
_THREADS = ThreadPoolExecutor(os.cpu_count(), "classes")


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of classes from figures; `classes` names the columns of `probabilities`."""

    forest: Any
    classes: NDArray[np.int64]

    @classmethod
    def fit(cls, figures: NDArray[np.float32], class_id: NDArray[np.int64]) -> Classifier:
        """Learn from figures `(n, k)` and classes `(n,)`, 0 for none of these."""
        from sklearn.ensemble import ExtraTreesClassifier  # takes a second to import

        forest = ExtraTreesClassifier(
            TREES, min_samples_leaf=2, max_features=0.4, class_weight="balanced",
            random_state=0, n_jobs=-1,
        )  # fmt: skip
        # rows in an order of their own: where examples come from does not matter
        order = np.lexsort((*figures.T[::-1], class_id))
        forest.fit(figures[order], class_id[order])
        forest.set_params(n_jobs=1)  # several threads would add up the trees in any order
        return cls(forest, np.asarray(forest.classes_, np.int64))

    def probabilities(self, figures: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class, `(n, len(classes))`."""
        if not len(figures):
            return np.zeros((0, len(self.classes)))
        parts = np.split(figures, np.arange(_ROWS, len(figures), _ROWS))
        # scikit-learn does not hold Python's lock while it works
        return np.concatenate(list(_THREADS.map(self.forest.predict_proba, parts)))

    def best(self, figures: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the likeliest class of each row that is not none, and its probability."""
        real = np.flatnonzero(self.classes != NONE)
        probabilities = self.probabilities(figures)[:, real]
        return self.classes[real[probabilities.argmax(axis=1)]], probabilities.max(axis=1)
