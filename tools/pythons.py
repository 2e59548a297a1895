"""Finds the Python interpreters of this machine and what they can be used for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


class SetupError(Exception):
    """The set-up cannot continue; the message says what the user can do."""


# Runs in the interpreter that is asked about.
_QUESTIONS = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    "path": sys.executable,
    "base": getattr(sys, "_base_executable", sys.executable),
    "version": sys.version_info[:2],
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "ensurepip": bool(importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")),
    "pip": bool(importlib.util.find_spec("pip")),
}))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter that runs."""

    path: Path
    base: Path
    """The interpreter behind a virtual environment; else itself."""
    version: tuple[int, int]
    headers: bool
    """Python.h is installed: extension modules can be compiled."""
    ensurepip: bool
    """`python -m venv` makes an environment with pip in it (on Debian a package of its own)."""
    pip: bool

    def run(self, code: str, *options: str) -> str | None:
        """What `code` prints, or None when it fails."""
        command = [str(self.path), *options, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    def imports(self, module: str) -> bool:
        return self.run(f"import {module}") is not None

    def finds(self, *modules: str) -> bool:
        code = f"from importlib.util import find_spec; print(all(map(find_spec, {modules!r})))"
        return self.run(code) == "True"

    def version_of(self, distribution: str) -> str | None:
        """The version that is installed for all users, or None."""
        code = f"from importlib.metadata import version; print(version({distribution!r}))"
        return self.run(code, "-s")


def probe(path: str | Path) -> Python | None:
    """The interpreter at `path`, or None when there is none that runs (a pyenv shim may not)."""
    try:
        result = subprocess.run(
            [str(path), "-c", _QUESTIONS], capture_output=True, text=True, timeout=60, check=False
        )
        answer = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    paths = {name: Path(answer[name]) for name in ("path", "base")}
    return Python(**{**answer, **paths, "version": tuple(answer["version"])})


def candidates() -> Iterator[Python]:
    """Interpreters that run: the one running this first, then those on PATH and of the system."""
    names = ["python3", *(f"python3.{minor}" for minor in range(10, 20))]
    paths = [sys.executable, *(shutil.which(name) for name in names)]
    paths += [shutil.which(name, path="/usr/bin") for name in names]
    seen: set[Path] = set()
    for path in filter(None, paths):
        python = probe(path)
        if python and python.path not in seen:
            seen.add(python.path)
            yield python


def choose(versions: Sequence[tuple[int, int]], needs_ensurepip: bool) -> Python | None:
    """The first Python of one of `versions` with which messages can be built."""
    for python in candidates():
        ready = python.headers and (python.ensurepip or not needs_ensurepip)
        if python.version in versions and ready:
            return python
    return None


def advice(versions: Sequence[tuple[int, int]]) -> str:
    """What to install where `choose` finds nothing."""
    names = [f"python{major}.{minor}" for major, minor in sorted(versions)]
    lines = {}
    for python in candidates():
        if python.version in versions:
            missing = _lacking(python)
            install = f"apt-get install {' '.join(missing.values())}"
            lines[install] = f"    {python.path} lacks {' and '.join(missing)}: {install}"
    return (
        f"ROS 2's wheels need {' or '.join(names)}, and no usable one was found.\n"
        "Install one and run the command again:\n"
        + "\n".join(
            lines.values() or [f"    apt-get install {names[0]} {names[0]}-dev {names[0]}-venv"]
        )
    )


def _lacking(python: Python) -> dict[str, str]:
    """What is missing to build messages, and the Debian package that has it."""
    name = f"python{python.version[0]}.{python.version[1]}"
    missing = {} if python.headers else {"its C headers": f"{name}-dev"}
    return missing if python.ensurepip else {**missing, "the module ensurepip": f"{name}-venv"}
