"""A Dask cluster: workers, one for each GPU, that share the disk with the run folder.

Only small values pass through the scheduler; what is computed, workers write themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # the first may still be starting
WAITING_PER_WORKER = 2  # one at work, the next at hand

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """Connect to a scheduler with at least one worker; raises `ClusterError` if there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError(
            f"scheduler {address} needs dask.distributed, which is not installed here: "
            'pip install "sam-workbench[cluster]"'
        ) from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, "
            "which prints its address, or leave scheduler null to run in this process."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"The scheduler at {address} has no workers. Start one for each GPU: "
                f"dask worker {address} --nthreads 1"
            ) from error
        yield client


def n_workers(client: Client) -> int:
    """How many workers there are now; 1 at least, for one may be on its way."""
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def ask_all(client: Client, question: Callable[..., str], *arguments: Any) -> None:
    """Ask every worker what is wrong with it; the first answer that is not empty is raised."""
    answers = client.run(question, *arguments, on_error="return")
    for worker, answer in answers.items():
        if answer:
            raise ClusterError(f"Worker {worker} cannot take part: {answer}")


def ask_one(client: Client, question: Callable[..., Result], *arguments: Any) -> Result:
    """Let one worker answer; its `WorkbenchError` is raised here."""
    answer: Result = client.submit(question, *arguments, pure=False).result()
    return answer


def map_pieces(
    client: Client, function: Callable[[Piece], Result], pieces: Iterable[Piece]
) -> Generator[tuple[Piece, Result | Exception], None, None]:
    """Yield each piece with its result, or the error that it ended in, as they come.

    A piece whose worker dies is computed again elsewhere; one that takes worker after worker with
    it ends in an error. Closing the iterator takes back what has not begun.
    """
    from distributed import as_completed

    waiting = iter(pieces)
    piece_of: dict[Any, Piece] = {}
    done = as_completed(loop=client.loop)

    def submit(n: int) -> None:
        for piece in islice(waiting, n):
            future = client.submit(function, piece, pure=False)
            piece_of[future.key] = piece
            done.add(future)

    submit(WAITING_PER_WORKER * n_workers(client))
    try:
        for future in done:
            piece = piece_of.pop(future.key)
            error = future.exception()
            result = future.result() if error is None else error
            future.release()
            submit(1)
            yield piece, result
    finally:
        client.cancel(list(done.futures))
