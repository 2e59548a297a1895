"""Downloads from a real web server on this machine, with the faults that networks have."""

from __future__ import annotations

import fcntl
import os
import pickle
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from yolact_ros.cli import main
from yolact_ros.engine import DownloadError, Segmenter, fetch_weights
from yolact_ros.engine.download import DOWNLOADABLE

NAME = "yolact_resnet50"
FILE = f"{NAME}_54_800000.pth"
FETCH = (
    "import sys; from yolact_ros.engine import fetch_weights;"
    f" print(fetch_weights({NAME!r}, sys.argv[1]))"
)


def start_fetch(cache: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def wait_for_part(cache: Path, process: subprocess.Popen, size: int) -> Path:
    """The partial file, once it has so many bytes."""
    part = cache / f"{FILE}.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size >= size):
        time.sleep(0.01)
    return part


@pytest.fixture
def server(weight_server, checkpoints):
    weight_server.content = checkpoints[NAME]
    return weight_server


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("announce", ["linked", "etag", "none"])
@pytest.mark.parametrize("redirect", [True, False])
def test_downloads_the_file(server, tmp_path, announce, redirect):
    server.announce, server.redirect = announce, redirect
    path = fetch_weights(NAME, tmp_path)
    assert path == tmp_path / FILE
    assert path.read_bytes() == server.content
    [(asked, _)] = server.requests
    assert asked.removeprefix("/cdn") == f"/dbolya/yolact-resnet50/resolve/main/{FILE}"


def test_segmenter_downloads_by_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    segmenter = Segmenter(weights=NAME, device="cpu", backend="torch")
    assert segmenter.config.name == NAME
    assert segmenter.runtime.run.fpn.output[0].weight.mean().item() == pytest.approx(0.01)
    assert "published weights of yolact_resnet50" in segmenter.description


def test_second_use_needs_no_network(server, tmp_path):
    first = fetch_weights(NAME, tmp_path)
    server.requests.clear()
    assert fetch_weights(NAME, tmp_path) == first
    assert fetch_weights(NAME, tmp_path, endpoint="http://127.0.0.1:9") == first
    assert server.requests == []


def test_command(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["download", NAME]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'yolact_ros' / FILE}\n"
    assert main(["download", "yolact_im400"]) == 1
    assert capsys.readouterr().err.startswith("yolact download: there are no weights of 'yolact_im")
    server.status = 404
    assert main(["download", "yolact_base"]) == 1
    assert "404" in capsys.readouterr().err


def test_default_cache_is_the_users(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert fetch_weights(NAME) == tmp_path / "caches" / "yolact_ros" / FILE
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch_weights(NAME) == tmp_path / ".cache" / "yolact_ros" / FILE


def test_broken_connections_are_taken_up_again(server, tmp_path):
    server.cut_after = 3_000_000
    assert fetch_weights(NAME, tmp_path).read_bytes() == server.content
    starts = [wanted for _, wanted in server.requests]
    assert starts == [None, "bytes=3000000-", "bytes=6000000-"]


def test_killed_download_resumes_in_the_next_process(server, tmp_path):
    server.pause = 0.02
    with start_fetch(tmp_path) as process:
        part = wait_for_part(tmp_path, process, 500_000)
        process.kill()
    received = part.stat().st_size
    assert 500_000 <= received < len(server.content)
    assert left_behind(tmp_path) == [part.name]
    server.pause = 0.0
    assert fetch_weights(NAME, tmp_path).read_bytes() == server.content
    assert server.requests[-1][1] == f"bytes={received}-"
    assert left_behind(tmp_path) == [FILE]


def test_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / f"{FILE}.part").write_bytes(server.content[:1000])
    assert fetch_weights(NAME, tmp_path).read_bytes() == server.content


def test_server_that_always_breaks_off_is_given_up(server, tmp_path):
    server.ranges, server.cut_after = False, 1_000_000
    with pytest.raises(DownloadError, match=r"broke after 1000000 of \d+ bytes"):
        fetch_weights(NAME, tmp_path)


@pytest.mark.parametrize("stale", [b"of another version" * 1000, b"0" * 20_000_000])
def test_stale_partial_file_is_replaced(server, tmp_path, stale):
    (tmp_path / f"{FILE}.part").write_bytes(stale)
    assert fetch_weights(NAME, tmp_path).read_bytes() == server.content


def test_damaged_content_is_refused_and_removed(server, tmp_path, monkeypatch):
    whole, sha256 = server.content, server.sha256
    monkeypatch.setattr(type(server), "sha256", sha256)
    server.content = whole[:5_000_000] + b"?" + whole[5_000_001:]
    with pytest.raises(DownloadError, match=f"SHA-256 is .* instead of {sha256}"):
        fetch_weights(NAME, tmp_path)
    assert left_behind(tmp_path) == []


def test_another_models_weights_are_refused(server, tmp_path, checkpoints):
    server.content = checkpoints["yolact_darknet53"]
    with pytest.raises(DownloadError, match="weights for yolact_darknet53"):
        fetch_weights(NAME, tmp_path)
    assert left_behind(tmp_path) == []


def test_login_page_is_no_checkpoint(server, tmp_path):
    server.content, server.announce = b"<html>Please log in</html>" * 100, "none"
    with pytest.raises(DownloadError, match="gave no weights of yolact_resnet50"):
        fetch_weights(NAME, tmp_path)
    assert left_behind(tmp_path) == []


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_downloaded_file_does_not_run(server, tmp_path):
    mark = tmp_path / "ran"
    server.content = pickle.dumps({"backbone.conv1.weight": Bomb(mark)}, protocol=2)
    with pytest.raises(DownloadError, match="refused"):
        fetch_weights(NAME, tmp_path)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_refusals_are_readable(server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"{server.address}/.*{FILE}.*: {status} \w+") as error:
        fetch_weights(NAME, tmp_path)
    assert "give its path as weights" in str(error.value)
    assert left_behind(tmp_path) == []


def test_without_network_it_says_what_to_do(tmp_path):
    with pytest.raises(DownloadError, match=r"refused.*download the file elsewhere"):
        fetch_weights(NAME, tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("endpoint", ["file:///etc", "huggingface.co", "ftp://127.0.0.1"])
def test_endpoint_must_be_an_http_address(tmp_path, endpoint):
    with pytest.raises(DownloadError, match="http address"):
        fetch_weights(NAME, tmp_path, endpoint=endpoint)


@pytest.mark.parametrize("name", ["yolact_im400", "yolact_resnet50_pascal", "../etc/passwd", ""])
def test_names_without_published_weights_are_refused(tmp_path, name):
    with pytest.raises(DownloadError) as error:
        fetch_weights(name, tmp_path)
    assert all(known in str(error.value) for known in (repr(name), *DOWNLOADABLE))


def test_all_published_models_but_two_can_be_downloaded():
    assert set(DOWNLOADABLE) == {
        "yolact_base",
        "yolact_im700",
        "yolact_darknet53",
        "yolact_resnet50",
        "yolact_plus_base",
        "yolact_plus_resnet50",
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk")
def test_full_disk(server, tmp_path):
    (tmp_path / f"{FILE}.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left"):
        fetch_weights(NAME, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="file"):
        fetch_weights(NAME, tmp_path / "file" / "cache")


def test_two_processes_download_once(server, tmp_path):
    server.pause = 0.015
    with start_fetch(tmp_path) as process:
        wait_for_part(tmp_path, process, 1)
        path = fetch_weights(NAME, tmp_path)
        assert process.communicate(timeout=60)[0].strip() == str(path)
    assert len(server.requests) == 1


def test_terminal_shows_progress(server, tmp_path, monkeypatch):
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        fetch_weights(NAME, tmp_path)
        stream.flush()
        shown = os.read(screen, 10_000).decode()
    os.close(screen)
    assert FILE in shown and "B/s" in shown


def test_log_does_not_show_progress(server, tmp_path, capfd):
    fetch_weights(NAME, tmp_path)
    assert capfd.readouterr() == ("", "")
