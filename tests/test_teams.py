"""Several reviewers: packages that open alone, joined again, with what they differ in."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from known_objects import objects_apart, write_labels
from known_runs import equal_layers, files_in, left_over, run_known_objects
from reviews import drawn, save_reviewed, with_rows
from test_qgis import seen_by_qgis

from workbench import join_reviews, read_run, run, split_review
from workbench.errors import ReviewError, RunFolderError
from workbench.layer.files import read_layer
from workbench.review.changes import changes
from workbench.review.read import read_review

NAMES = ["anna", "ben", "cem"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teams")
    labels = objects_apart((330, 430), 2, 120, largest=0.4)
    raster = write_labels(folder / "scene.tif", labels)
    classes = {1: "roof", 2: "tree"}
    return run_known_objects(raster, folder / "run", classes=classes, default_class=1)


@pytest.fixture
def folder(finished, tmp_path):
    """The run folder, to change; the raster lies beside it."""
    shutil.copy(finished.folder.parent / "scene.tif", tmp_path / "scene.tif")
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture
def packages(folder, tmp_path):
    split_review(folder, NAMES, tmp_path / "packages", shared=0.5)
    return [tmp_path / "packages" / name for name in NAMES]


def labels_in(package):
    return read_layer(package / "prelabels.gpkg")


def save(package, labels):
    (package / "prelabels.gpkg").unlink()
    save_reviewed(labels, package / "prelabels.gpkg")


def answer(package, answers, **columns):
    """Change labels by id: a status, a class, a shape, or None to delete."""
    labels = labels_in(package)
    for label, change in answers.items():
        at = labels["id"] == label
        assert at.any(), label
        if change is None:
            labels = labels[~at]
            continue
        for name, value in change.items():
            labels.loc[at, name] = value
    save(package, labels.reset_index(drop=True).assign(**columns))


def shared_ids(*packages):
    ids = [labels_in(package)["id"] for package in packages]
    return sorted(set(ids[0]).intersection(*ids[1:]))


def alone(package, packages):
    others = {label for one in packages if one != package for label in labels_in(one)["id"]}
    return [label for label in labels_in(package)["id"] if label not in others]


# ------------------------------------------------------------------------------------- split


def test_each_label_is_given_out_once_and_those_of_shared_tiles_twice(finished, packages):
    given = pd.concat([labels_in(package) for package in packages])
    counts = given["id"].value_counts()
    assert set(counts.index) == set(finished.layer["id"])
    assert set(counts) == {1, 2}
    for package in packages:
        tiles = pyogrio.read_dataframe(package / "prelabels.gpkg", layer="tiles")
        twice = labels_in(package)["id"].map(counts) == 2
        assert set(labels_in(package)["source_tile"]) <= set(finished.tiles["tile"])
        assert len(tiles) < len(finished.tiles)
        assert 0 < twice.sum() < len(twice)


def test_each_has_as_much_to_do(folder, finished, tmp_path):
    table = split_review(folder, 4, tmp_path / "packages", shared=0)
    assert list(table.index) == [f"reviewer-{n}" for n in (1, 2, 3, 4)]
    assert table["labels"].sum() == len(finished.layer)
    assert table["unreviewed"].max() - table["unreviewed"].min() < 0.35 * len(finished.layer) / 4
    assert table["shared"].sum() == 0
    assert table["tiles"].sum() == len(finished.tiles)


def test_the_run_folder_is_only_read(folder, tmp_path):
    before = {path: path.read_bytes() for path in files_in(folder)}
    split_review(folder, 2, tmp_path / "packages")
    assert {path: path.read_bytes() for path in files_in(folder)} == before


def test_a_package_is_a_run_folder_of_its_own(finished, packages):
    for package in packages:
        part = read_run(package)
        assert equal_layers(part.layer, labels_in(package))
        assert part.scenes == finished.scenes
        came = read_review(package / "prelabels.gpkg", part)
        assert set(changes(came.labels, part.layer)["change"]) == {"unreviewed"}


def test_what_is_reviewed_goes_along(folder, tmp_path):
    labels = labels_in(folder)
    labels.loc[0, "status"] = "accepted"
    save(folder, labels)
    split_review(folder, 2, tmp_path / "packages")
    both = [labels_in(tmp_path / "packages" / f"reviewer-{n}") for n in (1, 2)]
    assert (pd.concat(both).set_index("id")["status"] == "accepted").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "packages"), "give two or more"),
        ((["anna", "anna"], "packages"), "each with another name"),
        ((["anna", "../ben"], "packages"), "cannot be the name of a folder"),
        ((1000, "packages"), r"tiles have labels, too few for 1000 reviewers"),
    ],
)
def test_what_cannot_be_split_is_refused(folder, tmp_path, arguments, message):
    reviewers, out = arguments
    with pytest.raises(ReviewError, match=message):
        split_review(folder, reviewers, tmp_path / out)
    assert not (tmp_path / out).exists()


def test_a_package_is_never_overwritten(folder, packages):
    with pytest.raises(ReviewError, match="anna exists already"):
        split_review(folder, NAMES, packages[0].parent)


# -------------------------------------------------------------------------------------- join


def test_joined_untouched_the_layer_is_as_it_was(folder, finished, packages):
    before = labels_in(folder)
    joined = join_reviews(folder, packages)
    key = {"by": "id", "ignore_index": True}
    assert equal_layers(labels_in(folder).sort_values(**key), before.sort_values(**key))
    assert equal_layers(read_run(folder).layer, finished.layer)
    assert len(joined.conflicts) == 0
    assert list(joined.agreement["labels"]) == [0] * len(joined.agreement)
    assert left_over(folder) == []


def test_everything_that_one_of_them_did_is_taken(folder, packages, known_objects_only):
    anna, ben, _ = packages
    mine = alone(anna, packages)
    shape = labels_in(anna).set_index("id").geometry[mine[2]].envelope.buffer(1)
    answer(anna, {
        mine[0]: {"status": "accepted", "class_id": 2}, mine[1]: {"status": "rejected"},
        mine[2]: {"status": "edited", "geometry": shape}, mine[3]: None,
    }, note="by Anna")  # fmt: skip
    labels = labels_in(ben)
    new = drawn(shapely.box(500150, 5299850, 500152, 5299852), labels, source="scene")
    save(ben, with_rows(labels, new))
    old = (folder / "prelabels.gpkg").read_bytes()

    joined = join_reviews(folder, packages)
    came = read_review(folder / "prelabels.gpkg", read_run(folder))
    told = changes(came.labels, read_run(folder).layer).set_index("id")["change"]
    assert told[mine[:4]].tolist() == ["accepted", "rejected", "edited", "deleted"]
    assert told["drawn/1"] == "added"
    assert (told.drop([*mine[:4], "drawn/1"]) == "unreviewed").all()
    assert came.labels.set_index("id").geometry[mine[2]].equals(shape)
    notes = pyogrio.read_dataframe(folder / "prelabels.gpkg", layer="prelabels")
    assert notes.set_index("id")["note"][mine[0]] == "by Anna"
    assert joined.reviewed == {"anna": 4, "ben": 1, "cem": 0}
    assert joined.backup.read_bytes() == old
    assert "4 of anna" in str(joined)
    with pytest.raises(RunFolderError, match="holds 5 reviewed labels"):  # a review has begun
        run(read_run(folder).job.changed(out_dir=str(folder)))


def test_where_two_agree_theirs_is_taken_and_where_they_differ_it_is_listed(folder, packages):
    anna, ben, _ = packages
    both = shared_ids(anna, ben)
    assert len(both) >= 3
    wide = labels_in(anna).set_index("id").geometry
    answers = [
        ({"status": "accepted"}, {"status": "accepted"}, None),
        ({"status": "accepted"}, {"status": "rejected"}, "status"),
        ({"status": "accepted", "class_id": 2}, {"status": "accepted"}, "class"),
        ({"status": "accepted"}, {"status": "edited", "geometry": "wide"}, "shape"),
        ({"status": "rejected"}, None, None),
        ({"status": "accepted"}, {}, None),
    ]
    kinds = {}
    for number, (one, other, kind) in enumerate(answers[: len(both)]):
        label = both[number]
        for package, change in ((anna, one), (ben, other)):
            if change == {}:
                continue
            if change is not None and "geometry" in change:
                change = change | {"geometry": wide[label].envelope.buffer(3)}
            answer(package, {label: change})
        if kind:
            kinds[label] = kind
    given = labels_in(folder).set_index("id")
    whole = shutil.copytree(folder, folder.with_name("again"))
    joined = join_reviews(folder, packages)
    listed = joined.conflicts.groupby("label")["kind"].first().to_dict()
    assert listed == kinds
    stored = pyogrio.read_dataframe(folder / "conflicts.gpkg")
    assert stored["reviewer"].tolist() == ["anna", "ben"] * len(kinds)
    now = labels_in(folder).set_index("id")
    assert now["status"][both[0]] == "accepted"
    for label in kinds:
        assert now["status"][label] == "unreviewed"
        assert now.geometry[label].equals(given.geometry[label])

    decided = join_reviews(whole, packages, prefer="ben")
    now = labels_in(whole).set_index("id")
    assert now["status"][both[1]] == "rejected"
    assert decided.conflicts.groupby("reviewer")["taken"].first().to_dict() == {
        "anna": False, "ben": True,
    }  # fmt: skip


def test_agreement_is_that_of_labels_that_two_have_judged(folder, packages):
    anna, ben, _ = packages
    both = shared_ids(anna, ben)[:4]
    statuses = ["accepted", "rejected", "accepted", "rejected"][: len(both)]
    answer(anna, {label: {"status": s} for label, s in zip(both, statuses, strict=True)})
    answer(ben, {label: {"status": s} for label, s in zip(both, statuses, strict=True)})
    table = join_reviews(folder, packages).agreement
    row = table.loc["anna, ben"]
    assert (row["labels"], row["same"], row["status_kappa"], row["iou"]) == (len(both),) * 2 + (
        1,
        1,
    )
    assert np.isnan(row["class_kappa"])  # all have one class
    assert "ben, cem" in table.index
    assert table.loc["ben, cem", "labels"] == 0


def test_kappa_is_what_is_left_of_agreement_without_chance():
    from workbench.review.agreement import kappa

    one, other = list("aaaaabbbbb"), list("aaaabbbbba")
    assert kappa(one, other) == pytest.approx(0.6)  # 0.8 agree, 0.5 by chance
    assert np.isnan(kappa(["a"], ["a"]))


def test_what_two_have_drawn_is_kept_once(folder, packages):
    anna, ben, _ = packages
    square = shapely.box(500150, 5299850, 500160, 5299860)
    for package, shift, class_id in ((anna, 0, 1), (ben, 0.5, 2)):
        labels = labels_in(package)
        moved = shapely.affinity.translate(square, shift)
        other = shapely.affinity.translate(square, 30 if package == anna else 45)
        new = [drawn(moved, labels, source="scene", class_id=class_id),
               drawn(other, labels, source="scene", id="drawn/2")]  # fmt: skip
        save(package, with_rows(labels, *new))
    joined = join_reviews(folder, packages)
    now = labels_in(folder)
    made = now[now["id"].str.startswith("drawn/")]
    assert made["id"].is_unique
    assert len(made) == 3
    assert joined.conflicts["kind"].tolist() == ["class", "class"]


def test_what_was_reviewed_in_the_run_folder_meanwhile_stays(folder, packages):
    anna = packages[0]
    mine = alone(anna, packages)
    labels = labels_in(folder)
    labels.loc[labels["id"] == mine[0], "status"] = "accepted"
    labels.loc[labels["id"] == mine[1], "status"] = "accepted"
    labels = with_rows(labels, drawn(shapely.box(500150, 5299850, 500152, 5299852), labels,
                                     source="scene"))  # fmt: skip
    save(folder, labels)
    answer(anna, {mine[1]: {"status": "rejected"}})
    joined = join_reviews(folder, packages)
    now = labels_in(folder).set_index("id")
    assert now["status"][mine[0]] == "accepted"
    assert "drawn/1" in now.index
    assert joined.conflicts["reviewer"].tolist() == ["anna", "run folder"]


def test_a_refresh_in_the_meantime_loses_no_answer_and_doubles_nothing(folder, packages):
    anna = packages[0]
    mine = alone(anna, packages)
    answer(anna, {mine[0]: {"status": "accepted"}, mine[1]: {"status": "rejected"}, mine[2]: None})
    # other candidates: they have no id in common with those that were given out
    labels = labels_in(folder)
    other = labels.assign(id=[f"{label}/2" for label in labels["id"]])
    other = pd.concat([other, labels[labels["id"] == mine[3]]], ignore_index=True)
    save(folder, other)
    other.to_parquet(folder / "prelabels.parquet")
    joined = join_reviews(folder, packages)
    assert len(joined.conflicts) == 0
    came = read_review(folder / "prelabels.gpkg", read_run(folder))
    told = changes(came.labels, read_run(folder).layer).set_index("id")["change"]
    assert told[mine[:3]].tolist() == ["accepted", "rejected", "deleted"]
    assert (told.drop(mine[:3]) == "unreviewed").all()
    assert not {f"{label}/2" for label in mine[:3]} & set(told.index)
    assert len(told) == len(labels) + 1


def test_columns_of_the_run_folder_stay_where_a_package_has_none(folder, packages):
    anna = packages[0]
    mine = alone(anna, packages)
    save(folder, labels_in(folder).assign(street=lambda frame: "near " + frame["id"]))
    answer(anna, {mine[0]: {"status": "accepted"}})
    join_reviews(folder, packages)
    now = pyogrio.read_dataframe(folder / "prelabels.gpkg", layer="prelabels")
    assert (now["street"] == "near " + now["id"]).all()
    assert now.set_index("id")["status"][mine[0]] == "accepted"


def test_packages_can_be_joined_one_after_the_other(folder, packages, tmp_path):
    anna, ben, _ = packages
    answer(anna, {alone(anna, packages)[0]: {"status": "accepted"}})
    answer(ben, {alone(ben, packages)[0]: {"status": "rejected"}})
    whole = shutil.copytree(folder, tmp_path / "whole")
    join_reviews(whole, packages)
    for package in packages:
        join_reviews(folder, [package])
    assert equal_layers(labels_in(folder), labels_in(whole))


def test_what_is_no_package_of_the_run_is_refused(folder, packages, tmp_path):
    with pytest.raises(RunFolderError, match="no finished run"):
        join_reviews(folder, [tmp_path])
    with pytest.raises(ReviewError, match="no package to join"):
        join_reviews(folder, [])
    with pytest.raises(ReviewError, match="prefer is 'dora', no package: anna, ben"):
        join_reviews(folder, packages[:2], prefer="dora")
    with pytest.raises(ReviewError, match="two packages have one name"):
        join_reviews(folder, [packages[0], packages[0]])
    record = (packages[0] / "run.yaml").read_text()
    (packages[0] / "run.yaml").write_text(record.replace("fingerprint: ", "fingerprint: other"))
    with pytest.raises(ReviewError, match="is no package of the run"):
        join_reviews(folder, packages)


# -------------------------------------------------------------------------------------- QGIS


def test_a_package_opens_in_qgis_without_the_run_folder(folder, packages):
    shutil.rmtree(folder)
    seen = seen_by_qgis(packages[0] / "review.qgz")
    assert seen["problems"] == []
    assert {"prelabels", "tiles", "scene"} <= {layer["name"] for layer in seen["layers"]}
