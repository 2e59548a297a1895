"""Create virtual environments and install packages: with uv if available, else with pip."""

from __future__ import annotations

import ast
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pythons
from pythons import Python, SetupError

# pip's settings that choose where packages come from, spelled as in PIP_..., and uv's names.
_UV_NAMES = {
    "INDEX_URL": "UV_DEFAULT_INDEX",
    "EXTRA_INDEX_URL": "UV_INDEX",
    "FIND_LINKS": "UV_FIND_LINKS",
    "NO_INDEX": "UV_NO_INDEX",
    "TRUSTED_HOST": "UV_INSECURE_HOST",
    "CERT": "SSL_CERT_FILE",
    "PROXY": "ALL_PROXY",
}


@dataclass(frozen=True)
class Pip:
    """pip, as installed by `python -m venv`."""

    needs_ensurepip = True

    def make_venv(self, venv: Path, python: Python, system_site_packages: bool) -> None:
        options = ["--system-site-packages"] if system_site_packages else []
        call([python.path, "-m", "venv", *options, venv])

    def install(self, venv: Path, requirements: Sequence[Path], constraints: Path) -> None:
        files = _files(requirements, constraints)
        call([venv / "bin" / "python", "-m", "pip", "install", *files], _without_places())


@dataclass(frozen=True)
class Uv:
    """uv: like pip, but many times faster, and able to download a Python."""

    path: Path
    settings: Mapping[str, str]
    """Environment variables that pass on pip's configuration, which uv does not read."""

    needs_ensurepip = False

    def make_venv(self, venv: Path, python: Python, system_site_packages: bool) -> None:
        options = ["--system-site-packages"] if system_site_packages else []
        self._call("venv", "--quiet", "--python", python.path, *options, venv)

    def install(self, venv: Path, requirements: Sequence[Path], constraints: Path) -> None:
        files = _files(requirements, constraints)
        interpreter = venv / "bin" / "python"
        self._call("pip", "install", "--compile-bytecode", "--python", interpreter, *files)

    def fetch_python(self, version: tuple[int, int], folder: Path) -> Python | None:
        """Download a Python into `folder`; None if that is not possible."""
        name = f"{version[0]}.{version[1]}"
        try:
            self._call("python", "install", "--no-bin", "--install-dir", folder, name)
        except SetupError:
            return None
        return next(filter(None, map(pythons.probe, folder.glob(f"*/bin/python{name}"))), None)

    def _call(self, *arguments: str | Path) -> None:
        call([self.path, *arguments], {**self.settings, **os.environ})


def find(home: Path, say: Callable[[str], None]) -> Uv | Pip:
    """uv from PATH or from the Python package index; pip if neither is available."""
    on_path = shutil.which("uv")
    if on_path and _runs(on_path):
        return Uv(Path(on_path), {})
    folder = home / "uv"
    uv = folder / "bin" / "uv"
    if not _runs(uv):
        shutil.rmtree(folder, ignore_errors=True)
    pip = _some_pip(folder)
    if pip is not None and not _runs(uv):
        say("getting uv, which installs faster than pip")
        command = [*pip, "install", "-qq", "--target", str(folder), "uv"]
        if subprocess.run(command, check=False, env=_without_places()).returncode != 0:
            say("uv could not be installed: using pip instead")
    return Uv(uv, settings_of_pip(pip)) if pip is not None and _runs(uv) else Pip()


def _some_pip(folder: Path) -> list[str] | None:
    """A pip command: of an installed Python, else of an environment created below `folder`."""
    found = list(pythons.candidates())
    for python in found:
        if python.pip:
            return [str(python.path), "-m", "pip"]
    for python in found:
        if python.ensurepip:
            call([python.path, "-m", "venv", "--clear", folder / "pip"])
            return [str(folder / "pip" / "bin" / "python"), "-m", "pip"]
    return None


def settings_of_pip(pip: Sequence[str]) -> dict[str, str]:
    """pip's package indexes as environment variables of uv."""
    command = [*pip, "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    settings = {}
    # Environment variables take precedence, as in pip, which lists them first.
    lines.sort(key=lambda line: line.startswith(":env:"))
    for name, _, value in (line.partition("=") for line in lines):
        known = _UV_NAMES.get(name.rsplit(".", 1)[-1].replace("-", "_").upper())
        if known:
            settings[known] = " ".join(ast.literal_eval(value).split())
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    # Like pip: take the newest version from all indexes, and trust this machine's certificates.
    settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    store = ssl.get_default_verify_paths()
    if store.cafile or (store.capath and any(Path(store.capath).iterdir())):
        settings["UV_SYSTEM_CERTS"] = settings["UV_NATIVE_TLS"] = "true"
    return settings


def use_cache_below(home: Path) -> None:
    """Keep downloads in the repository if the user has no writable home folder."""
    user_home = Path(os.environ.get("HOME") or "/nonexistent")
    if not os.access(user_home, os.W_OK):
        os.environ.setdefault("UV_CACHE_DIR", str(home / "cache" / "uv"))
        os.environ.setdefault("PIP_CACHE_DIR", str(home / "cache" / "pip"))


def call(command: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> None:
    """Run a command with its output visible. Raises SetupError if it fails."""
    result = subprocess.run([str(word) for word in command], env=variables, check=False)
    if result.returncode != 0:
        words = " ".join(map(str, command))
        raise SetupError(
            f"this command failed with status {result.returncode}; see above:\n    {words}"
        )


def _without_places() -> dict[str, str]:
    """Environment variables without pip's settings of where to install."""
    places = ("PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_PREFIX", "PIP_TARGET", "PIP_ROOT")
    return {name: value for name, value in os.environ.items() if name not in places}


def _runs(uv: str | Path) -> bool:
    try:
        return subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _files(requirements: Sequence[Path], constraints: Path) -> list[str]:
    words = [word for path in requirements for word in ("-r", str(path))]
    return [*words, "-c", str(constraints)] if constraints.read_text() else words
