"""PyTorch's compiler, TorchInductor: it fuses what stands between the convolutions.

What it makes belongs to this process; `compiled` has packages that need no compiler to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from yolact_ros.engine.runtimes.files import check_compiler
from yolact_ros.engine.runtimes.header import Detected
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.engine.runtimes.tracing import trace
from yolact_ros.network import Predictions, Yolact


def compile_network(plain: Runtime) -> Runtime:
    """A network that runs on PyTorch, compiled for each batch size when it first comes.

    That takes a minute or so a size: warm up. Raises MissingExtraError where there is no compiler.
    """
    net, header = plain.run, plain.header
    assert isinstance(net, Yolact)
    check_compiler("the backend inductor", plain.device)
    program = trace(net, header)
    by_batch_size: dict[int, Callable[[Tensor], Sequence[Tensor]]] = {}

    def run(images: Tensor) -> Predictions | Detected:
        # A module of its own for each size: PyTorch gives up on one that it compiled too often.
        size = len(images)
        if size not in by_batch_size:
            module = program.module()
            by_batch_size[size] = torch.compile(module, dynamic=False)
        return header.read_outputs(by_batch_size[size](images))

    return replace(plain, name="inductor", run=run)
