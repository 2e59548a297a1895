"""`yolact download`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yolact_ros.engine.download import DOWNLOADABLE, fetch_weights


def run(arguments: Sequence[str]) -> None:
    """Download published weights into the cache and print where they are."""
    parser = argparse.ArgumentParser(prog="yolact download", description=run.__doc__)
    parser.add_argument("name", nargs="+", metavar="NAME", help=", ".join(DOWNLOADABLE))
    for name in parser.parse_args(arguments).name:
        print(fetch_weights(name))
