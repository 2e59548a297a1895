"""Input files of commands, and output names that do not overwrite each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_IMAGES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
_VIDEOS |= {".3gp", ".flv", ".m2ts", ".mts", ".ogv", ".ts"}


def find_files(path: Path) -> list[Path]:
    """Return a file itself, or the images and videos in a folder.

    Raises ValueError if there is nothing to segment.
    """
    return _find(path, _IMAGES | _VIDEOS, "image or video")


def find_images(path: Path) -> list[Path]:
    """Return a file itself, or the images in a folder. Raises ValueError if there are none."""
    return _find(path, _IMAGES, "image")


def _find(path: Path, kinds: frozenset[str], what: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist")
    found = (file for file in path.iterdir() if file.suffix.lower() in kinds)
    files = sorted(found, key=_in_order)
    if not files:
        raise ValueError(f"the folder {path} has no {what} in it")
    return files


def _in_order(file: Path) -> list[tuple[int, str]]:
    """Sort key that orders numbers in names by value: frame 2 comes before frame 10."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def is_video(file: Path) -> bool:
    """Whether a file is a video, by its name."""
    return file.suffix.lower() in _VIDEOS


def choose_targets(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Choose the path of each file's results in `folder`, without suffix.

    Raises ValueError if one would overwrite another or an input file.
    """
    targets = {file: folder / file.stem for file in files}
    owners: dict[tuple[Path, bool], Path] = {}
    for file, target in targets.items():
        other = owners.setdefault((target, is_video(file)), file)
        if other != file:
            raise ValueError(
                f"the results of {other} and {file} would both be called {target}: "
                "segment them one after the other, with another --output"
            )
        check_output(folder, file)
    return targets


def check_output(folder: Path, file: Path) -> None:
    """Raise ValueError if results in `folder` could overwrite an input file or what it links to."""
    if folder.resolve() in (file.parent.resolve(), file.resolve().parent):
        raise ValueError(
            f"--output {folder} is the folder of {file} itself, which could be overwritten"
        )


def short_names(files: Sequence[Path]) -> list[str]:
    """Name files by as many trailing path components as are needed to tell them apart.

    Repeated files are numbered.
    """
    paths = [file.absolute().with_suffix("") for file in files]
    parts = [path.relative_to(path.anchor).parts for path in paths]
    different, names = len(set(parts)), list[str]()
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(each[-depth:]) for each in parts]
        if len(set(names)) == different:
            break
    counts = {name: names.count(name) for name in names}
    return [
        name if counts[name] == 1 else f"{name}-{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]
