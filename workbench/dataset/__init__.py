"""Reviewed labels come in, a COCO or YOLO data set goes out.

`split` keeps train, val and test apart, `chips` cuts pictures and labels, `sizes` chooses how
large, `fates` tells what became of each label, `formats` writes annotations, `write` the folder.
"""
