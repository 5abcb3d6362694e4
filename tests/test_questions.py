"""Clicks of a person become outlines, in the process that has the model."""

from dataclasses import replace
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import shapely

from workbench.errors import JobError, ReviewError
from workbench.raster.open import open_scene
from workbench.runs.choose import loaded_segmenter
from workbench.runs.job import Job
from workbench.samples.demo import make_sample, write_sample
from workbench.segmenters.classic import ClassicSegmenter
from workbench.segmenters.sam import sam_segmenter
from workbench.tuning.clicks import AskedByHand, as_label
from workbench.tuning.process import Background, Event, Finished, Planned, Work
from workbench.tuning.questions import (
    Answer,
    Clicks,
    Encoding,
    NoAnswer,
    Question,
    refuse_without_clicks,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(make_sample(600, 3), tmp_path_factory.mktemp("raster"))


@pytest.fixture
def job(raster: Path, tmp_path: Path) -> Job:
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), model="tiny", tile_size=256,
        points_per_side=4,
    )  # fmt: skip


def question(job: Job, number: int, *pixels: tuple[float, float]) -> Question:
    """Click pixels of the scene."""
    scene = open_scene(job.source)
    points = np.array([scene.transform @ pixel for pixel in pixels]).reshape(-1, 2)
    return Question.at(Clicks(points, np.ones(len(points), bool)), number, job, [scene])


def test_a_click_is_asked_in_the_tile_whose_core_it_is_in(job: Job) -> None:
    assert question(job, 1, (10, 10)).window.flatten() == (0, 0, 256, 256)
    window = question(job, 1, (300, 10)).window
    assert 0 < window.col_off < 300 < window.col_off + 256
    with pytest.raises(ReviewError, match="no raster where you clicked"):
        question(job, 1, (-10, 10))
    scene = open_scene(job.source)
    west, north = scene.transform @ (500, 400)
    east, south = scene.transform @ (560, 580)
    box = Clicks(np.empty((0, 2)), np.empty(0, bool), np.array([west, south, east, north]))
    window = Question.at(box, 1, job, [scene]).window
    assert (window.col_off, window.row_off) == (344, 344)


def test_a_tile_is_encoded_once_and_the_loaded_model_is_used_again(job: Job) -> None:
    told: list[Event] = []
    asked, loaded = AskedByHand(), sam_segmenter("tiny", points_per_side=9)
    first = asked.answer(question(job, 1, (120, 120)), loaded, told.append)
    assert asked.segmenter is loaded
    second = asked.answer(question(job, 2, (140, 120), (120, 120)), None, told.append)
    assert told == [Encoding(1)]
    assert (first.number, second.number) == (1, 2)
    assert shapely.is_valid(first.shape)
    asked.answer(question(job, 3, (500, 500)), None, told.append)
    assert told == [Encoding(1), Encoding(3)]
    other = ClassicSegmenter(job.rules)
    asked.answer(question(job.changed(device="cpu"), 4, (120, 120)), other, told.append)
    assert asked.segmenter is not loaded


def test_a_model_that_is_loaded_is_not_loaded_again(job: Job) -> None:
    first = loaded_segmenter(job)
    assert loaded_segmenter(job, first) is first
    assert loaded_segmenter(job.changed(model="classic"), first) is not first


def test_the_outline_is_cleaned_as_labels_are_but_never_too_small(job: Job) -> None:
    asked = AskedByHand()
    here = question(job.changed(simplify_m=0, min_area_px=0), 1, (120, 120))
    exact = asked.answer(here, None, lambda _: None).shape
    gone = job.changed(min_area_px=100_000, min_area_m2=1e6, min_solidity=0.99)
    kept = asked.answer(question(gone, 2, (120, 120)), None, lambda _: None).shape
    assert kept.area > 0.5 * exact.area > 0
    simple, corners = (len(shapely.get_coordinates(shape)) for shape in (kept, exact))
    assert simple < corners


