"""Ranges of settings."""

from __future__ import annotations

import math


def check_ranges(settings: object, **ranges: tuple[float, float]) -> None:
    """Raise ValueError for a field outside its range (low, high) or infinite; None is allowed."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and (not low <= value <= high or value == math.inf):
            allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ValueError(f"{name}={value} is not allowed: it must be {allowed}")
