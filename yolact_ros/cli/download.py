"""`yolact download`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yolact_ros.engine import fetch_weights
from yolact_ros.network import PUBLISHED


def run(arguments: Sequence[str]) -> None:
    """Download published weights into the cache and print where they are."""
    parser = argparse.ArgumentParser(prog="yolact download", description=run.__doc__)
    parser.add_argument("name", nargs="+", metavar="NAME", help=", ".join(PUBLISHED))
    for name in parser.parse_args(arguments).name:
        print(fetch_weights(name))
