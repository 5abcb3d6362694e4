"""Two people in one file: the plugin tells each of the other."""

import json
import os
import time


def marks(review):
    gpkg = review.project.with_name("prelabels.gpkg")
    return gpkg, sorted(path.name for path in gpkg.parent.glob("prelabels.gpkg.reviewer-*"))


def test_whoever_opens_a_file_that_another_one_has_open_is_warned_once(tour):
    gpkg, mine = marks(tour)
    assert len(mine) == 1
    assert not [text for text in tour.said() if "open since" in text]
    other = gpkg.with_name(f"{gpkg.name}.reviewer-laptop-17")
    other.write_text(json.dumps({"who": "ben on laptop", "since": "09:10"}))
    tour.ask("dock.start()")  # as whoever comes second does
    said = [text for text in tour.said() if "ben on laptop has had prelabels.gpkg open" in text]
    assert len(said) == 1
    assert "since 09:10" in said[0]
    tour.ask("iface.messageBar().clearWidgets()\ndock.others.beat()")
    assert not [text for text in tour.said() if "open since" in text]
    folder = os.environ.get("WORKBENCH_GUI_PICTURES")
    if folder:
        tour.ask("dock.start()")
        tour.desktop.wait(0.5)
        tour.desktop.picture(f"{folder}/others.png")


def test_who_has_gone_is_forgotten_and_leaves_no_file(tour):
    gpkg, _ = marks(tour)
    gone = gpkg.with_name(f"{gpkg.name}.reviewer-laptop-17")
    gone.write_text(json.dumps({"who": "ben on laptop", "since": "09:10"}))
    long_ago = time.time() - 3600
    os.utime(gone, (long_ago, long_ago))
    tour.ask("dock.others.beat()")
    assert not gone.exists()
    assert not [text for text in tour.said() if "ben" in text]
    tour.ask("dock.stop()")
    assert marks(tour)[1] == []
