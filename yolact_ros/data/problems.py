"""What is wrong with a data set, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

# Maximum number of problems, and of entries with the same problem, in a message.
_SHOWN, _NAMED = 20, 5


class DataError(ValueError):
    """A data set that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Problem:
    """One problem of one or several entries."""

    file: Path
    """The annotation file."""
    kind: str
    """Kind of the entries: `image`, `category` or `annotation`."""
    names: tuple[str, ...]
    """Their ids, or `no. 3`, the position in the file."""
    reason: str

    @property
    def where(self) -> str:
        """The entries, such as `annotation 3, 17, 21, 30, 31 and 40 more`."""
        others = len(self.names) - _NAMED
        more = f" and {others} more" if others > 0 else ""
        return f"{self.kind} {', '.join(self.names[:_NAMED])}{more}"

    def __str__(self) -> str:
        return f"{self.file}: {self.where}: {self.reason}"


def sift(
    file: Path, kind: str, entries: Sequence[Any], reasons: Iterable[str | None]
) -> tuple[list[Any], list[Problem]]:
    """Return the good entries, and the problems of those with a reason."""
    good, problems = [], []
    singular = {"categories": "category"}.get(kind, kind[:-1])
    for number, (entry, reason) in enumerate(zip(entries, reasons, strict=True), start=1):
        if reason is None:
            good.append(entry)
        else:
            named = isinstance(entry, dict) and "id" in entry
            name = short(entry["id"]) if named else f"no. {number}"
            problems.append(Problem(file, singular, (name,), reason))
    return good, problems


def gather(problems: Iterable[Problem]) -> list[Problem]:
    """Merge problems with the same kind of entry and reason, in order."""
    alike: dict[tuple[Path, str, str], list[str]] = {}
    for problem in problems:
        alike.setdefault((problem.file, problem.kind, problem.reason), []).extend(problem.names)
    return [
        Problem(file, kind, tuple(names), reason) for (file, kind, reason), names in alike.items()
    ]


def refuse(problems: Sequence[Problem]) -> None:
    """Raise DataError with the first problems, if there are any."""
    if problems:
        gathered = gather(problems)
        lines = [str(problem) for problem in gathered[:_SHOWN]]
        if len(gathered) > _SHOWN:
            lines.append(f"... and {len(gathered) - _SHOWN} more")
        raise DataError("the data set has errors:\n" + "\n".join(lines))
