"""kohya's noise levels of flow models: what each script draws where nothing is said, and what options change.

``timestep_sampling`` is the distribution; "sigma" is the scheduler's table, with ``weighting_scheme`` as the
density over it and ``discrete_flow_shift`` as the shift. SD3's script has ``weighting_scheme`` and
``training_shift`` alone, and compares estimates of the picture instead of velocities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..families import CATALOGUE
from ..settings.noise import NoiseSettings
from .report import Imported, Outcome


@dataclass(frozen=True)
class Flow:
    """A script's defaults. ``sampling`` "" is SD3's, which has no such option.

    ``own``: the options nearest to what the family is trained with here where a recipe says nothing.
    ``guided``: distilled bases are told a guidance while training, which should be 1.
    """

    sampling: str
    shift: float
    prediction: str
    own: Mapping[str, Any]
    guided: bool = False


_FLUX = {"timestep_sampling": "flux_shift"}
SCRIPTS = {
    "flux_train_network.py": Flow("sigma", 3.0, "sigma_scaled", _FLUX, guided=True),
    "sd3_train_network.py": Flow("", 1.0, "", {"weighting_scheme": "logit_normal", "training_shift": 3.0}),
    "lumina_train_network.py": Flow("shift", 6.0, "raw", {"timestep_sampling": "nextdit_shift"}),
    "hunyuan_image_train_network.py": Flow("sigma", 5.0, "raw", _FLUX),
}
_DENSITIES = {"uniform": "uniform", "none": "uniform", "logit_normal": "logit_normal", "mode": "mode"}
_OPTIONS = (
    "timestep_sampling",
    "weighting_scheme",
    "discrete_flow_shift",
    "training_shift",
    "model_prediction_type",
    "sigmoid_scale",
    "logit_mean",
    "logit_std",
    "mode_scale",
)


def flow_options(noise: NoiseSettings, flow: Flow) -> dict[str, Any]:
    """kohya's options for a recipe's noise levels; the inverse of :func:`take_flow`."""
    kind, shift = noise.timesteps, noise.shift or 1.0
    if kind == "auto":
        return dict(flow.own)
    options: dict[str, Any] = {}
    density = {"uniform": "uniform", "logit_normal": "logit_normal", "mode": "mode"}.get(kind, "")
    if kind == "uniform" and (noise.weighting != "none" or not (flow.sampling or noise.kohya_flow)):
        # On the picture's error 1/s² is the plain error of the velocity.
        density = noise.weighting if noise.weighting != "none" else "sigma_sqrt"
    if not flow.sampling:
        if not density:  # a sigmoid is a logit-normal whose width is the scale
            options = {"logit_std": noise.sigmoid_scale}
        options["weighting_scheme"] = density or "logit_normal"
        options["training_shift"] = noise.shift or (3.0 if kind in ("shift", "flux_shift") else 1.0)
    elif density:
        options = {"timestep_sampling": "sigma", "weighting_scheme": density, "discrete_flow_shift": shift}
    else:
        options = {"timestep_sampling": kind, "sigmoid_scale": noise.sigmoid_scale}
        if kind == "shift":
            options["discrete_flow_shift"] = noise.shift or 3.0
    if density == "logit_normal":
        options |= {"logit_mean": noise.logit_mean, "logit_std": noise.logit_std}
    return options


def take_flow(found: Imported, options: dict[str, Any]) -> None:
    """[noise] of a flow model."""
    given = {name: options.pop(name) for name in _OPTIONS if options.get(name) not in (None, "")}
    for name in _OPTIONS:
        options.pop(name, None)
    row = CATALOGUE[found.get("model.family")]
    flow = SCRIPTS.get(row.kohya[0]) if row.kohya else None
    if flow is None:
        for name, value in given.items():
            found.leave(name, value, f"only for flow models, which {row.label} is not")
        return
    if flow.sampling:
        _take_sampling(found, given, flow)
    else:
        _take_density(found, given, "kohya's default")
        why = "kohya's SD3 script compares estimates of the picture, which counts noise level s by s²"
        found.take("noise.kohya_flow", True, why, "default")
        if (shift := given.pop("training_shift", None)) is not None:
            found.keep("training_shift", shift, "noise.shift", shift)
    _take_prediction(found, given, flow)
    widths = {"sigmoid_scale": ("sigmoid", "shift", "flux_shift"), "logit_mean": ("logit_normal",)}
    widths["logit_std"] = widths["logit_mean"]
    drawn = found.get("noise.timesteps") if found.has("noise.timesteps") else ""
    for name, value in given.items():
        if drawn in widths.get(name, ()):
            found.keep(name, value, f"noise.{name}", value)
        elif name == "mode_scale" and drawn == "mode":
            found.miss(name, value, "the mode distribution has its usual scale, 1.29")
        else:
            found.leave(name, value, f"noise levels are drawn as {drawn or 'the family has it'} without it")


def _take_sampling(found: Imported, given: dict[str, Any], flow: Flow) -> None:
    sampling = str(given.get("timestep_sampling", flow.sampling))
    outcome: Outcome = "kept" if "timestep_sampling" in given else "default"
    shift = given.get("discrete_flow_shift", flow.shift)
    if sampling == "sigma":
        if outcome == "kept":
            found.leave("timestep_sampling", sampling, "the scheduler's levels, shifted: see below")
        _take_density(found, given, "kohya's default, \"sigma\": the scheduler's levels")
    elif sampling in ("uniform", "sigmoid", "shift", "flux_shift"):
        if outcome == "kept":
            found.keep("timestep_sampling", sampling, "noise.timesteps", sampling)
        else:
            found.take("noise.timesteps", sampling, "kohya's default", "default")
    else:
        found.miss("timestep_sampling", sampling, "the family's own distribution is taken")
    given.pop("timestep_sampling", None)
    if sampling in ("sigma", "shift"):
        if "discrete_flow_shift" in given:
            found.keep("discrete_flow_shift", given.pop("discrete_flow_shift"), "noise.shift", shift)
        else:
            found.take("noise.shift", shift, "kohya's default", "default")


def _take_density(found: Imported, given: dict[str, Any], why: str) -> None:
    scheme = given.pop("weighting_scheme", None)
    if scheme is None:
        found.take("noise.timesteps", "uniform", why, "default")
    elif scheme in _DENSITIES:
        found.keep("weighting_scheme", scheme, "noise.timesteps", _DENSITIES[str(scheme)])
    else:
        found.take("noise.timesteps", "uniform", f"as weighting_scheme = {scheme} has it", "default")
        found.keep("weighting_scheme", scheme, "noise.weighting", scheme)


def _take_prediction(found: Imported, given: dict[str, Any], flow: Flow) -> None:
    prediction = given.pop("model_prediction_type", None)
    if prediction == "raw":
        found.leave("model_prediction_type", prediction, "plain velocity, as it is here")
        return
    trap = (
        "kohya then compares an estimate of the picture with a velocity, which its own guide advises "
        "against; plain velocity is trained here"
    )
    if prediction is not None:
        found.miss("model_prediction_type", prediction, trap)
    elif flow.prediction not in ("raw", ""):
        found.note(f"No model_prediction_type: {flow.prediction} is kohya's default, and {trap}.")
