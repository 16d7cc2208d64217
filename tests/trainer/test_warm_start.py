"""Going on from a finished LoRA: the same effect at the first step, or a sentence that says why not."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.__main__ import main
from trainer.adapters import LoraWeights, lora_weights, start_from
from trainer.after import weights_in
from trainer.assemble import Model, assemble, warm_start
from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.fields import load_recipe, merge, parse, to_tables
from trainer.contract.headers import read_header
from trainer.contract.lora_header import families_of
from trainer.contract.runs import RunFolder
from trainer.export import FORMATS, Format, save_lora
from trainer.families.base import ModelFamily, family_class, load_family
from trainer.lora_file import read_lora
from trainer.source import resolve

from .helpers import Script, recipe, train_here, weights_hash


@pytest.fixture(scope="session")
def tiny_base(deeper_base: Path) -> Path:
    """One that has every layer that the files name, as SDXL's own do."""
    return deeper_base


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> ModelFamily:
    return load_family("sdxl", resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def config(tiny_base: Path, photos: Path) -> TrainConfig:
    adapter = {"rank": 4, "alpha": 2.0, "targets": "attention"}
    return recipe(tiny_base, photos, adapter=adapter, samples={"prompts": []}, train={"steps": 2})


@pytest.fixture(scope="module")
def finished(family: ModelFamily, config: TrainConfig) -> dict[str, LoraWeights]:
    """A LoRA with an effect everywhere."""
    model = assemble(family, config, Path())
    torch.manual_seed(0)
    return {
        name: LoraWeights(lora.down, torch.randn(lora.up.shape) * 0.1, lora.alpha)
        for name, lora in lora_weights(model.parts).items()
    }


def written(
    path: Path, weights: Any, family: ModelFamily, config: TrainConfig, format: Format = "kohya"
) -> Path:
    about = {"trigger": "zwx cat", "step": 9, "base_name": "demo", "dtype": torch.float32}
    save_lora(path, weights, family, config, format=format, **about)
    return path


def deltas(weights: dict[str, LoraWeights]) -> dict[str, torch.Tensor]:
    return {n: lora.up.flatten(1) @ lora.down.flatten(1) * lora.scale for n, lora in weights.items()}


def changed(config: TrainConfig, **sections: Any) -> TrainConfig:
    return parse(merge(to_tables(config), sections))


def begun(family: ModelFamily, config: TrainConfig) -> tuple[Model, str]:
    model = assemble(family, config, Path())
    return model, warm_start(model, family, config, Path())


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_rank_has_the_very_same_effect(
    format: Format, family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config, format)
    model, said = begun(family, changed(config, adapter={"start_from": str(file), "alpha": 8.0}))
    now = lora_weights(model.parts)
    for name, delta in deltas(finished).items():
        assert torch.allclose(deltas(now)[name], delta, atol=1e-7), name
        assert torch.equal(now[name].down, finished[name].down) and now[name].alpha == 8.0
    assert said == f"goes on from old.safetensors: {len(now)} of {len(now)} modules"


def test_more_rank_keeps_everything_and_begins_the_rest(
    family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config)
    model, said = begun(family, changed(config, adapter={"start_from": str(file), "rank": 6}))
    now = lora_weights(model.parts)
    for name, delta in deltas(finished).items():
        assert torch.allclose(deltas(now)[name], delta, atol=1e-6)
        assert now[name].down[4:].any() and not now[name].up[:, 4:].any()  # room to learn
    assert "rank 4 -> 6, 0.0% of its weight lost" in said


def test_less_rank_is_the_nearest_there_is_and_says_what_is_lost(
    family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config)
    model, said = begun(family, changed(config, adapter={"start_from": str(file), "rank": 2}))
    now = deltas(lora_weights(model.parts))
    lost = whole = 0.0
    for name, delta in deltas(finished).items():
        values = torch.linalg.svdvals(delta)
        best = values[2:].square().sum().item()
        assert (now[name] - delta).square().sum().item() == pytest.approx(best, rel=1e-3), name
        lost, whole = lost + best, whole + values.square().sum().item()
    assert said.endswith(f"rank 4 -> 2, {(lost / whole) ** 0.5:.1%} of its weight lost")
    assert 0.1 < (lost / whole) ** 0.5 < 0.9


def test_convolutions_and_narrow_layers() -> None:
    lora = LoraWeights(torch.randn(8, 3, 3, 3), torch.randn(5, 8, 1, 1), 4.0)  # 5 outputs: rank 5 at most
    for rank in (2, 5, 6):
        fitted, lost, whole = lora.within(rank)
        assert fitted.down.shape[1:] == (3, 3, 3) and fitted.up.shape[2:] == (1, 1) and fitted.rank <= rank
        one, two = deltas({"": lora})[""], deltas({"": fitted})[""]
        assert (one - two).square().sum().item() == pytest.approx(lost, rel=1e-3, abs=1e-3)
        assert one.square().sum().item() == pytest.approx(whole, rel=1e-4)
        assert (lost < 1e-3) == (rank >= 5)


def test_bf16_keeps_the_effect_to_its_three_digits(
    family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config)
    model, _ = begun(family, changed(config, adapter={"start_from": str(file), "precision": "bf16"}))
    assert {parameter.dtype for parameter in model.parameters().values()} == {torch.bfloat16}
    now = deltas(lora_weights(model.parts))
    for name, delta in deltas(finished).items():
        assert ((now[name] - delta).norm() / delta.norm()).item() < 0.01


def test_a_bf16_run_resumes_bit_exactly_and_holds_its_number_format(
    config: TrainConfig, tmp_path: Path
) -> None:
    settings = changed(config, adapter={"precision": "bf16"}, train={"steps": 2})
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("straight", "stopped")]
    for run in runs:
        run.create(settings)
    assert train_here(runs[0])
    assert not train_here(runs[1], Script(runs[1], "stop", 1)) and train_here(runs[1])
    assert weights_hash(runs[0], 2) == weights_hash(runs[1], 2)
    for name in ("adapter", "optimizer"):
        kept = load_file(runs[0].checkpoint(2) / f"{name}.safetensors")
        assert {t.dtype for key, t in kept.items() if not key.endswith((".step", ".alpha"))} == {
            torch.bfloat16
        }
    assert all(lora.up.isfinite().all() for lora in weights_in(runs[0].checkpoint(2), settings).values())


