"""[noise]: the noise that is mixed in, how much of it, and what the base is told of it."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting


class NoiseSettings(Section):
    """How pictures are made noisy. What is random is each picture's own: the same alone and in a batch."""

    timesteps: Literal["auto", "uniform", "logit_normal", "sigmoid", "mode", "shift", "flux_shift"] = setting(
        "auto", label="Noise levels"
    )
    """How often each noise level is trained. "auto" is the family's own: uniform for Stable Diffusion 1.5 to
    SDXL, mostly the middle, shifted as the base is sampled, for flow models. "logit_normal" (SD3), "sigmoid"
    and "mode" train the middle levels most; "shift" is "sigmoid" moved towards noise (good for a subject's
    shape), and "flux_shift" moves it further for larger pictures. The last two are for flow models."""
    shift: float | None = setting(None, label="Shift", gt=0, le=100)
    """Moves the noise levels of a flow model: above 1 towards noise and composition, below 1 towards detail.
    Empty is the family's own with "auto", 3 with "shift", and none otherwise; "flux_shift" has its own."""
    sigmoid_scale: float = setting(1.0, label="Sigmoid scale", gt=0, le=10)
    """Width of "sigmoid", "shift" and "flux_shift": below 1 nearer to the middle, above 1 to the ends."""
    logit_mean: float = setting(0.0, label="Logit mean", ge=-5, le=5)
    """Centre of "logit_normal": above 0 is more noise, below 0 more detail."""
    logit_std: float = setting(1.0, label="Logit width", gt=0, le=10)
    """Width of "logit_normal"; 1 is usual."""
    t_min: float = setting(0.0, label="Least noise", ge=0, lt=1)
    """Lower end of the noise levels that are trained, from 0 (clean) to 1: kohya's min_timestep / 1000.
    0.2 to 0.4 leaves fine detail to the base. The chosen distribution is stretched over the range."""
    t_max: float = setting(1.0, label="Most noise", gt=0, le=1)
    """Upper end: kohya's max_timestep / 1000. Below 1 leaves the composition to the base, as styles may."""
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = setting("none", label="Flow weighting")
    """For flow models, what an error counts at noise level s: "none" the same everywhere, "sigma_sqrt" 1/s²,
    "cosmap" 2/(π(1 - 2s + 2s²)). The last two were made for kohya_flow, as in kohya's and diffusers' scripts
    for SD3; there "sigma_sqrt" is plain velocity again."""
    kohya_flow: bool = setting(False, label="SD3 loss as kohya's")
    """Off: the plain error of the velocity, as in SD3's paper, ai-toolkit and SimpleTuner. On: the error of
    the picture that follows from it, as kohya's and diffusers' SD3 scripts have it: the velocity's × s, so
    that a squared error counts s² and detail is learnt less. kohya's FLUX script by default
    ("sigma_scaled") compares such a picture with a velocity; that is a trap of its own, not offered."""
    prediction: Literal["auto", "epsilon", "v_prediction"] = setting("auto", label="Prediction")
    """What a Stable Diffusion base was trained to predict. "auto" reads it from the base; a single file of a
    v-prediction model often does not say so, and then gives washed-out or burnt samples: set v_prediction."""
    zero_terminal_snr: Literal["auto", "on", "off"] = setting("auto", label="Zero terminal SNR")
    """Whether the last timestep is nothing but noise (Lin et al. 2023), in training and in samples. "auto"
    reads it from the base. NoobAI's v-prediction models and their descendants want it on."""
    offset: float = setting(0.0, label="Noise offset", ge=0, le=1)
    """Shifts each channel of the noise as a whole, so that very dark and very bright pictures can be learnt
    by bases that predict noise. 0.03 to 0.1 is usual; 0 switches it off."""
    offset_random: bool = setting(False, label="Random offset")
    """The strength of the offset is drawn between 0 and noise.offset for each picture."""
    offset_adaptive: float = setting(0.0, label="Adaptive offset", ge=-10, le=10)
    """Adds this × the mean of the latent's channel (without its sign) to the offset; 0 switches it off."""
    multires_iterations: int = setting(0, label="Multires noise", ge=0, le=16)
    """Adds coarser and coarser noise this many times ("pyramid noise"), for the same end as the offset.
    6 to 10 is usual; 0 switches it off. The sum is scaled back to strength 1 for each picture by itself,
    while kohya scales a whole batch."""
    multires_discount: float = setting(0.3, label="Multires discount", ge=0, le=1)
    """How much each coarser layer counts of the one before; 0.1 to 0.3 with full-size bases."""
    input_perturbation: float = setting(0.0, label="Input perturbation", ge=0, le=1)
    """More noise in what the denoiser sees, but not in what it has to predict (Ning et al. 2023; kohya's
    ip_noise_gamma). 0.05 to 0.1 is usual and makes for smoother LoRAs; 0 switches it off."""
