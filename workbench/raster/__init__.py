"""From a source to pixels: a path or URL comes in; a `Scene`, its tiles and windows of RGB go out.

`sources` says what a source may be (`stac`: a catalogue, `web_tiles`: a map service) and reads
remote ones patiently. `open_scene` (`open`) chooses working grid, bands (`bands`, `separate_bands`)
and stretch (`stretch`), `Scene` (`scene`) reads windows, `fingerprint` tells whether a raster is
still the same, `sheets` lets each sheet of a mosaic see its neighbours. `TileGrid` (`tiles`) lays
overlapping windows over a scene. `vectors` reads vector files, `aoi` areas of interest. `texts`
reads other files wherever they are, `attribution` says whom imagery is to be attributed to. `crs`
holds ground metres and names of reference systems.
"""
