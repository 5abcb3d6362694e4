"""From described examples to the class of anything that is described alike.

A classifier *is* its examples: it is fitted again from them whenever it is needed, the same each
time, and never stored. It is the mean of two: a forest, which knows corners and exceptions, and a
logistic regression, which goes on smoothly where there are no examples. The regression starts from
what is usual: a mask that the model is sure of is more likely an object than one that it is not
sure of. With three examples that decides much, with thirty little. Rare classes count for more, by
the square root of how rare they are: if all counted alike, scores would say too little of how
likely a class is, and what is kept at one place follows from that. `benchmarks/classes.py`
measures it.
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

NONE = 0  # the class of what is none of the classes
TREES = 300
QUICK_TREES = 50  # a fifth of a second for 5,000 candidates; the colours hardly change after it
_ROWS = 1024  # that one thread scores at a time
_THREADS = ThreadPoolExecutor(usable_cores(), "classes")
PRED_IOU = FEATURES.index("pred_iou")
# in a logistic regression: how much likelier, in logarithms, a spread of the predicted IoU makes a
# class before examples say so; with `ENOUGH` examples half of it is left. It is less where there
# are few examples in all: those are judged objects, which the model was sure of anyway
USUAL_SLOPE, FIRMNESS = 3.0, 100.0
_FAR = 4.0  # standard deviations: what is farther off in another scene counts as that far


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of classes from figures; `classes` names the columns of `probabilities`."""

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
        """Learn from figures `(n, k)` and classes `(n,)`, two at least, 0 for none of these.

        `weight` `(n,)` says how much each row counts; None: all alike.
        """
        weight = np.ones(len(class_id)) if weight is None else weight
        # rows in an order of their own: where examples come from does not matter
        order = np.lexsort((weight, *figures.T[::-1], class_id))
        figures, class_id, weight = figures[order], class_id[order], weight[order]
        _, class_of = np.unique(class_id, return_inverse=True)
        n_objects = np.bincount(class_of, weight).astype(np.float64)
        weight = _rare_for_more(class_id, weight)
        forest = _grow(trees, figures, class_id, weight)
        return cls(forest, _Line.fit(figures, class_id, weight, n_objects), np.unique(class_id))

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
        # tree by tree: `predict_proba` changes Python's filters of warnings, which threads share,
        # and its own threads add up in any order
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
        """Fit slopes that are no further from what is usual than the examples ask for.

        `n_objects` is how many there are of each class, however many rows show them.
        """
        from scipy.optimize import minimize

        middle, spread = figures.mean(axis=0, dtype=float), figures.std(axis=0, dtype=float)
        spread = np.where(spread > 1e-6, spread, 1.0)
        classes, row = np.unique(class_id, return_inverse=True)
        standard = _standard(figures, middle, spread)
        # of two classes only the difference counts
        n_free = 1 if len(classes) == 2 else len(classes)
        usual = np.zeros((n_free, standard.shape[1]))
        if NONE in classes:
            n = n_objects.sum()
            left = ENOUGH / (ENOUGH + n_objects[-n_free:]) * n / (n + FIRMNESS)
            usual[:, PRED_IOU] = np.where(classes[-n_free:] == NONE, 0, USUAL_SLOPE * left)
        truth = (row[:, None] == np.arange(len(classes))).astype(float)

        def loss(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            slope, level = free[:-n_free].reshape(n_free, -1), free[-n_free:]
            logits = np.zeros((len(standard), len(classes)))
            logits[:, -n_free:] = standard @ (usual + slope).T + level
            logits -= logits.max(axis=1, keepdims=True)
            odds = np.exp(logits)
            total = odds.sum(axis=1, keepdims=True)
            missed = (odds / total - truth)[:, -n_free:] * weight[:, None]
            value = (weight * (np.log(total[:, 0]) - (logits * truth).sum(axis=1))).sum()
            steps = np.append(missed.T @ standard + FIRMNESS * slope, missed.sum(axis=0))
            return value + FIRMNESS / 2 * (slope**2).sum(), steps

        start = np.zeros(usual.size + n_free)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
        slope, level = np.zeros((len(classes), usual.shape[1])), np.zeros(len(classes))
        slope[-n_free:] = usual + found[:-n_free].reshape(usual.shape)
        level[-n_free:] = found[-n_free:]
        return cls(middle, spread, slope, level)

    def probabilities(self, figures: NDArray[np.float32]) -> NDArray[np.float64]:
        standard = _standard(figures, self.middle, self.spread)
        # no matrix product, whose last bits depend on how many rows there are
        terms = [(standard * slope).sum(axis=1) for slope in self.slope]
        logits = np.column_stack(terms) + self.level
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _grow(
    trees: int,
    figures: NDArray[np.float32],
    class_id: NDArray[np.int64],
    weight: NDArray[np.float64],
) -> tuple[Any, ...]:
    """Grow extremely randomised trees, each from all rows; tree `i` is the same in any forest."""
    from sklearn.tree import ExtraTreeClassifier  # takes a second to import

    figures = np.ascontiguousarray(figures, np.float32)

    # `ExtraTreesClassifier` grows the same trees, but spends as long again on starting threads and
    # asking after them: with 90 examples 120 ms instead of 50 ms for 50 trees
    def one(seed: int) -> Any:
        tree = ExtraTreeClassifier(min_samples_leaf=3, max_features=0.2, random_state=seed)
        return tree.fit(figures, class_id, weight, check_input=False).tree_

    return tuple(_THREADS.map(one, range(trees)))


def _rare_for_more(class_id: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights with a mean of 1, of each class more by the root of how much rarer it is."""
    _, class_of = np.unique(class_id, return_inverse=True)
    weight = weight / np.sqrt(np.bincount(class_of, weight))[class_of]
    return np.asarray(weight / weight.mean())


def _standard(
    figures: NDArray[np.float32], middle: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.clip((figures - middle) / spread, -_FAR, _FAR)
