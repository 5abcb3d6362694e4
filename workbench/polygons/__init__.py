"""From candidates to clean polygons on the map: masks come in, a `GeoDataFrame` goes out.

`trace` follows pixel edges, `build` puts exact polygons on the map, `clean` drops, fills and
simplifies, `planar` does that for a layer without overlaps, part by part, `regularize` makes right
angles, `continuation` finds the rest of objects that a tile's edge has cut, `seams` joins the
polygons of overlapping tiles (`seam_pairs` compares two tiles, `objects` says which polygons are
one object, `on_disk` keeps polygons out of memory), `scales` chooses between scales, `overlap`
measures what two polygons share (`pixel_area` counts it along pixel edges), `areas` says in which
area a polygon lies.
"""
