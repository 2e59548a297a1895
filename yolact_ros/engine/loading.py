"""Resolves model names and weight files to a network that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolact_ros.engine import runtimes
from yolact_ros.engine.download import weights_file
from yolact_ros.engine.runtimes import EXPORTED, Runtime
from yolact_ros.engine.threads import TRACING, run_apart
from yolact_ros.network import (
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    WeightsError,
    build,
    config_of,
    load_network,
    required_config,
)

RANDOM_WEIGHTS = "random"


def load_runtime(
    model: str | NetworkConfig,
    weights: str | Path,
    changes: Mapping[str, str],
    *,
    device: str,
    precision: str,
    backend: str,
) -> tuple[Runtime, str]:
    """Return a network that is ready to run, and where it comes from, for display.

    `changes` replace fields of its configuration. The other arguments and the errors are those of
    `Segmenter`.
    """
    if Path(weights).suffix in EXPORTED:
        path = Path(weights).expanduser()
        _check_exported(path, {"model": model, **changes, "backend": backend})
        with TRACING:
            runtime = run_apart(lambda: runtimes.read(path, precision, device))
        return runtime, f"exported as {path.name}"
    runtimes.choose(backend, device, precision)  # reject bad values before any download
    config, file, origin = _resolve(model, weights)
    config = config.replace(**changes)
    backend, where = runtimes.choose(backend, device, precision, config.backbone)

    def make() -> Runtime:
        net = build(config) if file is None else load_network(file, config)
        return runtimes.run(net, backend, where, precision)

    with TRACING:
        return run_apart(make), origin


def _check_exported(path: Path, options: dict[str, object]) -> None:
    """Raise ValueError for options that an exported network determines itself."""
    for name, value in options.items():
        if value not in ("", "auto"):
            raise ValueError(
                f"{path} is exported already and has its own {name}: {name}={value!r} is not "
                "allowed"
            )


def _resolve(
    model: str | NetworkConfig, weights: str | Path
) -> tuple[NetworkConfig, Path | None, str]:
    """Return the configuration, the weight file (None: random) and a description of its origin."""
    if isinstance(model, NetworkConfig):
        config: NetworkConfig | None = model
    else:
        config = config_of(model) if model else None
    if not weights and config is not None and config.name in PUBLISHED:
        weights = config.name
    if not weights or str(weights) == EMBEDDED.name:
        if config is not None and config.name != EMBEDDED.name:
            raise WeightsError(
                f"the package has no weights for {config.name}: give a weight file, or "
                f"weights={RANDOM_WEIGHTS!r} for timing"
            )
        return config or EMBEDDED, weights_file(EMBEDDED.name), "embedded weights"
    if weights == RANDOM_WEIGHTS:
        return config or EMBEDDED, None, "random weights"
    if str(weights) in PUBLISHED:
        name = str(weights)
        return config or PUBLISHED[name], weights_file(name), f"published weights of {name}"
    path = weights_file(weights)
    return config or required_config(path), path, f"weights {path.name}"
