"""Classes taught in a real browser survive a restart of the kernel, and come out of the run."""

import json

import geopandas as gpd
import numpy as np
import pytest
from lab import jupyterlab, open_notebook, prelabel_notebook
from test_prelabel import EXPECTED_COMPLAINTS, button, map_of

from workbench.layer.files import read_layer
from workbench.learning.verdicts import VERDICTS
from workbench.runs.by_hand import BY_HAND
from workbench.samples.demo import sample_scene

# in the kernel: where a person points to say what objects of a size are, and which rows these are
POINTS = """
import json, numpy as np, shapely
from workbench.raster.crs import to_lonlat
from workbench.widgets.classes import label_of
def spots(least, most):
    panel, found = tuner.panel, []
    kept = panel.drawn.rows[np.frombuffer(panel.overlay.shown, "<u4")].tolist()
    said = panel.session.verdicts.frame
    said = set(zip(said["tile"], said["ordinal"]))
    shapes = np.array([panel.preview.outline(row).iloc[0] for row in kept], object)
    tree, area = shapely.STRtree(shapes), shapely.area(shapes)
    for i in np.flatnonzero((area > least) & (area < most)).tolist():
        spot = shapely.point_on_surface(shapes[i])
        here = tree.query(spot, "intersects")
        if int(here[area[here].argmin()]) != i: continue  # a smaller one lies there
        lon, lat = to_lonlat(panel.session.scenes[0].crs, spot.x, spot.y)
        label = label_of(panel.preview, kept[i])
        tile, _, ordinal = label.rpartition("/")
        if (tile, int(ordinal)) not in said:
            solidity = area[i] / shapely.area(shapely.convex_hull(shapes[i]))
            found.append((float(lon), float(lat), label, float(solidity)))
    return found
def point(least, most, n):
    found = spots(least, most)
    return found[n * 37 % len(found)][:3]
def plainest(least, most):
    return max(spots(least, most), key=lambda spot: spot[3])[:3]
"""
SIZES = {"1": (30, 150), "2": (700, 20_000), "0": (180, 600)}  # m² of what is called so


@pytest.fixture(scope="module")
def opened(chromium, tmp_path_factory):
    """The notebook on the made scene, whose objects are known, run once for all steps."""
    folder = tmp_path_factory.mktemp("lab") / "work"
    folder.mkdir()
    path = prelabel_notebook(
        folder, source=str(sample_scene()), out_dir=str(folder / "run"), tile_size=512,
        min_area_px=100,
    )  # fmt: skip
    with jupyterlab(folder) as lab, open_notebook(chromium, lab, path) as notebook:
        notebook.run_all()
        yield notebook
        unexpected = [
            text for text in notebook.complaints
            if not any(known in text for known in (*EXPECTED_COMPLAINTS, "Connection lost"))
        ]  # fmt: skip
        assert unexpected == []


def screen_of(notebook, lon, lat):
    """Where a place is on the page: the map is linear in Web Mercator."""
    sides = json.loads(
        notebook.ask(
            "from workbench.tuning.webmap import web_from_degrees as w\n"
            "m = tuner.panel.scene_map.map\n"
            f"print([*w(m.west, m.south), *w(m.east, m.north), *w({lon}, {lat})])"
        )
    )
    west, south, east, north, x, y = sides
    box = map_of(notebook, 1).bounding_box()
    return (
        box["x"] + (x - west) / (east - west) * box["width"],
        box["y"] + (north - y) / (north - south) * box["height"],
    )


def point_and_press(notebook, lon, lat, key):
    x, y = screen_of(notebook, lon, lat)
    notebook.page.mouse.move(x - 3, y - 3)
    notebook.page.mouse.move(x, y, steps=2)
    notebook.page.wait_for_timeout(60)
    notebook.page.keyboard.press(key)


def said(notebook):
    return int(notebook.ask("print(len(tuner.session.verdicts))"))


def cells(notebook):
    return notebook.page.evaluate(
        "window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type)"
    )


def test_1_a_class_is_added_and_named(opened):
    button(opened, "Propose tiles").click()
    opened.until("len(tuner.session.samples) >= 4 and not tuner.session.busy", seconds=120)
    palette = opened.page.locator(".sam-workbench-palette").first
    name = palette.get_by_label("name of class 1")
    name.fill("building")
    name.press("Enter")
    opened.until("tuner.job.classes", "{1: 'building'}")
    palette.get_by_role("button", name="+ class").click()
    opened.until("len(tuner.job.classes)", "2")
    name = palette.get_by_label("name of class 2")
    name.fill("parcel")
    name.press("Enter")
    opened.until("tuner.job.classes", "{1: 'building', 2: 'parcel'}")


def test_2_keys_teach_and_reach_nobody_else(opened):
    before = cells(opened)
    assert opened.ask(POINTS) == ""
    n = 0
    for key, (least, most) in SIZES.items():
        for _ in range(7):
            spot = opened.ask(f"print(json.dumps(point({least}, {most}, {n})))")
            lon, lat, _ = json.loads(spot)
            opened.ask("before = tuner.session.verdicts")
            point_and_press(opened, lon, lat, key)
            n += 1
            # classes that were just learned may have put something smaller there
            opened.until("tuner.session.verdicts is not before", seconds=20)
            if n == 9:
                opened.picture("teaching-1-begun")
    said_of = opened.ask("print(sorted(tuner.session.verdicts.said.values()))")
    assert all(said_of.count(key) >= 5 for key in SIZES), said_of
    assert cells(opened) == before
    assert opened.page.locator(".jp-Dialog").count() == 0  # `0 0` restarts the kernel elsewhere
    assert opened.ask("print(tuner.panel.overlay.colour_by)") == "class"
    opened.until("tuner.panel.teaching.lesson.expected is not None", seconds=60)
    opened.page.mouse.move(5, 5)
    map_of(opened, 1)
    opened.page.wait_for_timeout(800)
    opened.picture("teaching-2-taught")
    assert "of 10 pre-labels right" in opened.page.locator(".sam-workbench-tuner").inner_text()


