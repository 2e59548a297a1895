"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from yolact_ros.training.settings import ScheduleSettings


def make_optimizer(
    parameters: Sequence[nn.Parameter], schedule: ScheduleSettings
) -> torch.optim.Optimizer:
    """Make the optimiser, with the learning rate after the warm-up."""
    rate, decay = schedule.scaled_learning_rate, schedule.weight_decay
    if schedule.optimizer == "adamw":
        betas = (schedule.momentum, 0.999)
        return torch.optim.AdamW(parameters, rate, betas=betas, weight_decay=decay)
    return torch.optim.SGD(parameters, rate, schedule.momentum, weight_decay=decay)


def learning_rate_factor(schedule: ScheduleSettings) -> Callable[[int], float]:
    """Return a function from the iteration to the fraction of the full learning rate."""
    total, warmup = schedule.total_iterations, schedule.warmup_iterations
    low = schedule.warmup_learning_rate / schedule.scaled_learning_rate
    steps = [int(round(step * schedule.iterations) / schedule.scale) for step in schedule.steps]

    def factor(iteration: int) -> float:
        if iteration < warmup:
            return low + (1 - low) * iteration / warmup
        if schedule.shape == "cosine":
            done = (iteration - warmup) / max(1, total - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 0.1 ** sum(iteration >= step for step in steps)

    return factor
