"""From polygons to the files that people open.

`schema` has the columns, `files` reads and writes the layer, `guard` tells what a person has
changed in it, `cores` which tile a label belongs to. `qgis` makes styles, forms and the project,
`report` the map, charts and page of a run.
"""
