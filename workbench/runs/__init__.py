"""From a job to its run folder: parameters come in, candidates, layer and report go out.

`run` does all of it: `plan` checks everything before long work starts, `segment` computes the tiles
(with `tile_stream` here, with `cluster` on Dask workers), `finish` makes the layer (`trace` the
polygons of each tile, `share_out` lets workers do their share), `by_products` the other files;
`forecast` says what a run takes. `job` holds the parameters (`parameters` reads what papermill
delivers, `given` the text that was typed, `values` checks each value, `together` what must fit
together, `trust` who may name a scheduler), `folder` and `record` the run folder, `stored` reads
its tiles, `refresh` replaces a reviewed layer, `by_hand` reads what was drawn in the tuner,
`staying` says which new labels may lie beside both; `choose` the model, `result` a finished run.
`labels` reads what teaches classes, `classes` teaches them, `said` keeps what a person has decided,
`looks` names and colours them. `concepts` gives labels the classes of concepts, `exemplars` shows
the model what these look like (`exemplars_by_hand` are drawn in the tuner). `prompts` reads objects
that are known already, `prompt_windows` asks for them, `prompt_answers` chooses their masks,
`prompted` makes their labels.
"""
