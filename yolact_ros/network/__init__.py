"""The network: configurations, backbones, pyramid, protonet, head, anchors, weight files."""

from yolact_ros.network.config import (
    CONFIGS,
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    config_of,
)
from yolact_ros.network.folding import fold_batch_norm
from yolact_ros.network.predictions import Predictions
from yolact_ros.network.weights import (
    WeightsError,
    config_of_file,
    load_network,
    load_weights,
    official_name,
    read_config,
    required_config,
    save_weights,
)
from yolact_ros.network.yolact import Yolact, build

__all__ = [
    "CONFIGS",
    "EMBEDDED",
    "PUBLISHED",
    "NetworkConfig",
    "Predictions",
    "WeightsError",
    "Yolact",
    "build",
    "config_of",
    "config_of_file",
    "fold_batch_norm",
    "load_network",
    "load_weights",
    "official_name",
    "read_config",
    "required_config",
    "save_weights",
]
