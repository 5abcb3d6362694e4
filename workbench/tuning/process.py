"""A process that segments tiles while a person continues to work.

Only this process loads the network. So sliders stay fast while it computes, closing it frees all
its memory, and the notebook's kernel survives if memory runs out.
"""

from __future__ import annotations

import atexit
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.candidates.store import TileRecord
from workbench.candidates.table import Candidates
from workbench.errors import RunFailedError, WorkbenchError
from workbench.runs.choose import loaded_segmenter
from workbench.runs.finish import finish
from workbench.runs.job import Job
from workbench.runs.plan import Plan, pending, prepare
from workbench.runs.segment import segment
from workbench.runs.stored import read_tiles
from workbench.runs.tile_stream import SegmentedTile
from workbench.segmenters.protocol import Segmenter
from workbench.tuning.questions import Answer, NoAnswer, Question, Reply

if TYPE_CHECKING:
    from workbench.tuning.clicks import AskedByHand

FLUSH_SECONDS = 5.0
TELL_SECONDS = 0.25  # between two messages about the progress of a tile
FIRST_LOOK_SECONDS = 1.0  # from the start of a tile to its first preview; the next at 4 times that

CANCEL_SECONDS = 0.7  # after that the process is killed, and the next work loads the model again

Index = tuple[str, int, int]  # source, tile row, tile column

