"""How PyTorch's threads on a CPU wait for each other."""

from __future__ import annotations

import os

SPINS = 4000
"""Turns of a loop, some tens of microseconds: enough between two layers on an idle processor."""


def wait_briefly() -> None:
    """Let a thread that waits for others give its core away soon.

    GNU's libgomp spins 300,000 times, some milliseconds, before a thread sleeps. Where other
    programs keep the cores busy, what it waits for may be a thread that waits for this very core:
    a network of a hundred layers then takes seconds at times. A choice that is in the environment
    already, GOMP_SPINCOUNT or OMP_WAIT_POLICY, stays. Call this before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
