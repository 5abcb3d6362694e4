"""A few labels come in; the class of every candidate goes out.

`features` describes candidates by plain figures, `examples` are described objects whose class is
known, `classifier` learns from them, `choose` keeps what has a class, once at each place.
`held_out` says what to expect on other tiles, `verdicts` are what a person says in the tuner, and
`store` keeps the figures in the run folder.
"""
