"""The interactive workbench: pick an area, tune live, run.

A job comes in; the same job goes out with what a person has changed by hand, or a run of it. The
widgets decide nothing themselves: they call the functions that a batch run calls.
"""

from workbench.widgets.area import AOIPicker
from workbench.widgets.run_panel import RunPanel
from workbench.widgets.tuner import ThresholdTuner

__all__ = ["AOIPicker", "RunPanel", "ThresholdTuner"]
