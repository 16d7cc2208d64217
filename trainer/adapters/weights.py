"""What one adapted module is, as plain tensors: what files hold, with the formulas of what they do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoraWeights:
    """One adapted module: y = W x + (alpha / rank) · up(down(x)).

    ``down`` is (rank, in) or (rank, in, k, k), ``up`` (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def within(self, rank: int) -> tuple[LoraWeights, float, float]:
        """The same effect with at most ``rank``, as nearly as that can be (Eckart & Young 1936).

        Returns (weights, lost, whole): what is lost of its squared Frobenius norm, and that norm.
        """
        # The SVD of up · down by way of the small matrix between two orthonormal bases.
        q_up, r_up = torch.linalg.qr(self.up.flatten(1).float() * self.scale)
        q_down, r_down = torch.linalg.qr(self.down.flatten(1).float().T)
        u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        whole = float(s.square().sum())
        if rank >= self.rank:
            return self, 0.0, whole
        root = s[:rank].sqrt()
        kept = len(root)  # fewer than ``rank`` in a layer that is narrower than it
        up = (q_up @ u[:, :kept] * root).reshape(-1, kept, *self.up.shape[2:])
        down = (root[:, None] * (v[:kept] @ q_down.T)).reshape(kept, *self.down.shape[1:])
        return LoraWeights(down, up, float(kept)), float(s[rank:].square().sum()), whole
