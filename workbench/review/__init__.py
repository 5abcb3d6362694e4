"""A reviewed layer comes in, what was learned from it goes out.

`workflow` runs a whole review, `job` has its parameters. `read` takes the layer back from QGIS,
`shapes` finds broken geometry, `changes` compares the layer with what the run wrote. `tile_planes`
counts at every pair of thresholds, `decisions` advises where no tile is fully reviewed, `examples`
turns labels into examples of classes, `next_job` advises thresholds and writes the next job,
`charts` draws. `split` gives several reviewers packages, `join` puts them together (`answers` reads
them, `agreement` compares them), `postgis` writes the project for a database.

`triage` goes through the labels in a notebook, in the order of `tile_by_tile`: `decide` writes
answers into the GeoPackage, `redraw` shapes, and `ranking` scores what is left by them.
"""
