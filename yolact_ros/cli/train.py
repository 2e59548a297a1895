"""`yolact train`."""

from __future__ import annotations

import argparse
import itertools
import logging
import signal
import warnings
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.utilities.exceptions import SIGTERMException

from yolact_ros.training.settings import TrainingSettings
from yolact_ros.training.train import train


def run(arguments: Sequence[str]) -> None:
    """Train with the settings of a YAML file and the command line."""
    settings, resume = read_settings(arguments)
    _quiet_lightning()
    try:
        weights = train(settings, resume)
    except SIGTERMException as error:  # a SystemExit without status: for job queues a success
        raise SystemExit(128 + signal.SIGTERM) from error
    print(f"weights: {weights}")


def _quiet_lightning() -> None:
    """Silence Lightning's tips, and its warnings about what is intended here."""
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # frozen batch norm
        "You're resuming from a checkpoint that ended before",  # our data order resumes anywhere
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())


def read_settings(arguments: Sequence[str]) -> tuple[TrainingSettings, bool]:
    """Return the settings, and whether to resume. Options override the file of --config."""
    # A setting's help is the docstring below it.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="yolact train",
        description="Train a network on COCO-format data. See docs/training.md.",
    )
    parser.add_argument("--config", action="config", help="YAML file with the settings below")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_class_arguments(TrainingSettings)
    words = _file_first(_spelled_out(arguments))
    values = vars(parser.instantiate(parser.parse_args(words)))
    values.pop("config")
    resume = values.pop("resume")
    return TrainingSettings(**values), resume


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """Rewrite options for the parser: `--skip-bad` alone is `--skip_bad=true`, and
    `--train=a.json`, or `--train a.json`, is `--train=[a.json]`."""
    known = fields(TrainingSettings)
    flags = {f"--{field.name}" for field in known if isinstance(field.default, bool)}
    lists = {f"--{field.name}" for field in known if str(field.type).startswith("tuple")}
    spelled: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument, "", ""
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = "--" + name[2:].replace("-", "_")
        if name in lists and any(each.partition("=")[0] == name for each in spelled):
            raise ValueError(f"{name} is given twice: name all in one, {name}=[FILE, FILE]")
        if name in flags and not equals and following not in ("true", "false"):
            equals, value = "=", "true"
        if name in lists and equals and not value.startswith("["):
            value = f"[{value}]"
        if spelled and spelled[-1] in lists and not name.startswith(("[", "--")):
            name = f"[{name}]"
        spelled.append(f"{name}{equals}{value}")
    return spelled


def _file_first(arguments: Sequence[str]) -> list[str]:
    """Move --config files to the front: for the parser, later arguments win."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    files, others = parser.parse_known_args(arguments)
    return [*(f"--config={path}" for path in files.config), *others]
