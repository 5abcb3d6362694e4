"""From a job to its run folder: parameters come in, candidates, layer and report go out.

`run` does all of it: `plan` checks everything before long work starts, `segment` computes the tiles
(with `tile_stream` here, with `cluster` on Dask workers), `finish` makes the layer, `by_products`
the other files; `forecast` says what a run takes.
`job` holds the parameters (`parameters` reads what papermill delivers), `folder` and `record` the
run folder, `choose` the model, `labels` and `classes` what `examples` teach, `result` a finished
run. `prompted` brings objects that are known already up to date, with `prompts` of a vector file.
"""
