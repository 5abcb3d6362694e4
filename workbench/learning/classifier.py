"""From described examples to the class of any candidate that is described in the same way.

A classifier *is* its examples: it is fitted from them whenever it is needed, with the same result
each time, and never stored. It is the mean of two models: a forest, which captures corners and
exceptions, and a logistic regression, which extrapolates smoothly where there are no examples. The
regression has a prior: a mask that the model is sure of is more likely to be an object. With three
examples this prior decides much, with thirty little. Examples of rare classes count for more, by
the square root of how rare they are. If all classes had the same total weight, the scores would
tell too little about how likely a class is, and the choice at each place depends on that.
`benchmarks/classes.py` measures it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench._support.cores import usable_cores
from workbench.learning.examples import ENOUGH
from workbench.learning.features import FEATURES

NONE = 0  # the number of whatever belongs to none of the classes
TREES = 300
QUICK_TREES = 50  # a fifth of a second for 5,000 candidates; with more, the colours hardly change
_ROWS = 1024  # that one thread scores at a time
# rows times trees; 50 trees grow from 90 rows in 80 ms, and in 170 ms with threads of their own
_WORTH_THREADS = 200_000
_THREADS = ThreadPoolExecutor(usable_cores(), "classes")
PRED_IOU = FEATURES.index("pred_iou")
# the prior of the regression: the log odds of a class for each standard deviation of the predicted
# IoU, before there are examples. `ENOUGH` objects leave a quarter of it. It is also weaker if there
# are few examples in total: those are judged objects, which the model was sure of anyway
USUAL_SLOPE, MANY = 4.0, 100.0
_FREEDOM = 0.004  # `C` of the regression; 0.01 lowered the F1 of fields from other scenes by 0.01
_FAR = 4.0  # standard deviations: features of another scene that are farther off are clipped


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of classes from features; `classes` names the columns of `probabilities`."""

    trees: tuple[Any, ...]
    line: _Line
    classes: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        figures: NDArray[np.float32],
        class_id: NDArray[np.int64],
        trees: int = TREES,
        weight: NDArray[np.float64] | None = None,
    ) -> Classifier:
        """Learn from features `(n, k)` and classes `(n,)`: at least two; 0 is none of these.

        `weight` `(n,)` says how much each row counts; None: all the same.
        """
        from sklearn.ensemble import ExtraTreesClassifier  # takes a second to import

        weight = np.ones(len(class_id)) if weight is None else weight
        # sorted, so that the result does not depend on where examples come from
        order = np.lexsort((weight, *figures.T[::-1], class_id))
        figures, class_id, weight = figures[order], class_id[order], weight[order]
        _, class_of = np.unique(class_id, return_inverse=True)
        n_objects = np.bincount(class_of, weight).astype(np.float64)
        weight = _rare_for_more(class_of, weight)
        forest = ExtraTreesClassifier(
            trees, min_samples_leaf=3, max_features=0.2, random_state=0,
            n_jobs=usable_cores() if trees * len(figures) > _WORTH_THREADS else None,
        )  # fmt: skip
        forest.fit(figures, class_id, weight)
        line = _Line.fit(figures, class_id, weight, n_objects)
        classes = np.asarray(forest.classes_, np.int64)
        return cls(tuple(tree.tree_ for tree in forest.estimators_), line, classes)

    def probabilities(self, figures: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class, `(n, len(classes))`."""
        if not len(figures):
            return np.zeros((0, len(self.classes)))
        parts = np.split(figures, np.arange(_ROWS, len(figures), _ROWS))
        # a tree does not hold Python's lock while it works
        return np.concatenate(list(_THREADS.map(self._mean, parts)))

    def best(self, figures: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the likeliest class of each row that is not none, and its probability."""
        real = np.flatnonzero(self.classes != NONE)
        probabilities = self.probabilities(figures)[:, real]
        return self.classes[real[probabilities.argmax(axis=1)]], probabilities.max(axis=1)

    def _mean(self, figures: NDArray[np.float32]) -> NDArray[np.float64]:
        # tree by tree: `predict_proba` changes Python's warning filters, which threads share, and
        # its own threads add up in random order
        forest = np.zeros((len(figures), len(self.classes)))
        for tree in self.trees:
            weight = tree.predict(np.ascontiguousarray(figures, np.float32))
            forest += weight / weight.sum(axis=1, keepdims=True)
        return (forest / len(self.trees) + self.line.probabilities(figures)) / 2


@dataclass(frozen=True, eq=False)
class _Line:
    """A logistic regression on standardised figures; one row of `slope` for each class."""

    middle: NDArray[np.float64]
    spread: NDArray[np.float64]
    slope: NDArray[np.float64]
    level: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        figures: NDArray[np.float32],
        class_id: NDArray[np.int64],
        weight: NDArray[np.float64],
        n_objects: NDArray[np.float64],
    ) -> _Line:
        """Fit slopes to the examples and add the prior.

        `n_objects` counts the objects of each class, however many rows show each of them.
        """
        from sklearn.linear_model import LogisticRegression

        middle, spread = figures.mean(axis=0, dtype=float), figures.std(axis=0, dtype=float)
        spread = np.where(spread > 1e-6, spread, 1.0)
        line = LogisticRegression(C=_FREEDOM, max_iter=1000)
        line.fit(_standard(figures, middle, spread), class_id, weight)
        slope, level = line.coef_, line.intercept_
        if len(slope) == 1:  # for two classes, scikit-learn keeps only the second
            slope, level = np.stack((0 * slope[0], slope[0])), np.array([0.0, level[0]])
        if NONE in line.classes_:
            n = n_objects.sum()
            left = (ENOUGH / (ENOUGH + n_objects)) ** 2 * n / (n + MANY)
            usual = np.where(line.classes_ == NONE, 0, USUAL_SLOPE * left)
            slope[:, PRED_IOU] += usual
            level = level - usual**2 / 2  # so that this makes no class more frequent
        return cls(middle, spread, slope, level)

    def probabilities(self, figures: NDArray[np.float32]) -> NDArray[np.float64]:
        standard = _standard(figures, self.middle, self.spread)
        # not a matrix product: its last bits depend on the number of rows
        terms = [(standard * slope).sum(axis=1) for slope in self.slope]
        logits = np.column_stack(terms) + self.level
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _rare_for_more(class_of: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide weights by the square root of their class's total; their mean becomes 1."""
    weight = weight / np.sqrt(np.bincount(class_of, weight))[class_of]
    return np.asarray(weight / weight.mean())


def _standard(
    figures: NDArray[np.float32], middle: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.clip((figures - middle) / spread, -_FAR, _FAR)
