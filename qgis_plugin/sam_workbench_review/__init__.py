"""The QGIS plugin for reviewing pre-labels of SAM Workbench."""


def classFactory(iface):  # noqa: N802 - QGIS calls it by this name
    """Return the plugin."""
    from .plugin import Plugin

    return Plugin(iface)
