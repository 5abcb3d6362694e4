"""The cost of review: what a layer saves, or not, against drawing everything by hand."""

import geopandas as gpd
import pytest
import shapely
from known_runs import job_for

from workbench import run
from workbench.errors import WorkbenchError
from workbench.evaluation.against import AgainstReference
from workbench.evaluation.cost import review_cost
from workbench.runs.plan import prepare


def layer(*boxes):
    return gpd.GeoDataFrame(geometry=[shapely.box(*box) for box in boxes], crs=32633)


TRUTH = layer((0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))


def test_labels_are_looked_at_mended_or_drawn():
    # one fits, one nearly (IoU 0.6), one reaches nothing, and one object is missed
    labels = layer((0, 0, 10, 9), (20, 0, 30, 6), (70, 0, 80, 10))
    cost = review_cost(labels, TRUTH)
    assert (cost.n_looked_at, cost.n_mended, cost.n_drawn) == (3, 1, 1)
    assert cost.seconds == 3 * 1.5 + 6 + 10
    assert cost.drawing_seconds == 30
    assert cost.ratio == pytest.approx(20.5 / 30)
    dearer = review_cost(labels, TRUTH, look_s=2, mend_s=3, draw_s=4)
    assert (dearer.seconds, dearer.drawing_seconds) == (3 * 2 + 3 + 4, 12)


def test_perfect_labels_cost_a_look_each_and_none_cost_all():
    assert review_cost(TRUTH, TRUTH).ratio == pytest.approx(0.15)
    assert review_cost(layer(), TRUTH).ratio == 1
    assert review_cost(TRUTH, layer()).seconds == 4.5
    assert review_cost(TRUTH, layer()).ratio != review_cost(TRUTH, layer()).ratio  # NaN


def test_a_report_tells_how_good_a_layer_is():
    against = AgainstReference(TRUTH)
    for one in ((0, 0, 10, 9), (20, 0, 30, 6)):
        against.add(layer(one))
    rows = against.rows()
    assert rows["objects found (recall at IoU 0.5)"] == "67% (2 of 3)"
    assert rows["labels that fit (precision at IoU 0.75)"] == "50% (1 of 2)"
    assert "0.63 times" in rows["estimated time of review"]
    assert "1 to mend, 1 to draw" in rows["estimated time of review"]
    empty = AgainstReference(layer())
    empty.add(TRUTH)
    assert empty.rows()["objects found (recall at IoU 0.5)"] == "–"


@pytest.mark.usefixtures("known_objects_only")
def test_a_run_with_a_reference_is_told_how_good_it_is(raster, tmp_path):
    exact = run(job_for(raster, tmp_path / "exact"))
    truth = tmp_path / "truth.gpkg"
    exact.layer[["geometry"]].to_file(truth)
    assert "Quality" not in (tmp_path / "exact" / "report.html").read_text()
    run(job_for(raster, tmp_path / "run", reference=str(truth)))
    n = len(exact.layer)
    assert f"100% ({n} of {n})" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(WorkbenchError, match=r"`reference`: .*nothing.gpkg: no such file"):
        prepare(job_for(raster, tmp_path / "bad", reference=str(tmp_path / "nothing.gpkg")))
    assert not (tmp_path / "bad").exists()
