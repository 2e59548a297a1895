"""The network of a run and the weights that it starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from yolact_ros.engine.download import weights_file
from yolact_ros.network import (
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    WeightsError,
    Yolact,
    build,
    config_of,
    config_of_file,
    load_weights,
)
from yolact_ros.network.pretrained import is_of_backbone, load_backbone, load_imagenet
from yolact_ros.network.weights import read_state
from yolact_ros.training.console import say
from yolact_ros.training.settings import TrainingSettings


def network_config(settings: TrainingSettings) -> NetworkConfig:
    """Return the configuration of the network to train; its classes come from the data.

    Raises ValueError for an invalid network setting.
    """
    if "class_names" in settings.network:
        raise ValueError("network has class_names: name the classes in `classes`")
    return NetworkConfig.from_dict(config_of(settings.model).to_dict() | settings.network)


def make_network(settings: TrainingSettings, classes: tuple[str, ...]) -> Yolact:
    """Build the network for `classes`, with random weights."""
    net = build(network_config(settings).replace(class_names=classes))
    return net.to(memory_format=torch.channels_last)


def start_file(settings: TrainingSettings) -> Path | None:
    """Return the weights file to start from, if any. Raises WeightsError if it does not exist."""
    if settings.start in ("imagenet", "nothing"):
        return None
    path = weights_file(settings.start)
    if not path.is_file():
        raise WeightsError(
            f"start={settings.start!r} is not allowed: it must be imagenet, nothing, a weights "
            f"file, or one of {', '.join((EMBEDDED.name, *PUBLISHED))}"
        )
    return path


def load_start(net: Yolact, settings: TrainingSettings, path: Path | None) -> None:
    """Load the initial weights of `net`: those of the file `path`, if any, or ImageNet's.

    Raises WeightsError for a weights file that cannot be used.
    """
    if path is not None:
        start_from(net, path, config_of(settings.model))
    elif settings.start == "imagenet":
        load_imagenet(net)


def _unlike(a: NetworkConfig, b: NetworkConfig) -> tuple[str, ...]:
    """Return the beginnings of the names of outputs that differ between two networks.

    Shapes alone do not tell: 4 anchors of 2 logits have as many channels as 2 of 4.
    """
    names: tuple[str, ...] = ()
    if a.anchors_per_cell != b.anchors_per_cell:
        names += ("head.classes.", "head.boxes.", "head.coefficients.")
    if a.num_classes != b.num_classes:
        names += ("head.classes.",)
    return names


def start_from(net: Yolact, path: Path, config: NetworkConfig) -> None:
    """Load the weights of a network of the same kind, or of its backbone alone, into `net`.

    `config` is used if the file does not say which model it is for. Layers of another shape, and
    those for other numbers of classes or anchors, stay as they are.
    """
    found = read_state(path)
    if is_of_backbone(found):
        return load_backbone(net, found, str(path))
    donor = build(config_of_file(path) or config)
    load_weights(donor, found, str(path))
    state, own = donor.state_dict(), net.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own
        and value.shape == own[name].shape
        and not name.startswith(_unlike(donor.config, net.config))
    }
    left_out = [name for name in own if name not in fitting]
    if left_out:
        say(
            f"{path} has no weights that fit {', '.join(left_out)}: these are initialised at random"
        )
    net.load_state_dict(fitting, strict=False)
