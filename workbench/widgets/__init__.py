"""The interactive workbench: pick an area, tune live, run. Thin: all that is decided is core."""
