"""Synthetic scenes with ground truth.

A seed comes in; a georeferenced picture and its objects go out.

`appearance` holds looks and plans, `countryside` the land and what stands on it, `demo` the scene
that `make demo` runs on.
"""
