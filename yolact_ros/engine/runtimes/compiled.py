"""PyTorch compiled ahead of time (AOTInductor): a package that starts without tracing anything.

A package holds machine code, which runs when it is loaded: load those alone whose origin you trust.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from yolact_ros.engine.runtimes.files import check_file, check_precision, unreadable
from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.runtime import Runtime, runtime_of_graph
from yolact_ros.network import WeightsError

_ENTRY = "extra/yolact_ros.json"  # below the folder that all entries of a package are in
_INSTRUCTIONS = "instructions"


def save(program: ExportedProgram, header: Header, path: Path) -> None:
    """Compile for this processor and write the package `path`, which ends in .pt2.

    Raises ValueError where there is no C++ compiler.
    """
    options = {
        "freezing": True,  # weights in the order that the convolutions want
        "cpp.dynamic_threads": True,  # the other machine may have more cores
    }
    try:
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
    except Exception as error:
        if type(error).__name__ != "InvalidCxxCompiler":
            raise
        raise ValueError(
            f"{path} cannot be made: no C++ compiler was found (g++, or what CXX names)"
        ) from error
    values = header.to_metadata() | {_INSTRUCTIONS: torch.backends.cpu.get_cpu_capability()}
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{_ENTRY}", json.dumps(values))


def read(path: Path, precision: str = "auto") -> Runtime:
    """Load a package of `save`: runs the machine code inside. Raises WeightsError or ValueError."""
    check_file(path)
    check_precision(precision, ("float32",), "a compiled package")
    values = _metadata(path)
    header = Header.from_metadata(values, path)
    here = torch.backends.cpu.get_cpu_capability()
    if values.get(_INSTRUCTIONS) != here:
        raise WeightsError(
            f"{path} was compiled for processors with {values.get(_INSTRUCTIONS)}, this one has "
            f"{here}: export it on this machine"
        )
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise unreadable(path, "compiled package", error) from error

    def run(images: Tensor) -> list[Tensor]:
        return list(package(images.contiguous(memory_format=torch.channels_last)))

    return runtime_of_graph("compiled", header, run)


def _metadata(path: Path) -> dict[str, str]:
    """What `save` has added to the package; nothing of it runs."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/{_ENTRY}")]
            content = json.loads(archive.read(entries[0])) if entries else {}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise unreadable(path, "compiled package", error) from error
    return content if isinstance(content, dict) else {}
