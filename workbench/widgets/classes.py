"""Teaching classes in the tuner: the palette, verdicts by click and key, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import ReviewError, WorkbenchError
from workbench.learning.examples import Examples
from workbench.learning.verdicts import VERDICTS, Verdicts
from workbench.raster.tiles import tile_name
from workbench.runs.labels import labels_of
from workbench.runs.looks import color_of, is_color
from workbench.tuning.expect import counts_of, expectation
from workbench.tuning.preview import Preview, View
from workbench.tuning.process import Index
from workbench.tuning.teach import Classes, Lesson, Teacher, at_place, most_telling
from workbench.widgets.drawn_polygons import ClassedRows
from workbench.widgets.labelling import CLASS_KEYS, NEXT_KEY, Labelling
from workbench.widgets.safe_html import Markup, SafeHTML, paragraph
from workbench.widgets.session import Session

KEYS = CLASS_KEYS + NEXT_KEY  # on the map
MATCHED_LATER = (
    "Polygons in `examples` count only in a run. Here, your verdicts count, and examples that come "
    "with features."
)


class ClassTeaching(Labelling):
    """Verdicts of a person, what is learned from them, and the resulting classes.

    `tell` shows an error. The tuner asks for `classed` whenever it draws.
    """

    remedy = ": add it with “+ class” first."

    def __init__(self, session: Session, tell: Callable[[str], None]) -> None:
        super().__init__(tell)
        self.session = session
        self.text = SafeHTML()
        self.lesson: Lesson | None = None
        self._teacher = Teacher(session.scenes[0].crs)
        self._learned_from: tuple[Any, ...] | None = None  # what `lesson` was learned from
        self._others: tuple[Any, list[Examples], str] | None = None
        self._cycle: list[int] = []  # rows at the place of the last click
        self._classes: Classes | None = None  # as last drawn
        self._undo: Verdicts | None = None  # before the last click of a cycle
        self.palette.on_edit(self._edit)
        self.palette.on_add(self._add)
        self.show_palette()
        self.show_text()
        if session.files.problem:
            tell(session.files.problem)

    @property
    def active(self) -> bool:
        """Whether classes are shown: there are verdicts, or the job has examples."""
        return len(self.session.verdicts) > 0 or self.session.job.examples is not None

    # ---- the palette and the line below it

    @property
    def names(self) -> Mapping[int, str]:
        """The classes of the job, by number."""
        return self.session.job.classes

    @property
    def colors(self) -> Mapping[int, str]:
        """The colours that somebody has chosen for them."""
        return self.session.colors

    @property
    def counts(self) -> Mapping[int, int]:
        """How often each was given, `NONE` for none of them."""
        return counts_of(self.session.verdicts)

    def show_text(self) -> None:
        """Say what to expect and what would help most."""
        session, lesson = self.session, self.lesson
        expected = None if lesson is None else lesson.expected
        lines = expectation(session.verdicts, session.job.classes, expected)
        notes = self._other_examples()[1]
        said = Markup(" ").join([*lines, *([notes] if notes else [])])
        self.text.value = paragraph(said)

    def _edit(self, wanted: list[dict[str, Any]]) -> None:
        names = {int(one["number"]): " ".join(str(one["name"]).split()) for one in wanted}
        colors = {int(one["number"]): str(one["color"]).lower() for one in wanted}
        if not all(names.values()):
            self._tell("A class needs a name.")
        elif all(is_color(color) for color in colors.values()):
            self._rename(names, colors)

    def _add(self) -> None:
        classes = self.session.job.classes
        number = max(classes, default=0) + 1
        self._rename(
            {**classes, number: f"class {number}"},
            {**self.session.colors, number: color_of(number)},
        )

    def _rename(self, names: dict[int, str], colors: dict[int, str]) -> None:
        try:
            self.session.name_classes(names, colors)
        except WorkbenchError as error:
            self._tell(str(error))
        self.show_palette()
        self.show_text()

    # ---- verdicts

    def say(self, row: int, number: int, preview: Preview, *, again_undoes: bool = True) -> bool:
        """Give a row a class, 0 for none; the same class again takes it back.

        Returns whether something has changed.
        """
        session = self.session
        if not self.knows(number):
            return False
        label, verdicts = label_of(preview, row), session.verdicts
        if again_undoes and verdicts.said.get(label) == number:
            return self._keep(verdicts.without(label))
        try:
            return self._keep(self.with_verdict(row, number, preview))
        except ReviewError as error:
            self._tell(str(error))
            return False

    def with_verdict(self, row: int, number: int, preview: Preview) -> Verdicts:
        """The verdicts, and one more; raises `ReviewError` while the tile is being computed."""
        described = self._teacher.show(preview, row, self.session.job)
        if described is None:
            raise ReviewError("This tile is still being computed: try again when it is finished.")
        return self.session.verdicts.with_verdict(described, number)

    def click(
        self, place: tuple[float, float], row: int, again: int, preview: Preview, view: View
    ) -> bool:
        """Give the palette's class to the row at a place; clicks `again` go on to the next."""
        if again and self._cycle and self._undo is not None:
            self._keep(self._undo)
            self._cycle = self._cycle[1:]
        else:
            self._cycle = self.rows_at(place, row, preview, view)
        self._undo = self.session.verdicts
        if not self._cycle:
            self.target = -1
            return bool(again)
        self.target = self._cycle[0]
        return self.say(self.target, self.palette.tool, preview, again_undoes=not again)

    def look(
        self, place: tuple[float, float], row: int, again: int, preview: Preview, view: View
    ) -> int:
        """The row that a click without a class highlights; clicks `again` go on, or back (-1)."""
        if again and len(self._cycle) > 1:
            self._cycle = self._cycle[again:] + self._cycle[:again]
        else:
            self._cycle = self.rows_at(place, row, preview, view)
        self._undo = None
        self.target = self._cycle[0] if self._cycle else -1
        return self.target

    @property
    def n_here(self) -> int:
        """How many rows lie at the place of the last click."""
        return len(self._cycle)

    def rows_at(
        self, place: tuple[float, float], row: int, preview: Preview, view: View
    ) -> list[int]:
        """The rows at a place, first the one that was clicked."""
        classes = self._classes
        rows = at_place(preview, view, classes, place)
        return rows if row < 0 else [row, *(other for other in rows if other != row)]

    def next(self, preview: Preview, view: View) -> int:
        """The row whose verdict would teach most, -1 if all are judged; keys now act on it."""
        thresh = 0.5 if self.lesson is None else self.lesson.class_thresh
        self.target = most_telling(preview, view, self._classes, thresh, self.session.verdicts)
        return self.target

    def _keep(self, verdicts: Verdicts) -> bool:
        try:
            self.session.say(verdicts)
        except WorkbenchError as error:
            self._tell(str(error))
            return False
        self.follow()
        return True

    def follow(self) -> None:
        """Learn at once from the verdicts of the session, which have changed."""
        verdicts = self.session.verdicts
        others, _ = self._other_examples()
        before = self.lesson
        thresh = self.session.job.class_thresh
        if thresh is None and before is not None:
            thresh = before.class_thresh
        self.lesson = self._teacher.quick(verdicts, others, thresh)
        if self.lesson is not None and before is not None and before.expected is not None:
            # until tiles are held out again, the last expectation is the best guess
            self.lesson = Lesson(
                self.lesson.classifier, self.lesson.class_thresh, self.lesson.said, before.expected
            )
        self._learned_from = None
        self.show_palette()
        self.show_text()

    # ---- classes

    def forget_rows(self) -> None:
        """Forget row numbers, which change with the samples."""
        self.target, self._cycle, self._undo, self._classes = -1, [], None, None

    def classed(self, preview: Preview) -> ClassedRows | None:
        """What the overlay should draw; None while there is nothing to learn from."""
        if not self.active:
            self._classes = None
            return None
        said = {
            row: number
            for label, number in self.session.verdicts.said.items()
            if (row := row_of(preview, label)) >= 0
        }
        self._classes = None
        if self.lesson is not None:
            self._classes = self._teacher.classes(self.lesson, preview, self.session.job)
        numbers = tuple(one["number"] for one in self.palette.classes)
        labels = self.session.by_hand.frame["label"].tolist()
        replaced = {row_of(preview, label) for label in labels if label} - {-1}
        return ClassedRows(numbers, said, self._classes, frozenset(replaced))

    def describe_one(self, preview: Preview) -> bool:
        """Compute the features of one sample tile; false if there is nothing left to do."""
        return self._teacher.describe_one(preview, self.session.job)

    def learn(self) -> bool:
        """Learn as a run does, if there is something new; returns whether there was."""
        session = self.session
        others, _ = self._other_examples()
        source = session.verdicts, session.job.class_thresh, tuple(map(id, others))
        if source == self._learned_from or not self.active:
            return False
        lesson = self._teacher.thorough(session.verdicts, others, session.job.class_thresh)
        if session.verdicts is not source[0]:
            return False  # the person has gone on: learn next time
        self.lesson, self._learned_from = lesson, source
        self.show_text()
        return True

    def _other_examples(self) -> tuple[list[Examples], str]:
        """Examples of the job besides the verdicts, and a note about them."""
        job = self.session.job
        given = [job.examples] if isinstance(job.examples, str) else job.examples or []
        mine = self.session.folder / VERDICTS
        files = [path for path in given if Path(path).absolute() != mine]
        key = tuple(files), tuple(job.classes)
        if self._others is None or self._others[0] != key:
            found: list[Examples] = []
            note = ""
            try:
                labels = labels_of(job.changed(examples=files)) if files else []
                found = [one.examples for one in labels if one.examples is not None]
                note = MATCHED_LATER if any(len(one.polygons) for one in labels) else ""
            except WorkbenchError as error:
                note = str(error)
            self._others = key, found, note
        return self._others[1], self._others[2]


def label_of(preview: Preview, row: int) -> str:
    """The id of a row, as in a layer."""
    source, tile_row, tile_col, ordinal = preview.key(row)
    return f"{tile_name(source, tile_row, tile_col)}/{ordinal}"


def row_of(preview: Preview, label: str) -> int:
    """The row of an id, -1 if its tile is not a sample."""
    tile, _, ordinal = label.rpartition("/")
    return preview.row((*_parts_of(tile), int(ordinal)))


def _parts_of(tile: str) -> Index:
    source, _, place = tile.rpartition("/")
    row, _, col = place[1:].partition("c")
    return source, int(row), int(col)