def test_a_run_goes_on_from_a_file_that_may_go_away_later(
    family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config)
    run = RunFolder(tmp_path / "runs" / "more")
    run.create(changed(config, adapter={"start_from": str(file)}, train={"steps": 3, "learning_rate": 1e-4}))
    assert not train_here(run, Script(run, "stop", 1))
    file.unlink()  # what came of it is in the checkpoint
    assert train_here(run)
    trained = deltas(weights_in(run.checkpoint(3), run.config()))
    for name, delta in deltas(finished).items():
        assert 0 < ((trained[name] - delta).norm() / delta.norm()).item() < 0.2, name
    assert main(["export", str(run.path), "--out", str(tmp_path / "new.safetensors")]) == 0


# What cannot be gone on from, each one sentence ------------------------------------------------------


def refusal(family: ModelFamily, config: TrainConfig, file: Path) -> str:
    with pytest.raises(RunError) as error:
        begun(family, changed(config, adapter={"start_from": str(file)}))
    assert "\n" not in str(error.value)
    return str(error.value)


FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
SD15 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"


def keys(stem: str, rank: int = 2, width: int = 8) -> dict[str, torch.Tensor]:
    return {
        f"{stem}.lora_down.weight": torch.ones(rank, width),
        f"{stem}.lora_up.weight": torch.ones(width, rank),
        f"{stem}.alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 0.25), (0.0, 1.0), (None, 1.0)])
def test_the_scale_that_a_file_says(
    alpha: float | None, scale: float, family: ModelFamily, tmp_path: Path
) -> None:
    """Rank 4: alpha 1 is a quarter; 0, or nothing said as in old files, is the whole product."""
    tensors = keys(SDXL, rank=4)
    del tensors[f"{SDXL}.alpha"]
    if alpha is not None:
        tensors[f"{SDXL}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "old.safetensors")
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    (lora,) = read_lora(tmp_path / "old.safetensors", family, [module]).values()
    assert torch.allclose(lora.delta(), scale * torch.full((8, 8), 4.0))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({**keys(SD15)}, "old.safetensors is a LoRA for Stable Diffusion 1.5 and 2.x, the recipe says"),
        (
            {f"{SDXL}.hada_w1_a": torch.ones(2, 2)},
            "is a LoHa, which cannot be read here; choose a plain LoRA",
        ),
        ({f"{SDXL}.lokr_w1": torch.ones(2, 2)}, "is a LoKr"),
        ({**keys(SDXL), f"{SDXL}.dora_scale": torch.ones(8, 1)}, "is a DoRA by outputs"),
        ({"model.layer.weight": torch.ones(2)}, "is no LoRA; choose"),
        ({**keys("lora_unet_unheard_of_layer")}, "holds no LoRA for Stable Diffusion XL that can be read"),
    ],
)
def test_another_kind_of_file(
    tensors: dict[str, torch.Tensor],
    sentence: str,
    family: ModelFamily,
    config: TrainConfig,
    tmp_path: Path,
) -> None:
    save_file(tensors, tmp_path / "old.safetensors")
    assert sentence in refusal(family, config, tmp_path / "old.safetensors")