def test_3_n_goes_to_the_next_and_a_key_answers(opened):
    n = said(opened)
    map_of(opened, 1).hover(position={"x": 5, "y": 200})
    opened.page.keyboard.press("n")
    opened.until("tuner.panel.teaching.target >= 0")
    opened.page.wait_for_timeout(800)
    opened.picture("teaching-3-next")
    opened.page.keyboard.press("0")
    opened.until("len(tuner.session.verdicts)", str(n + 1))


def test_4_what_is_missing_is_drawn_and_corners_are_moved(opened):
    mouse, keyboard = opened.page.mouse, opened.page.keyboard
    palette = opened.page.locator(".sam-workbench-palette").first
    palette.get_by_role("button", name="parcel, said").click()
    opened.until("tuner.panel.teaching.palette.tool", "2")
    box = map_of(opened, 1).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x - 4, y)
    mouse.move(x, y)
    keyboard.press("d")
    hint = opened.page.locator(".sam-workbench-hint")
    hint.wait_for(timeout=10_000)
    for dx, dy in ((-60, -40), (50, -50), (20, 60)):
        mouse.click(x + dx, y + dy, delay=30)
        opened.page.wait_for_timeout(350)
    opened.picture("teaching-4-drawing")
    keyboard.press("Enter")
    opened.until("len(tuner.session.by_hand)", "1")
    hint.wait_for(state="detached", timeout=10_000)
    map_of(opened, 1).get_by_title("the whole area, or the whole raster").click()
    opened.page.wait_for_timeout(1500)
    map_of(opened, 1).focus()  # it was on the button
    lon, lat, label = json.loads(opened.ask("print(json.dumps(plainest(700, 20_000)))"))
    point_and_press(opened, lon, lat, "e")
    handles = opened.page.locator(".sam-workbench-tuner .marker-icon:not(.marker-icon-middle)")
    handles.first.wait_for(timeout=10_000)
    boxes = [handle.bounding_box() for handle in handles.all()]
    corners = np.array([(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2) for at in boxes])
    away = corners - corners.mean(axis=0)
    far = int(np.linalg.norm(away, axis=1).argmax())  # pulled outwards, no edges cross
    mouse.move(*corners[far])
    mouse.down()
    mouse.move(*(corners[far] + 10 * away[far] / np.linalg.norm(away[far])), steps=5)
    mouse.up()
    opened.picture("teaching-5-corners")
    keyboard.press("Enter")
    opened.until("len(tuner.session.by_hand)", "2")
    assert opened.ask("print(tuner.session.by_hand.frame['label'].iloc[-1])") == label
    opened.page.wait_for_timeout(800)
    opened.picture("teaching-6-by-hand")
    palette.get_by_role("button", name="parcel, said").click()  # clicks explain again
    opened.until("tuner.panel.teaching.palette.tool", "-1")


def test_5_verdicts_and_shapes_survive_a_restart_of_the_kernel(opened):
    n = said(opened)
    opened.restart()
    opened.run_all()
    opened.until("'tuner' in globals() and len(tuner.session.samples) > 0", seconds=90)
    opened.until("len(tuner.session.verdicts)", str(n))
    opened.until(
        "len(tuner.panel.shapes.layer.data['features'][0]['geometry']['coordinates'])", "2"
    )
    opened.until("tuner.job.classes", "{1: 'building', 2: 'parcel'}")
    opened.until("tuner.panel.teaching.lesson is not None", seconds=90)
    map_of(opened, 1)
    opened.page.wait_for_timeout(1500)
    opened.picture("teaching-7-restarted")


def test_6_the_run_finds_classes_scores_and_accepted_labels(opened):
    run = button(opened, "Run here")
    run.scroll_into_view_if_needed()
    run.click()
    opened.page.locator(".sam-workbench-run", has_text="Run folder").wait_for(timeout=240_000)
    layer = read_layer(opened.lab.folder / "run" / "prelabels.gpkg")
    assert set(layer["class_id"]) == {1, 2}
    shapes = gpd.read_parquet(opened.lab.folder / "run" / BY_HAND)
    by_hand = layer[layer["id"].isin(shapes["id"])]
    assert (by_hand["status"] == "edited").sum() == len(shapes) == 2
    assert layer[~layer["id"].isin(shapes["id"])]["class_score"].between(0, 1).all()
    accepted = layer[layer["status"].isin(["accepted", "edited"])]
    assert set(accepted["class_id"]) == {1, 2}
    # nobody judges twice: all that was given a class is there, near the edges of tiles, too
    verdicts = gpd.read_parquet(opened.lab.folder / "run" / VERDICTS)
    mine = verdicts["tile"] + "/" + verdicts["ordinal"].astype(str) == verdicts["label"]
    judged = verdicts[mine & (verdicts["class_id"] > 0)]
    assert len(judged) >= 10
    for _, one in judged.iterrows():
        same = accepted[accepted["class_id"] == one["class_id"]]
        shares = same.intersection(one.geometry).area / one.geometry.area
        assert shares.max() > 0.9, one["label"]
    assert (layer["status"] == "unreviewed").sum() > len(accepted)
    opened.page.wait_for_timeout(1000)
    opened.picture("teaching-8-run")
