"""The plan: what is counted, what it says of a card that is too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import merge, parse
from trainer.contract.plan import Machine, Plan, estimate

SDXL = {"model": {"base": "stabilityai/stable-diffusion-xl-base-1.0"}, "samples": {"prompts": ["a cat"]}}


def plan(vram: float | None = 24.0, **sections: dict[str, object]) -> Plan:
    config: TrainConfig = parse(merge(SDXL, sections))
    return estimate(config, Machine("a card" if vram else "CPU", vram))


def test_sdxl_weights_are_counted() -> None:
    parts = plan().breakdown
    assert parts["denoiser"] == pytest.approx(4.78, abs=0.01)  # 2.567 billion in 16 bits
    r32 = plan(adapter={"rank": 32, "targets": "attention"}).breakdown
    assert r32["lora"] * 1024 == pytest.approx(177, abs=1)  # MiB, 46.4 million in 32 bits
    assert r32["optimizer"] == pytest.approx(2 * r32["lora"], abs=2e-3)
    assert plan(train={"optimizer": "adafactor"}).breakdown["optimizer"] < 0.1 * parts["optimizer"]


def test_optimizers_and_averages_are_counted() -> None:
    """Rank 64 of SDXL: 93 million weights of 4 bytes each."""
    rank: dict[str, object] = {"rank": 64}

    def parts(**train: object) -> dict[str, float]:
        return plan(adapter=rank, train=train).breakdown

    usual = parts()
    lora = usual["lora"]
    assert parts(optimizer="prodigy")["optimizer"] == pytest.approx(4 * lora, rel=0.01)
    assert parts(optimizer="adamw8bit")["optimizer"] == pytest.approx(0.51 * lora, rel=0.01)
    assert (usual["average"], parts(ema_decay=0.99)["average"]) == (0, lora)
    bf16 = plan(adapter={**rank, "precision": "bf16"}, train={"ema_decay": 0.99}).breakdown
    assert (bf16["lora"], bf16["average"]) == pytest.approx((lora / 2, lora), abs=0.002)
    on_gpu = plan(adapter=rank, train={"ema_decay": 0.99})
    in_ram = plan(adapter=rank, train={"ema_decay": 0.99, "ema_on_cpu": True})
    assert on_gpu.vram_gib["train"] - in_ram.vram_gib["train"] == pytest.approx(lora, abs=0.02)
    assert in_ram.ram_gib - on_gpu.ram_gib == pytest.approx(lora, abs=0.02)
    fused = plan(adapter=rank, train={"fused_backward": True})
    assert fused.breakdown["gradients"] == 0
    assert f"saves the LoRA's gradients, {lora:.2f} GiB" in fused.warnings[0]
    paged = plan(adapter=rank, train={"optimizer": "paged_adamw8bit"})
    assert paged.vram_gib["train"] < plan(adapter=rank, train={"optimizer": "adamw8bit"}).vram_gib["train"]


def test_accumulation_is_free_and_batch_is_not() -> None:
    one = plan().vram_gib["train"]
    assert plan(train={"gradient_accumulation": 8}).vram_gib["train"] == one
    assert plan(train={"batch_size": 4}).vram_gib["train"] > one
    assert plan(dataset={"resolution": 512}).vram_gib["train"] < one
    for several in ({"more_resolutions": "1024"}, {"subsets": ["../b | resolution = 1024"]}):
        largest = plan(dataset={"resolution": 512, **several})
        assert largest.vram_gib == plan().vram_gib, "the largest of several counts"
    assert plan(train={"gradient_checkpointing": "off"}).vram_gib["train"] > one + 3


def test_a_card_that_is_too_small_is_told_so() -> None:
    assert plan(24.0).fits is True and not plan(24.0).warnings
    small = plan(6.0, train={"batch_size": 8})
    assert small.fits is False
    assert "a card has 6.0 GiB" in small.warnings[0] and "lower the batch size" in small.warnings[0]


def test_without_a_gpu() -> None:
    cpu = plan(None)
    assert cpu.fits is None and set(cpu.vram_gib.values()) == {0.0}
    assert any("no GPU" in warning for warning in cpu.warnings)
    demo = plan(None, model={"base": "demo"})
    assert not demo.warnings and demo.ram_gib < 3 and demo.download_gib == 0


def test_no_prompts_no_drawing() -> None:
    assert plan(samples={"prompts": []}).vram_gib["sample"] == 0
    assert plan().download_gib == pytest.approx(6.9)


def test_quantised_weights_are_counted() -> None:
    """SDXL's U-Net: 2.567 billion, of which 87 % are in linear layers."""
    assert plan(model={"quantize": "int8"}).breakdown["denoiser"] == pytest.approx(2.75, abs=0.05)
    assert plan(model={"quantize": "nf4"}).breakdown["denoiser"] == pytest.approx(1.72, abs=0.05)
    plain, small = plan(), plan(model={"quantize_text": "int8"})
    assert small.breakdown["text_encoders"] < 0.6 * plain.breakdown["text_encoders"]
    flux = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev"}
    wide, narrow = plan(80, model=flux), plan(80, model={**flux, "quantize_text": "int8"})
    assert narrow.vram_gib["cache"] < 0.7 * wide.vram_gib["cache"]
    assert small.vram_gib["train"] == plain.vram_gib["train"]  # they are gone by then
    assert plan(model={"quantize": "int8"}).vram_gib["train"] < plain.vram_gib["train"] - 1.9


