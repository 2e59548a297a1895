"""The set-up script: what it says on machines that lack something, and what it keeps apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import environment
import installer
import pytest
import pythons
import ros_domain
from packaging.requirements import Requirement

TOOLS = ("sh", "env", "cc", "c++", "gcc", "g++", "cmake", "make", "python3")


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """The files that `make` starts from, in a folder of their own."""
    root = tmp_path / "clone"
    root.mkdir()
    shutil.copy(repository / "Makefile", root)
    for name in ("tools", "requirements"):
        shutil.copytree(
            repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


@pytest.fixture
def path_of(tmp_path: Path) -> Path:
    """A folder for PATH with links to the tools of this machine; a test takes some away."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    return folder


def make(clone: Path, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("make") or "make", "demo"],
        cwd=clone,
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("missing", "package"),
    [(("cmake",), "cmake"), (("c++", "g++"), "g++"), (("cc", "gcc"), "gcc")],
    ids=["cmake", "c++", "cc"],
)
def test_says_which_tool_to_install(
    clone: Path, path_of: Path, missing: tuple[str, ...], package: str
) -> None:
    for tool in missing:
        (path_of / tool).unlink(missing_ok=True)
    result = make(clone, path_of)
    assert result.returncode != 0
    assert f"apt-get install {package}\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (clone / ".ros").exists(), "nothing is begun on a machine that cannot end it"


def test_says_how_to_get_python(clone: Path, path_of: Path) -> None:
    (path_of / "python3").unlink()
    result = make(clone, path_of)
    assert result.returncode != 0
    assert "apt-get install python3 python3-venv python3-dev cmake g++" in result.stderr


def test_refuses_an_unknown_distribution(clone: Path, path_of: Path) -> None:
    result = make(clone, path_of, ROS_WHEELS="foxy")
    assert result.returncode != 0
    assert "ROS_WHEELS=foxy is not allowed: it must be kilted or jazzy" in result.stderr


def test_advice_names_what_a_python_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/x/python3.11")
    bare = pythons.Python(path, path, (3, 11), headers=False, ensurepip=False, pip=False)
    monkeypatch.setattr(pythons, "candidates", lambda: iter([bare]))
    assert pythons.choose([(3, 11)], needs_ensurepip=False) is None
    assert "apt-get install python3.11-dev python3.11-venv" in pythons.advice([(3, 11), (3, 12)])


def test_probe_runs_the_interpreter(tmp_path: Path) -> None:
    found = pythons.probe(sys.executable)
    assert found is not None
    assert found.version == sys.version_info[:2]
    assert found.finds("json", "torch")
    assert not found.finds("json", "no_such_module")
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert pythons.probe(shim) is None
    assert pythons.probe(tmp_path / "none") is None


def test_hands_the_settings_of_pip_on_to_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pip = next((python for python in pythons.candidates() if python.pip), None)
    if with_pip is None:
        pytest.skip("no Python here has pip")
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex_url = https://packages.example/root\n"
        "extra_index_url = https://one.example https://two.example\n"
        "[install]\nfind-links = /wheels /more\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    answer = installer.settings_of_pip([str(with_pip.path), "-m", "pip"])
    assert answer["UV_DEFAULT_INDEX"] == "https://packages.example/root"
    assert answer["UV_INDEX"] == "https://one.example https://two.example"
    assert answer["UV_FIND_LINKS"] == "/wheels,/more"
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.example/root")  # wins, as with pip
    answer = installer.settings_of_pip([str(with_pip.path), "-m", "pip"])
    assert answer["UV_DEFAULT_INDEX"] == "https://environment.example/root"


def test_half_an_environment_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    ours = environment.Environment("kilted", sourced=False)
    wanted = environment.origin(ours, None)
    assert environment.made(ours, wanted) is None
    ours.folder.mkdir()
    stamp = json.dumps({"origin": wanted, "contents": environment.contents(ours)})
    for text in ("", "[]", "{}", stamp[:-9], stamp):
        # Even with the right stamp: there is no interpreter that runs.
        ours.stamp.write_text(text)
        assert environment.made(ours, wanted) is None


