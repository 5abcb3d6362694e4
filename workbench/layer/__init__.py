"""Polygons come in, the files that people open go out.

`schema` has the columns. `files` writes and reads the layer (`antimeridian` cuts it for GeoJSON),
`web` writes formats for web maps, `guard` finds what a person changed in it, `touched` reads that
so that it stays (`kept`) when the rest is replaced, `cores` finds the tile of a label, `progress`
counts the labels of a tile that wait for review. `drawn` makes a label of what somebody draws,
`gpkg_shape` reads and writes shapes as a GeoPackage stores them. `qgis` makes styles, forms and the
project. `report` makes figures, maps, charts and the page of a run.
"""
