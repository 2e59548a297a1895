"""Work in a thread that ends with it."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from yolact_ros.engine import Segmenter, loading
from yolact_ros.engine.threads import run_apart


def test_result_and_thread():
    threads = set(threading.enumerate())
    assert run_apart(lambda: threading.current_thread()) not in {*threads, *threading.enumerate()}


def test_networks_are_built_one_at_a_time(small_config, monkeypatch):
    """torch.export changes what other threads of the process build meanwhile."""
    run, at_work, most = loading.runtimes.run, [0], []

    def note(*arguments):
        at_work[0] += 1
        most.append(at_work[0])
        time.sleep(0.05)
        at_work[0] -= 1
        return run(*arguments)

    monkeypatch.setattr(loading.runtimes, "run", note)
    options = {"device": "cpu", "backend": "torch"}
    threads = [
        threading.Thread(target=Segmenter, args=(small_config, "random"), kwargs=options)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_errors_come_through_and_keep_nothing_alive():
    class Large:
        pass

    def fail() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        raise KeyError(5)

    alive: list[weakref.ref[Large]] = []
    gc.disable()  # what is in a cycle would wait for it
    try:
        with pytest.raises(KeyError, match="5") as raised:
            run_apart(fail)
        del raised
        assert alive[0]() is None
    finally:
        gc.enable()


INTERRUPTED = """
import signal, time
from yolact_ros.engine.threads import run_apart

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of the background ignores it

def work():
    print("begun", flush=True)
    time.sleep(1)
    print("done", flush=True)

try:
    run_apart(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_after_ctrl_c_the_process_ends_when_the_work_does():
    """Python must not end under a thread that computes: C++ would abort."""
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].split() == ["interrupted", "done"]
    assert process.returncode == 0


BUILD = """
import os, time
import torch
from yolact_ros.engine import Segmenter

def count(wanted):
    end = time.monotonic() + 10  # threads end a moment after they were told to
    while (found := len(os.listdir("/proc/self/task"))) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return found

torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
segmenter = Segmenter("yolact_person_lite", weights="random", backend="torch", device="cpu")
segmenter.warm_up()
print(count(before) - before)
segmenter(torch.zeros(480, 640, 3, dtype=torch.uint8))
print(count(before + 3) - before)
"""


def test_building_a_network_leaves_no_team_of_threads():
    """With two teams each operator would wait for threads to wake; only who computes has one."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or "libgomp" not in maps.read_text():
        pytest.skip("PyTorch does not compute with libgomp here")
    done = subprocess.run(
        [sys.executable, "-c", BUILD], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0", "3"]
