"""Console output of the first process only."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_only


def is_first_process() -> bool:
    """Whether this is the process (rank 0) that prints."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


@rank_zero_only
def say(text: str) -> None:
    """Print, only in the first process."""
    print(text)
