"""Polygons in a file come back as they were put there."""

import numpy as np
import shapely

from workbench.polygons.on_disk import SpilledPolygons


def squares(*sides):
    return np.array([shapely.MultiPolygon([shapely.box(0, 0, side, side)]) for side in sides])


def test_polygons_come_back_by_row_in_any_order(tmp_path):
    put = squares(1 / 3, 2, 3, 4, 5)
    spilled = SpilledPolygons(tmp_path)
    for piece in (put[:2], put[:0], put[2:]):
        spilled.append(piece)
    spilled.settle(np.array([4, 0, 1, 3, 2]))
    assert len(spilled) == 5
    for rows in ([0, 1, 2, 3, 4], [2, 1], [3], [1, 1], []):
        expected = put[[4, 0, 1, 3, 2]][rows]
        assert shapely.equals_exact(spilled[np.array(rows, int)], expected).all()
    assert spilled.area.tolist() == shapely.area(put[[4, 0, 1, 3, 2]]).tolist()
    spilled.replace(1, squares(9)[0])
    assert spilled[np.array([0, 1, 2])][1].area == spilled.area[1] == 81
    assert spilled.bounds[1].tolist() == [0, 0, 9, 9]
    assert not [path for path in tmp_path.iterdir() if path.name[0] != "."]
    spilled.close()
    assert not list(tmp_path.iterdir())


def test_no_polygons_are_no_rows():
    spilled = SpilledPolygons()
    spilled.append(squares())
    spilled.settle(np.empty(0, int))
    assert len(spilled) == len(spilled[np.empty(0, int)]) == 0
    spilled.close()
