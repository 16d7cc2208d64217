"""TrainConfig: every setting of a training, defined once.

Sections are nested, closed (an unknown name is an error) and frozen. The docstring under a field is
its help text; label, range and choices come from the type and from :func:`setting`. The form, the
command line, ``docs/settings.md`` and the error messages are all derived from these classes
(:mod:`trainer.contract.fields`).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .adapter_rules import adapter_problems
from .errors import ConfigError
from .families import CATALOGUE
from .optimizers import OPTIMIZERS, parse_options
from .prompt import FLOW_SAMPLERS, prompts_of
from .settings.adapter import AdapterSettings
from .settings.captions import CaptionSettings
from .settings.dataset import DatasetSettings
from .settings.files import CheckpointSettings, OutputSettings
from .settings.loss import LossSettings
from .settings.machine import MachineSettings
from .settings.model import ModelSettings
from .settings.noise import NoiseSettings
from .settings.notify import NotifySettings
from .settings.prior import PriorSettings
from .settings.samples import SampleSettings
from .settings.section import Section
from .settings.storage import StorageSettings
from .settings.train import TrainSettings
from .settings.validation import ValidationSettings

TEXT_RATES = ("text_encoder_lr", "text_encoder_2_lr")
"""The settings of ``train`` for a family's trainable text encoders, in their order."""


_FOR_FLOW = ("noise.shift", "noise.weighting", "noise.kohya_flow")
_FOR_DIFFUSION = (
    "noise.prediction",
    "noise.zero_terminal_snr",
    "loss.debiased",
    "loss.v_pred_like",
    "loss.scale_v_like_noise",
)
"""Settings that models of the other process cannot have."""


def _problem(setting: str, sentence: str) -> PydanticCustomError:
    """An error of settings that do not go together, told at one of them."""
    return PydanticCustomError("together", "{sentence}", {"setting": setting, "sentence": sentence})


