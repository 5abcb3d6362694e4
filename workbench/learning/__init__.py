"""A few labels come in; the class of every candidate goes out.

`features` turns each candidate into a row of numbers, `examples` holds candidates whose class is
known, `classifier` learns from them, `choose` keeps one candidate with a class at each place.
`held_out` measures the classes on tiles that did not teach them, `verdicts` holds the classes that
a person gives in the tuner, and `store` keeps the features in the run folder.
"""
