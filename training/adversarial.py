"""The adversarial game of Nah et al. 2017, section 3.3, equation 7."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.optimisers import average_gradients
from vs_deblur_models.mscnn import MscnnDiscriminator


class Adversary:
    """The discriminator and its own updates, which alternate with the network's.

    Args:
        weight: of the adversarial term in the network's loss (1e-4 in the paper).
        device: where it lives.
    """

    def __init__(self, weight: float, device: torch.device) -> None:
        self.weight = weight
        self.discriminator = MscnnDiscriminator().to(device)
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=0.0)

    def term(self, predicted: Tensor) -> Tensor:
        """What the network's loss gains: small when its pictures pass for sharp ones.

        In the form that does not saturate, ``-log D(G(B))`` (Goodfellow et al. 2014): the paper's
        ``log(1 - D(G(B)))`` has no slope while the discriminator wins, as it does at first.

        Args:
            predicted: (B, 3, H, W) of at least 256x256 pixels, full size only.
        """
        logits = self.discriminator.logits(predicted)
        return self.weight * F.softplus(-logits).mean()

    def update(self, predicted: Tensor, sharp: Tensor, rate: float, world: int = 1) -> float:
        """One step of the discriminator on pictures (B, 3, H, W); returns its loss.

        Args:
            predicted, sharp: of at least 256x256 pixels.
            rate: learning rate, the network's own at this step.
            world: processes, each with pictures of its own, that agree on the gradient.
        """
        logits = self.discriminator.logits(torch.cat((predicted.detach(), sharp)))
        fake, real = logits.chunk(2)
        loss = F.softplus(fake).mean() + F.softplus(-real).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if world > 1:
            average_gradients(self.discriminator, world)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.discriminator.load_state_dict(kept["discriminator"])
        self.optimiser.load_state_dict(kept["optimiser"])
