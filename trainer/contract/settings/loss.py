"""[loss]: what a training minimises."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting

MaskMode = Literal["off", "normalised", "kohya", "batch"]


class LossSettings(Section):
    """How far the denoiser is from its target, and how much each sample counts."""

    type: Literal["l2", "l1", "smooth_l1", "huber"] = setting("l2", label="Loss")
    """What an error costs. "l2" its square, as every base was trained; "l1" its size. "huber" and
    "smooth_l1" (kohya's pseudo-Huber forms) are like the square for small errors and like the size for large
    ones, so that odd pictures pull less: good for mixed or dirty photos."""
    huber_schedule: Literal["snr", "exponential", "constant"] = setting("snr", label="Huber schedule")
    """How the border between small and large errors falls from 1 at no noise to huber_c at full noise:
    "snr" by the signal-to-noise ratio, "exponential" by the timestep, or "constant". For flow models kohya
    has no "snr"; ours takes their own ratio, c = (1 - huber_c)(1 - s)² + huber_c at noise level s."""
    huber_c: float = setting(0.1, label="Huber c", gt=0, le=10)
    """The border at full noise; 0.1 is usual. Smaller is more like l1."""
    huber_scale: float = setting(1.0, label="Huber scale", gt=0, le=100)
    """Multiplies the border of "constant" and "exponential"; "snr" ignores it, as kohya's does."""
    min_snr_gamma: float = setting(0.0, label="Min-SNR gamma", ge=0, le=100)
    """Weighs down the nearly noise-free timesteps (Hang et al. 2023); 5 is usual, 0 switches it off."""
    debiased: bool = setting(False, label="Debiased")
    """Weighs timesteps by 1/√SNR (Yu et al. 2024), and by 1/(SNR + 1) for v-prediction: more for noise and
    composition, less for detail. For Stable Diffusion 1.5 to SDXL."""
    v_pred_like: float = setting(0.0, label="Like v-prediction", ge=0, le=1)
    """For bases that predict noise: adds this share of the loss as a v-prediction base would have it, which
    counts the noisiest timesteps up to 200 times. 0.001 to 0.01 is usual, 0 switches it off."""
    scale_v_like_noise: bool = setting(False, label="Scale v like noise")
    """For v-prediction bases: weighs timesteps by SNR/(SNR + 1), as if noise were predicted: more detail."""
    mask: MaskMode = setting("off", label="Masked loss")
    """Learn mostly what the masks of the photos show: what is white in pictures named cat-mask.png or
    masks/cat.png beside cat.jpg, or opaque in a transparent photo; "python -m dataset_tools mask" makes
    masks. "normalised" keeps the meaning of the learning rate however small the subject is (as OneTrainer's);
    "kohya" multiplies alone, so that small subjects learn slower; "batch" divides by the mean over the batch
    (as ai-toolkit's). Photos without a mask are learnt whole."""
    mask_floor: float = setting(0.1, label="Outside the mask", ge=0, le=1)
    """How much what lies outside of a mask counts. 0.1 keeps the surroundings sound without teaching them;
    at 0 they may become anything. kohya's trainer has 0."""
