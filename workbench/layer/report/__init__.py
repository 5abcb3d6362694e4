"""The report of a run.

`tally` counts, `charts` and `map` draw, `page` puts all of it into one HTML file.
"""
