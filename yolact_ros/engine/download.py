"""Downloads published weights from the authors' collection on Hugging Face into a cache."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO

import torch
from filelock import FileLock
from tqdm import tqdm

from yolact_ros.files import move_into_place, sha256_of
from yolact_ros.network import EMBEDDED, PUBLISHED, WeightsError, build, load_weights

DOWNLOADABLE = tuple(
    name for name in PUBLISHED if name not in ("yolact_im400", "yolact_resnet50_pascal")
)
"""The published models whose weights are in the authors' collection."""

_CHUNK = 1 << 18
_TIMEOUT = 30  # seconds without a byte


class DownloadError(RuntimeError):
    """Weights could not be downloaded; the message says why and what to do instead."""


def fetch_weights(
    name: str, cache_dir: str | Path | None = None, endpoint: str | None = None
) -> Path:
    """Return the weight file of the published model `name`; download it if it is not cached.

    An interrupted download is resumed. A file gets its final name only when it is complete, has
    the checksum that the server announces, and fits the model.

    Args:
        name: One of `DOWNLOADABLE`.
        cache_dir: Default: `yolact_ros` in $XDG_CACHE_HOME or in ~/.cache.
        endpoint: Address of Hugging Face or a mirror. Default: $HF_ENDPOINT, else the official one.

    Raises:
        DownloadError: No network, an unknown name, a damaged file, or a full disk.
    """
    if name not in DOWNLOADABLE:
        raise DownloadError(
            f"there are no weights of {name!r} to download: pass your own file as weights; there "
            f"are some of {', '.join(DOWNLOADABLE)}"
        )
    file = f"{name}_54_800000.pth"
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise DownloadError(f"HF_ENDPOINT={endpoint!r} is not allowed: it must be an http address")
    url = f"{endpoint}/dbolya/{name.replace('_', '-')}/resolve/main/{file}"
    path = (Path(cache_dir) if cache_dir else _default_cache()) / file
    try:
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # another process may be downloading it
            if not path.is_file():
                _download(name, url, path)
    except urllib.error.HTTPError as error:
        raise DownloadError(_advice(url, path, f"{error.code} {error.reason}")) from error
    except urllib.error.URLError as error:
        raise DownloadError(_advice(url, path, str(error.reason))) from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(_advice(url, path, str(error) or type(error).__name__)) from error
    return path


def weights_file(name: str | Path) -> Path:
    """Return the weight file for the name of a published model (downloaded once) or of the embedded
    one, or for a path."""
    if str(name) in PUBLISHED:
        return fetch_weights(str(name))
    if str(name) != EMBEDDED.name:
        return Path(name).expanduser()
    return Path(__file__).parents[1] / "weights" / f"{EMBEDDED.name}.safetensors"


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "yolact_ros"


def _advice(url: str, path: Path, reason: str) -> str:
    return (
        f"{url} could not be downloaded to {path}: {reason}. Try again to go on where it stopped, "
        "or download the file elsewhere and give its path as weights; HF_ENDPOINT chooses a mirror"
    )


def _download(name: str, url: str, path: Path) -> None:
    """Download `url` to `path` by way of a partial file, which is kept on interruption."""
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    sha256 = _receive(url, part)
    try:
        _check(name, url, part, sha256)
    except DownloadError:
        part.unlink()
        if not resumed:
            raise
        _check(name, url, part, _receive(url, part))  # the partial file may have been stale
    move_into_place(part, path)


def _check(name: str, url: str, file: Path, sha256: str | None) -> None:
    """Raise DownloadError unless the file has this checksum and fits the model."""
    found = sha256_of(file)
    if sha256 and found != sha256:
        raise DownloadError(
            f"{url} arrived damaged: its SHA-256 is {found} instead of {sha256}. Try again"
        )
    with torch.device("meta"):  # shapes only
        net = build(name)
    try:
        load_weights(net, file)
    except WeightsError as error:
        raise DownloadError(f"{url} gave no weights of {name}: {error}") from error


def _receive(url: str, part: Path) -> str | None:
    """Complete `part`; return the SHA-256 that the server announces, if any.

    Reconnects as long as each connection makes progress.
    """
    while True:
        before = _size(part)
        try:
            size, sha256 = _receive_rest(url, part)
            if size in (None, _size(part)):
                return sha256
            raise OSError(f"the connection broke after {_size(part)} of {size} bytes")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416 and before:
                part.unlink()  # longer than the file, so it belongs to another one
            elif _size(part) <= before:
                raise


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive_rest(url: str, part: Path) -> tuple[int | None, str | None]:
    """Append the rest of the file to `part`; return its total size and SHA-256, if announced."""
    have = _size(part)
    headers = {"User-Agent": "yolact_ros"} | ({"Range": f"bytes={have}-"} if have else {})
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
        start, size = _extent(answer.headers)
        if start > have:
            raise OSError(f"the server left out bytes {have} to {start}")
        with (
            part.open("ab") as stream,
            tqdm(
                desc=part.stem,
                total=size,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=None,  # shown only in a terminal
            ) as bar,
        ):
            if start < have:
                stream.truncate(start)
            while chunk := answer.read(_CHUNK):
                bar.update(stream.write(chunk))
    return size, _announced_sha256([*redirects.headers, answer.headers])


def _extent(headers: Message) -> tuple[int, int | None]:
    """Return the offset of a response's first byte in the file, and the file's size."""
    if match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", "")):
        return int(match.group(1)), int(match.group(2))
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _announced_sha256(answers: list[Message]) -> str | None:
    """Return the SHA-256 from a chain of responses: Hugging Face's header, else the first ETag."""
    etags = [headers["X-Linked-Etag"] for headers in answers if "X-Linked-Etag" in headers]
    etag = (etags or [answers[0].get("ETag", "")])[0].removeprefix("W/").strip('"').lower()
    return etag if re.fullmatch("[0-9a-f]{64}", etag) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps their headers, one of which has the checksum."""

    def __init__(self) -> None:
        self.headers: list[Message] = []

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.headers.append(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
