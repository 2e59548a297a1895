"""Reasons why a machine cannot run what the parameters name, found without loading it."""

from __future__ import annotations

from pathlib import Path

from yolact_ros.engine import runtimes
from yolact_ros.engine.device import choose_device
from yolact_ros.engine.loading import RANDOM_WEIGHTS
from yolact_ros.engine.runtimes import EXPORTED
from yolact_ros.extras import MissingExtraError
from yolact_ros.network import CONFIGS, config_of
from yolact_ros.node.parameters import Parameters


def problems_of(parameters: Parameters) -> list[str]:
    """Return the reasons why this machine cannot run the model; empty if none is found."""
    found = []
    for check in (_check_runtime, _check_weights, _check_network):
        try:
            check(parameters)
        except (ValueError, MissingExtraError) as error:
            found.append(str(error))
    return found


def _check_runtime(parameters: Parameters) -> None:
    if Path(parameters.weights).suffix in EXPORTED:
        choose_device(parameters.device)
    else:
        runtimes.choose(parameters.backend, parameters.device, parameters.precision)


def _check_weights(parameters: Parameters) -> None:
    weights = parameters.weights
    if not weights or weights in (*CONFIGS, RANDOM_WEIGHTS):
        return
    try:
        path = Path(weights).expanduser().absolute()
        found, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # no permission for a folder, an unknown user ...
        raise ValueError(f"weights={weights!r} cannot be looked for: {error}") from error
    if not found:
        gone = f"{path} is a folder" if is_folder else f"there is no {path}"
        raise ValueError(
            f"weights={weights!r} is neither a file nor a model: {gone}; the models "
            f"are {', '.join(CONFIGS)}"
        )


def _check_network(parameters: Parameters) -> None:
    name = parameters.model or (parameters.weights if parameters.weights in CONFIGS else "")
    changes = {"backbone": parameters.backbone, "dcn_variant": parameters.dcn_variant}
    if name:
        config_of(name).replace(**{key: value for key, value in changes.items() if value})
