"""The SAM models: how to build each, and how to read its weights."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import nn

from workbench.errors import CheckpointError
from workbench.segmenters.sam.edgetam import build_edgetam, require_edgetam
from workbench.segmenters.sam.mobile_sam import (
    build_mobile_sam,
    names_of_timm,
    require_timm,
)
from workbench.segmenters.sam.network import Network, SegmentAnything
from workbench.segmenters.sam.sam2 import (
    TRUNKS,
    Sam2,
    build_sam2,
    names_of_transformers,
    require_transformers,
)
from workbench.segmenters.sam.sam_hq import VITS, SamHq, build_sam_hq
from workbench.segmenters.sam.sam_hq import names_of_transformers as names_of_hq
from workbench.segmenters.sam.sam_hq import require_transformers as require_for_hq
from workbench.segmenters.sam.tiny import Tiny, build_tiny
from workbench.segmenters.weights import WEIGHTS, Weights, refuse_missing


@dataclass(frozen=True)
class Model:
    """A SAM model: how it is built, and where its weights are.

    `network_of` is how the engine speaks to it; `names` gives the weights of its file the names
    that they have in the model.
    """

    build: Callable[[], nn.Module]
    weights: Weights
    network_of: Callable[[Any], Network] = SegmentAnything
    names: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    require: Callable[[], None] = lambda: None  # raises `CheckpointError` without its packages
    licence: str = "Apache-2.0"  # of the weights

    @property
    def is_ready(self) -> bool:
        """Whether the packages that it needs are installed."""
        try:
            self.require()
        except CheckpointError:
            return False
        return True


def _sam2(size: str) -> Model:
    return Model(
        partial(build_sam2, TRUNKS[size]),
        WEIGHTS[f"sam2.1_{size}"],
        Sam2,
        names_of_transformers,
        require_transformers,
    )


def _sam_hq(size: str) -> Model:
    return Model(
        partial(build_sam_hq, VITS[size]),
        WEIGHTS[f"sam_hq_{size}"],
        SamHq,
        names_of_hq,
        require_for_hq,
    )


MODELS: dict[str, Model] = {
    "tiny": Model(build_tiny, WEIGHTS["tiny"], Tiny),
    "vit_b": Model(sam_model_registry["vit_b"], WEIGHTS["vit_b"]),
    "vit_l": Model(sam_model_registry["vit_l"], WEIGHTS["vit_l"]),
    "vit_h": Model(sam_model_registry["vit_h"], WEIGHTS["vit_h"]),
    "mobile_sam": Model(
        build_mobile_sam, WEIGHTS["mobile_sam"], names=names_of_timm, require=require_timm
    ),
    "sam2.1_tiny": _sam2("tiny"),
    "sam2.1_small": _sam2("small"),
    "sam2.1_base_plus": _sam2("base_plus"),
    "sam2.1_large": _sam2("large"),
    "edgetam": Model(
        build_edgetam, WEIGHTS["edgetam"], Sam2, names_of_transformers, require_edgetam
    ),
    "sam_hq_vit_b": _sam_hq("vit_b"),
    "sam_hq_vit_l": _sam_hq("vit_l"),
    "sam_hq_vit_h": _sam_hq("vit_h"),
}


def fetch_checkpoint(model: str) -> Path:
    """Return the file of a model's own weights, and download it if necessary."""
    return MODELS[model].weights.fetch()


def load_model(model: str, path: Path) -> nn.Module:
    """Build a model and fill it with the weights of a local file, on the CPU and in fp32.

    Raises `CheckpointError` for anything that is not a checkpoint of exactly this model.
    """
    with torch.device("meta"):  # spends no time and memory on initial values
        sam = MODELS[model].build()
    held = _read_weights(path)
    weights = MODELS[model].names(held)
    if not _plain(weights):
        fit = _fitting(held)
        raise CheckpointError(
            f"checkpoint {path} is not one of {model}. It fits {fit}: set model to {fit}."
            if fit
            else f"checkpoint {path} does not hold the plain state_dict of a SAM model. Save only "
            "model.state_dict(), with torch.save."
        )
    misfit = _misfit(sam, weights)
    if misfit:
        raise CheckpointError(f"{path} is not a checkpoint of {model}: {misfit}. {_advice(held)}")
    sam.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return sam.eval().requires_grad_(False)


_RENEW = "Copy, download or install it again."


def _read_weights(path: Path) -> dict[str, Any]:
    refuse_missing(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes). {_RENEW}")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"checkpoint {path} is a Git LFS pointer, not the weights. Run `git lfs pull` in the "
            "checkout that it comes from, and copy or install it again."
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # other bytes can fail anywhere in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise CheckpointError(
                f"checkpoint {path} holds Python code or objects ({code[1]}), not only weights; "
                "the code was not run. Save only the model's state_dict, with torch.save."
            ) from error
        raise CheckpointError(
            f"checkpoint {path} cannot be read as weights: it is damaged, cut short or not a "
            f"PyTorch file ({type(error).__name__}). {_RENEW}"
        ) from error
    return weights if isinstance(weights, dict) else {"": weights}


def _plain(weights: Mapping[str, Any]) -> bool:
    return "" not in weights and all(isinstance(w, torch.Tensor) for w in weights.values())


def _misfit(sam: nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
    """Say how weights differ from those that a model needs; empty if they fit."""
    needed = sam.state_dict()
    missing = [name for name in needed if name not in weights]
    unknown = [name for name in weights if name not in needed]
    if missing or unknown:
        example = f"no {missing[0]}" if missing else f"unknown {unknown[0]}"
        return f"{len(missing)} weights are missing and {len(unknown)} unknown ({example})"
    for name, value in needed.items():
        if value.shape != weights[name].shape:
            return f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
    return ""


def _advice(held: Mapping[str, Any]) -> str:
    fit = _fitting(held)
    if fit:
        return f"It fits {fit}: set model to {fit}."
    return f"It does not fit {', '.join(MODELS)} either: name a checkpoint of one of them."


def _fitting(held: Mapping[str, Any]) -> str | None:
    """The model that weights are for, of those that can be built here."""
    for name, model in MODELS.items():
        weights = model.names(held)
        if not _plain(weights):
            continue
        try:
            with torch.device("meta"):
                sam = model.build()
        except CheckpointError:  # without its optional packages
            continue
        if not _misfit(sam, weights):
            return name
    return None
