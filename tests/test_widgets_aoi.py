import json
import time

import geopandas as gpd
import ipyleaflet
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from ipywidgets.widgets.widget import _instances
from known_objects import write_labels
from shapely.affinity import translate

from workbench.errors import AOIError
from workbench.raster.aoi import load_aoi
from workbench.raster.crs import to_lonlat
from workbench.runs.forecast import Forecast
from workbench.runs.job import Job
from workbench.tuning.webmap import web_from_degrees
from workbench.widgets import imagery
from workbench.widgets import map as scenemap
from workbench.widgets.area import AOIPicker
from workbench.widgets.drawn_area import geometry_of, straightened
from workbench.widgets.imagery import Screen
from workbench.widgets.map import SceneMap, tile_cores
from workbench.widgets.session import Session

UTM = pyproj.CRS.from_epsg(32633)
# 400 × 300 pixels of 0.5 m, from 500000, 5300000 to the south-east
LEFT, TOP, WIDE, TALL = 500_000, 5_300_000, 200.0, 150.0


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    return write_labels(tmp_path / "field.tif", rng.integers(1, 60000, (300, 400)))


@pytest.fixture
def job(source, tmp_path):
    return Job.create(
        source=str(source), tile_size=128, interactive=True, out_dir=str(tmp_path / "run")
    )


@pytest.fixture
def panel(job):
    picker = AOIPicker(job)
    yield picker.panel
    picker.close()


def degrees(polygon):
    """A polygon of the scene's CRS, from its upper left corner, as a GeoJSON geometry."""
    there = translate(polygon, LEFT, TOP)
    return shapely.transform(there, lambda xy: np.column_stack(to_lonlat(UTM, *xy.T)).round(6))


def as_drawn(*polygons, kind="polygon"):
    """What the browser says after polygons were drawn."""
    return [
        {
            "type": "Feature",
            "properties": {"type": kind, "style": {"color": "#d500f9"}},
            "geometry": json.loads(shapely.to_geojson(degrees(polygon))),
        }
        for polygon in polygons
    ]


def lonlat_box(west, south, east, north):
    return json.loads(shapely.to_geojson(shapely.box(west, south, east, north)))


# ---- drawing --------------------------------------------------------------------------------


def test_without_a_drawing_the_area_is_the_whole_raster(panel):
    assert panel.session.job.aoi is None
    assert "Whole raster: 3.0" in panel.figures.value
    assert "ha" in panel.figures.value
    assert f"{panel.session.area.n_tiles} tiles" in panel.figures.value
    assert panel.problem.value == ""


def test_the_tiles_of_the_area_are_on_the_map(panel):
    (part,) = panel.session.area.parts
    cores = tile_cores(panel.session.area)
    expected = [part.scene.window_polygon(tile.core) for tile in part.tiles]
    assert shapely.equals(cores.geometry.to_numpy(), expected).all()
    drawn = panel.scene_map._tile_lines.data["geometry"]["coordinates"]
    assert len(drawn) == len(expected)
    panel.control.data = as_drawn(shapely.box(5, -30, 10, -10))
    assert len(panel.scene_map._tile_lines.data["geometry"]["coordinates"]) == 1


def test_what_is_drawn_becomes_the_jobs_aoi(panel):
    before = panel.session.area.n_tiles
    panel.control.data = as_drawn(shapely.box(20, -70, 60, -20))
    assert panel.session.job.aoi["type"] == "Polygon"
    assert panel.session.area.aoi.area == pytest.approx(40 * 50, rel=0.01)
    assert "Area: 2,0" in panel.figures.value
    assert "m²" in panel.figures.value
    assert 0 < panel.session.area.n_tiles < before
    assert panel.problem.value == ""
    panel.control.data = []
    assert panel.session.job.aoi is None
    assert panel.session.area.n_tiles == before


def test_several_shapes_are_one_area_without_counting_overlaps_twice(panel):
    panel.control.data = as_drawn(
        shapely.box(10, -60, 50, -20), shapely.box(30, -60, 70, -20), shapely.box(90, -30, 100, -20)
    )
    assert panel.session.job.aoi["type"] == "MultiPolygon"
    assert panel.session.area.aoi.area == pytest.approx(60 * 40 + 100, rel=0.01)
    assert len(panel.control.data) == 3  # still to be moved one by one


