"""Gradients summed over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from stepalign.support.parallel import processes

LARGEST_MESSAGE = 2**28
"""Numbers sent at once, 1 GiB of them; an adapter is one message."""


def sum_gradients(parameters: Sequence[Tensor | nn.Parameter]) -> None:
    """Replace each parameter's gradient, zeros where it has none, by the sum over all processes."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes().num_processes == 1:
        return
    for group in _messages(parameters):
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for gradient, part in zip(gradients, total.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _messages(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters in groups of at most LARGEST_MESSAGE numbers, or of one parameter."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for parameter in parameters:
        if groups[-1] and size + parameter.numel() > LARGEST_MESSAGE:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
