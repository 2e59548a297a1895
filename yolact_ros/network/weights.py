"""Weight files: official checkpoints (.pth) and our own (.safetensors), read without running code.

Our own files also hold the configuration, so a path is enough to build the network.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from yolact_ros.files import atomic_write
from yolact_ros.network.config import CONFIGS, PUBLISHED, NetworkConfig
from yolact_ros.network.yolact import Yolact

# Prefixes of our parameter names and the corresponding official ones.
_OFFICIAL_NAMES = (
    ("backbone.stem.", "backbone._preconv."),
    ("fpn.lateral.", "fpn.lat_layers."),
    ("fpn.output.", "fpn.pred_layers."),
    ("fpn.downsample.", "fpn.downsample_layers."),
    ("protonet.before.0.", "proto_net.0."),
    ("protonet.before.1.", "proto_net.2."),
    ("protonet.before.2.", "proto_net.4."),
    ("protonet.after.", "proto_net.8."),
    ("protonet.prototypes.", "proto_net.10."),
    ("head.shared.", "prediction_layers.0.upfeature.0."),
    ("head.boxes.", "prediction_layers.0.bbox_layer."),
    ("head.classes.", "prediction_layers.0.conf_layer."),
    ("head.coefficients.", "prediction_layers.0.mask_layer."),
    ("semantic.", "semantic_seg_conv."),
    *((f"mask_iou.convs.{i}.", f"maskiou_net.maskiou_net.{2 * i}.") for i in range(5)),
    ("mask_iou.classes.", "maskiou_net.maskiou_net.10."),
)
_FORMAT = "yolact_ros 1"
# Magic bytes of PyTorch's checkpoints: a zip archive, formerly a pickle.
_CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)


class WeightsError(ValueError):
    """A weight file that cannot be used; the message says why and what would fit."""


def official_name(name: str) -> str:
    """Map the name of one of our parameters or buffers to that in official checkpoints."""
    return _rename(name, dict(_OFFICIAL_NAMES)).replace(
        ".conv2.offsets.", ".conv2.conv_offset_mask."
    )


def own_name(name: str) -> str:
    """Inverse of `official_name`; keeps our own names."""
    return _rename(name, {official: own for own, official in _OFFICIAL_NAMES}).replace(
        ".conv2.conv_offset_mask.", ".conv2.offsets."
    )


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name[len(prefix) :]
    return name


def load_weights(
    net: Yolact, source: str | Path | Mapping[str, Tensor], where: str = "the state dict"
) -> None:
    """Fill `net` from a file or a state dict, with official names or our own.

    Nothing is changed unless everything fits. Raises WeightsError, which says what is missing,
    unexpected, of a wrong shape or not finite; `where` names a state dict in the message.
    """
    if isinstance(source, Mapping):
        state = _tensors_of(source, where)
    else:
        where = str(source)
        state = read_state(source)
    state = _without_quirks(state)
    config = net.config
    # Both may have been replaced by the caller.
    kind = f"backbone={config.backbone!r}, dcn_variant={config.dcn_variant!r}"
    what = f"the model {config.name} with {kind}"
    fill(net, state, where, what, partial(_hint, config, state))


def fill(
    part: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    what: str,
    hint: Callable[[], str] = lambda: "",
) -> None:
    """Copy the tensors of `state` into a network or a part of it, by name, if all fit.

    Raises WeightsError as `load_weights` does. The message names the file `where` and the network
    `what`, and ends with `hint()`.
    """
    own = part.state_dict()
    _check_fit(own, state, where, what, hint)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in state:
                tensor.copy_(state[name])


def load_network(path: str | Path, config: NetworkConfig | None = None) -> Yolact:
    """Load the network of a weights file, in evaluation mode.

    `config` None: taken from the file, which is one of our own, or from its official name. Raises
    WeightsError.
    """
    config = config or required_config(path)
    net = Yolact(config).eval()
    load_weights(net, path)
    return net


def save_weights(net: Yolact, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write `net` to a safetensors file with the configuration inside.

    `dtype` converts floating-point tensors, for example to torch.float16 for half the size. The
    write is atomic. Raises ValueError unless the file is called *.safetensors, OSError if it cannot
    be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not allowed: own weight files are called *.safetensors")
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in net.state_dict().items()
    }
    metadata = {"format": _FORMAT, "config": json.dumps(net.config.to_dict())}
    with atomic_write(path) as part:
        # Not save_file, whose files only their owner can read.
        part.write_bytes(safetensors.torch.save(tensors, metadata))


def read_config(path: str | Path) -> NetworkConfig:
    """Read the configuration inside one of our own files. Raises WeightsError if there is none."""
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} has no yolact_ros configuration inside (format {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}): name the model that its weights are for"
        )
    try:
        return NetworkConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has a bad configuration inside: {error}") from error


def config_of_file(path: str | Path) -> NetworkConfig | None:
    """Return a file's configuration, from its metadata or its official name, or None.

    Official checkpoints are called MODEL_EPOCH_ITERATION.pth. Raises WeightsError for a missing or
    broken file.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        return read_config(path)
    match = re.fullmatch(r"(\w+?)_\d+_\d+(_\w+)?", path.stem)
    return PUBLISHED.get(match.group(1)) if match else None


