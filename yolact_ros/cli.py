"""The command `yolact`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status."""
    parser = argparse.ArgumentParser(prog="yolact", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train a network", add_help=False)
    known, rest = parser.parse_known_args(arguments)
    return {"train": _train}[known.command](rest)


def _train(arguments: Sequence[str]) -> int:
    try:
        from jsonargparse import ArgumentParser

        from yolact_ros.training.settings import TrainingSettings
        from yolact_ros.training.train import train
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing: pip install yolact_ros[train]", file=sys.stderr)
        return 1
    parser = ArgumentParser(prog="yolact train", description="Train a network.")
    parser.add_argument("--config", action="config", help="YAML file with the settings below")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_class_arguments(TrainingSettings)
    values = parser.instantiate_classes(parser.parse_args(list(arguments)))
    resume = values.pop("resume")
    values.pop("config")
    print(train(TrainingSettings(**vars(values)), resume))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