def test_a_polygon_that_crosses_itself_is_taken_as_it_looks():
    bow = as_drawn(shapely.Polygon([(0, -50), (50, 0), (50, -50), (0, 0)]))
    area = shapely.geometry.shape(geometry_of(bow))
    assert area.is_valid
    assert area.geom_type == "MultiPolygon"
    assert geometry_of(as_drawn(shapely.Polygon([(0, 0), (50, 0), (0, 0)]))) is None
    assert geometry_of([]) is None


@pytest.mark.parametrize("corner", range(4))
def test_a_dragged_corner_leaves_a_rectangle_a_rectangle(panel, corner):
    panel.control.data = [
        {"type": "Feature", "properties": {"type": "rectangle"},
         "geometry": lonlat_box(15.0005, 47.8505, 15.001, 47.851)}
    ]  # fmt: skip
    drawn = json.loads(json.dumps(panel.control.data))
    ring = drawn[0]["geometry"]["coordinates"][0]
    opposite = ring[corner - 2 if corner > 1 else corner + 2]
    ring[corner] = [ring[corner][0] + 0.0002, ring[corner][1] - 0.0001]
    ring[4] = ring[0]
    drawn[0]["properties"]["type"] = "polygon"  # the browser has forgotten it
    panel.control.data = drawn
    shape = shapely.geometry.shape(panel.control.data[0]["geometry"])
    assert shape.equals(shape.envelope)
    expected = shapely.MultiPoint([ring[corner], opposite]).envelope
    assert shape.symmetric_difference(expected).area < 1e-12


def test_other_polygons_are_left_as_they_are():
    square = as_drawn(shapely.box(0, -50, 50, 0))
    free = as_drawn(shapely.Polygon([(0, 0), (50, -3), (47, -52), (-4, -49)]))
    pentagon = as_drawn(shapely.Polygon([(0, 0), (50, 0), (70, -20), (50, -50), (0, -50)]))
    assert straightened(free, square) == free
    assert straightened(free + pentagon, []) == free + pentagon
    assert straightened(pentagon, square) == pentagon


def test_what_is_outside_is_left_out_and_said(panel):
    panel.control.data = as_drawn(shapely.box(-50, -100, 50, -50))
    assert "50 % of the area lies outside the raster and is left out." in panel.problem.value
    inside = shapely.geometry.shape(panel._inside.data["geometry"])
    whole = shapely.geometry.shape(panel.control.data[0]["geometry"])
    assert inside.area == pytest.approx(whole.area / 2, rel=0.01)
    panel.control.data = as_drawn(shapely.box(10, -100, 50, -50))
    assert panel.problem.value == ""


def test_an_area_wholly_outside_is_refused_with_a_reason(panel):
    panel.control.data = as_drawn(shapely.box(-500, -100, -300, -50))
    assert panel.session.area is None
    assert "AOI does not intersect field.tif" in panel.problem.value
    assert panel.figures.value == ""
    assert len(panel.control.data) == 1  # it can be moved to where it was meant
    panel.control.data = as_drawn(shapely.box(10, -100, 50, -50))
    assert panel.problem.value == ""
    assert "tile" in panel.figures.value


def test_the_forecast_follows_area_and_timing(panel):
    panel.session.forecast = Forecast(seconds_per_tile=30.0, bytes_per_tile=2e6)
    whole = panel.figures.value
    assert "about" in whole
    assert "MB" in whole
    panel.control.data = as_drawn(shapely.box(5, -30, 10, -10))
    assert "1 tile ·" in panel.figures.value
    assert panel.figures.value != whole


def test_the_picker_follows_the_job(panel):
    panel.control.data = as_drawn(shapely.box(20, -70, 60, -20))
    drawn = panel.session.job
    panel.session.change(aoi=None)
    assert panel.control.data == []
    assert panel.session.area.aoi is None
    panel.session.job = drawn  # as undo does it
    (shape,) = [shapely.geometry.shape(each["geometry"]) for each in panel.control.data]
    assert shape.equals(shapely.geometry.shape(drawn.aoi))
    assert panel.session.job is drawn
    panel.session.change(pred_iou_thresh=0.9)  # a slider has nothing to do with it
    assert panel.session.job.aoi == drawn.aoi


def test_what_the_map_shows_can_be_taken_without_a_mouse(panel):
    panel.scene_map.fit((LEFT + 50, TOP - 60, LEFT + 80, TOP - 40))
    panel._add_view()
    assert panel.session.area.aoi.covers(shapely.box(LEFT + 51, TOP - 59, LEFT + 79, TOP - 41))
    panel._take_all()
    assert panel.session.job.aoi is None
    assert panel.control.data == []


