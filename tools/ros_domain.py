"""Finds a ROS domain that is free on this machine."""

from __future__ import annotations

import os
import socket

from pythons import SetupError


def free_domain() -> int:
    """Find a ROS domain that no process on this machine uses; concurrent callers get others.

    The ports of DDS domain d begin at 7400 + 250 d; 10 above that, the first participant listens.
    Domains above 101 would reach into the ports that Linux hands out.
    """
    for domain in ((os.getpid() + i) % 101 + 1 for i in range(101)):
        first = 7400 + 250 * domain
        if all(_is_free(port) for port in (first, first + 10, first + 11)):
            return domain
    raise SetupError("all ROS domains from 1 to 101 are in use on this machine")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
