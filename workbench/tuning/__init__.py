"""Sample tiles that follow a slider: thresholds come in, a view of the polygons goes out.

`preview` runs the batch's own functions on sample tiles (`reasons` says why a mask is not shown,
`figures` counts, `sample_seams` merges where sample tiles overlap), `teach` teaches classes verdict
by verdict, `expect` says what to expect of them. `clicks` makes the polygon at a click, `propose`
picks tiles, `process` segments in a process of its own, `webmap` makes imagery and outlines for the
browser.
"""
