"""Checkpoints: which are read, which are refused and how, and when they are downloaded."""

import hashlib
import http.server
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_sams import Code, picture, small_sam

from workbench.candidates.table import Rules
from workbench.errors import CheckpointError, JobError
from workbench.segmenters.sam import MODELS, Download, Model, SamSegmenter, sam_segmenter, segmenter
from workbench.segmenters.sam import checkpoints as models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two small models in place of the real ones, and an empty cache folder."""
    nowhere = "http://127.0.0.1:9/{}.pth"
    small = Model(small_sam, Download(nowhere.format("small"), "0" * 64))
    wide = Model(lambda: small_sam(embed_dim=64), Download(nowhere.format("wide"), "1" * 64))
    registered = {"small": small, "wide": wide}
    monkeypatch.setattr(models, "MODELS", registered)
    monkeypatch.setattr(segmenter, "MODELS", registered)
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def loaded_segmenter(*arguments: Any, **settings: Any) -> SamSegmenter:
    loaded = sam_segmenter(*arguments, **settings)
    loaded.load()
    return loaded


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_local_checkpoint_gives_the_model_that_was_saved(registry: Path) -> None:
    model, image = small_sam(seed=7), picture(96, 128)
    path = saved(registry / "own.pth", model.state_dict())
    loaded = loaded_segmenter("small", checkpoint=path, points_per_side=4, points_per_batch=8)
    given = SamSegmenter(lambda: model, "small", "", points_per_side=4, points_per_batch=8)
    assert loaded.propose(image).table == given.propose(image).table
    assert loaded.key["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_in_half_precision_are_run_in_fp32(registry: Path) -> None:
    half = {name: value.half() for name, value in small_sam().state_dict().items()}
    loaded = loaded_segmenter("small", checkpoint=str(saved(registry / "half.pth", half)))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_all_settings_reach_the_segmenter(registry: Path) -> None:
    path = saved(registry / "own.pth", small_sam().state_dict())
    odd = {"points_per_side": 3, "points_per_batch": 5, "threads": 1}
    rules = Rules(64, 64, 0.11, 0.12, 0.13, 0.14, 1)
    key = loaded_segmenter(
        "small", checkpoint=path, device="cpu", precision="fp32", rules=rules, **odd
    ).key
    expected = odd | {
        "crop_n_layers": 1,
        "pred_iou_floor": 0.11,
        "stability_floor": 0.12,
        "box_nms_thresh": 0.13,
        "crop_nms_thresh": 0.14,
    }
    assert {name: key[name] for name in expected} == expected


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "is not a file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("<html>log in first</html>"), "cannot be read"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "cannot be read"),
    "noise": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "cannot be read",
    ),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "cut short": (
        lambda path: path.write_bytes(saved(path, small_sam().state_dict()).read_bytes()[:50_000]),
        "cannot be read",
    ),
    "code": (lambda path: saved(path, {"a": Code()}), r"Python code or objects \(posix.mkdir\)"),
    "old pickle with code": (
        lambda path: path.write_bytes(pickle.dumps(Code(), protocol=2)),
        r"Python code or objects \(posix.mkdir\)",
    ),
    "whole model": (lambda path: saved(path, small_sam()), "Python code or objects"),
    "nested": (lambda path: saved(path, {"model": small_sam().state_dict()}), "plain state_dict"),
    "tensor": (lambda path: saved(path, torch.zeros(3)), "plain state_dict"),
    "other model": (
        lambda path: saved(path, small_sam(embed_dim=64).state_dict()),
        "not a checkpoint of small: .* is .*64.*It fits wide: set model to wide",
    ),
    "other network": (
        lambda path: saved(path, torch.nn.Linear(2, 2).state_dict()),
        r"not a checkpoint of small: \d+ weights are missing and 2 unknown.*not fit small, wide",
    ),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(
    kind: str, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registry)
    make, message = BAD_CHECKPOINTS[kind]
    path = registry / "bad.pth"
    make(path)
    with pytest.raises(CheckpointError, match=rf"bad\.pth.*{message}") as caught:
        loaded_segmenter("small", checkpoint=path)
    assert "weights_only" not in str(caught.value)
    assert not (registry / "ran").exists()


def test_offline_the_message_says_what_to_download_and_where_to_put_it(registry: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded_segmenter("small")
    for part in ("http://127.0.0.1:9/small.pth", f"{registry}/cache/small.pth", "checkpoint"):
        assert part in str(caught.value)


def test_offline_a_damaged_file_in_the_cache_is_named(registry: Path) -> None:
    path = registry / "cache" / "small.pth"
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=f"{path} is damaged: its sha256 is "):
        loaded_segmenter("small")


def test_an_unwritable_cache_is_a_checkpoint_error(registry: Path) -> None:
    (registry / "cache").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        loaded_segmenter("small")


@pytest.fixture
def server(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], list]]:
    """Serve some bytes as the checkpoint of `small`; gives the list of requests."""
    servers = []

    def serve(content: bytes) -> list[str]:
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/small.pth"
        download = replace(models.MODELS["small"].weights, url=url)
        monkeypatch.setitem(models.MODELS, "small", Model(small_sam, download))
        return requests

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_checkpoint_is_downloaded_once(
    server: Callable[[bytes], list], registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(registry / "own.pth", small_sam().state_dict()).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    requests = server(content)
    download = replace(models.MODELS["small"].weights, sha256=sha256)
    monkeypatch.setitem(models.MODELS, "small", Model(small_sam, download))
    for _ in range(2):
        assert loaded_segmenter("small").key["weights_sha256"] == sha256
    assert requests == ["/small.pth"]
    assert (registry / "cache" / "small.pth").read_bytes() == content


def test_a_download_with_another_hash_is_refused(
    server: Callable[[bytes], list], registry: Path
) -> None:
    server(b"<html>please log in</html>")
    with pytest.raises(CheckpointError, match="hash of downloaded file"):
        loaded_segmenter("small")
    assert not (registry / "cache" / "small.pth").exists()


@pytest.mark.parametrize(
    ("model", "package"), [("mobile_sam", "MobileSAM .*timm"), ("sam2.1_small", "transformers")]
)
def test_without_the_extra_the_message_says_what_to_install(
    model: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("workbench.segmenters.sam.extras.is_installed", lambda _: False)
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path))
    segmenter = sam_segmenter(model)  # nothing is loaded yet: stores are recognised
    with pytest.raises(CheckpointError, match=rf"{package}.*pip install 'sam-workbench\[models"):
        segmenter.load()
    assert not list(tmp_path.iterdir())  # before anything is downloaded


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(JobError, match=r"model 'vit_x' is unknown.*tiny, vit_b, vit_l, vit_h"):
        loaded_segmenter("vit_x")


@pytest.mark.parametrize(("name", "width"), [("vit_b", 768), ("vit_l", 1024), ("vit_h", 1280)])
def test_the_official_models_are_built_without_filling_them(name: str, width: int) -> None:
    with torch.device("meta"):
        model = MODELS[name].build()
    assert model.state_dict()["image_encoder.pos_embed"].shape == (1, 64, 64, width)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # not in the checkpoint, so it must hold its values already
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
