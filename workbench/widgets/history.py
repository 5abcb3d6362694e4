"""All that a person has done by hand, as one frozen value, and its history for undo and redo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from workbench.candidates.select import Thresholds
from workbench.learning.verdicts import Verdicts
from workbench.polygons.clean import Cleaning
from workbench.runs.by_hand import ShapesByHand
from workbench.runs.exemplars_by_hand import ExemplarsByHand
from workbench.runs.job import Job
from workbench.tuning.preview import Key
from workbench.tuning.process import Index

TUNED = (*Thresholds.__dataclass_fields__, *Cleaning.__dataclass_fields__)  # by sliders
DRAG_SECONDS = 1.0  # moves of one slider that are closer together are one step
MOST_STEPS = 500


@dataclass(frozen=True)
class State:
    """All that a person has done by hand; every change makes a new state.

    `job` has the area, thresholds and cleaning; `tiles` are the wanted sample tiles; `judged` are
    the candidates called good (true) or bad (false), `verdicts` and `colors` those of the classes;
    `other` is the setting that was kept as B; `by_hand` are shapes that were drawn, `exemplars` the
    boxes that show the model what to find.
    """

    job: Job
    verdicts: Verdicts
    colors: Mapping[int, str]
    by_hand: ShapesByHand
    exemplars: ExemplarsByHand
    tiles: frozenset[Index] = frozenset()
    judged: Mapping[Key, bool] = field(default_factory=dict)
    other: Job | None = None


STATE = tuple(one.name for one in fields(State))


@dataclass(frozen=True)
class History:
    """The current state, earlier ones, and undone ones; `slid` are the sliders that moved last."""

    now: State
    past: tuple[State, ...] = ()
    future: tuple[State, ...] = ()
    slid: frozenset[str] = frozenset()
    at: float = 0.0

    def then(self, state: State, at: float) -> History:
        """Add a state; `at` is the time in seconds. One drag of a slider is one step."""
        slid = _slid(self.now, state)
        if slid and slid == self.slid and at - self.at < DRAG_SECONDS:
            return replace(self, now=state, future=(), at=at)
        return History(state, (*self.past, self.now)[-MOST_STEPS:], (), slid, at)

    def back(self) -> History:
        """The history after undo; the same one if there is nothing to undo."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.now, *self.future))

    def forth(self) -> History:
        """The history after redo; the same one if there is nothing to redo."""
        if not self.future:
            return self
        return History(self.future[0], (*self.past, self.now), self.future[1:])


def _slid(before: State, state: State) -> frozenset[str]:
    """The sliders that moved, if nothing else has changed."""
    if any(getattr(before, name) != getattr(state, name) for name in STATE if name != "job"):
        return frozenset()
    one, other = before.job, state.job
    changed = {name for name in Job.model_fields if getattr(one, name) != getattr(other, name)}
    return frozenset(changed) if changed <= set(TUNED) else frozenset()
