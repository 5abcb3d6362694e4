"""Small things that every room needs and that know nothing of rasters or masks.

`files` writes whole files or none, `attempts` makes optional parts of a result (remote reads are
retried in `raster.sources`), `yaml` reads plain values, `secrets` takes signatures out of
addresses, `text` writes numbers as people do, `cores` counts the cores that the process may use,
`palette` says which colour means what, `notebook` whether a person is at the notebook, `progress`
shows how far long work is.
"""