# what the process runs; SIGINT means cancel: nothing to do while idle
_CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from workbench.tuning.process import serve
serve({file})
"""


@dataclass(frozen=True)
class Work:
    """What to do: some tiles of a job, or (None) the whole job with its layer and files."""

    job: Job
    tiles: frozenset[Index] | None = None


@dataclass(frozen=True)
class Ahead:
    """A request to load the model of a job, which will be needed soon."""

    job: Job


@dataclass(frozen=True)
class Planned:
    """The work was checked and the model is loaded; some tiles may be stored already."""

    n_tiles: int
    n_stored: int


@dataclass(frozen=True)
class TileUnderway:
    """A tile is being computed: the share that is done.

    For sample tiles, some events also have the candidates found so far, as in `TileDone`. Later
    candidates may still suppress some of them.
    """

    share: float
    record: TileRecord | None = None
    candidates: Candidates | None = None


@dataclass(frozen=True)
class TileDone:
    """The part of a `SegmentedTile`, just computed or from the store, that crosses the pipe.

    The scene does not cross it: `record` names scene and tile, and the other side knows them.
    `candidates` is None if the tile has none.
    """

    record: TileRecord
    candidates: Candidates | None
    stored: bool


@dataclass(frozen=True)
class Finished:
    """The work is done; `problem` names the tiles that failed, or is empty."""

    folder: Path
    problem: str = ""


@dataclass(frozen=True)
class Stopped:
    """The work ended early; an empty reason means that it was cancelled."""

    reason: str = ""


Event = Planned | TileUnderway | TileDone | Finished | Stopped | Reply


class Background:
    """A process that does one piece of work after another, and answers questions meanwhile.

    `notify`, which may be replaced, is called with each event, in a separate thread. The process
    starts when it is first needed.
    """

    def __init__(self, notify: Callable[[Event], None]) -> None:
        self.notify = notify
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._busy = self._cancelled = False
        self._asked: Question | None = None  # in the process
        self._next: Question | None = None  # to be asked after that

    @property
    def busy(self) -> bool:
        """Whether there is work that has neither finished nor stopped."""
        return self._busy

    def start(self, work: Work) -> None:
        """Begin some work; only one piece at a time."""
        with self._lock:
            if self._busy:
                raise WorkbenchError("Tiles are being computed. Wait for them, or cancel.")
            self._send(work)
            self._busy, self._cancelled = True, False

    def get_ready(self, job: Job) -> None:
        """Load a job's model ahead of time. Errors are left to the work, which reports them."""
        with self._lock:
            if not self._busy:
                self._send(Ahead(job))

    def ask(self, question: Question) -> None:
        """Ask a question, also during other work; replies are events.

        Only the last one of those that wait for an earlier answer is asked.
        """
        with self._lock:
            self._next = question
            if self._asked is None:
                self._ask_next()

    def _ask_next(self) -> None:
        self._asked, self._next = self._next, None
        if self._asked is not None:
            self._send(self._asked)

    def cancel(self) -> None:
        """Stop the work within a second; finished tiles are kept."""
        with self._lock:
            process = self._process
            if not self._busy or process is None:
                return
            self._cancelled = True
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + CANCEL_SECONDS
        while self._busy and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._busy:
            process.kill()  # it is inside the network's own code; `_listen` notices its end
            _wait(process, 0.2)

    def close(self) -> None:
        """End the process and free its memory; `start` begins a new one."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = None
            self._busy = False
            self._asked = self._next = None
        if process is not None and connection is not None:
            process.kill()
            _wait(process, 1)

    def _send(self, message: Work | Ahead | Question) -> None:
        if self._process is None or self._process.poll() is not None:
            self._launch()
        assert self._connection is not None
        self._connection.send(message)

    def _launch(self) -> None:
        # not a multiprocessing.Process: that comes with a tracker, which ignores SIGTERM, and a
        # kernel that restarts waits for its children: 2.4 s longer
        ours, theirs = Pipe()
        code = _CODE.format(path=[str(place) for place in sys.path], file=theirs.fileno())
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        atexit.register(process.kill)
        self._process, self._connection = process, ours
        threading.Thread(target=self._listen, args=(process, ours), daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        while True:
            try:
                event: Event = connection.recv()
            except (EOFError, OSError):
                break
            except Exception:  # a damaged message: the rest cannot be read either
                traceback.print_exc()
                process.kill()
                break
            with self._lock:
                if self._process is not process:
                    break  # closed, and another process may have taken its place
                self._busy &= not isinstance(event, Finished | Stopped)
                if isinstance(event, Answer | NoAnswer):
                    self._ask_next()
                elif isinstance(event, Stopped) and self._asked is not None:
                    self._send(self._asked)  # it may have been interrupted, too
            self._tell(event)
        _wait(process, 1)
        atexit.unregister(process.kill)
        connection.close()
        with self._lock:
            mine = self._process is process
            died = self._busy and mine
            self._busy &= not died
            asked, self._asked = (self._asked, None) if mine else (None, self._asked)
        why = "" if died and self._cancelled else _last_words(process.returncode)
        if died:
            self._tell(Stopped(why))
        if asked is not None and why:
            self._tell(NoAnswer(asked.number, why))
        elif asked is not None:
            self.ask(self._next or asked)

    def _tell(self, event: Event) -> None:
        try:
            self.notify(event)
        except Exception:  # otherwise this thread would end, and all later events would be lost
            traceback.print_exc()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end of a process, but not longer than some seconds."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _last_words(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return (
            "The process that segments was killed, most likely because memory ran out. Choose a "
            "smaller model or tile_size, or close other programs. Finished tiles are kept."
        )
    return (
        f"The process that segments has stopped (exit code {exitcode}). See the terminal of "
        "JupyterLab for the reason, then run the cell again: finished tiles are kept."
    )


# ----------------------------------------------------------------------------- in the process


class _Line:
    """Messages from and to the other side, whole ones: after half of one, the rest is lost.

    As the handler of SIGINT, it interrupts at once, or after the message that is under way.
    (Blocking the signal in this thread is not enough: another thread would receive it, and Python
    would raise in this one.)
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._underway = self._interrupted = False

    def __call__(self, event: Event) -> None:
        with self._whole():
            self._connection.send(event)

    def questions(self) -> Iterator[Question]:
        """Those that have come: during other work nothing else does."""
        while self._connection.poll():
            with self._whole():
                question = self._connection.recv()
            yield question

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._underway = True
        try:
            yield
        finally:
            self._underway, interrupted = False, self._interrupted
            self._interrupted = False
        if interrupted:
            raise KeyboardInterrupt

    def interrupt(self, *_: Any) -> None:
        if not self._underway:
            raise KeyboardInterrupt
        self._interrupted = True


