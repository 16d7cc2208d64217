"""[loss]: what a training minimises."""

from __future__ import annotations

from .section import Section, setting


class LossSettings(Section):
    """How far the denoiser is from its target, and how much each sample counts."""

    min_snr_gamma: float = setting(0.0, label="Min-SNR gamma", ge=0, le=100)
    """Weighs down the nearly noise-free timesteps (Hang et al. 2023); 5 is usual, 0 switches it off."""
