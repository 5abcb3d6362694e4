"""A layer and its ground truth come in; figures and better thresholds go out.

`matching` pairs polygons, `metrics` counts, `cost` estimates the time of a review, `against` says
both in a few lines for a report. `thresholds` scores every pair of thresholds, `advice`
recommends thresholds from reviewed labels, `judged` from verdicts on single polygons.
"""
