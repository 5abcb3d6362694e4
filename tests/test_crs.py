import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from workbench.raster.crs import (
    crs_short,
    from_lonlat,
    ground_area_m2,
    ground_scale,
    is_earth,
    is_metric,
    metric_crs,
    to_lonlat,
)

PLACES = {  # where each CRS is at home, and away from there where it distorts
    "EPSG:3857": [(32.6, 0.35), (10.0, 60.0), (-70.0, -50.0)],
    "EPSG:3395": [(120.9, 14.5), (10.0, 60.0)],
    "EPSG:32636": [(32.6, 0.35), (35.9, 60.0)],
    "EPSG:32750": [(115.2, -8.6)],
    "EPSG:2056": [(8.5, 47.2), (6.1, 46.2)],
    "EPSG:28992": [(4.9, 52.0), (6.8, 53.2)],
}


def projected(crs: pyproj.CRS, lon: float, lat: float) -> tuple[float, float]:
    return pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(lon, lat)


def geodesic_area(polygon: shapely.Polygon, crs: pyproj.CRS) -> float:
    """The reference: straight map edges in 20 m steps, as a polygon on the ellipsoid."""
    to_geodetic = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    fine = shapely.segmentize(polygon, 20)
    on_ellipsoid = shapely.transform(fine, to_geodetic.transform, interleaved=False)
    return abs(crs.get_geod().geometry_area_perimeter(on_ellipsoid)[0])


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "expected"),
    [
        ("EPSG:3857", 10, 60, "EPSG:3857"),
        ("EPSG:3395", 10, 60, "EPSG:3395"),
        ("EPSG:32636", 32, 0, "EPSG:32636"),
        ("EPSG:2056", 8, 47, "EPSG:2056"),
        ("EPSG:28992", 5, 52, "EPSG:28992"),
        ("EPSG:4326", 32.6, 0.35, "EPSG:32636"),
        ("EPSG:4326", 115.2, -8.6, "EPSG:32750"),
        ("EPSG:4326", -180, 10, "EPSG:32601"),
        ("EPSG:4326", 180, 10, "EPSG:32601"),  # the antimeridian has two names
        ("EPSG:4326", 179.9, -10, "EPSG:32760"),
        ("EPSG:4326", 0, 88, "EPSG:32661"),
        ("EPSG:4326", 0, -85, "EPSG:32761"),
        ("EPSG:4267", -90, 40, "EPSG:32616"),
        ("EPSG:2263", -74, 40.7, "EPSG:32618"),  # US survey feet
    ],
)
def test_projected_metres_are_kept_and_the_rest_becomes_utm(crs, lon, lat, expected):
    assert metric_crs(pyproj.CRS(crs), lon, lat) == pyproj.CRS(expected)


def test_heights_do_not_make_a_crs_unmetric():
    assert is_metric(pyproj.CRS("EPSG:32632+5703"))
    assert not is_metric(pyproj.CRS("EPSG:4979"))


def test_only_earth_is_earth():
    mars = pyproj.CRS.from_proj4("+proj=eqc +R=3396190 +units=m")
    moon = pyproj.CRS.from_proj4("+proj=longlat +R=1737400")
    local = pyproj.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert not is_earth(mars)
    assert not is_earth(moon)
    assert not is_earth(local)
    assert all(is_earth(pyproj.CRS(crs)) for crs in [*PLACES, "EPSG:4326", "EPSG:26711"])
    assert is_earth(pyproj.CRS.from_proj4("+proj=sinu +R=6371007.181 +units=m"))  # MODIS


@pytest.mark.parametrize("crs", PLACES)
def test_areas_agree_with_geodesic_polygons(crs):
    crs = pyproj.CRS(crs)
    shapes = []
    for lon, lat in PLACES[crs.to_string()]:
        x, y = projected(crs, lon, lat)
        for size in (5, 300, 2000):
            shapes.append(shapely.box(x, y, x + size, y + size))
            # an L with a hole: the centroid need not be inside
            ell = shapely.box(x, y, x + size, y + 0.2 * size) | shapely.box(
                x, y, x + 0.2 * size, y + size
            )
            shapes.append(ell - shapely.box(x, y, x + 0.1 * size, y + 0.1 * size))
    reference = np.array([geodesic_area(shape, crs) for shape in shapes])
    areas = ground_area_m2(gpd.GeoSeries(shapes, crs=crs), crs)
    np.testing.assert_allclose(areas, reference, rtol=1e-5)


