"""From candidates to clean polygons on the map: masks come in, a `GeoDataFrame` goes out.

`trace` follows pixel edges, `build` puts exact polygons on the map, `clean` drops, fills and
simplifies, `planar` does so for a layer without overlaps in parts, `regularize` makes right angles,
`continuation` finds the rest of what a tile's edge has cut, `seams` joins what several tiles saw
(`seam_pairs` compares two tiles, `objects` says which polygons are one object, `on_disk` keeps
polygons out of memory), `scales` chooses between scales, `overlap` says what two polygons share
(`pixel_area` counts it along pixel edges), `areas` holds areas and points of polygons. `portions`
hands some of that work to other processes.
"""
