"""The report of a run: a map, charts, a table of figures, and the page around them."""