def test_only_parts_that_were_clicked_are_kept(job: Job) -> None:
    parts = [shapely.box(0, 0, 40, 40), shapely.box(50, 0, 150, 100), shapely.box(0, 60, 40, 99)]
    whole, cut = shapely.multipolygons(parts), job.changed(simplify_m=0, min_area_px=20_000)

    def kept(**clicks: object) -> list[int]:
        asked = replace(question(cut, 1, (5, 5)), clicks=Clicks(**{**nowhere, **clicks}))
        shape = as_label(whole, asked)
        return [i for i, part in enumerate(parts) if shapely.contains(shape, part)]

    nowhere = {"points": np.empty((0, 2)), "on_object": np.empty(0, bool)}
    two = {"points": np.array([[20.0, 20], [100, 50]]), "on_object": np.array([True, False])}
    assert kept(**two) == [0]
    assert kept(**two | {"on_object": np.array([True, True])}) == [0, 1]
    assert kept(**two, shape=shapely.multipolygons(parts[2:])) == [0, 2]
    assert kept(box=np.array([-5, -5, 200, 200])) == [1]  # the others are small
    assert kept(points=np.array([[43.0, 90]]), on_object=np.array([True])) == [2]  # the nearest


def test_a_model_without_prompts_is_refused(job: Job) -> None:
    refuse_without_clicks(job)
    with pytest.raises(JobError, match="`classic` takes no clicks"):
        refuse_without_clicks(job.changed(model="classic"))


@pytest.fixture
def events() -> Queue[Event]:
    return Queue()


def until(events: Queue[Event], *kinds: type) -> list[Event]:
    seen: list[Event] = []
    while not seen or not isinstance(seen[-1], kinds):
        seen.append(events.get(timeout=120))
    return seen


def tiles_of(job: Job, n: int) -> frozenset[tuple[str, int, int]]:
    name = open_scene(job.source).name
    return frozenset((name, row, col) for row in range(n) for col in range(n))


def test_questions_are_answered_also_during_other_work(job: Job, events: Queue[Event]) -> None:
    background = Background(events.put)
    try:
        background.ask(question(job, 1, (120, 120)))
        for number in (2, 3, 4):  # asked while the first one waits: only the last counts
            background.ask(question(job, number, (120, 130)))
        seen = until(events, Answer, NoAnswer) + until(events, Answer, NoAnswer)
        assert [type(event) for event in seen] == [Encoding, Answer, Answer]
        assert [event.number for event in seen] == [1, 1, 4]
        background.start(Work(job.changed(points_per_side=16), tiles_of(job, 2)))
        until(events, Planned)
        background.ask(question(job, 5, (300, 300)))
        kinds = [type(event) for event in until(events, Finished)]
        assert kinds.index(Answer) < kinds.index(Finished)
        background.ask(question(job.changed(checkpoint=job.source), 6, (300, 300)))
        reply = until(events, Answer, NoAnswer)[-1]
        assert isinstance(reply, NoAnswer)
        assert Path(job.source).name in reply.reason
    finally:
        background.close()


def test_a_question_survives_a_cancel_and_is_answered_if_the_process_dies(
    job: Job, events: Queue[Event]
) -> None:
    background = Background(events.put)
    try:
        background.start(Work(job.changed(points_per_side=32), tiles_of(job, 1)))
        until(events, Planned)
        background.ask(question(job, 1, (300, 300)))
        background.cancel()
        assert isinstance(until(events, Answer, NoAnswer)[-1], Answer)
        background.ask(question(job, 2, (20, 20)))
        background._process.kill()
        reply = until(events, Answer, NoAnswer)[-1]
        assert isinstance(reply, NoAnswer)
        assert "was killed" in reply.reason
        background.ask(question(job, 3, (300, 300)))
        assert isinstance(until(events, Answer, NoAnswer)[-1], Answer)
    finally:
        background.close()