@given(lat=st.floats(-84, 84), lon=st.floats(-179, 179))
def test_web_mercator_scale_is_that_of_the_ellipsoid(lat, lon):
    crs = pyproj.CRS("EPSG:3857")
    scale_x, scale_y, areal = ground_scale(crs, *projected(crs, lon, lat))
    # radii of curvature of WGS 84 over the map's sphere
    e2, sine = 0.0066943799901413165, np.sin(np.radians(lat))
    cosine = np.cos(np.radians(lat))
    along_parallel = cosine / np.sqrt(1 - e2 * sine**2)
    along_meridian = cosine * (1 - e2) / (1 - e2 * sine**2) ** 1.5
    assert scale_x == pytest.approx(along_parallel, rel=1e-6)
    assert scale_y == pytest.approx(along_meridian, rel=1e-6)
    assert areal == pytest.approx(along_parallel * along_meridian, rel=1e-6)


def test_equal_area_projections_have_areal_scale_one():
    crs = pyproj.CRS("EPSG:3035")
    x, y = projected(crs, np.array([-10.0, 10.0, 30.0]), np.array([36.0, 52.0, 65.0]))
    scale_x, scale_y, areal = ground_scale(crs, x, y)
    np.testing.assert_allclose(areal, 1, rtol=1e-6)
    # the axes are not perpendicular there: without the angle this would be wrong
    assert np.abs(scale_x * scale_y - 1).max() > 1e-4


def test_scale_of_a_crs_in_grads_and_of_one_in_feet():
    paris = pyproj.CRS("EPSG:27572")
    assert ground_scale(paris, 600_000.0, 2_428_000.0)[0] == pytest.approx(1, abs=2e-3)
    new_york = pyproj.CRS("EPSG:2263")
    assert ground_scale(new_york, 984_000.0, 200_000.0)[0] == pytest.approx(0.3048, rel=1e-4)


def test_scale_keeps_the_shape_of_the_points():
    crs = pyproj.CRS("EPSG:32636")
    x = np.full((3, 4), 500_000.0)
    assert all(scale.shape == (3, 4) for scale in ground_scale(crs, x, 0.0))
    assert all(scale.shape == (0,) for scale in ground_scale(crs, [], []))


def test_nothing_has_no_area():
    crs = pyproj.CRS("EPSG:3857")
    nothing = ground_area_m2(gpd.GeoSeries([], crs=crs), crs)
    assert nothing.shape == (0,)
    assert nothing.dtype == np.float64
    odd = np.array([shapely.Polygon(), None, shapely.Point(0, 0), shapely.box(0, 0, 10, 10)])
    np.testing.assert_allclose(ground_area_m2(odd, crs), [0, 0, 0, 99.33], atol=0.01)


def test_lonlat_is_in_degrees_longitude_first():
    lon, lat = to_lonlat(pyproj.CRS("EPSG:2056"), [2_600_000.0], [1_200_000.0])
    assert (lon[0], lat[0]) == (pytest.approx(7.4386, abs=1e-3), pytest.approx(46.9511, abs=1e-3))


def test_a_short_text_of_a_crs_is_its_code_or_its_name():
    assert crs_short(pyproj.CRS(32633)) == "EPSG:32633"
    local = pyproj.CRS.from_proj4("+proj=tmerc +lon_0=12.345 +ellps=WGS84 +units=m")
    assert crs_short(local) == local.name


@pytest.mark.parametrize("code", [3031, 3413, 32661, 32761, 3995, 6932])
def test_the_scale_at_a_pole_is_that_beside_it(code):
    crs = pyproj.CRS.from_epsg(code)
    x, y = from_lonlat(crs, 0, -90 if code in (3031, 32761, 6932) else 90)
    away = np.array([0, 1, 5, 50, 3000])
    for scales in ground_scale(crs, x + away, y - 0.3 * away):
        np.testing.assert_allclose(scales, scales[-1], rtol=1e-4)
