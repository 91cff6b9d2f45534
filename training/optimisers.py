"""Optimisers: Adam, and Muon for the kernels inside a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Adam, Optimizer

from vs_deblur.errors import UsageError


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between 0.7 and 1.2.

    Newton-Schulz iteration with the quintic of Jordan et al., "Muon: An optimizer for hidden
    layers in neural networks", 2024. In the precision of the input: bfloat16, which
    ``torch.optim.Muon`` uses, is fifteen times slower on processors without it.

    Args:
        matrix: (rows, columns) of any scale.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.T
    return result


class Muon(Optimizer):
    """Momentum whose update is orthogonalised, for kernels (out, in, height, width).

    The update is scaled to the root mean square that Adam's has (Liu et al., "Muon is scalable
    for LLM training", 2025, equation 4), so that learning rates mean the same for both.

    Args:
        parameters: of four dimensions each.
        lr: learning rate.
        momentum: decay of the (Nesterov) momentum.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"]).flatten(1)
                scale = 0.2 * math.sqrt(max(ahead.shape))
                update = orthogonalised(ahead).reshape(p.shape)
                p.sub_(update, alpha=group["lr"] * scale)


def average_gradients(network: nn.Module, world: int) -> None:
    """Give all processes the mean of their gradients, in one message: many small ones cost more."""
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for grad, mean in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


class Optimisers:
    """The optimiser of a run: Adam, or Muon for inner kernels with Adam for the rest.

    Args:
        network: what to train.
        name: "adam" or "muon".
        outer: names of the layers that stay with Adam: the first and the last ones, whose
            inputs or outputs are pixels.

    Raises:
        UsageError: a name that no layer has, or no name at all where Muon is asked for.
    """

    def __init__(self, network: nn.Module, name: str, outer: tuple[str, ...] = ()) -> None:
        layers = {path.split(".")[0] for path, _ in network.named_parameters()}
        if name == "muon" and (not outer or not set(outer) <= layers):
            raise UsageError(f"outer must name layers of {', '.join(sorted(layers))}")
        inner: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for path, p in network.named_parameters():
            muon = name == "muon" and p.ndim == 4 and path.split(".")[0] not in outer
            (inner if muon else rest).append(p)
        self.parts: list[Optimizer] = [Adam(rest, lr=0.0, betas=(0.9, 0.99), fused=True)]
        if inner:
            self.parts.append(Muon(inner, lr=0.0))

    def step(self, rate: float) -> None:
        """One update at a learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, kept: list[dict[str, Any]]) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: it is another optimiser's.
        """
        if not isinstance(kept, list) or len(kept) != len(self.parts):
            raise UsageError("the checkpoint is of another optimiser")
        for part, state in zip(self.parts, kept, strict=True):
            part.load_state_dict(state)