def required_config(path: str | Path) -> NetworkConfig:
    """Return a file's configuration. Raises WeightsError as `config_of_file`, and without one."""
    config = config_of_file(path)
    if config is not None:
        return config
    names = list(_without_quirks(read_state(path)))
    if not any(name.startswith("head.") for name in names):
        raise WeightsError(f"{path} holds no YOLACT network: its tensors are {_some(names)}")
    raise WeightsError(
        f"{path} does not say which model it is for: name the model too, one of "
        f"{', '.join(CONFIGS)}"
    )


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors or torch file by name, without running its code.

    Raises WeightsError for a missing, truncated, foreign or malicious file.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not the original text, which advises loading the file anyway.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "objects that would run code when loaded, or is damaged"
        raise WeightsError(
            f"{path} was refused: it is no plain checkpoint but holds {what}"
        ) from error
    except Exception as error:  # damaged files raise many kinds of errors
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint ({_first_line(error)})"
        ) from error
    return _tensors_of(content, path)


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a file")
    if not path.exists():
        names = "" if path.suffix else f"; published models are {', '.join(PUBLISHED)}"
        raise WeightsError(f"there is no weight file {path.absolute()}{names}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")
    try:
        _check_kind(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    return path


def _check_kind(path: Path) -> None:
    """Raise WeightsError if a file's name or first bytes show that it holds no weights."""
    # Files that training and export write next to the one that is meant.
    meant = {".ckpt": path.with_name("weights.safetensors"), ".bin": path.with_suffix(".xml")}
    if path.suffix in meant and meant[path.suffix].is_file():
        raise WeightsError(f"{path} is no weight file: give {meant[path.suffix]} beside it")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix != ".safetensors" and not start.startswith(_CHECKPOINT_STARTS):
        raise WeightsError(
            f"{path} is no weight file: these are .safetensors and PyTorch's checkpoints (.pth), "
            "and .onnx, .xml and .pt2 of an export"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _tensors_of(content: object, where: str | Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{where} holds a {type(content).__name__}, not named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{where} is not a state dict: its entry {name!r} is a {type(value).__name__}, "
                "not a tensor"
            )
        if value.dtype not in _DTYPES or value.layout != torch.strided or value.is_meta:
            raise WeightsError(
                f"{where} has a tensor {name!r} that is not of plain numbers: {value.dtype}, "
                f"{value.layout}, on {value.device}"
            )
    return dict(content)


def _without_quirks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename everything to our names, and drop leftovers of old releases."""
    result = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")  # saved from DataParallel
        if name.startswith("backbone.layer") and not name.startswith("backbone.layers"):
            continue  # the unused layers of a torchvision ResNet
        if re.match(r"fpn\.downsample(_layers)?\.[2-9]", name):
            continue  # version 1.0 had an extra pyramid level
        result[own_name(name)] = tensor
    return result


def _check_fit(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    where: str,
    what: str,
    hint: Callable[[], str],
) -> None:
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in own]
    wrong = [
        f"{n} {list(state[n].shape)} instead of {list(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of a wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{where} does not fit {what}: {'; '.join(problems)}.{hint()}")
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise WeightsError(f"{where} has values that are not finite in {_some(bad)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _hint(config: NetworkConfig, state: Mapping[str, Tensor]) -> str:
    """Return a hint: which published model the tensors fit, or for how many classes they are."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for other in PUBLISHED.values():
        with torch.device("meta"):
            wanted = Yolact(other).state_dict()
        if all(
            shapes.get(n) == t.shape for n, t in wanted.items() if not n.endswith("batches_tracked")
        ):
            return f" They are weights for {other.name} or a model of the same shapes."
    semantic = state.get("semantic.weight")
    if semantic is not None and semantic.ndim and semantic.shape[0] != config.num_classes:
        return f" They are for {semantic.shape[0]} classes, the model has {config.num_classes}."
    return ""
