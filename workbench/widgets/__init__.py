"""The interactive workbench: pick an area, tune live, run. Thin: all that is decided is core."""

from workbench.widgets.area import AOIPicker
from workbench.widgets.run_panel import RunPanel
from workbench.widgets.tuner import ThresholdTuner

__all__ = ["AOIPicker", "RunPanel", "ThresholdTuner"]
