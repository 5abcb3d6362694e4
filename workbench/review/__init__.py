"""A reviewed layer comes in, what was learned from it goes out.

`read` takes the layer back from QGIS, `changes` compares it with what the run wrote, `shapes` finds
broken geometry, `tile_planes` scores thresholds by reviewed tiles, `charts` draws. `job` and
`workflow` are the parameters and steps of `review.ipynb`.
"""
