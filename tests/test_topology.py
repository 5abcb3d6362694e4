"""What is wrong with reviewed shapes is listed, and mended where that is safe."""

import geopandas as gpd
import pyogrio
import pytest
from shapely import MultiPolygon, Polygon, box

from workbench.review.shapes import find_issues, write_issues

UTM = "EPSG:32633"
X, Y = 500_000, 5_300_000


def square(x, y=0, width=10, height=10):
    return box(X + x, Y + y, X + x + width, Y + y + height)


def reviewed(*shapes, status="accepted", unclosed=False):
    return gpd.GeoDataFrame(
        {
            "id": [f"n{i}" for i in range(len(shapes))],
            "fid": range(1, len(shapes) + 1),
            "status": status,
            "unclosed": unclosed,
        },
        geometry=list(shapes),
        crs=UTM,
    )


def kinds(labels, **options):
    issues = find_issues(labels, 0.5, **{"planar": False, **options})
    return list(zip(issues["kind"], issues["labels"], strict=True))


def test_sound_labels_have_no_issues():
    assert kinds(reviewed(square(0), square(10), square(30))) == []
    assert kinds(reviewed()) == []


def test_an_invalid_shape_is_mended():
    bow_tie = Polygon([(X, Y), (X + 10, Y + 10), (X + 10, Y), (X, Y + 10)])
    issues = find_issues(reviewed(bow_tie), 0.5, planar=False)
    assert issues[["kind", "labels", "fix"]].values.tolist() == [["invalid", "n0", "make valid"]]
    assert issues["what"][0].startswith("Self-intersection")
    assert issues["mended"][0].is_valid
    assert issues["mended"][0].area == pytest.approx(50)


def test_what_is_unclosed_or_empty():
    labels = reviewed(square(0), MultiPolygon(), unclosed=[True, False])
    assert kinds(labels) == [("empty", "n1"), ("unclosed", "n0")]


def test_duplicates_and_overlaps_of_what_somebody_has_reviewed():
    twice, over = (square(0), square(0.2)), (square(0), square(6))
    assert kinds(reviewed(*twice)) == [("duplicate", "n0, n1")]
    assert kinds(reviewed(*over)) == [("overlap", "n0, n1")]
    issues = find_issues(reviewed(*over), 0.5, planar=False)
    assert issues["area_m2"][0] == pytest.approx(40, rel=0.01)
    assert issues["fix"].isna().all()  # a person must decide
    assert kinds(reviewed(*over, status="unreviewed")) == []
    assert kinds(reviewed(*over, status=["accepted", "rejected"])) == []


def test_a_part_on_its_whole_is_in_order_unless_the_layer_is_planar():
    labels = reviewed(square(0), square(2, 2, 3, 3))
    assert kinds(labels) == []
    assert kinds(labels, planar=True) == [("overlap", "n0, n1")]


@pytest.mark.parametrize(("inside", "expected"), [(0.6, 1), (0.9, 1), (0.94, 1), (0.96, 0)])
def test_a_part_counts_as_held_if_nearly_all_of_it_lies_on_the_whole(inside, expected):
    # 4 m wide, of which so much lies on the large label
    part = square(10 - 4 * inside, 3, 4, 4)
    assert kinds(reviewed(square(0), part)) == [("overlap", "n0, n1")] * expected


def test_a_narrow_overlap_is_cut_off():
    issues = find_issues(reviewed(square(0), square(9.8, width=4)), 0.5, planar=False)
    assert issues["fix"].tolist() == ["cut it off n0"]
    assert issues["mended"][0].area == pytest.approx(98)


def test_slivers_and_gaps():
    with_sliver = MultiPolygon([square(0), square(20, width=0.3)])
    issues = find_issues(reviewed(with_sliver), 0.5, planar=False)
    assert issues["kind"].tolist() == ["sliver"]
    assert issues["mended"][0].area == pytest.approx(100)
    apart = (square(0), square(10.3))
    assert kinds(reviewed(*apart)) == []  # as the model saw them
    assert kinds(reviewed(*apart, status=["edited", "accepted"])) == [("gap", "n0, n1")]
    assert kinds(reviewed(*apart), planar=True) == [("gap", "n0, n1")]


