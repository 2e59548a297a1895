"""Steps that fail, die, hang, lose their device or are interrupted cost no other step's result."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from gpu_record import DEVICE_LOST, MEASURED, Files, Step, begin, supervise

WORKER = """
import os, signal, subprocess, sys, time, warnings
from pathlib import Path
from gpu_record import Files, Step, work

lost = []

def fails(): raise ValueError("no such | thing\\nat all")
def dies(): os.kill(os.getpid(), signal.SIGSEGV)
def hangs():
    child = subprocess.Popen(["sleep", "60"])
    Path(sys.argv[1], "child").write_text(str(child.pid))
    child.wait()
def gives_no_json(): return object()
def loses_its_device():
    lost.append(True)
    raise RuntimeError("an illegal memory access")
def warns():
    warnings.warn("the kernel is not used", RuntimeWarning)
    return os.getpid()

steps = [Step(("part", name), globals().get(name, os.getpid)) for name in sys.argv[2:]]
sys.exit(work(Files(Path(sys.argv[1])), steps, lambda: not lost))
"""
SUPERVISOR = """
import sys
from pathlib import Path
from gpu_record import Files, supervise
supervise(sys.argv[2:], Files(Path(sys.argv[1])), 60)
"""


@pytest.fixture
def files(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("PYTHONPATH", str(repository / "tools"))
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    return Files(tmp_path)


def prepare(files: Files, names: tuple[str, ...]) -> list[str]:
    """The command that does these steps of `WORKER`."""
    begin(files, [Step(("part", name), os.getpid) for name in names])
    folder = files.json.parent
    return [sys.executable, str(folder / "worker.py"), str(folder), *names]


def outcomes(files: Files) -> dict[str, str]:
    return {name.split(", ")[1]: text for name, text in files.read()["steps"].items()}


def is_alive(stat: Path) -> bool:
    """Whether a process, by its file in /proc, has not ended; nobody may have asked how it did."""
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_each_step_has_its_result_or_its_error(files: Files):
    names = ("first", "fails", "warns", "gives_no_json", "last")
    supervise(prepare(files, names), files, 60)
    report, found = files.read(), outcomes(files)
    assert {name for name, text in found.items() if text == MEASURED} == {"first", "warns", "last"}
    assert found["fails"] == "ValueError: no such | thing\nat all"
    assert found["gives_no_json"].startswith("TypeError: ")
    assert report["part"].keys() == {"first", "warns", "last"}
    assert len(set(report["part"].values())) == 1  # one process
    assert report["warnings"] == {"part, warns": ["the kernel is not used"]}
    assert report["seconds"] > 0
    text = files.markdown.read_text()
    assert "| part, fails | ValueError: no such \\| thing at all |" in text
    assert "part, warns: the kernel is not used" in text


def test_a_step_that_kills_its_process(files: Files):
    supervise(prepare(files, ("first", "dies", "last")), files, 60)
    assert outcomes(files)["dies"] == f"the process ended with status -{int(signal.SIGSEGV)}"
    results = files.read()["part"]
    assert results["first"] != results["last"]


def test_a_lost_device_is_found_by_another_process(files: Files):
    supervise(prepare(files, ("first", "loses_its_device", "last")), files, 60)
    assert outcomes(files)["loses_its_device"] == "RuntimeError: an illegal memory access"
    results = files.read()["part"]
    assert results["first"] != results["last"]


def test_a_step_that_hangs_leaves_time_for_the_rest(files: Files):
    supervise(prepare(files, ("first", "hangs", "last")), files, 10)
    assert outcomes(files) == {
        "first": MEASURED,
        "hangs": "it took more than 3 s",
        "last": MEASURED,
    }
    child = Path("/proc", files.json.with_name("child").read_text(), "stat")
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child), "it would keep its memory on the device"


def test_a_process_that_cannot_begin_is_not_repeated(files: Files):
    prepare(files, ("first", "last"))
    supervise([sys.executable, "-c", f"exit({DEVICE_LOST})"], files, 60)
    reason = f"skipped: before the first step: the process ended with status {DEVICE_LOST}"
    assert set(outcomes(files).values()) == {reason}


def test_no_time_at_all(files: Files):
    supervise(prepare(files, ("first", "last")), files, 0)
    assert set(outcomes(files).values()) == {"skipped: the 0 s were spent"}
    assert "| part, last | skipped: the 0 s were spent |" in files.markdown.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_what_there_is(files: Files, number: signal.Signals):
    command = prepare(files, ("first", "hangs", "last"))
    folder = files.json.parent
    whole = [sys.executable, str(folder / "supervisor.py"), str(folder), *command]
    # A shell's background jobs ignore SIGINT, and what they start does, too.
    listen = partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(whole, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while outcomes(files)["hangs"] != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert outcomes(files) == {
        "first": MEASURED,
        "hangs": "broken off: interrupted",
        "last": "skipped: interrupted",
    }