# ---- files ----------------------------------------------------------------------------------


def test_an_area_comes_back_from_its_file(panel, tmp_path):
    panel.control.data = as_drawn(
        shapely.box(20, -70, 60, -20), shapely.Polygon([(90, -20), (130, -35), (99, -90)])
    )
    area, aoi = panel.session.area.aoi, panel.session.job.aoi
    panel.files.path.value = str(tmp_path / "new" / "area.geojson")
    panel.files.save()
    assert "Saved" in panel.files.notice.value
    panel._take_all()
    panel.files.load()
    assert panel.session.job.aoi == panel.files.path.value
    assert panel.session.area.aoi.symmetric_difference(area).area < 0.5
    loaded = load_aoi(panel.session.job.aoi).union_all()
    assert shapely.hausdorff_distance(loaded, shapely.geometry.shape(aoi)) < 1e-6
    assert len(panel.control.data) == 2
    panel.control.data = panel.control.data[:1]  # what was loaded can be edited
    assert panel.session.job.aoi["type"] == "Polygon"


def test_a_file_in_another_crs_is_loaded_and_read_again_when_it_has_changed(panel, tmp_path):
    path = tmp_path / "area.gpkg"
    panel.files.path.value = str(path)
    for side in (30, 60):
        box = shapely.box(LEFT + 10, TOP - 10 - side, LEFT + 10 + side, TOP - 10)
        gpd.GeoSeries([box], crs=UTM).to_crs(3857).to_file(path)
        panel.files.load()
        assert panel.session.area.aoi.area == pytest.approx(side**2, rel=0.02)
    assert "Loaded area.gpkg" in panel.files.notice.value


def test_mistakes_with_files_are_said_and_change_nothing(panel, tmp_path):
    panel.control.data = as_drawn(shapely.box(20, -70, 60, -20))
    job = panel.session.job
    panel.files.load()
    assert "Give the path" in panel.files.notice.value
    panel.files.path.value = str(tmp_path / "nothing.geojson")
    panel.files.load()
    assert "no such file" in panel.files.notice.value
    (tmp_path / "bad.geojson").write_text("{<b>")
    panel.files.path.value = str(tmp_path / "bad.geojson")
    panel.files.load()
    assert "cannot be read" in panel.files.notice.value
    assert "<b>" not in panel.files.notice.value
    panel.files.path.value = str(tmp_path / "area.gpkg")
    panel.files.save()
    assert "ends in .geojson" in panel.files.notice.value
    assert not (tmp_path / "area.gpkg").exists()
    panel.files.path.value = str(tmp_path / "bad.geojson" / "area.geojson")
    panel.files.save()
    assert "cannot be written" in panel.files.notice.value
    assert panel.session.job is job
    panel._take_all()
    panel.files.save()
    assert "nothing to save" in panel.files.notice.value


def test_saving_asks_before_it_replaces_a_file(panel, tmp_path):
    path = tmp_path / "area.geojson"
    path.write_text("mine")
    panel.files.path.value = str(path)
    panel.control.data = as_drawn(shapely.box(20, -70, 60, -20))
    panel.files.save()
    assert path.read_text() == "mine"
    assert "again" in panel.files.notice.value
    panel.files.save()
    assert json.loads(path.read_text())["type"] == "FeatureCollection"


def test_a_job_with_an_aoi_shows_it(job, tmp_path):
    path = tmp_path / "area.gpkg"
    gpd.GeoSeries([shapely.box(LEFT, TOP - 50, LEFT + 50, TOP)], crs=UTM).to_file(path)
    inline = json.loads(shapely.to_geojson(degrees(shapely.box(30, -60, 90, -20))))
    for aoi in (str(path), inline):
        picker = AOIPicker(job.changed(aoi=aoi))
        panel = picker.panel
        assert len(panel.control.data) == 1
        assert panel.session.job.aoi == aoi  # not what the map has made of it
        left, bottom, right, top = panel.scene_map.screen.bounds
        there = shapely.box(left, bottom, right, top)
        area = gpd.GeoSeries([panel.session.area.aoi], crs=UTM).to_crs(3857).iloc[0]
        assert there.covers(area)
        assert area.area > there.area / 30  # the map has come near
        picker.close()


# ---- where nobody is at work ----------------------------------------------------------------


