"""Runs measurement steps one after another and saves each result at once, whatever happens next.

`work` runs them; `supervise` runs the worker process, ends it when the time is up, and starts
another for the remaining steps if it died or lost its device.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import to_markdown

Report = dict[str, Any]

NOT_BEGUN, RUNNING, MEASURED = "not begun", "running", "measured"
"""What `report["steps"]` says of each step; anything else is why it has no result."""
STEP_SHARE = 0.3
"""Fraction of the total time that one step may take: a hanging step must not cost the others."""
DEVICE_LOST = 4
"""The exit status of a worker that needs a new process."""


@dataclass(frozen=True)
class Step:
    """One thing to measure."""

    place: tuple[str, ...]
    """Where its result goes in the report, key by key."""
    run: Callable[[], Any]
    """What it returns must fit JSON."""

    @property
    def name(self) -> str:
        return ", ".join(self.place)


class Files:
    """`gpu_check.json` and `gpu_check.md` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.json, self.markdown = folder / "gpu_check.json", folder / "gpu_check.md"

    def read(self) -> Report:
        report: Report = json.loads(self.json.read_text())
        return report

    def write(self, report: Report) -> None:
        """Write both files atomically, so that each is complete even if the process is killed."""
        _replace(self.json, json.dumps(report, indent=2))
        _replace(self.markdown, to_markdown(report))


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text + "\n")
    new.replace(path)


def begin(files: Files, steps: Sequence[Step]) -> None:
    """Write a report in which nothing has been measured."""
    files.write({"seconds": 0.0, "steps": dict.fromkeys((s.name for s in steps), NOT_BEGUN)})


def work(files: Files, steps: Sequence[Step], device_answers: Callable[[], bool]) -> int:
    """Do all steps that were not begun; return the exit status.

    An exception of a step is its result, as "Type: text". If the device does not answer after it,
    another process has to do the rest.
    """
    report = files.read()
    before, started = report["seconds"], time.monotonic()
    for step in steps:
        if report["steps"][step.name] != NOT_BEGUN:
            continue
        print(step.name, file=sys.stderr, flush=True)
        report["steps"][step.name] = RUNNING
        files.write(report)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", RuntimeWarning)
            outcome = _run(step, report)
        report["steps"][step.name] = outcome
        texts = [str(each.message) for each in seen if each.category is RuntimeWarning]
        if texts:
            report.setdefault("warnings", {})[step.name] = list(dict.fromkeys(texts))
        report["seconds"] = before + time.monotonic() - started
        files.write(report)
        if outcome != MEASURED and not device_answers():
            return DEVICE_LOST
    return 0


def _run(step: Step, report: Report) -> str:
    try:
        result = step.run()
        json.dumps(result)
    except Exception as error:  # of any type: whatever it is, it must not cost the other steps
        return f"{type(error).__name__}: {str(error).strip()[:500]}"
    target = report
    for key in step.place[:-1]:
        target = target.setdefault(key, {})
    target[step.place[-1]] = result
    return MEASURED


def supervise(command: Sequence[str], files: Files, seconds: float) -> None:
    """Run `command`, which calls `work`, until all steps are done or the seconds are spent.

    A step has `STEP_SHARE` of them at most. Ctrl-C, SIGTERM and SIGHUP end it all, too. In any
    case the files are complete, and say of each step without a result why it has none.
    """
    deadline = time.monotonic() + seconds
    reason = f"the {seconds:.0f} s were spent"
    try:
        with _ended_like_interrupted():
            while time.monotonic() < deadline and _count(files, NOT_BEGUN):
                before = _count(files, NOT_BEGUN)
                end = _run_worker(command, files, deadline, STEP_SHARE * seconds)
                if end:
                    _mark(files, RUNNING, end)
                    if _count(files, NOT_BEGUN) == before:
                        reason = f"before the first step: {end}"
                        break
    except KeyboardInterrupt:
        reason = "interrupted"
    _mark(files, RUNNING, f"broken off: {reason}")
    _mark(files, NOT_BEGUN, f"skipped: {reason}")


def _run_worker(command: Sequence[str], files: Files, deadline: float, patience: float) -> str:
    """Run a worker; return why it ended early, or "" if its steps were done or the time was up."""
    process = subprocess.Popen(command, start_new_session=True)  # to be ended with its children
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(min(0.5, max(0.0, deadline - time.monotonic())))
                return f"the process ended with status {status}" if status else ""
            if time.time() - files.json.stat().st_mtime > patience:
                return f"it took more than {patience:.0f} s"
        return ""
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt, except where `nohup` keeps them off."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in numbers}
    caught = [each for each in numbers if before[each] != signal.SIG_IGN]
    try:
        for each in caught:
            signal.signal(each, signal.default_int_handler)
        yield
    finally:
        for each in caught:
            signal.signal(each, before[each])


def _count(files: Files, state: str) -> int:
    return list(files.read()["steps"].values()).count(state)


def _mark(files: Files, state: str, text: str) -> None:
    """Replace a state of steps with `text`."""
    report = files.read()
    steps = report["steps"]
    if state in steps.values():
        report["steps"] = {name: text if was == state else was for name, was in steps.items()}
        files.write(report)