class _Answers:
    """Answers questions, while there is no other work or in its pauses."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._asked: AskedByHand | None = None

    def answer(self, question: Question, loaded: Segmenter | None) -> Segmenter | None:
        """Answer with the model that is loaded, or with the job's; returns the one to keep."""
        from workbench.tuning.clicks import AskedByHand  # torch takes seconds to import

        self._asked = self._asked or AskedByHand()
        try:
            reply: Reply = self._asked.answer(question, loaded, self._line)
        except WorkbenchError as error:
            reply = NoAnswer(question.number, str(error))
        except Exception as error:
            traceback.print_exc()
            reply = NoAnswer(question.number, f"{type(error).__name__}: {error}")
        self._line(reply)
        return loaded or self._asked.segmenter

    def answer_all(self, loaded: Segmenter) -> None:
        """Answer what was asked during other work."""
        for question in self._line.questions():
            self.answer(question, loaded)

    def use(self, loaded: Segmenter) -> None:
        """Forget another model than the one that is loaded: memory may not hold both."""
        if self._asked is not None and self._asked.segmenter is not loaded:
            self._asked.forget()


def serve(file: int) -> None:
    """Do what comes through the pipe with this file descriptor, until it is closed."""
    connection = Connection(file)
    line = _Line(connection)
    answers = _Answers(line)
    segmenter: Segmenter | None = None
    while True:
        try:
            work: Work | Ahead | Question = connection.recv()
        except EOFError:
            return
        if isinstance(work, Question):
            segmenter = answers.answer(work, segmenter)
            continue
        if isinstance(work, Ahead):
            with suppress(Exception):
                segmenter = loaded_segmenter(work.job, segmenter)
            continue
        try:
            signal.signal(signal.SIGINT, line.interrupt)
            with closing(prepare(work.job, segmenter, work.tiles)) as plan:
                segmenter = plan.segmenter
                answers.use(segmenter)
                result: Event = _do(plan, work, line, answers)
        except KeyboardInterrupt:
            result = Stopped()
        except WorkbenchError as error:
            result = Stopped(str(error))
        except Exception as error:
            traceback.print_exc()
            result = Stopped(f"{type(error).__name__}: {error}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        line(result)


def _do(plan: Plan, work: Work, send: Callable[[Event], None], answers: _Answers) -> Finished:
    send(Planned(plan.n_tiles, plan.n_tiles - len(pending(plan))))
    if work.tiles is not None:
        wanted = [part.index(tile) for part in plan.scenes for tile in part.tiles]
        for record, candidates in read_tiles(plan.store, wanted):
            send(TileDone(record, candidates, stored=True))
    watch = _Watch(send, lambda: answers.answer_all(plan.segmenter), looks=work.tiles is not None)
    with closing(segment(plan, FLUSH_SECONDS, watch)) as tiles:
        for tile in tiles:
            send(TileDone(tile.record, tile.candidates, stored=False))
    if work.tiles is None:
        try:
            finish(plan)
        except RunFailedError as error:
            return Finished(plan.folder, str(error))
    return Finished(plan.folder)


class _Watch:
    """Reports the progress of a tile, a few times a second; with `looks`, also its candidates.

    `pause` is called in between.
    """

    def __init__(
        self, send: Callable[[Event], None], pause: Callable[[], None], looks: bool
    ) -> None:
        self._send, self._pause, self._looks = send, pause, looks
        self._share, self._told, self._began, self._next = 1.0, 0.0, 0.0, 0.0

    def __call__(self, share: float, so_far: Callable[[], SegmentedTile]) -> None:
        self._pause()
        now = time.monotonic()
        if share < self._share:  # another tile
            self._began, self._next = now, FIRST_LOOK_SECONDS
        self._share = share
        if self._looks and now - self._began > self._next:
            tile = so_far()
            self._send(TileUnderway(share, tile.record, tile.candidates))
            self._next *= 4
        elif now - self._told > TELL_SECONDS:
            self._send(TileUnderway(share))
        else:
            return
        self._told = time.monotonic()