def test_a_bf16_lora_is_half_in_everything() -> None:
    wide = {"rank": 128, "targets": "transformer"}
    full, half = (plan(adapter={**wide, "precision": each}).breakdown for each in ("fp32", "bf16"))
    for part in ("lora", "gradients", "optimizer"):
        assert half[part] == pytest.approx(full[part] / 2, abs=2e-3)


def test_trained_text_encoders_stay_and_have_activations() -> None:
    rates = {"text_encoder_lr": 1e-5, "text_encoder_2_lr": 1e-5}
    plain, both, first = plan(), plan(train=rates), plan(train={"text_encoder_lr": 1e-5})
    encoders = plain.breakdown["text_encoders"]
    assert both.vram_gib["train"] > plain.vram_gib["train"] + encoders
    assert both.vram_gib["sample"] > plain.vram_gib["sample"] + encoders
    assert both.vram_gib["cache"] <= plain.vram_gib["cache"]  # no caption is encoded beforehand
    assert plain.breakdown["activations"] < first.breakdown["activations"] < both.breakdown["activations"]
    # 18 LoRA parameters per width: 12 layers of 768 and 32 of 1280, at rank 16 in 32 bits.
    counted = 18 * (12 * 768 + 32 * 1280) * 16 * 4 / 2**30
    assert both.breakdown["lora"] - plain.breakdown["lora"] == pytest.approx(counted, rel=0.1)


def test_tiles_bound_the_decoding() -> None:
    off: dict[str, object] = {"tiling": "off"}
    large: dict[str, object] = {"width": 2048, "height": 1024, "prompts": ["a cat"]}
    usual, plain, tiled = plan(samples=off), plan(samples=large | off), plan(samples=large)
    assert plain.breakdown["decode"] == pytest.approx(2 * usual.breakdown["decode"], rel=1e-3)
    assert tiled.breakdown["decode"] == pytest.approx(usual.breakdown["decode"] / 4, rel=1e-2)
    assert tiled.vram_gib["sample"] < plain.vram_gib["sample"]
    assert tiled.vram_gib["train"] == plain.vram_gib["train"]


def test_the_download_of_a_base_that_is_not_in_the_catalogue(tmp_path: Path) -> None:
    """A Hub id counts as the family's first base; a file that is a denoiser alone lacks the rest."""
    mine: dict[str, Any] = {"family": "flux2", "base": "someone/klein-finetune"}
    assert plan(model=mine).download_gib == CATALOGUE["flux2"].bases[0].download_gib
    file = tmp_path / "mine.safetensors"
    file.touch()
    row = CATALOGUE["flux2"]
    others = (row.params[1] + row.params[2]) * 1e6 * 2 / 2**30
    assert plan(model={**mine, "base": str(file)}).download_gib == pytest.approx(others, abs=0.01)
    assert plan(model={**mine, "base": str(tmp_path)}).download_gib == 0
    assert plan(model={"family": "sdxl", "base": str(file)}).download_gib == 0


def test_ram_beside_a_gpu_is_that_of_the_largest_part() -> None:
    dev = plan(model={"family": "flux2", "base": "black-forest-labs/FLUX.2-dev"})
    assert dev.ram_gib == pytest.approx(dev.breakdown["denoiser"] + 2, abs=0.1)


TURBO = {"family": "zimage", "base": "Tongyi-MAI/Z-Image-Turbo"}


def test_an_assistant_is_fetched_and_kept_in_memory(tmp_path: Path) -> None:
    with_it, without = plan(80, model=TURBO), plan(80, model={**TURBO, "assistant": "none"})
    assert with_it.breakdown["assistant"] > 0.1 and without.breakdown["assistant"] == 0
    more = with_it.vram_gib["train"] - without.vram_gib["train"]
    assert more == pytest.approx(with_it.breakdown["assistant"], abs=0.02)
    assert with_it.download_gib > without.download_gib == pytest.approx(30.6)
    file = tmp_path / "mine.safetensors"
    file.write_bytes(bytes(2**20))
    mine = plan(80, model={**TURBO, "assistant": str(file)})
    assert mine.breakdown["assistant"] == pytest.approx(2**-10, abs=1e-3)
    assert mine.download_gib == without.download_gib


