"""A web server of its own, and small files with the shapes of a published model."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from yolact_ros.engine import Segmenter
from yolact_ros.network import (
    EMBEDDED,
    NetworkConfig,
    Yolact,
    build,
    load_weights,
    official_name,
    save_weights,
)


@dataclass
class WeightServer:
    """Serves `content` for every path on 127.0.0.1, as badly as its settings say."""

    content: bytes = b""
    status: int = 200
    ranges: bool = True
    """Whether it honours Range."""
    announce: str = "linked"
    """Where the checksum is: `linked` as Hugging Face does, `etag`, or `none`."""
    redirect: bool = True
    cut_after: int | None = None
    """Drop each connection after so many bytes of it."""
    pause: float = 0.0
    """Seconds before every 64 KiB."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request for the bytes themselves."""
    address: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def _handler(server: WeightServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if server.status != 200:
                self.send_error(server.status)
            elif server.redirect and not self.path.startswith("/cdn"):
                self.send_response(302)
                self.send_header("Location", f"{server.address}/cdn{self.path}")
                if server.announce == "linked":
                    self.send_header("X-Linked-Etag", f'"{server.sha256}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._send_content()

        def _send_content(self) -> None:
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            start, total = 0, len(server.content)
            if wanted and server.ranges:
                match = re.fullmatch(r"bytes=(\d+)-", wanted)
                assert match is not None
                start = int(match.group(1))
                if start >= total:
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if server.announce == "etag":
                self.send_header("ETag", f'"{server.sha256}"')
            elif server.announce == "linked":
                if not server.redirect:
                    self.send_header("X-Linked-Etag", f'"{server.sha256}"')
                self.send_header(
                    "ETag", f'"{"5" * 64}"'
                )  # some stores': no checksum of the content
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = total if server.cut_after is None else min(total, start + server.cut_after)
            try:
                for at in range(start, end, 1 << 16):
                    time.sleep(server.pause)
                    self.wfile.write(server.content[at : min(end, at + (1 << 16))])
            except OSError:
                pass  # the client went away

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def weight_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """A running `WeightServer`, which HF_ENDPOINT names."""
    settings = WeightServer()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(settings)) as server:
        settings.address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", settings.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield settings
        server.shutdown()
        thread.join()


def checkpoint_bytes(model: str, folder: Path) -> bytes:
    """An official-format checkpoint; all its values but the pyramid's are one stored zero."""
    with torch.device("meta"):
        wanted = build(model).state_dict()
    state = {
        official_name(name): (
            torch.full(tensor.shape, 0.01)
            if name.startswith("fpn.output.")
            else torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        )
        for name, tensor in wanted.items()
    }
    path = folder / f"{model}.pth"
    torch.save(state, path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of official-format files by model, 7 MB each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: checkpoint_bytes(name, folder) for name in ("yolact_resnet50", "yolact_darknet53")
    }


SMALL = EMBEDDED.replace(
    name="small",
    class_names=("cat", "dog", "person"),
    image_size=96,
    fpn_channels=16,
    mask_rescoring=False,
)


@pytest.fixture(scope="session")
def small_config() -> NetworkConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_weights(small_config: NetworkConfig, reference_weights: ModuleType) -> dict[str, Tensor]:
    """Weights that depend on the parameters' names alone; they find things in every image."""
    with torch.device("meta"):
        wanted = build(small_config).state_dict()
    names = {official_name(name): tuple(tensor.shape) for name, tensor in wanted.items()}
    return {n: torch.from_numpy(reference_weights.fill(n, shape)) for n, shape in names.items()}


@pytest.fixture(scope="session")
def small_network(small_config: NetworkConfig, small_weights: dict[str, Tensor]) -> Yolact:
    net = build(small_config)
    load_weights(net, small_weights)
    return net


@pytest.fixture(scope="session")
def small_file(small_network: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_weights(small_network, path)
    return path


@pytest.fixture
def small_segmenter(small_file: Path) -> Segmenter:
    """At most ten instances of three classes."""
    return Segmenter(
        weights=small_file, device="cpu", backend="torch", score_threshold=0.2, top_k=10
    )
