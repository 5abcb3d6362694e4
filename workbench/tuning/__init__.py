"""Sample tiles that follow a slider: thresholds come in, a view of the polygons goes out.

`preview` runs the batch's own functions on sample tiles (`reasons` says why a mask is not shown),
`teach` teaches classes verdict by verdict, `expect` says what to expect of them. `propose` picks
tiles, `process` segments in a process of its own, `webmap` makes imagery and outlines for the
browser.
"""
