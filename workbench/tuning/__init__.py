"""Sample tiles that follow a slider: thresholds come in, a view of the polygons goes out.

`preview` runs the batch's own functions on sample tiles (`chosen` says which masks become labels,
`reasons` why one is not shown, `figures` counts and measures, `sample_seams` merges where sample
tiles overlap), `teach` learns classes from each verdict, `expect` says in words how well. `propose`
picks tiles, `process` segments in a separate process. `questions` are what a person asks the model
there by clicks, and `clicks` answers them. `webmap` makes imagery and outlines for the browser.
"""