def test_several_gpus_share_a_batch_and_may_split_the_base() -> None:
    def of(gpus: int, here: int = 2, **machine: object) -> Plan:
        sections = {"train": {"batch_size": 4}, "machine": {"gpus": gpus, **machine}}
        config: TrainConfig = parse(merge(SDXL, sections))
        return estimate(config, Machine("a card", 24.0, here))

    one, two, all_there, split = of(1), of(2), of(0), of(2, shard=True)
    assert two.breakdown["activations"] == pytest.approx(one.breakdown["activations"] / 2, rel=0.01)
    assert all_there.vram_gib["train"] == two.vram_gib["train"]
    assert two.ram_gib == pytest.approx(2 * one.ram_gib, rel=0.01)
    assert two.breakdown["denoiser"] == one.breakdown["denoiser"]
    assert split.breakdown["denoiser"] == pytest.approx(0.6 * one.breakdown["denoiser"], rel=0.01)
    assert split.vram_gib["train"] < two.vram_gib["train"] < one.vram_gib["train"]
    assert not any("machine.gpus" in warning for warning in two.warnings)
    assert any("machine.gpus is 4, and there are 2" in warning for warning in of(4).warnings)
    assert not any("machine.gpus" in warning for warning in of(4, here=0).warnings)


def test_what_is_encoded_once_takes_disk_and_ram() -> None:
    def of(images: int, **sections: dict[str, object]) -> Plan:
        config: TrainConfig = parse(merge(SDXL, sections))
        return estimate(config, Machine("a card", 24.0), images=images)

    few, many = of(10), of(1010)
    captions = 1000 * 77 * 2048 * 2 / 2**30  # in 16 bits, and 1 MiB of latents each
    assert many.breakdown["encoded"] - few.breakdown["encoded"] == pytest.approx(
        captions + 1000 / 1024, rel=0.01
    )
    assert many.disk_gib - few.disk_gib == pytest.approx(captions + 1000 / 1024, rel=0.01)
    assert many.ram_gib > few.ram_gib + captions
    taught = of(1010, train={"text_encoder_lr": 1e-5})  # captions are encoded anew at every step
    assert taught.breakdown["encoded"] == pytest.approx(1010 / 1024, rel=0.01)
    varied = of(1010, dataset={"rotate": 3, "variants": 4})
    assert varied.disk_gib - many.disk_gib == pytest.approx(3 * 1010 / 1024, rel=0.01)
    assert of(1010, dataset={"flip": True}).disk_gib - many.disk_gib == pytest.approx(1010 / 1024, rel=0.01)


def test_variants_of_captions_take_disk_and_little_ram() -> None:
    """T5's embeddings of FLUX are 4 MiB a caption; of a thousand most are not in RAM at once."""
    model: dict[str, object] = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev"}

    def of(**sections: dict[str, object]) -> Plan:
        config: TrainConfig = parse(merge({"model": model}, sections))
        return estimate(config, Machine("a card", 24.0), images=50)

    one = of()
    twenty = of(captions={"shuffle": True, "variants": 20})
    assert twenty.disk_gib - one.disk_gib == pytest.approx(950 * 4 / 1024, rel=0.01)
    assert 0.5 < twenty.ram_gib - one.ram_gib < 1.0
    short: dict[str, object] = {"steps": 200, "batch_size": 2}
    every_look = of(captions={"shuffle": True}, train=short)
    assert every_look.disk_gib - of(train=short).disk_gib == pytest.approx(350 * 4 / 1024, rel=0.05)


def test_kinds_of_adapters_are_counted() -> None:
    def parts(**adapter: object) -> dict[str, float]:
        return plan(adapter=adapter).breakdown

    lora = parts(rank=8)
    assert parts(rank=8, type="loha")["lora"] == pytest.approx(2 * lora["lora"], rel=0.01)
    assert parts(rank=8, type="lokr")["lora"] < 0.3 * lora["lora"]
    # What it began as lies beside it, without gradients.
    pissa = parts(rank=8, init="pissa")
    assert pissa["lora"] == pytest.approx(2 * lora["lora"], rel=0.01)
    assert pissa["gradients"] == lora["gradients"] and pissa["optimizer"] == lora["optimizer"]
    assert parts(rank=8, block_weights="13-18: 0")["lora"] < 0.7 * lora["lora"]
    assert parts(rank=8, type="loha")["activations"] > lora["activations"]  # whole weights are rebuilt


def test_pictures_at_the_start_and_the_end_alone_take_little_disk() -> None:
    """0 steps between drawings is none in between, and not one at each step."""
    often, seldom = (plan(samples={"every": every}, train={"steps": 3000}).disk_gib for every in (1, 0))
    assert often - seldom == pytest.approx(3000 * 1.5 / 1024, rel=0.02)
