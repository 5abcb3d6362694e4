"""The interactive workbench: pick an area, tune live, run.

A job comes in; it goes out with the changes that a person has made by hand, or as a run. The
widgets decide nothing themselves: they call the functions that a batch run calls.

The notebook shows `area`, `tuner` and `run_panel`. Each keeps its panel through `cells`, and all
share a `session`, whose states are in its `history`, and `saved` in the run folder (`hand_files`
writes what is drawn and said). `map`,
`imagery`, `overlay` and `drawn_polygons` make up the map, `looks` changes how polygons look on it,
`object_list` lists them, `beside` shows setting B on a second map. `drawn_area`, `area_files` and
`area_text` belong to the area, `score_plane`, `controls`, `presets`, `sample_tiles`, `judging`,
`verdicts` and `tuner_text` to the tuner, whose `display` draws what the sliders leave and works
ahead when `quiet` says that a person pauses. `classes` and `palette` teach classes in it,
`tuner_shapes` keeps what is drawn there, `tuner_exemplars` boxes that show a model what to find.
`job_file` has the command of the run panel, `file_browser` and `links` lead to files, `toolbar` is
what all panels share. `safe_html` is the only owner of HTML.

`review_panel` is what `review.ipynb` shows: the labels of a finished layer, with `layer_session` as
its session and `review_shapes` for what is drawn there. `labelling` is what it and the tuner share,
`shapes` draws on any map, and outlines what somebody clicks: `asking` asks the model.
"""

from workbench.widgets.area import AOIPicker
from workbench.widgets.review_panel import LayerReview
from workbench.widgets.run_panel import RunPanel
from workbench.widgets.tuner import ThresholdTuner

__all__ = ["AOIPicker", "LayerReview", "RunPanel", "ThresholdTuner"]
