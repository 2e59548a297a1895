"""Names of what commands write, so that nothing overwrites anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def choose_targets(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """What the results of each file are called in `folder`, but for their endings.

    Raises ValueError where one would overwrite another, or a file itself.
    """
    targets = {file: folder / file.stem for file in files}
    owners: dict[Path, Path] = {}
    for file, target in targets.items():
        if target in owners:
            raise ValueError(
                f"{owners[target]} and {file} would both be written to {target}.json: "
                "segment them one after the other, with another --output"
            )
        owners[target] = file
        if target.absolute() == file.with_suffix("").absolute():
            raise ValueError(
                f"--output {folder} is the folder of {file} itself, which could be overwritten"
            )
    return targets


def short_names(files: Sequence[Path]) -> list[str]:
    """A name for each of some files: as many of the last parts of its path as tell them apart."""
    paths = [file.absolute().with_suffix("").parts for file in files]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        names = ["-".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a file is named twice: {', '.join(map(str, files))}")