def test_a_label_is_mended_once_by_all_that_is_to_be_done(tmp_path):
    # cut off on both sides, and a sliver of its own
    label = MultiPolygon([square(0), square(20, width=0.3)])
    labels = reviewed(label, square(9.8, width=4), square(-3.8, width=4))
    issues = find_issues(labels, 0.5, planar=False)
    assert sorted(issues["kind"]) == ["overlap", "overlap", "sliver"]
    assert set(issues["mends"]) == {"n0"}
    write_issues(issues, tmp_path / "i.gpkg")
    mended = pyogrio.read_dataframe(tmp_path / "i.gpkg", layer="mended")
    assert mended["id"].tolist() == ["n0"]
    assert mended["fix"][0] == "drop this part; cut it off n0"
    assert mended.area[0] == pytest.approx(96)


def test_gaps_beside_what_touches_or_overlaps():
    left = square(0)
    for start in (10, 9.8):  # touches, or overlaps, in its lower half
        right = square(start, width=10, height=5).union(square(10.3, 5, 10, 5))
        issues = find_issues(reviewed(left, right, status="edited"), 0.5, planar=False)
        gap = issues[issues["kind"] == "gap"]
        assert gap["area_m2"].tolist() == pytest.approx([0.3 * 5], rel=0.02)
    # along a slope, and none where it is as wide as a pixel or there is only a corner
    wedge = Polygon([(X + 10, Y), (X + 20, Y), (X + 20, Y + 10), (X + 10.3, Y + 10)])
    assert kinds(reviewed(left, wedge, status="edited")) == [("gap", "n0, n1")]
    assert kinds(reviewed(left, square(10.5), status="edited")) == []
    assert kinds(reviewed(left, square(10, 5), square(10, -5), status="edited")) == []


def test_what_a_third_label_fills_is_no_gap():
    between = square(10, width=0.3, height=6)
    labels = reviewed(square(0), square(10.3), between, status=["edited", "edited", "unreviewed"])
    issues = find_issues(labels, 0.5, planar=False)
    assert issues["kind"].tolist() == ["gap"]
    assert issues["area_m2"][0] == pytest.approx(0.3 * 4, rel=0.02)


def test_labels_of_one_id_are_mended_by_their_fid(tmp_path):
    middle = square(0).union(square(20, width=0.3))  # with a sliver
    labels = reviewed(middle, square(9.8, width=4), square(-3.8, width=4)).assign(id="same")
    issues = find_issues(labels, 0.5, planar=False)
    assert sorted(issues["kind"]) == ["overlap", "overlap", "sliver"]
    assert issues["mends_fid"].tolist() == [1, 1, 1]
    write_issues(issues, tmp_path / "i.gpkg")
    mended = pyogrio.read_dataframe(tmp_path / "i.gpkg", layer="mended")
    assert mended["label_fid"].tolist() == [1]
    assert mended["fix"].tolist() == ["drop this part; cut it off same"]
    assert mended.geometry[0].equals(square(0.2, width=9.6))
    fids = pyogrio.read_dataframe(tmp_path / "i.gpkg", layer="issues")["fids"]
    assert sorted(fids) == ["1", "1, 2", "1, 3"]


def test_the_layer_of_issues_is_written(tmp_path):
    write_issues(
        find_issues(reviewed(square(0), square(9.8)), 0.5, planar=False), tmp_path / "i.gpkg"
    )
    assert pyogrio.read_dataframe(tmp_path / "i.gpkg", layer="issues")["kind"].tolist() == [
        "overlap"
    ]
    assert pyogrio.read_dataframe(tmp_path / "i.gpkg", layer="mended").area[0] < 100
    write_issues(find_issues(reviewed(square(0)), 0.5, planar=False), tmp_path / "none.gpkg")
    assert len(pyogrio.read_dataframe(tmp_path / "none.gpkg", layer="issues")) == 0
