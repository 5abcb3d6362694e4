"""The sample scene with default parameters: the first labels that a newcomer sees."""

from contextlib import closing
from types import ModuleType

import pytest
from benchmark_modules import benchmark_module

from workbench import Job, run
from workbench.runs.plan import prepare
from workbench.runs.result import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """`benchmarks/labels.py`, which counts what a reviewer would notice."""
    with benchmark_module("labels") as module:
        yield module


@pytest.fixture(scope="module", params=["classic", "tiny"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the demo."""
    return run(Job.create(out_dir=str(tmp_path_factory.mktemp("demo")), model=request.param))


def test_no_label_is_a_double_or_a_whole_tile_or_cut_straight(
    demo: Run, benchmark: ModuleType
) -> None:
    layer = demo.layer
    assert len(layer) > 50
    # one of `tiny`: cleaning makes it (benchmarks/README.md)
    assert benchmark.duplicates(layer.geometry.to_numpy()) <= 1
    with closing(prepare(demo.job)) as plan:
        assert benchmark.largest_share(plan, layer) < 0.8
        # one of the 160 of `tiny`: the neighbour has nothing that continues it
        assert benchmark.cut_edges(plan.scenes, layer) <= (demo.job.model == "tiny")


def test_the_report_says_how_good_the_labels_are(demo: Run) -> None:
    page = (demo.folder / "report.html").read_text(encoding="utf-8")
    for row in (
        "objects found (recall at IoU 0.5)",
        "labels that fit (precision at IoU 0.75)",
        "estimated time of review",
    ):
        assert row in page
