"""What one adapted module is, as plain tensors: what files hold, with the formulas of what they do.

Every class has ``tensors``: its tensors under the endings that loaders look for. Shapes are those of a layer
with weight W, (out, in) or (out, in, k, k); ΔW is what is added to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoraWeights:
    """y = W x + (alpha / rank) · up(down(x)); Hu et al. 2021.

    ``down`` is (rank, in) or (rank, in, k, k), ``up`` (out, rank) or (out, rank, 1, 1). With a ``magnitude``,
    (in,), it is a DoRA: the columns of W + ΔW are scaled to these norms (Liu et al. 2024).
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """ΔW, without the magnitude."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return self.scale * product.reshape(len(self.up), *self.down.shape[1:])

    def applied(self, weight: Tensor) -> Tensor:
        """What the layer's weight becomes."""
        changed = weight + self.delta().reshape(weight.shape)
        return changed if self.magnitude is None else changed * magnitudes(changed, self.magnitude)

    def tensors(self, down: str = "lora_down", up: str = "lora_up") -> dict[str, Tensor]:
        found = {
            f"{down}.weight": self.down,
            f"{up}.weight": self.up,
            "alpha": torch.tensor(self.alpha),
        }
        if self.magnitude is not None:
            # One number an input, (1, in) or (1, in, 1, 1): what A1111, Forge and ComfyUI normalise along.
            found["dora_scale"] = self.magnitude.reshape(1, -1, *[1] * (self.down.ndim - 2))
        return found

    def cut(self, rank: int) -> LoraWeights:
        """The first ``rank`` of the ranks, at the same scale: what a nested LoRA was trained at."""
        return replace(
            self, down=self.down[:rank], up=self.up[:, :rank].contiguous(), alpha=self.scale * rank
        )

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
        return replace(self, down=down, up=up, alpha=float(kept)), float(s[rank:].square().sum()), whole


def magnitudes(changed: Tensor, wanted: Tensor) -> Tensor:
    """What the columns of a changed weight are multiplied by to have the ``wanted`` norms, (in,);
    shaped to be multiplied with the weight."""
    norms = column_norms(changed)
    return (wanted / norms).reshape(1, -1, *[1] * (changed.ndim - 2))


def column_norms(weight: Tensor) -> Tensor:
    """The norm of what a layer does with each of its inputs, (in,)."""
    return weight.transpose(0, 1).flatten(1).norm(dim=1)


@dataclass(frozen=True)
class LohaWeights:
    """ΔW = (alpha / rank) · (w1_a w1_b) ⊙ (w2_a w2_b); Hyeon-Woo et al. 2022.

    w…_a are (out, rank), w…_b (rank, in · k · k).
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.w1_b.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """ΔW, (out, in · k · k)."""
        return self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)

    def applied(self, weight: Tensor) -> Tensor:
        return weight + self.delta().reshape(weight.shape)

    def tensors(self, down: str = "", up: str = "") -> dict[str, Tensor]:
        return {
            "hada_w1_a": self.w1_a,
            "hada_w1_b": self.w1_b,
            "hada_w2_a": self.w2_a,
            "hada_w2_b": self.w2_b,
            "alpha": torch.tensor(self.alpha),
        }


@dataclass(frozen=True)
class LokrWeights:
    """ΔW = (alpha / rank) · w1 ⊗ w2, each of the two whole or a product of two (Yeh et al. 2024).

    ``factors`` are by the endings of their names: w1 or w1_a and w1_b, w2 or w2_a and w2_b.
    """

    factors: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int | None:
        """None where both factors are whole: nothing is divided by it then."""
        return next((int(t.shape[0]) for name, t in self.factors.items() if name.endswith("_b")), None)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    def side(self, name: str) -> Tensor:
        """w1 or w2."""
        if name in self.factors:
            return self.factors[name]
        return self.factors[f"{name}_a"] @ self.factors[f"{name}_b"]

    def delta(self) -> Tensor:
        """ΔW; a convolution's has its kernel in the last two dimensions, or in the one of inputs."""
        w1, w2 = self.side("w1"), self.side("w2")
        return self.scale * torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2)

    def applied(self, weight: Tensor) -> Tensor:
        return weight + self.delta().reshape(weight.shape)

    def tensors(self, down: str = "", up: str = "") -> dict[str, Tensor]:
        factors = {f"lokr_{name}": tensor for name, tensor in self.factors.items()}
        return {**factors, "alpha": torch.tensor(self.alpha)}


UNBOUND = 1e4
"""The alpha of an OFT's file: loaders take it as the largest norm that the rotations may have."""


@dataclass(frozen=True)
class OftWeights:
    """y' = Rᵀ y for the output y = W x without its bias, block by block; R is a rotation (Qiu et al. 2023).

    ``blocks`` is (out / size, size, size): with Q = blocks - blocksᵀ, R = (I + Q)(I - Q)⁻¹.
    """

    blocks: Tensor
    alpha: float = field(default=UNBOUND)

    @property
    def rank(self) -> int:
        return int(self.blocks.shape[-1])

    def applied(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1).unflatten(0, self.blocks.shape[:2])
        turned = rows + torch.einsum("knm,kni->kmi", turn(self.blocks), rows)
        return turned.reshape(weight.shape)

    def tensors(self, down: str = "", up: str = "") -> dict[str, Tensor]:
        return {"oft_blocks": self.blocks, "alpha": torch.tensor(UNBOUND)}


def turn(blocks: Tensor) -> Tensor:
    """R - I for R = (I + Q)(I - Q)⁻¹, Q = blocks - blocksᵀ (Cayley); 2 Q (I - Q)⁻¹."""
    q = blocks - blocks.transpose(-1, -2)
    identity = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    return torch.linalg.solve(identity - q, 2 * q, left=False)


AdapterWeights = LoraWeights | LohaWeights | LokrWeights | OftWeights


def weights_of(tensors: dict[str, Tensor]) -> AdapterWeights:
    """One module's weights from its tensors as peft and checkpoints name them: ``lora_A.default``, ….

    A LoRA that began from the base's own directions (``lora_A.start``) is made to work on the unchanged base:
    what it has become minus what it began as, of twice the rank.
    """
    alpha = float(tensors["alpha"])
    own = {name.removesuffix(".default"): t for name, t in tensors.items() if name.endswith(".default")}
    if "lora_A" in own:
        lora = LoraWeights(own["lora_A"], own["lora_B"], alpha, own.get("lora_magnitude_vector"))
        if "lora_A.start" not in tensors:
            return lora
        down = torch.cat([lora.down, tensors["lora_A.start"]])
        up = torch.cat([lora.up, -tensors["lora_B.start"]], dim=1)
        return LoraWeights(down, up, 2 * alpha)
    if "hada_w1_a" in own:
        return LohaWeights(**{name.removeprefix("hada_"): t for name, t in own.items()}, alpha=alpha)
    if "oft_blocks" in own:
        return OftWeights(own["oft_blocks"])
    factors = {name.removeprefix("lokr_"): t for name, t in own.items()}
    return LokrWeights(factors, alpha)
