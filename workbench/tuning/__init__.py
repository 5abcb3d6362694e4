"""Sample tiles at the speed of a hand, without a widget: thresholds come in, a view goes out.

`preview` runs the batch's own functions on sample tiles (`reasons` says why a mask is
not shown), `propose` picks tiles, `process` segments in a process of its own, `webmap` makes
imagery and outlines for the browser.
"""
