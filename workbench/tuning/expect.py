"""How well taught classes should do on other tiles, and what would help most, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.learning.classifier import NONE
from workbench.learning.examples import ENOUGH
from workbench.learning.held_out import HeldOut
from workbench.learning.verdicts import Verdicts

MORE = 20  # verdicts, where no other advice is better


def counts_of(verdicts: Verdicts) -> dict[int, int]:
    """The number of verdicts for each class; 0 is none of them."""
    counts: dict[int, int] = {}
    for number in verdicts.said.values():
        counts[number] = counts.get(number, 0) + 1
    return counts


def expectation(
    verdicts: Verdicts, classes: Mapping[int, str], expected: HeldOut | None
) -> list[str]:
    """Sentences about the verdicts so far, what to expect and what would help most.

    `expected` is None while that is not known.
    """
    counts = counts_of(verdicts)
    if not counts:
        first = next(iter(classes.items()))
        return [
            f"To teach classes, point at a polygon and press {first[0]} ({first[1]}), or 0 for "
            "none of these."
        ]
    if not verdicts.can_teach:
        return [_so_far(verdicts), _other_side(counts, classes)]
    if expected is None:
        return [_so_far(verdicts)]
    return [
        _so_far(verdicts),
        *_by_class(expected, classes),
        _most_help(verdicts, classes, expected),
    ]


def _so_far(verdicts: Verdicts) -> str:
    n, tiles = len(verdicts), verdicts.frame["tile"].nunique()
    return f"{n} verdict{'s' if n > 1 else ''} on {tiles} tile{'s' if tiles > 1 else ''}."


def _other_side(counts: Mapping[int, int], classes: Mapping[int, str]) -> str:
    if NONE in counts:
        first = next(iter(classes.items()))
        return f"Now press {first[0]} on a few objects that are {first[1]}."
    return "Now press 0 on a few objects that are none of these: they teach where the class ends."


def _by_class(expected: HeldOut, classes: Mapping[int, str]) -> list[str]:
    """What to expect of each class, estimated on held-out tiles."""
    if not expected.n_tiles or not expected.by_class:
        return [f"Expected on other tiles: {expected.text()}."]
    lines = [
        f"{classes.get(number, f'class {number}')}: {one.text()}"
        for number, one in expected.by_class
    ]
    return [f"Expected on other tiles, by these verdicts: {'. '.join(lines)}."]


def _most_help(verdicts: Verdicts, classes: Mapping[int, str], expected: HeldOut) -> str:
    counts = counts_of(verdicts)
    fewest = min((counts.get(number, 0), number) for number in classes if counts.get(number))
    if fewest[0] < ENOUGH:
        n = ENOUGH - fewest[0]
        return f"{n} more of {classes[fewest[1]]} {'is' if n == 1 else 'are'} needed: press n."
    if counts.get(NONE, 0) < ENOUGH:
        n = ENOUGH - counts.get(NONE, 0)
        return f"{n} more verdict{'s' if n > 1 else ''} of 0, none of these, would help most."
    if verdicts.frame["tile"].nunique() < 2:
        return "Verdicts on another tile would help most: so far, all are from one tile."
    known = [(one.f1, number) for number, one in expected.by_class if number in classes]
    weakest = classes[min(known)[1]] if known else "each class"
    return f"{MORE} more of {weakest} from other tiles would help most."
