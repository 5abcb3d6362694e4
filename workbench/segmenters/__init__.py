"""From pixels to candidates: one RGB tile comes in, `Candidates` go out.

`protocol` defines a `Segmenter`, `classic` is one without a network, `sam` has those with a network
and is the only package that imports PyTorch.
"""