class TrainConfig(Section):
    """A whole recipe."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    adapter: AdapterSettings = Field(default_factory=AdapterSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    noise: NoiseSettings = Field(default_factory=NoiseSettings)
    prior: PriorSettings = Field(default_factory=PriorSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    samples: SampleSettings = Field(default_factory=SampleSettings)
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    machine: MachineSettings = Field(default_factory=MachineSettings)
    notify: NotifySettings = Field(default_factory=NotifySettings)

    @model_validator(mode="before")
    @classmethod
    def _sections_are_tables(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, value in data.items():
                if name in cls.model_fields and not isinstance(value, (dict, BaseModel)):
                    raise ValueError(f"[{name}] must be a table of settings, not {value!r}")
        return data

    @model_validator(mode="after")
    def _optimizer_has_these_options(self) -> TrainConfig:
        try:
            parse_options(self.train.optimizer, self.train.optimizer_args)
        except ValueError as error:
            raise _problem("train.optimizer_args", str(error)) from None
        return self

    @model_validator(mode="after")
    def _there_is_something_to_measure_on(self) -> TrainConfig:
        validation = self.validation
        if validation.measures and not (validation.share or validation.path):
            sentence = "hold out a share of the photos, name a folder in validation.path, or set every to 0"
            raise _problem("validation.share", sentence)
        if validation.path and validation.path == self.dataset.path:
            raise _problem("validation.path", "these photos are trained on; name others, or leave it empty")
        return self

    @model_validator(mode="after")
    def _backward_can_be_fused(self) -> TrainConfig:
        train = self.train
        if train.fused_backward:
            row = OPTIMIZERS[train.optimizer]
            if train.gradient_accumulation > 1:
                sentence = "gradients that are freed cannot be added up; set it to 1, or raise the batch size"
                raise _problem("train.gradient_accumulation", f"with train.fused_backward {sentence}")
            if 0 < self.machine.pictures_at_once < train.batch_size:
                sentence = "each weight takes its step at once, so a batch cannot be split; set it to 0"
                raise _problem("machine.pictures_at_once", f"with train.fused_backward {sentence}")
            if self.machine.gpus > 1:
                sentence = "each GPU has a part of the gradients, and steps with their sum; switch it off"
                raise _problem("train.fused_backward", f"with machine.gpus = {self.machine.gpus} {sentence}")
            if row.one_rate or row.averages:
                sentence = f"{train.optimizer} steps all weights together; switch it off"
                raise _problem("train.fused_backward", sentence)
        return self

    @model_validator(mode="after")
    def _base_can_be_split(self) -> TrainConfig:
        if self.machine.shard:
            cannot = {
                "adapter.type": (not self.adapter.plain, "is for plain LoRAs"),
                "adapter.dora": (self.adapter.dora, "is for plain LoRAs, without DoRA"),
                "model.quantize": (self.model.quantize != "none", "is for a base that is not quantised"),
                "machine.offload": (self.machine.offload, "and machine.offload are two ways out; choose one"),
                "prior.method": (
                    self.prior.method == "output",
                    "wants as many passes on every GPU, and this one depends on the captions",
                ),
            }
            for setting, (is_so, why) in cannot.items():
                if is_so:
                    raise _problem(setting, f"machine.shard {why}")
        return self

    @model_validator(mode="after")
    def _encoders_can_be_trained(self) -> TrainConfig:
        row = CATALOGUE[self.model.family]
        for number, name in enumerate(TEXT_RATES):
            if getattr(self.train, name) and number >= len(row.trainable_text):
                can = "only its first text encoder" if row.trainable_text else "no text encoder"
                raise _problem(f"train.{name}", f"{row.label} can train {can}; set it to 0")
        return self

    @model_validator(mode="after")
    def _the_adapter_can_be_trained(self) -> TrainConfig:
        trains_text = bool(self.text_encoder_rates())
        for setting, sentence in adapter_problems(self.model, self.adapter, trains_text):
            raise _problem(setting, sentence)
        return self

    @model_validator(mode="after")
    def _there_is_something_to_keep(self) -> TrainConfig:
        prior = self.prior
        named = prior.class_name or prior.captions or (prior.method == "class_pictures" and prior.path)
        if prior.method != "none" and not named:
            raise _problem("prior.class_name", 'say what the subject is one of, such as "cat"')
        return self

    @model_validator(mode="after")
    def _norms_are_of_what_is_handed_out(self) -> TrainConfig:
        if self.adapter.max_norm and OPTIMIZERS[self.train.optimizer].averages:
            sentence = f"{self.train.optimizer} hands out other weights than those it limits; set it to 0"
            raise _problem("adapter.max_norm", sentence)
        return self

    @model_validator(mode="after")
    def _encoder_bears_the_precision(self) -> TrainConfig:
        row = CATALOGUE[self.model.family]
        if row.needs_bf16 and self.model.precision == "fp16":
            sentence = f"the text encoder of {row.label} overflows in fp16; use auto, bf16 or fp32"
            raise _problem("model.precision", sentence)
        return self

    @model_validator(mode="after")
    def _separators_can_be_told_apart(self) -> TrainConfig:
        captions = self.captions
        names = ("secondary_separator", "keep_tokens_separator", "separator")
        for number, name in enumerate(names):
            for other in names[number + 1 :]:
                one, two = getattr(captions, name), getattr(captions, other)
                if one and two and (one in two or two in one):
                    raise _problem(f"captions.{name}", f"{one} cannot be told from captions.{other}, {two}")
        return self

    @model_validator(mode="after")
    def _buckets_are_possible(self) -> TrainConfig:
        data, row = self.dataset, CATALOGUE[self.model.family]
        if data.bucket_step and data.bucket_step % row.size_multiple:
            sentence = f"{data.bucket_step} is no multiple of {row.size_multiple}, as {row.label} needs"
            raise _problem("dataset.bucket_step", sentence)
        if data.bucket_min and data.bucket_max and data.bucket_min > data.bucket_max:
            raise _problem(
                "dataset.bucket_max",
                f"the longest side, {data.bucket_max} px, is shorter than the shortest, {data.bucket_min} px",
            )
        side = data.resolution
        if side and data.bucket_min and data.bucket_min > side:
            raise _problem("dataset.bucket_min", f"{data.bucket_min} px is above the resolution of {side} px")
        if side and data.bucket_max and data.bucket_max < side:
            raise _problem("dataset.bucket_max", f"{data.bucket_max} px is below the resolution of {side} px")
        return self

    @model_validator(mode="after")
    def _noise_goes_with_the_process(self) -> TrainConfig:
        noise, row = self.noise, CATALOGUE[self.model.family]
        if noise.t_min >= noise.t_max:
            least, most = f"{noise.t_min:g}", f"{noise.t_max:g}"
            raise _problem("noise.t_min", f"{least} is not below noise.t_max, {most}; set it to 0")
        others = _FOR_DIFFUSION if row.process == "flow" else _FOR_FLOW
        kinds = "that predict noise or v" if row.process == "flow" else "of rectified flow"
        if row.process != "flow" and noise.timesteps in ("shift", "flux_shift"):
            raise _problem("noise.timesteps", f"{noise.timesteps} is for models {kinds}; choose another")
        for path in others:
            section, _, name = path.partition(".")
            settings: Section = getattr(self, section)
            usual = type(settings).model_fields[name].default
            if getattr(settings, name) != usual:
                back = {None: "leave it empty", False: "switch it off"}.get(usual, f"set it to {usual}")
                raise _problem(path, f"is for models {kinds}, which {row.label} is not; {back}")
        return self

    @model_validator(mode="after")
    def _only_s3_has_an_endpoint(self) -> TrainConfig:
        storage = self.storage
        if storage.endpoint and not storage.url.startswith(("s3://", "s3a://")):
            sentence = "is for URLs that begin with s3://; leave it empty"
            raise _problem("storage.endpoint", sentence)
        return self

    @model_validator(mode="after")
    def _samplers_are_there(self) -> TrainConfig:
        row = CATALOGUE[self.model.family]
        wanted = {self.samples.sampler, *(prompt.sampler for prompt in prompts_of(self.samples))}
        if row.process == "flow" and (absent := sorted(wanted - set(FLOW_SAMPLERS))):
            raise _problem(
                "samples.sampler",
                f"{absent[0]} is not for {row.label}, a model of rectified flow; give one of "
                f"{', '.join(FLOW_SAMPLERS)}",
            )
        return self

    def text_encoder_rates(self) -> dict[str, float]:
        """{text encoder: its learning rate} of those that get a LoRA."""
        trainable = CATALOGUE[self.model.family].trainable_text
        rates = [getattr(self.train, name) for name in TEXT_RATES]
        return {part: rate for part, rate in zip(trainable, rates, strict=False) if rate}


def go_with_family(config: TrainConfig, family: str) -> tuple[TrainConfig, dict[str, str]]:
    """The recipe for another family, and {setting: why} of what this one cannot have.

    Such a setting gets its default. Raises ConfigError where that does not help either.
    """
    tables = config.model_dump()
    tables["model"]["family"] = family
    said: dict[str, str] = {}
    while True:
        try:
            return TrainConfig.model_validate(tables), said
        except ValidationError as error:
            refused = [one["ctx"] for one in error.errors() if one["type"] == "together"]
            if not refused:
                raise
            if still := [one for one in refused if one["setting"] in said]:
                raise ConfigError(
                    {one["setting"]: "{setting}: {sentence}".format(**one) for one in still}
                ) from None
        for one in refused:
            section, _, name = one["setting"].partition(".")
            tables[section][name] = getattr(getattr(TrainConfig(), section), name)
            said[one["setting"]] = one["sentence"].partition("; ")[0]
