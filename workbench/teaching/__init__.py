"""What the tour measures and draws.

A run and its ground truth come in; tables (`measures`) and pictures (`plates`) go out.
"""
