"""torch.compile with TorchInductor, which fuses the operators between the convolutions.

The compiled code exists only in this process; `compiled` has packages that run without a compiler.
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
from yolact_ros.engine.threads import TRACING
from yolact_ros.network import Predictions, Yolact
from yolact_ros.network.deformable import refuse_capture


def compile_network(plain: Runtime) -> Runtime:
    """Compile a network that runs on PyTorch, for each batch size on first use.

    That takes about a minute per size, so warm up. Raises MissingExtraError without a compiler.
    """
    net, header = plain.run, plain.header
    assert isinstance(net, Yolact)
    check_compiler("the backend inductor", plain.device)
    program = trace(net, header)
    by_batch_size: dict[int, Callable[[Tensor], Sequence[Tensor]]] = {}

    def run(images: Tensor) -> Predictions | Detected:
        # A separate module for each size: PyTorch stops recompiling a module after some times.
        size = len(images)
        if header.config.dcn_variant != "none":
            refuse_capture(images)
        if size in by_batch_size:
            return header.read_outputs(by_batch_size[size](images))
        with TRACING:
            by_batch_size[size] = torch.compile(program.module(), dynamic=False)
            return header.read_outputs(by_batch_size[size](images))

    return replace(plain, name="inductor", run=run)