def test_in_a_batch_it_is_a_line_and_no_widget_is_made(job):
    before = set(_instances)
    aoi = json.loads(shapely.to_geojson(degrees(shapely.box(20, -70, 60, -20))))
    picker = AOIPicker(job.changed(interactive=False, aoi=aoi))
    (text,) = picker._repr_mimebundle_(include=None, exclude=None).values()
    assert "field · 2,0" in text
    assert "tiles" in text
    assert picker.panel is picker.scene_map is None
    picker.close()
    assert set(_instances) == before


def test_in_a_batch_an_area_that_cannot_be_used_stops_it(job):
    aoi = lonlat_box(0, 0, 1, 1)
    with pytest.raises(AOIError, match="does not intersect"):
        AOIPicker(job.changed(interactive=False, aoi=aoi))


# ---- the map --------------------------------------------------------------------------------


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def shown(scene_map):
    """Pictures on the map, lowest first."""
    images = [each for each in scene_map.map.layers if isinstance(each, ipyleaflet.ImageOverlay)]
    return [image for image in images if not image.url.startswith("data:image/gif")]


def is_sharp(scene_map):
    """Whether all of the screen is shown at its resolution."""
    sharp = scene_map.imagery._sharp
    return sharp is not None and sharp.covers(scene_map.screen)


def go(scene_map, west, south, east, north, width=801.0):
    """Do as the browser does when a person has moved the map."""
    left, bottom = web_from_degrees(west, south)
    right, top = web_from_degrees(east, north)
    scale = width / (right - left)
    scene_map.map.set_state(
        {
            "west": west, "south": south, "east": east, "north": north,
            "left": 0.0, "top": 0.0, "right": width, "bottom": (top - bottom) * scale,
        }
    )  # fmt: skip


@pytest.fixture
def scene_map(job):
    made = SceneMap(Session(job))
    go(made, *degrees(shapely.box(-10, -160, 210, 10)).bounds)  # it is shown for the first time
    yield made
    made.close()


def test_the_whole_raster_is_seen_at_first_however_large_the_map_is(job):
    scene_map = SceneMap(Session(job))
    zoom = scene_map.map.zoom
    bounds = degrees(shapely.box(-10, -160, 210, 10)).bounds
    go(scene_map, *bounds, width=150)
    assert scene_map.map.zoom < zoom
    scene_map.map.zoom = 22.0  # by hand, which is left alone
    go(scene_map, *degrees(shapely.box(90, -60, 92, -58)).bounds, width=150)
    assert scene_map.map.zoom == 22
    scene_map.close()


def test_an_overview_comes_first_and_a_sharp_part_after_a_move(scene_map):
    until(lambda: len(shown(scene_map)) >= 1)
    west, south, east, north = degrees(shapely.box(50, -60, 60, -50)).bounds
    go(scene_map, west, south, east, north)
    until(lambda: is_sharp(scene_map))
    sharp = shown(scene_map)[-1]
    (bottom, left), (top, right) = sharp.bounds
    assert left < west < east < right
    assert bottom < south < north < top
    assert (right - left) < 3 * (east - west)
    assert scene_map.message.value == ""


def test_a_sharp_part_stays_until_the_next_one_is_there(scene_map):
    until(lambda: scene_map.imagery._sharp is not None)
    changes = []
    for image in (scene_map.imagery._fresh, scene_map.imagery._old):
        image.observe(lambda change: changes.append((change["old"], change["new"])), "url")
    for x in (20, 60, 100, 140):
        go(scene_map, *degrees(shapely.box(x, -60, x + 10, -50)).bounds)
        until(lambda: scene_map.imagery._sharp.covers(scene_map.screen))
    assert len(changes) == 8
    # a picture comes where none is, then the one before goes
    assert [len(before) < 100 for before, _ in changes] == [True, False] * 4
    assert [len(after) < 100 for _, after in changes] == [False, True] * 4


def test_the_last_move_wins(scene_map):
    for x in range(0, 150, 3):
        go(scene_map, *degrees(shapely.box(x, -60, x + 10, -50)).bounds)
    until(lambda: is_sharp(scene_map))
    last = degrees(shapely.box(x, -60, x + 10, -50))
    until(lambda: any(shapely.box(*np.ravel([b[::-1] for b in s.bounds])).covers(last)
                      for s in shown(scene_map)[1:]))  # fmt: skip


