"""What `auto` means for device and precision, and what is refused."""

import pytest
import torch

from workbench.errors import JobError
from workbench.segmenters import sam
from workbench.segmenters.sam import device


def test_device_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    has = dict.fromkeys(("cuda", "mps"), False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has["mps"])
    assert sam.resolve_device("auto") == "cpu"
    for asked in ("cuda", "mps", "cuda:1"):
        with pytest.raises(JobError, match=rf"device {asked} was asked for, .* sees 0"):
            sam.resolve_device(asked)
    has["mps"] = True
    assert sam.resolve_device("auto") == sam.resolve_device("mps") == "mps"
    has["cuda"] = True
    assert sam.resolve_device("auto") == sam.resolve_device("cuda") == "cuda"
    assert sam.resolve_device("cuda:1") == "cuda:1"
    assert sam.resolve_device("cpu") == "cpu"
    for unknown in ("gpu", "cuda:x", "cuda:9", ""):
        with pytest.raises(JobError, match="device"):
            sam.resolve_device(unknown)


def test_precision_auto_is_the_fastest_that_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert sam.resolve_precision("auto", "cuda") == expected
    assert sam.resolve_precision("auto", "cpu") == "fp32"
    assert sam.resolve_precision("auto", "mps") == "fp32"
    assert sam.resolve_precision("fp16", "cuda:0") == "fp16"
    with pytest.raises(JobError, match="precision bf16 needs device cuda"):
        sam.resolve_precision("bf16", "cpu")
    with pytest.raises(JobError, match="precision 'half' is unknown"):
        sam.resolve_precision("half", "cpu")


def test_the_batch_is_what_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    assert device.prompts_at_once("cpu") == 4
    assert device.prompts_at_once("cuda:1") == 64  # a store may be opened where there is no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batches = {}
    for gb in (0, 1, 4, 6, 8, 16, 80, 140):
        free = gb * 2**30
        batches[gb] = device.prompts_at_once("cuda")
        assert batches[gb] * device.PROMPT_BYTES <= free / 2 or batches[gb] == 1
    assert batches == {0: 1, 1: 16, 4: 64, 6: 64, 8: 128, 16: 256, 80: 256, 140: 256}


def test_the_batch_is_asked_for_once_and_kept_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [8 * 2**30, 2**30]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free.pop(0), 80 * 2**30))
    first = sam.sam_segmenter("tiny", device="cuda", precision="fp32")
    assert first.key["points_per_batch"] == first.key["points_per_batch"] == 128
    # a resume is given what run.yaml has kept
    kept = first.key["points_per_batch"]
    resumed = sam.sam_segmenter("tiny", device="cuda", precision="fp32", points_per_batch=kept)
    assert resumed.key == first.key
    assert len(free) == 1
