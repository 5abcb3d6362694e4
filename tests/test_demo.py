"""The sample scene with default parameters: the first labels that a newcomer sees."""

import importlib.util
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from workbench import Job, run
from workbench.layer.report.map import ShownLayer
from workbench.runs.plan import prepare
from workbench.runs.result import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """`benchmarks/labels.py`, which counts what a reviewer would notice."""
    path = Path(__file__).parents[1] / "benchmarks" / "labels.py"
    spec = importlib.util.spec_from_file_location("labels_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module", params=["classic", "tiny"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the demo; with SAM a quarter of the prompts will do."""
    folder = tmp_path_factory.mktemp("demo")
    return run(Job.create(out_dir=str(folder), model=request.param, points_per_side=16))


def test_no_label_is_a_double_or_a_whole_tile_or_cut_straight(
    demo: Run, benchmark: ModuleType
) -> None:
    layer = demo.layer
    assert len(layer) > 50
    assert benchmark.duplicates(layer.geometry.to_numpy()) < 0.01 * len(layer)
    with closing(prepare(demo.job)) as plan:
        assert benchmark.largest_share(plan, layer) < 0.8
        assert benchmark.cut_edges(plan.scenes, layer) == 0


def test_colours_divide_the_layer(demo: Run) -> None:
    shown = ShownLayer.of(demo.layer)
    shares = np.asarray(shown.counts) / len(demo.layer)
    assert shares.max() < 0.4


def test_the_report_says_how_good_the_labels_are(demo: Run) -> None:
    page = (demo.folder / "report.html").read_text(encoding="utf-8")
    for row in (
        "objects found (recall at IoU 0.5)",
        "labels that fit (precision at IoU 0.75)",
        "estimated time of review",
    ):
        assert row in page