def test_no_request_leaves_the_machine_unless_it_is_asked_for(scene_map):
    def tiles():
        return [each for each in scene_map.map.layers if isinstance(each, ipyleaflet.TileLayer)]

    until(lambda: shown(scene_map))
    assert not tiles()
    assert all(image.url.startswith("data:image/") for image in shown(scene_map))
    basemap = scene_map.widget.children[1].children[1]
    basemap.value = True
    assert len(tiles()) == 1
    basemap.value = False
    assert not tiles()


def test_the_cursors_place_is_in_the_working_crs(scene_map):
    seen = []
    scene_map.on_click(lambda x, y: seen.append((x, y)))
    lon, lat = map(float, to_lonlat(UTM, LEFT + 12.5, TOP - 7.25))
    for kind in ("mousemove", "click", "mouseout"):
        scene_map.map._handle_leaflet_event(
            None, {"event": "interaction", "type": kind, "coordinates": [lat, lon]}, []
        )
    assert "500012.5" in scene_map.cursor.value
    assert "EPSG:32633" in scene_map.cursor.value
    assert seen == [pytest.approx((LEFT + 12.5, TOP - 7.25), abs=1e-3)]


def test_too_many_tiles_are_drawn_once_the_map_is_near(scene_map, monkeypatch):
    monkeypatch.setattr(scenemap, "MOST_TILES", 100)
    x, y = np.meshgrid(np.arange(0, 200, 10), np.arange(0, 150, 10))
    boxes = shapely.box(LEFT + x, TOP - y - 10, LEFT + x + 10, TOP - y).ravel()
    tiles = gpd.GeoDataFrame(geometry=boxes, crs=UTM)
    scene_map.show_tiles(tiles)
    assert "features" in scene_map._tile_lines.data
    assert "zoom in" in scene_map.message.value
    go(scene_map, *degrees(shapely.box(52, -68, 88, -42)).bounds)
    assert 12 <= len(scene_map._tile_lines.data["geometry"]["coordinates"]) <= 20
    assert scene_map.message.value == ""
    scene_map.show_tiles(None)
    assert "features" in scene_map._tile_lines.data


def test_a_raster_that_is_gone_is_said_under_the_map(job, source):
    session = Session(job)
    for scene in session.scenes:
        scene.close()
    source.unlink()
    scene_map = SceneMap(session)
    until(lambda: "There is no file" in scene_map.message.value)
    scene_map.close()


def test_closing_ends_the_thread(scene_map):
    scene_map.close()
    assert not scene_map.imagery._painter._thread.is_alive()
    scene_map.close()
    scene_map.fit((LEFT, TOP - 10, LEFT + 10, TOP))  # harmless


def test_many_rasters_share_the_overviews(tmp_path, monkeypatch):
    monkeypatch.setattr(imagery, "MOST_OVERVIEWS", 3)
    labels = np.full((40, 36), 9)  # they do not touch
    for i in range(8):
        write_labels(tmp_path / f"{i}.tif", labels, Affine(0.5, 0, LEFT + i * 20, 0, -0.5, TOP))
    job = Job.create(source=str(tmp_path / "*.tif"), interactive=True, out_dir=str(tmp_path / "r"))
    scene_map = SceneMap(Session(job))
    go(scene_map, *degrees(shapely.box(0, -20, 160, 0)).bounds)  # it is shown for the first time
    until(lambda: len(shown(scene_map)) >= 3 and "3 of the 8" in scene_map.message.value)
    go(scene_map, *degrees(shapely.box(141, -15, 159, -5)).bounds)
    until(lambda: scene_map.message.value == "" and 7 in scene_map.imagery._shown)
    assert len(scene_map.imagery._shown) == 3
    scene_map.close()


def test_a_screen_knows_what_it_covers():
    screen = Screen((0.0, 0.0, 100.0, 50.0), 1000)
    assert screen.grown(0.25).bounds == (-25.0, -12.5, 125.0, 62.5)
    assert screen.grown(0.25).pixel == pytest.approx(screen.pixel)
    assert screen.grown(0.25).covers(screen)
    assert not screen.covers(screen.grown(0.25))
    assert not screen.covers(Screen((40.0, 20.0, 50.0, 25.0), 1000))  # not as sharply
    assert screen.meets((90.0, 40.0, 200.0, 90.0))
    assert not screen.meets((101.0, 0.0, 200.0, 50.0))
    assert not screen.meets((float("inf"),) * 4)
