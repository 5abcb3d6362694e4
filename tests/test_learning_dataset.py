"""From taught classes to training data: COCO and YOLO hold what a person accepted, in its class."""

import json
from collections import Counter

import geopandas as gpd
import numpy as np
import pytest
import yaml
from known_objects import write_labels
from known_runs import job_for, use_known_objects
from reviews import save_reviewed
from test_learning_run import town, truth

from workbench import run
from workbench.layer.files import read_layer
from workbench.learning.classifier import NONE
from workbench.review.examples import learn_from
from workbench.review.job import ReviewJob
from workbench.review.read import read_reviewed
from workbench.review.workflow import export_run

# neither 1 and 2 nor in order: a number that is filled in or counted would be another one
CLASSES = {7: "roof", 3: "field"}
NUMBER = {1: 7, 2: 3, 0: NONE}  # of the kinds of `town`


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    """The truth, a taught run, its reviewed labels, and the review.

    Every third label is rejected, and one was given the wrong class, which the reviewer corrects.
    """
    folder = tmp_path_factory.mktemp("taught")
    known = truth(town())
    known["class_id"] = known["class_id"].map(NUMBER)
    known.iloc[::3].to_file(folder / "examples.gpkg")
    job = job_for(
        write_labels(folder / "town.tif", town()), folder / "run",
        classes=CLASSES, examples=str(folder / "examples.gpkg"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        finished = run(job)
    gpkg = finished.folder / "prelabels.gpkg"
    labels = read_layer(gpkg)
    assert set(labels["class_id"]) == set(CLASSES)
    status = np.full(len(labels), "accepted", object)
    status[::3] = "rejected"
    status[1] = "edited"
    labels = labels.assign(status=status)
    labels.loc[1, "class_id"] = 10 - labels["class_id"][1]
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    review = ReviewJob.create(
        run_dir=str(finished.folder), out_dir=str(folder / "review"), chip_size=64, val=0.3, test=0
    )
    return known, finished, read_reviewed(gpkg, finished), review


@pytest.fixture(scope="module")
def dataset(reviewed):
    """The folder of the data set."""
    _, finished, labels, review = reviewed
    return export_run(review, finished, labels).folder


def annotations(dataset):
    """The class of each label in the COCO files, by its id, and the name of each class."""
    found, names = {}, {}
    for path in sorted(dataset.glob("annotations/*.json")):
        coco = json.loads(path.read_text())
        names |= {one["id"]: one["name"] for one in coco["categories"]}
        for one in coco["annotations"]:
            assert found.setdefault(one["label_id"], one["category_id"]) == one["category_id"]
    return found, names


def test_the_truth_is_what_coco_says(reviewed, dataset):
    known, _, labels, _ = reviewed
    found, names = annotations(dataset)
    assert names == CLASSES
    kept = labels[labels["status"] != "rejected"].set_index("id")
    assert set(found) <= set(kept.index)
    chips = gpd.read_file(dataset / "chips.gpkg")
    gap = chips[chips["left_out"] == "gap between splits"].union_all()
    missing = kept.drop(list(found))
    assert 0 < len(missing) < len(kept) / 3
    assert missing.intersects(gap).all()
    assert found == kept["class_id"].loc[list(found)].to_dict()
    seen = gpd.sjoin(
        kept.loc[[id for id in found if kept["status"][id] == "accepted"], ["geometry"]],
        known, predicate="intersects",
    )  # fmt: skip
    right = [found[id] == number for id, number in seen["class_id"].items()]
    assert np.mean(right) > 0.95
    assert set(found.values()) == set(CLASSES)


def test_yolo_counts_the_same_objects(dataset):
    described = yaml.safe_load((dataset / "data.yaml").read_text())
    number = described["class_ids"]
    assert {number[i]: name for i, name in described["names"].items()} == CLASSES
    rows = [
        number[int(line.split()[0])]
        for path in dataset.glob("labels/*/*.txt")
        for line in path.read_text().splitlines()
    ]
    whole = [
        one["category_id"]
        for path in dataset.glob("annotations/*.json")
        for one in json.loads(path.read_text())["annotations"]
        if not one["iscrowd"]
    ]
    assert Counter(rows) == Counter(whole)
    assert set(rows) == set(CLASSES)


def test_what_was_rejected_is_in_no_file(reviewed, dataset):
    _, _, labels, _ = reviewed
    rejected = set(labels["id"][labels["status"] == "rejected"])
    assert len(rejected) > 10
    assert not rejected & set(annotations(dataset)[0])


def test_what_was_rejected_teaches_none_of_the_classes_and_does_not_come_back(reviewed, tmp_path):
    _, finished, labels, review = reviewed
    lessons = learn_from(review, finished, labels)
    said = lessons.examples.frame.set_index("label")["class_id"].to_dict()
    rejected = labels[labels["status"] == "rejected"]
    assert {said[id] for id in rejected["id"] if id in said} == {NONE}
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        again = run(
            finished.job.changed(
                out_dir=str(tmp_path / "again"), examples=str(review.folder / "examples.parquet")
            )
        )
    back = gpd.sjoin(
        again.layer[["geometry"]], rejected.set_geometry(rejected.buffer(-0.6))[["geometry"]],
        predicate="intersects",
    )  # fmt: skip
    assert back.empty
    accepted = again.layer[again.layer["status"] == "accepted"].set_index("id")["class_id"]
    before = labels[labels["status"] != "rejected"].set_index("id")["class_id"]
    both = accepted.index.intersection(before.index)
    assert len(both) > 0.8 * len(before)
    assert (accepted[both] == before[both]).all()
