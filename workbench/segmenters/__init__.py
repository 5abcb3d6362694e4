"""From pixels to candidates: one RGB tile comes in, `Candidates` go out.

`protocol` says what a `Segmenter` is, `defaults` where its thresholds start, `at_points` what it
finds at given places, `exemplars` how boxes show it what to look for. `weights` says where the
weights of networks are, `keys` what their candidates depend on.
`classic` is one without a network, `sam` those with one (the only room that imports PyTorch).
`hierarchy` merges superpixels to regions, for `classic` and for the embedded model.
"""
