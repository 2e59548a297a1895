"""Files that appear whole or not at all, and checksums of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 18


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, that file replaces `path` in one step.

    If anything fails, for example on a full disk, the temporary file is removed and what was at
    `path` stays. Raises OSError, which names `path`, if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        move_into_place(part, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def move_into_place(part: Path, path: Path) -> None:
    """Give the complete file `part` its final name. Raises OSError."""
    with part.open("rb") as file:
        os.fsync(file.fileno())  # machines lose power: no final name before the content
    part.replace(path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
