"""QGIS with a profile of its own, for scripts that the system's Python runs."""

import os
import sys
import tempfile

from qgis.core import QgsApplication, QgsExpressionContext, QgsExpressionContextUtils


def in_qgis(main, gui=False):
    """Call `main` with the arguments of the script while QGIS is there."""
    os.environ["QGIS_CUSTOM_CONFIG_PATH"] = tempfile.mkdtemp(prefix="qgis_")
    os.environ.setdefault("XDG_RUNTIME_DIR", os.environ["QGIS_CUSTOM_CONFIG_PATH"])
    application = QgsApplication([], gui)
    application.initQgis()
    main(*sys.argv[1:])
    application.exitQgis()


def context_of(layer, feature=None):
    """What expressions of a layer may ask, of a label if one is given."""
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    context.setFields(layer.fields())
    if feature is not None:
        context.setFeature(feature)
    return context
