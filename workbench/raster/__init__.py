"""From a source to pixels: a path or URL comes in; a `Scene`, its tiles and windows of RGB go out.

`open_scene` (`open`) chooses working grid, bands and stretch, `Scene` (`scene`) reads windows,
`TileGrid` (`tiles`) lays overlapping windows over it, `aoi` reads areas of interest. `crs` holds
ground metres and names of reference systems, `sources` what a source may be, `bands` colours and
validity.
"""
