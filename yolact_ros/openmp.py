"""Configures how PyTorch's OpenMP threads on a CPU wait for each other."""

from __future__ import annotations

import os

SPINS = 4000
"""Loop iterations, some tens of microseconds: enough between two layers on an idle processor."""


def wait_briefly() -> None:
    """Let waiting threads yield their core soon.

    GNU's libgomp spins 300,000 times, some milliseconds, before a thread sleeps. If other programs
    keep the cores busy, it may be waiting for a thread that needs this very core: a network of a
    hundred layers then sometimes takes seconds. GOMP_SPINCOUNT or OMP_WAIT_POLICY in the
    environment take precedence. Call this before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
