"""Choose where the network runs and in which precision, and refuse what cannot work."""

from __future__ import annotations

import re

import torch

from workbench.errors import JobError

# `tiny` takes 2.2 s of one CPU core for 144 prompts in batches of 2, 1.9 s in batches of 4 or 6.
# Larger batches have tensors over 32 MB, for each of which glibc maps fresh pages (and the kernel
# clears them).
PROMPTS_AT_ONCE = {"cpu": 4}
ELSEWHERE = 64  # as SamAutomaticMaskGenerator
# On CUDA. `vit_b` takes 22 MB in fp32 for a prompt if all its masks are wanted.
MOST, PROMPT_BYTES = 256, 32 * 2**20

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> str:
    """Turn `auto` into `cuda`, `mps` or `cpu`, and refuse a device that does not exist."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, number = device_kind(device)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(number or 0) >= there[kind]:
        raise JobError(
            f"device {device} was asked for, but torch {torch.__version__} sees {there[kind]} "
            f"{kind} devices. Take device auto or cpu, or install a torch built for {kind}."
        )
    return device


def device_kind(device: str) -> tuple[str, str]:
    """Split `cuda:1` into kind and number, whether it exists or not."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not re.fullmatch(r"\d*", number):
        raise JobError(f"device {device!r} is unknown. Take auto, cuda, mps or cpu.")
    return kind, number


def resolve_precision(precision: str, device: str) -> str:
    """Turn `auto` into `bf16` on CUDA where that is native, else `fp16`; `fp32` elsewhere."""
    on_cuda = device.startswith("cuda")
    if precision == "auto":
        if not on_cuda:
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if precision != "fp32" and precision not in DTYPES:
        raise JobError(f"precision {precision!r} is unknown. Take auto, bf16, fp16 or fp32.")
    if precision != "fp32" and not on_cuda:
        raise JobError(
            f"precision {precision} needs device cuda, and this runs on {device}. "
            "Take precision auto or fp32."
        )
    return precision


def prompts_at_once(device: str) -> int:
    """How many prompts to decode at once: on CUDA the power of two that fits half the free memory.

    The last bits of the network's output depend on it, so ask once and keep the answer.
    """
    kind, _ = device_kind(device)
    if kind == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        fits = min(max(free // (2 * PROMPT_BYTES), 1), MOST)
        return 1 << (fits.bit_length() - 1)
    return PROMPTS_AT_ONCE.get(kind, ELSEWHERE)