def test_a_dora_of_a_fused_layer_cannot_be_taken_apart(tmp_path: Path) -> None:
    """Its magnitudes are those of three modules' columns together."""
    flux = family_class("flux")
    family = flux.for_names({"num_attention_heads": 2, "attention_head_dim": 4})
    file = tmp_path / "x.safetensors"
    fused = {
        **keys(FLUX),
        f"{FLUX}.lora_up.weight": torch.ones(24, 2),
        f"{FLUX}.dora_scale": torch.ones(1, 8),
    }
    save_file(fused, file)
    with pytest.raises(RunError, match="magnitudes are of several modules together"):
        read_lora(file, family, [f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv"])


def test_damaged_missing_and_misfitting_files(
    family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "old.safetensors", finished, family, config)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "is incomplete" in refusal(family, config, file)
    file.write_bytes(whole[:50])
    assert "download it again" in refusal(family, config, file)
    assert "is not on this machine" in refusal(family, config, tmp_path / "nowhere.safetensors")
    other = {name: LoraWeights(lora.down[:, :-1], lora.up, 1.0) for name, lora in finished.items()}
    assert "is for another base" in refusal(family, config, written(file, other, family, config))
    wide = changed(config, adapter={"targets": "transformer"})
    more = lora_weights(assemble(family, wide, Path()).parts)
    assert "set adapter.targets wider" in refusal(family, config, written(file, more, family, wide))
    widest = changed(config, adapter={"targets": "transformer+conv"})
    odd = tmp_path / "odd.safetensors"
    save_file({**load_file(file), **keys("lora_unet_time_embed_0")}, odd)
    assert "cannot be trained here, choose another LoRA" in refusal(family, widest, odd)
    text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    save_file({**load_file(file), **keys(text, width=16)}, file)
    assert "set train.text_encoder_lr above 0" in refusal(family, config, file)


def test_nothing_is_changed_where_one_layer_does_not_fit(
    family: ModelFamily, config: TrainConfig, finished: Any
) -> None:
    model = assemble(family, config, Path())
    last = list(finished)[-1]
    wrong = {**finished, last: LoraWeights(finished[last].down[:, :-1], finished[last].up, 1.0)}
    with pytest.raises(RunError):
        start_from(model.parts, wrong)
    assert not any(lora.up.any() for lora in lora_weights(model.parts).values())


# A recipe from a file --------------------------------------------------------------------------------


def test_import_writes_a_recipe_that_goes_on(
    family: ModelFamily,
    config: TrainConfig,
    finished: Any,
    tiny_base: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = written(tmp_path / "my cat.safetensors", finished, family, config)
    out = tmp_path / "recipe.toml"
    assert main(["import", str(file), "--out", str(out)]) == 0
    report = capsys.readouterr().out
    assert "model.family = sdxl (Stable Diffusion XL, by" in report
    assert "adapter.rank = 4 (its metadata)" in report and "adapter.alpha = 2 (" in report
    made = load_recipe(out)
    assert (made.model.base, made.adapter.rank, made.adapter.alpha) == ("demo", 4, 2.0)
    assert made.adapter.targets == "attention" and made.adapter.start_from == str(file)
    assert made.dataset.trigger == "zwx cat" and made.output.name == "my-cat-more"
    assert made.train.learning_rate == config.train.learning_rate
    assert set(tomllib.loads(out.read_text())) == {
        "model",
        "adapter",
        "train",
        "dataset",
        "samples",
        "output",
    }
    over = [f"model.base={tiny_base}", f"dataset.path={photos}", "dataset.resolution=64", "train.steps=1"]
    over += ["samples.steps=1"]
    argv = ["train", str(out), "--run-dir", str(tmp_path / "run")]
    assert main([*argv, *(part for each in over for part in ("--set", each))]) == 0
    run = RunFolder(tmp_path / "run")
    assert run.read_status().state == "finished"
    assert not [e for e in read_events(run.events)[0] if e["kind"] == "warning"]


def test_import_reads_what_others_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys alone: no metadata, a text encoder, convolutions."""
    conv = "lora_unet_input_blocks_1_0_in_layers_2"
    tensors = {**keys(SDXL, 8), **keys(conv, 8), **keys("lora_te2_text_model_encoder_layers_0_mlp_fc1", 8)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert main(["import", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "r.toml")]) == 0
    made = load_recipe(tmp_path / "r.toml")
    assert made.model.family == "sdxl" and made.model.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert made.adapter.rank == 8 and made.adapter.targets == "transformer+conv"
    assert made.train.text_encoder_2_lr == 5e-5 and made.train.text_encoder_lr == 0
    report = capsys.readouterr().out
    assert "assumed" in report and "no trigger word in its metadata" in report


def test_import_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: str) -> str:
        assert main(["import", *argv]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    out = str(tmp_path / "r.toml")
    assert "does not exist" in said(str(tmp_path / "no.safetensors"), "--out", out)
    (tmp_path / "x.ini").write_text("")
    assert "cannot be imported" in said(str(tmp_path / "x.ini"), "--out", out)
    lora = tmp_path / "x.safetensors"
    save_file(keys("lora_unet_unheard_of_layer"), lora)
    assert "for no family that can be trained here" in said(str(lora), "--out", out)
    (tmp_path / "r.toml").write_text("mine")
    save_file(keys(SDXL), lora)
    assert "is there already" in said(str(lora), "--out", out)
    assert (tmp_path / "r.toml").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_the_family_is_told_by_keys_alone(
    format: Format, family: ModelFamily, config: TrainConfig, finished: Any, tmp_path: Path
) -> None:
    file = written(tmp_path / "x.safetensors", finished, family, config, format)
    save_file(load_file(file), file)  # without metadata
    assert families_of(read_header(file)) == ["sdxl"]
