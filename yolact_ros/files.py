"""Atomic file writes, and checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 18


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on exit, that file atomically replaces `path`.

    If anything fails, for example on a full disk, the temporary file is removed and `path` keeps
    its content. Raises OSError, naming `path`, if it cannot be written.
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
        os.fsync(file.fileno())  # on power loss, no final name without the content
    part.replace(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
