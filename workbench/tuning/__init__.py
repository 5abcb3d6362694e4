"""Sample tiles that follow a slider: thresholds come in, a view of the polygons goes out.

`preview` runs the functions of a run on sample tiles, `propose` picks tiles, `process` segments in
a separate process, `webmap` makes imagery and outlines for the browser. No widgets in here.
"""
