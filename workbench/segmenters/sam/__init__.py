"""SAM: the models and their weights, the device they run on, and the `Segmenter`.

`checkpoints` and `device` get a model ready. `network` says what the engine needs of one; the first
SAM runs in `encoder` and `decoder`, SAM 2.1 and `edgetam` in `sam2`, `sam_hq` corrects SAM's masks,
`mobile_sam` has an encoder of its own; `extras` checks the packages of these four. `loaded` is a
network on its device. `measure` (`fused` on CUDA) scores masks, `proposals` makes candidates of
them, `segmenter` puts it together, `workers` does batches of prompts side by side, `by_hand`
answers clicks. `sam3` is a network that looks for concepts, `concepts` makes a `Segmenter` of it.
`tiny` is the embedded model: `bordernet` finds borders, `regions` what lies between them.
`torchvision_shim` repairs a torchvision without compiled operators.
"""

from workbench.segmenters.sam.torchvision_shim import mend_torchvision

mend_torchvision()
# these import torchvision, so they come after it is mended
from segment_anything import SamPredictor  # noqa: E402

from workbench.segmenters.sam.checkpoints import (  # noqa: E402
    MODELS,
    Model,
    fetch_checkpoint,
    load_model,
)
from workbench.segmenters.sam.concepts import (  # noqa: E402
    ConceptSegmenter,
    concept_segmenter,
)
from workbench.segmenters.sam.device import resolve_device, resolve_precision  # noqa: E402
from workbench.segmenters.sam.segmenter import SamSegmenter, sam_segmenter  # noqa: E402
from workbench.segmenters.weights import (  # noqa: E402
    Download,
    Embedded,
    ManualDownload,
    cache_folder,
)

__all__ = [
    "MODELS",
    "ConceptSegmenter",
    "Download",
    "Embedded",
    "ManualDownload",
    "Model",
    "SamPredictor",
    "SamSegmenter",
    "cache_folder",
    "concept_segmenter",
    "fetch_checkpoint",
    "load_model",
    "resolve_device",
    "resolve_precision",
    "sam_segmenter",
]