def test_an_environment_of_the_users_changes_nothing(tmp_path: Path) -> None:
    """Switched on or off between two calls, it must not have ours made anew."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    before, after = pythons.probe(sys.executable), pythons.probe(tmp_path / "bin" / "python")
    assert before is not None and after is not None and before.path != after.path
    ours = environment.Environment("jazzy", sourced=True)
    assert environment.origin(ours, before) == environment.origin(ours, after)


def test_an_update_that_fails_leaves_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline(installer.Pip):
        def install(self, venv: Path, requirements: object, constraints: Path) -> None:
            raise pythons.SetupError("there is no network")

    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setattr(installer, "find", lambda *_: Offline())
    ours = environment.Environment("kilted", sourced=False)
    wanted = environment.origin(ours, None)
    ours.folder.mkdir()
    ours.venv.symlink_to(sys.prefix)
    environment.write_stamp(ours, wanted, "of older requirements")
    if environment.made(ours, wanted) is None:
        pytest.skip("these tests do not run in an environment of make's")
    with pytest.raises(pythons.SetupError, match="there is no network"):
        environment.make_venv(ours, None)
    assert environment.made(ours, wanted) == "of older requirements"


def test_make_in_a_shell_of_its_own_takes_the_environment_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setenv("ROS_DISTRO", "humble")
    for sourced in (False, True):
        ours = environment.Environment("humble", sourced)
        monkeypatch.setenv("VIRTUAL_ENV", str(ours.venv))
        assert environment.of_shell() is None, "it has been removed"
        ours.folder.mkdir()
        ours.stamp.touch()
        assert environment.of_shell() == ours
    monkeypatch.setenv("ROS_WHEELS", "jazzy")  # does not matter to a sourced one
    assert environment.of_shell() == ours
    wheels = environment.Environment("humble", sourced=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(wheels.venv))
    with pytest.raises(pythons.SetupError, match="ROS_WHEELS=jazzy is not allowed"):
        environment.of_shell()
    for other in ("/home/user/venv", str(tmp_path / "venv")):
        monkeypatch.setenv("VIRTUAL_ENV", other)
        assert environment.of_shell() is None
    monkeypatch.delenv("VIRTUAL_ENV")
    assert environment.of_shell() is None


def test_ros_can_be_imported_from_a_shell_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(sys.prefix).parent
    monkeypatch.setattr(environment, "HOME", folder.parent)
    name = folder.name
    ours = environment.Environment(name.removesuffix("-sourced"), name.endswith("-sourced"))
    if not ours.stamp.exists():
        pytest.skip("these tests do not run in an environment of make's")
    command = [str(ours.python), "-c", "import rclpy"]
    subprocess.run(command, env=environment.base_variables(ours), check=True, timeout=120)


def test_a_sourced_ros_gets_a_numpy_that_its_modules_run_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"numpy": "1.21.5", "empy": "3.3.4"}  # Ubuntu 22.04's
    monkeypatch.setattr(pythons.Python, "version_of", lambda _, name: versions.get(name))
    python = pythons.probe(sys.executable)
    assert python is not None
    lines = map(Requirement, environment.sourced_versions(python).splitlines())
    allowed = {line.name: line.specifier for line in lines}
    assert "1.21.5" in allowed["numpy"] and "1.26.4" in allowed["numpy"]
    assert "1.21.4" not in allowed["numpy"] and "2.0.0" not in allowed["numpy"]
    assert str(allowed["empy"]) == "==3.3.4"
    versions.clear()
    assert environment.sourced_versions(python) == ""


def test_wheels_are_kept_apart_from_an_unusable_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROS_DISTRO": "noetic",
        "ROS_DOMAIN_ID": "0",
        "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp",
        "AMENT_PREFIX_PATH": "/opt/ros/noetic",
        "PYTHONPATH": "/opt/ros/noetic/lib/python3/dist-packages",
        "LD_LIBRARY_PATH": "/opt/ros/noetic/lib:/usr/local/cuda/lib64",
    }.items():
        monkeypatch.setenv(name, value)
    ours = environment.Environment("jazzy", sourced=False)
    variables = environment.base_variables(ours)
    assert variables["ROS_DISTRO"] == "jazzy"
    assert variables["AMENT_PREFIX_PATH"] == str(ours.venv)
    assert variables["LD_LIBRARY_PATH"] == f"{ours.venv}/lib:/usr/local/cuda/lib64"
    assert not {"PYTHONPATH", "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID"} & set(variables)


@pytest.mark.parametrize("sourced", [False, True])
def test_what_runs_is_confined_to_this_machine(
    sourced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    abroad = {"ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER", "ROS_SUPER_CLIENT"}
    profiles = {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
    for name in abroad | profiles:
        monkeypatch.setenv(name, "192.0.2.1:11811")
    ours = environment.Environment("humble", sourced)
    (ours.install / "lib" / "python3.10" / "site-packages").mkdir(parents=True)
    variables = environment.run_variables(ours)
    assert variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert variables["ROS_LOCALHOST_ONLY"] == "1" and 1 <= int(variables["ROS_DOMAIN_ID"]) <= 101
    assert not (abroad | profiles) & set(variables)


def test_ros_is_found_behind_an_environment_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose NumPy may be another than ROS was built with."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    active = pythons.probe(tmp_path / "bin" / "python")
    assert active is not None
    monkeypatch.setenv("ROS_DISTRO", "humble")
    monkeypatch.setattr(pythons, "candidates", lambda: [active])
    monkeypatch.setattr(pythons.Python, "imports", lambda *_: True)
    found = environment.sourced_ros()
    assert found is not None and found[1].path == found[1].base == active.base


def test_links_to_files_that_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setattr(environment, "colcon_succeeds", lambda _: True)
    ours = environment.Environment("kilted", sourced=False)
    ours.install.mkdir(parents=True)
    (ours.install / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (ours.install / "there.jpg").symlink_to(__file__)
    environment.build(ours)
    assert [path.name for path in ours.install.iterdir()] == ["there.jpg"]


def test_a_folder_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    (tmp_path / "lock").mkdir()  # cannot be opened, even by root
    with (
        pytest.raises(pythons.SetupError, match=r"cannot be written .*; if it is another user's"),
        environment.locked(),
    ):
        pass


def test_where_pip_installs_is_not_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example")
    variables = installer._without_places()
    assert not {"PIP_USER", "PIP_REQUIRE_VIRTUALENV"} & set(variables)
    assert variables["PIP_INDEX_URL"] == "https://packages.example"


def test_a_domain_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
    taken = ros_domain.free_domain()
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=taken)
    try:
        occupant = rclpy.create_node("occupant", context=context)
        monkeypatch.setattr(ros_domain.os, "getpid", lambda: taken - 1)
        assert ros_domain.free_domain() != taken
        occupant.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_cmake_exports_name_folders_of_this_machine() -> None:
    exports = list(Path(sys.prefix, "share").rglob("*Export.cmake"))
    if not exports:
        pytest.skip("ROS 2 is not installed from wheels here")
    foreign = [path for path in exports if "/opt/python/" in path.read_text()]
    assert not foreign
