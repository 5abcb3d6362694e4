"""Clicks and boxes by hand, in the tuner and in a review, with real mouse and keys."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import geopandas as gpd
import pytest
import shapely
from lab import VIEWPORT, Notebook, copied_notebook, jupyterlab, open_notebook, prelabel_notebook
from playwright.sync_api import TimeoutError
from test_prelabel import EXPECTED_COMPLAINTS, button
from test_review import stored
from test_tool import OF_RESTARTS, SMALL

from workbench.layer.files import read_layer
from workbench.runs.by_hand import BY_HAND
from workbench.samples.demo import make_sample, write_sample

CLASSES = {1: "building", 2: "parcel"}
OUTLINED = "path.sam-workbench-outlined"


@dataclass(frozen=True)
class Setting:
    """Where somebody works: the address, the theme and the size of the screen."""

    name: str
    base_url: str
    theme: str
    viewport: dict


SETTINGS = [
    Setting("root-light", "/", "JupyterLab Light", VIEWPORT),
    Setting("hub-dark-small", "/user/alice/", "JupyterLab Dark", SMALL),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: setting.name)
def setting(request):
    return request.param


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory, setting):
    folder = tmp_path_factory.mktemp("prompts") / "work"
    folder.mkdir()
    write_sample(make_sample(560, 3), folder)
    with jupyterlab(folder, setting.base_url) as lab:
        yield lab


@contextmanager
def opened_in(chromium, lab, setting, path):
    with open_notebook(chromium, lab, path, setting.viewport) as notebook:
        notebook.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
            setting.theme,
        )
        notebook.run_all()
        yield notebook


@dataclass
class Hand:
    """A hand on the map of a panel; places are in the working CRS."""

    notebook: Notebook
    panel: str  # in the kernel
    selector: str  # on the page
    setting: str = ""  # where, for pictures

    def picture(self, name):
        self.notebook.picture(f"prompts-{self.setting}-{name}")

    @property
    def view(self):
        view = self.notebook.page.locator(f"{self.selector} .leaflet-container").first
        view.scroll_into_view_if_needed()
        return view

    @property
    def hint(self):
        return self.notebook.page.locator(f"{self.selector} .sam-workbench-hint")

    @property
    def tool(self):
        return f"{self.panel}.tool"

    def on_page(self, place):
        """Where a place is on the page: the map is linear in Web Mercator."""
        x, y = place
        sides = self.notebook.ask(
            "from workbench.tuning.webmap import web_from_degrees as w, to_web\n"
            f"m = {self.panel}.scene_map\n"
            f"print([*w(m.map.west, m.map.south), *w(m.map.east, m.map.north), "
            f"*to_web(m.crs).transform({x}, {y})])"
        )
        west, south, east, north, x, y = json.loads(sides)
        box = self.view.bounding_box()
        return (
            box["x"] + (x - west) / (east - west) * box["width"],
            box["y"] + (north - y) / (north - south) * box["height"],
        )

    def point(self, place):
        x, y = self.on_page(place)
        self.notebook.page.mouse.move(x - 3, y - 3)
        self.notebook.page.mouse.move(x, y, steps=2)
        self.notebook.page.wait_for_timeout(60)

    def place_of(self, row):
        """A point inside the label that a review shows in a row, given in Python."""
        label = f"{self.panel}.session.triage.labels.geometry.iloc[{row}]"
        point = f"{label}.representative_point()"
        return json.loads(self.notebook.ask(f"print([{point}.x, {point}.y])"))

    def see_all(self):
        self.view.get_by_title("the whole area, or the whole raster").click()
        self.notebook.page.wait_for_timeout(1500)

    def press(self, key, place):
        self.point(place)
        self.notebook.page.keyboard.press(key)
        try:
            self.hint.wait_for(timeout=20_000)
        except TimeoutError as error:
            raise AssertionError(self.notebook.ask(f"print({self.panel}.message.value)")) from error

    def click(self, place, button="left", alt=False):
        """Click, and wait for the answer; returns after how many ms its outline was there."""
        page = self.notebook.page
        before = self.outline
        self.point(place)
        if alt:
            page.keyboard.down("Alt")
        page.evaluate("window.clickedAt = performance.now()")
        page.mouse.down(button=button)
        page.mouse.up(button=button)
        if alt:
            page.keyboard.up("Alt")
        return self.answered(before)

    def drag(self, one, other):
        before, page = self.outline, self.notebook.page
        self.point(one)
        page.mouse.down()
        page.mouse.move(*self.on_page(other), steps=6)
        self.picture(f"{self.panel[:6]}-dragging")
        page.evaluate("window.clickedAt = performance.now()")
        page.mouse.up()
        return self.answered(before)

    def answered(self, before):
        page = self.notebook.page
        ms = page.wait_for_function(
            "([selector, before]) => {"
            "  const now = document.querySelector(selector)?.getAttribute('d') ?? '';"
            "  return now && now !== before && performance.now() - window.clickedAt; }",
            arg=[f"{self.selector} {OUTLINED}", before], timeout=60_000, polling=10,
        )  # fmt: skip
        return ms.json_value()

    @property
    def outline(self):
        path = self.notebook.page.locator(f"{self.selector} {OUTLINED}")
        return path.first.get_attribute("d") if path.count() else ""

    @property
    def area(self):
        """Of the outline, square metres."""
        return float(self.notebook.ask(f"print({self.tool}._answer.area)"))


@pytest.fixture(scope="module")
def roofs(lab):
    """The true buildings inside the scene, the largest first: their middles and bounds.

    They lie above the hint at the bottom of the map.
    """
    objects = gpd.read_file(lab.folder / "sample_objects.gpkg")
    west, south, east, north = objects.total_bounds
    seen = shapely.box(west, south + 0.3 * (north - south), east, north).buffer(-3)
    frame = objects[(objects["kind"] == "building") & objects.within(seen)]
    frame = frame.iloc[frame.area.argsort()[::-1]]
    return [(tuple(s.representative_point().coords[0]), s.bounds) for s in frame.geometry]


@pytest.fixture(scope="module")
def tuner(chromium, lab, setting):
    """The tuner with the one tile of the scene and two classes."""
    path = prelabel_notebook(
        lab.folder, source=str(lab.folder / "sample.tif"), out_dir=str(lab.folder / "run"),
        classes=CLASSES, model="tiny", tile_size=512, points_per_side=12, min_area_px=60,
    )  # fmt: skip
    with opened_in(chromium, lab, setting, path) as notebook:
        notebook.ask("tuner.panel.n_tiles.value = 1; tuner.panel.propose()")
        notebook.until("len(tuner.session.samples) == 1 and not tuner.session.busy", seconds=200)
        notebook.page.wait_for_timeout(1500)
        yield Hand(notebook, "tuner.panel", ".sam-workbench-tuner", setting.name)
        assert complaints_of(notebook) == []


@pytest.fixture(scope="module")
def review(chromium, lab, setting):
    path = copied_notebook("review", lab.folder, run_dir=str(lab.folder / "run"))
    with opened_in(chromium, lab, setting, path) as notebook:
        yield Hand(notebook, "answering.panel", ".sam-workbench-review", setting.name)
        assert complaints_of(notebook) == []


def complaints_of(notebook):
    known = (*EXPECTED_COMPLAINTS, *OF_RESTARTS)
    return [text for text in notebook.complaints if not any(one in text for one in known)]


def one_line_inside(hand):
    """Whether the hint is one line, inside the map."""
    hint, view = hand.hint.bounding_box(), hand.view.bounding_box()
    inside = view["x"] <= hint["x"]
    inside &= hint["x"] + hint["width"] <= view["x"] + view["width"]
    return inside and hint["height"] < 40


def shapes_of(tuner):
    return int(tuner.notebook.ask("print(len(tuner.session.by_hand))"))


def test_1_clicks_outline_an_object_and_esc_drops_it(tuner, roofs):
    notebook, keyboard = tuner.notebook, tuner.notebook.page.keyboard
    (first, _), (second, _) = roofs[0], roofs[1]
    palette = notebook.page.locator(".sam-workbench-palette").first
    palette.get_by_role("button", name="building, said").click()
    notebook.until("tuner.panel.teaching.palette.tool", "1")
    tuner.press("p", first)
    tuner.picture("1-begun")
    assert one_line_inside(tuner)
    assert notebook.barriers(".sam-workbench-tuner") == []
    tuner.click(first)
    one = tuner.area
    tuner.picture("2-click")
    took = [tuner.click(second)]
    both = tuner.area
    assert both > one * 1.2
    tuner.picture("3-second")
    took.append(tuner.click(second, alt=True))
    assert tuner.area < both
    tuner.picture("4-alt")
    before = tuner.outline
    keyboard.press("Control+z")
    tuner.answered(before)
    assert tuner.area == pytest.approx(both)
    before = tuner.outline
    keyboard.press("Control+Shift+z")
    tuner.answered(before)
    assert tuner.area < both
    before = tuner.outline
    keyboard.press("Control+z")
    tuner.answered(before)
    before = tuner.outline
    took.append(tuner.click(second, button="right"))
    assert tuner.area < both
    assert notebook.page.locator(".lm-Menu, .jp-ContextMenu").count() == 0
    print("ms from a click to its outline:", [round(ms) for ms in took])
    keyboard.press("Escape")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    assert shapes_of(tuner) == 0


def test_2_a_box_is_kept_and_undo_takes_it_back(tuner, roofs):
    notebook, keyboard = tuner.notebook, tuner.notebook.page.keyboard
    middle, (west, south, east, north) = roofs[0]
    tuner.press("p", middle)
    tuner.drag((west - 1, north + 1), (east + 1, south - 1))
    tuner.picture("5-box")
    keyboard.press("Enter")
    notebook.until("len(tuner.session.by_hand)", "1")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    assert notebook.ask("print(tuner.session.by_hand.frame['class_id'].tolist())") == "[1]"
    notebook.page.wait_for_timeout(500)
    tuner.picture("6-kept")
    keyboard.press("Control+z")
    notebook.until("len(tuner.session.by_hand)", "0")
    keyboard.press("Control+Shift+z")
    notebook.until("len(tuner.session.by_hand)", "1")


def test_3_p_keeps_and_goes_on_and_m_mends(tuner, roofs):
    notebook, keyboard = tuner.notebook, tuner.notebook.page.keyboard
    tuner.press("p", roofs[2][0])
    tuner.click(roofs[2][0])
    keyboard.press("p")
    notebook.until("len(tuner.session.by_hand)", "2")
    tuner.hint.wait_for()  # for the next object
    keyboard.press("Escape")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    asked = (
        "one = tuner.session.by_hand.frame.iloc[-1]; at = one.geometry.representative_point()\n"
        "import json; print(json.dumps([one['id'], at.x, at.y]))"
    )
    id, *place = json.loads(notebook.ask(asked))
    tuner.press("m", place)
    assert tuner.outline  # as it is
    tuner.click(roofs[3][0])
    tuner.picture("7-mended")
    keyboard.press("Enter")
    notebook.until(f"(tuner.session.by_hand.frame['id'] == {id!r}).sum()", "1")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    assert shapes_of(tuner) == 2
    notebook.until(f"tuner.session.by_hand.at(*{roofs[3][0]}) >= 0")


def test_4_undo_takes_back_corner_by_corner_and_nothing_else(tuner, roofs):
    notebook, page = tuner.notebook, tuner.notebook.page
    past = notebook.ask("print(len(tuner.session.history.past))")
    steps = page.locator(f"{tuner.selector} .sam-workbench-toolbar")
    undo, redo = (steps.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    west, south, east, north = roofs[5][1]
    tuner.press("d", roofs[5][0])
    corners = page.locator(
        f"{tuner.selector} .marker-icon:not(.marker-icon-middle, .cursor-marker)"
    )
    for at, place in enumerate([(west, south), (west, north), (east, north)], 1):
        tuner.point(place)
        page.mouse.down()
        page.mouse.up()
        page.wait_for_timeout(400)  # two quick clicks would end it
        assert corners.count() == at
    tuner.picture("8-drawing")
    page.keyboard.press("Control+z")
    assert corners.count() == 2
    undo.click()
    assert corners.count() == 1
    page.keyboard.press("Control+z")  # the first one: nothing is left
    tuner.hint.wait_for(state="detached", timeout=10_000)
    asked = "at = tuner.session.by_hand.frame.geometry.iloc[0].representative_point()\n"
    place = json.loads(notebook.ask(asked + "print([at.x, at.y])"))
    tuner.press("e", place)

    free = corners.evaluate_all(  # nothing lies over it
        """all => all.findIndex(one => {
          const { x, y, width, height } = one.getBoundingClientRect();
          return document.elementFromPoint(x + width / 2, y + height / 2) === one; })"""
    )

    def corner():
        box = corners.nth(free).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    x, y = at_first = corner()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 15, y + 12, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    moved = corner()
    assert moved == pytest.approx((x + 15, y + 12), abs=3)
    page.keyboard.press("Control+z")
    assert corner() == pytest.approx(at_first, abs=1)
    redo.click()
    assert corner() == pytest.approx(moved, abs=1)
    tuner.picture("9-corner-moved")
    undo.click()
    assert corner() == pytest.approx(at_first, abs=1)
    page.keyboard.press("Control+z")
    tuner.hint.wait_for(state="detached", timeout=10_000)
    assert notebook.ask("print(len(tuner.session.history.past))") == past


def test_5_a_restart_brings_them_back_and_a_run_keeps_them(tuner):
    notebook = tuner.notebook
    notebook.restart()
    notebook.run_all()
    notebook.until("'tuner' in globals() and len(tuner.session.by_hand)", "2", seconds=90)
    notebook.until("not tuner.session.busy", seconds=120)
    run = button(notebook, "Run here")
    run.scroll_into_view_if_needed()
    run.click()
    notebook.page.locator(".sam-workbench-run", has_text="Run folder").wait_for(timeout=240_000)
    layer = read_layer(notebook.lab.folder / "run" / "prelabels.gpkg").set_index("id")
    shapes = gpd.read_parquet(notebook.lab.folder / "run" / BY_HAND)
    mine = layer.loc[shapes["id"]]
    assert mine["status"].tolist() == ["edited"] * 2
    assert mine["class_id"].tolist() == [1] * 2


def test_6_in_a_review_a_missed_object_is_outlined_and_the_shown_label_is_mended(review, roofs):
    notebook, keyboard = review.notebook, review.notebook.page.keyboard
    notebook.until(f"{review.panel}.session.row >= 0")
    before = stored(notebook, "id, status")
    middle = roofs[4][0]
    review.see_all()  # the map has moved to the first label
    review.press("p", middle)
    review.picture("8-review-begun")
    assert one_line_inside(review)
    assert notebook.barriers(".sam-workbench-review") == []
    review.click(middle)
    review.picture("9-review")
    keyboard.press("Enter")
    notebook.until(f"len({review.panel}.session.triage)", str(len(before) + 1))
    (fid,) = set(stored(notebook)) - set(before)
    assert stored(notebook)[fid][0] == "edited"
    review.hint.wait_for(state="detached", timeout=10_000)
    id = stored(notebook, "id")[fid]
    assert id[0].startswith("drawn/")
    keyboard.press("Control+z")
    notebook.until(f"len({review.panel}.session.triage)", str(len(before)))
    row = f"{review.panel}.session.row"
    shown = notebook.ask(f"print(int({review.panel}.session.triage.labels['fid'].iloc[{row}]))")
    review.see_all()
    tip = notebook.page.locator(".sam-workbench-tip").first
    review.point(review.place_of(row))
    tip.wait_for(state="visible", timeout=9000)
    review.press("m", review.place_of(row))
    tip.wait_for(state="hidden", timeout=9000)
    review.click(middle)
    review.picture("10-review-mended")
    keyboard.press("Enter")
    review.hint.wait_for(state="detached", timeout=10_000)
    after = stored(notebook, "id, status")
    changed = {fid for fid in before if after[fid] != before[fid]}
    assert changed == {int(shown)}
    assert after[int(shown)] == (before[int(shown)][0], "edited")
    keyboard.press("Control+z")
    notebook.until(f"{review.panel}.session.changes > 0")
    notebook.page.wait_for_timeout(500)
    assert stored(notebook, "id, status") == before
