"""One matrix that every family passes: encode, cache, train, save, reload, the same picture.

What a family is like when small and at full size stands in ``tests/tiny_families``.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.pictures import draw_masked_project
from tests.tiny_families import KEYS, full_size, tiny
from trainer.adapters import add_lora, lora_parameters, lora_weights
from trainer.after import weights_in
from trainer.assemble import Model, assemble, warm_start
from trainer.contract.errors import RunError
from trainer.contract.families import CATALOGUE
from trainer.contract.headers import Header, read_header
from trainer.contract.lora_header import families_of
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.export import FORMATS, Format, save_lora, tensors_in
from trainer.families.base import Geometry, ModelFamily, TextEmbeds, family_class, load_family
from trainer.lora_file import read_lora
from trainer.losses import mse
from trainer.source import resolve

from .helpers import opened, recipe, train_here
from .test_offload import one_step, take_away

CPU = torch.device("cpu")
PROMPT, SIDE = "a red fox", 64
CAPTIONS = ["a fox", "two longer captions, of different length"]

everywhere = pytest.mark.parametrize("key", KEYS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small model of a family, built when it is first asked for; ``named``, with all that its files are
    told by."""
    made: dict[tuple[str, bool], Path] = {}

    def base(key: str, named: bool = False) -> Path:
        more = getattr(tiny(key), "TOLD_BY", {}) if named else {}
        at = (key, bool(more))
        if at not in made:
            made[at] = tiny(key).build(tmp_path_factory.mktemp(key) / "base", **more)
        return made[at]

    return base


@pytest.fixture(scope="module")
def encoded(bases: Any) -> Any:
    """Two captions and two pictures as a family encodes them, when they are first asked for."""
    made: dict[str, tuple[list[TextEmbeds], torch.Tensor]] = {}

    def of(key: str) -> tuple[list[TextEmbeds], torch.Tensor]:
        if key not in made:
            family = opened(key, bases(key))
            pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
            made[key] = family.encode_captions(CAPTIONS), family.encode_images(pixels)
        return made[key]

    return of


def whole_pipeline(family: ModelFamily, base: Path) -> Any:
    pipeline = type(family).pipeline_class.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(family: ModelFamily, pipeline: Any, **inputs: Any) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    size = {"width": SIDE, "height": SIDE, "num_inference_steps": 2, **family.guidance(3.0)}
    return np.asarray(pipeline(**inputs, **size, generator=noise, output_type="np").images[0])


@everywhere
def test_samples_are_what_the_bases_own_pipeline_draws(key: str, bases: Any) -> None:
    """Prompt encoding, padding, masks and guidance are the pipeline's own."""
    family = opened(key, bases(key))
    pipeline = whole_pipeline(family, bases(key))
    theirs = draw(family, pipeline, **inputs_for(key, PROMPT))
    positive, negative = family.encode_captions([PROMPT, ""])
    family.free_encoders()
    ours = family.pipeline(family.load_denoiser())
    ours.set_progress_bar_config(disable=True)
    assert np.abs(draw(family, ours, **family.pipeline_inputs(positive, negative)) - theirs).max() < 2e-3
    other, _ = family.encode_captions(["seven blue boats", ""])
    changed = draw(family, ours, **family.pipeline_inputs(other, negative))
    assert np.abs(changed - theirs).max() > 1e-3, "the prompt does nothing: the small model is degenerate"


def inputs_for(key: str, prompt: str) -> dict[str, Any]:
    """Arguments of the pipeline's call, with what a family needs besides or leaves out."""
    inputs = {"prompt": prompt, "negative_prompt": "", **getattr(tiny(key), "PROMPT_INPUTS", {})}
    return {name: value for name, value in inputs.items() if value is not None}


@everywhere
def test_latents_are_what_the_vae_decodes(key: str, bases: Any) -> None:
    """Scaling, shifting and patching of the family's latents are undone by the pipeline's decoding."""
    family = opened(key, bases(key))
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = family.encode_images(pixels)
    assert latents.dtype == torch.float32 and latents.ndim == 4
    vae: Any = family._load_vae(torch.float32)
    with torch.no_grad():
        expected = vae.decode(getattr(tiny(key), "encode", plain_latents)(vae, pixels)).sample
        decoded = family.decode(vae, latents)
    assert torch.allclose(decoded, expected.reshape(decoded.shape), atol=1e-4)


def plain_latents(vae: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE gives them; families with another kind of VAE have an ``encode`` of their own."""
    latents: torch.Tensor = vae.encode(pixels_BCHW).latent_dist.mode()
    return latents


@pytest.mark.parametrize("key", [key for key in KEYS if family_class(key).unread])
@pytest.mark.parametrize("format", FORMATS)
def test_a_lora_of_others_with_modules_that_nothing_reads_can_be_gone_on_from(
    key: str, format: Format, bases: Any, photos: Path, tmp_path: Path
) -> None:
    """Other programs put a LoRA on the text's side of the last block as well."""
    family = opened(key, bases(key))
    every = AdapterSettings(rank=2, alpha=2.0)
    denoiser = family.load_denoiser()
    add_lora(denoiser, every, type(family).targets["transformer"], seed=1)  # type: ignore[misc]
    theirs = lora_weights({family.denoiser_part: denoiser})
    model = {"family": key, "base": str(bases(key))}
    file = tmp_path / "theirs.safetensors"
    adapter = {"rank": 2, "targets": "transformer", "start_from": str(file)}
    config = recipe(bases(key), photos, model=model, adapter=adapter)
    save_lora(file, theirs, family, config, trigger="", step=1, base_name="x", format=format)
    begun = assemble(family, config, tmp_path)
    said = warm_start(begun, family, config, tmp_path)
    ours = lora_weights(begun.parts)
    assert 0 < len(ours) < len(theirs) and f"{len(ours)} of {len(ours)} modules" in said


def test_a_lora_with_text_encoders_that_cannot_be_trained_is_told_so(bases: Any, tmp_path: Path) -> None:
    family = opened("zimage", bases("zimage"))
    stems = ("layers.0.attention.to_q", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj")
    sides = {"lora_A": torch.ones(1, 8), "lora_B": torch.ones(8, 1)}
    file = tmp_path / "x.safetensors"
    save_file({f"{stem}.{side}.weight": sides[side].clone() for stem in stems for side in sides}, file)
    with pytest.raises(RunError, match="cannot be trained for Z-Image; choose a LoRA of the denoiser alone"):
        read_lora(file, family, ["transformer.layers.0.attention.to_q"])


@everywhere
def test_the_prediction_is_what_the_sampler_follows(key: str, bases: Any, encoded: Any) -> None:
    """Two Euler steps by ``predict`` end where the pipeline's own two steps end: timestep scale, sign,
    packing, guidance embedding, masks. (U-Nets predict noise or v: test_sdxl.py has their formulas.)"""
    family = opened(key, bases(key))
    if family.denoiser_part == "unet":
        pytest.skip("no rectified flow")
    embeds, latents = encoded(key)
    denoiser = family.load_denoiser()
    pipeline = _prepared(family, denoiser)
    noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(4))
    final = pipeline(
        **family.pipeline_inputs(embeds[0], embeds[1]),
        latents=family.to_pipeline(noise),
        width=SIDE,
        height=SIDE,
        num_inference_steps=2,
        **family.guidance(1.0),
        output_type="latent",
    ).images
    final = getattr(tiny(key), "drawn", lambda family, latents: latents)(family, final)
    x = noise
    sigmas = pipeline.scheduler.sigmas
    with torch.no_grad():
        for now, after in pairwise(sigmas):
            velocity = family.predict(denoiser, x, now.reshape(1), embeds[:1], [Geometry.whole(SIDE, SIDE)])
            x = x + (after - now) * velocity
    assert torch.allclose(family.to_pipeline(x), final.reshape(family.to_pipeline(x).shape), atol=2e-3)


@everywhere
def test_the_trainer_is_told_process_and_tokens(key: str, bases: Any, encoded: Any) -> None:
    """The catalogue's word for the process, and the side of a token in latents (``noise.timesteps``)."""
    family, row = opened(key, bases(key)), CATALOGUE[key]
    assert (family.noise.prediction == "velocity") == (row.process == "flow")
    if row.size_multiple <= 16:  # the small VAEs of the others compress less than the published ones
        _, latents = encoded(key)
        assert SIDE // latents.shape[-1] * family.patch == row.size_multiple


@everywhere
def test_a_sample_is_the_same_alone_and_in_a_batch(key: str, bases: Any, encoded: Any) -> None:
    """Captions of different length: padding and masks must not reach into a sample."""
    family, (embeds, latents) = opened(key, bases(key)), encoded(key)
    denoiser = family.load_denoiser()
    noisy = torch.randn(latents.shape, generator=torch.Generator().manual_seed(6))
    t_B, sizes = torch.tensor([0.3, 0.8]), [Geometry.whole(SIDE, SIDE)] * 2
    with torch.no_grad():
        both = family.predict(denoiser, noisy, t_B, embeds, sizes)
        for i in range(2):
            one = slice(i, i + 1)
            alone = family.predict(denoiser, noisy[one], t_B[one], embeds[one], sizes[one])
            assert torch.allclose(both[one], alone, atol=1e-4), (both[one] - alone).abs().max()


@everywhere
def test_checkpointing_in_half_precision_as_on_a_gpu(key: str, bases: Any) -> None:
    """What a GPU does by default, on a processor: a base in bf16 under autocast, activations recomputed."""
    family = load_family(key, resolve(key, str(bases(key))), CPU, torch.bfloat16)
    clean = family.encode_images(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)))
    embeds = family.encode_captions(CAPTIONS)
    denoiser = family.load_denoiser()
    add_lora(denoiser, AdapterSettings(rank=2, alpha=2), family.targets["transformer"], 0)
    parameters = lora_parameters({"": denoiser}).values()
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser.train()
    t_B, sizes = torch.tensor([0.3, 0.6]), [Geometry.whole(SIDE, SIDE)] * 2

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = family.predict(denoiser, clean, t_B, embeds, sizes).float().square().mean()
        return list(torch.autograd.grad(loss, list(parameters)))

    stored = gradients()
    Model(denoiser, {family.denoiser_part: denoiser}).use_checkpointing()
    assert all(map(torch.equal, stored, gradients()))


@everywhere
def test_it_overfits_one_batch(key: str, bases: Any, encoded: Any) -> None:
    family, (embeds, clean) = opened(key, bases(key)), encoded(key)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    t_B = family.noise.sample_t(torch.tensor([0.3, 0.6]))
    sizes = [Geometry.whole(SIDE, SIDE)] * 2
    denoiser = family.load_denoiser()
    add_lora(denoiser, AdapterSettings(rank=8, alpha=8), family.targets["transformer"], 0)
    parameters = list(lora_parameters({"": denoiser}).values())
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    mixed, target = family.noise.mix(clean, noise, t_B), family.noise.target(clean, noise, t_B)
    losses = []
    for _ in range(8):
        loss = mse(family.predict(denoiser, mixed, t_B, embeds, sizes), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    touched = [p.grad is not None for p in parameters]
    assert all(touched), f"{touched.count(False)} of {len(touched)} LoRA matrices never get a gradient"


@everywhere
def test_a_vae_in_half_precision_takes_what_a_gpus_autocast_gives_it(key: str, bases: Any) -> None:
    family = load_family(key, resolve(key, str(bases(key))), torch.device("cpu"), torch.bfloat16)
    latents = family.encode_images(torch.zeros(1, 3, SIDE, SIDE))
    vae: Any = family._load_vae(torch.bfloat16)  # type: ignore[attr-defined]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert latents.dtype == torch.float32
        assert family.decode(vae, latents).shape == (1, 3, SIDE, SIDE)  # type: ignore[attr-defined]


@everywhere
def test_a_run_and_its_files(key: str, bases: Any, tmp_path: Path) -> None:
    """Three steps through the trainer, on photos with masks; each format gives the same picture again,
    every key used."""
    base = bases(key, named=True)
    run = RunFolder(tmp_path / "runs" / "r")
    config = recipe(
        base,
        draw_masked_project(tmp_path / "photos", 3),
        model={"family": key},
        dataset={"resolution": SIDE},
        loss={"mask": "normalised"},
        adapter={"targets": "transformer", "rank": 2, "alpha": 4.0},
        train={"steps": 3, "batch_size": 2, "learning_rate": 3e-2},
        samples={"prompts": ["zwx"], "every": 0, "steps": 2},
    )
    run.create(config)
    assert train_here(run)
    weights = weights_in(run.checkpoint(3), config)
    assert weights and all(bool(lora.up.any()) for lora in weights.values())

    family = opened(key, base)
    prompt = inputs_for(key, "zwx")
    pipeline = whole_pipeline(family, base)
    drawn = {"plain": draw(family, pipeline, **prompt)}
    for format in FORMATS:
        file = tmp_path / f"{format}.safetensors"
        save_lora(
            file,
            weights,
            family,
            config,
            trigger="",
            step=3,
            base_name="b",
            format=format,
            dtype=torch.float32,
        )
        header = read_header(file)
        assert families_of(header) == [key]
        assert key in families_of(Header(header.tensors)), "not told by the keys alone"
        back = read_lora(file, family, list(weights))
        assert set(back) == set(weights)
        for name, lora in weights.items():
            delta = lora.up.flatten(1) @ lora.down.flatten(1) * lora.scale
            again = back[name].up.flatten(1) @ back[name].down.flatten(1) * back[name].scale
            assert torch.allclose(delta, again, atol=1e-5), (format, name)
        if format in tiny(key).READ_BY_DIFFUSERS:
            pipeline.load_lora_weights(tmp_path, weight_name=file.name)
            drawn[format] = draw(family, pipeline, **prompt)
            pipeline.unload_lora_weights()
    with_lora(family, getattr(pipeline, family.denoiser_part), weights)
    trained = draw(family, pipeline, **prompt)
    assert np.abs(trained - drawn.pop("plain")).max() > 5e-3, "the LoRA does nothing"
    assert set(drawn) == set(tiny(key).READ_BY_DIFFUSERS)
    for format, picture in drawn.items():
        assert np.abs(picture - trained).max() < 5e-3, format


def with_lora(family: ModelFamily, denoiser: nn.Module, weights: Any) -> nn.Module:
    """The denoiser with a LoRA merged into its weights, by plain arithmetic."""
    modules = dict(denoiser.named_modules())
    with torch.no_grad():
        for name, lora in weights.items():
            layer: Any = modules[name.removeprefix(f"{family.denoiser_part}.")]
            delta = lora.up.flatten(1) @ lora.down.flatten(1) * lora.scale
            layer.weight += delta.reshape(layer.weight.shape)
    return denoiser


def _prepared(family: ModelFamily, denoiser: nn.Module) -> Any:
    pipeline = family.pipeline(denoiser)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@everywhere
def test_the_full_size_model(key: str) -> None:
    """Counted on the meta device from the published configuration."""
    module = tiny(key)
    row = CATALOGUE[key]
    rows = {base.id: base for base in row.bases}
    for base_id, denoiser in full_size(key).items():
        base = rows[base_id]
        # Tables of positions too, which are kept and loaded like weights.
        millions = sum(tensor.numel() for tensor in denoiser.state_dict().values()) / 1e6
        assert (base.params or row.params)[0] == pytest.approx(millions, rel=1e-3), base_id
        for name, pattern in family_class(key).targets_in(denoiser.config).items():
            layers = {n: m for n, m in denoiser.named_modules() if re.fullmatch(pattern, n)}
            assert len(layers) == module.TARGETS[base_id][name], (base_id, name)
            per_rank = sum(lora_size(layer) for layer in layers.values()) / 1e3
            known = (base.lora_params_per_rank or row.lora_params_per_rank)[name]
            assert known == pytest.approx(per_rank, rel=1e-2), (base_id, name)


def lora_size(layer: nn.Module) -> int:
    """LoRA parameters of a layer per unit of rank."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] + layer.out_channels
    assert isinstance(layer, nn.Linear), layer
    return layer.in_features + layer.out_features


@everywhere
def test_a_checkpoint_in_one_file(
    key: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original code's layout is recognised, and gives the same prediction as the folder."""
    base = bases(key, named=True)
    tensors = tiny(key).original(base)
    if tensors is None:
        pytest.skip("no such file, or tested elsewhere")
    file = tmp_path / "dreamy_v3.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, *args, **options: base)
    folder, single = opened(key, base), opened(key, file)
    cls = type(folder)
    for part, kind in {
        cls.denoiser_part: cls.denoiser_class,
        "vae": cls.vae_class,
        **cls.text_classes,
    }.items():
        one, two = folder.load_part(kind, part).state_dict(), single.load_part(kind, part).state_dict()
        assert set(one) == set(two)
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), (part, name)


@everywhere
def test_a_comfyui_file_fits_the_original_checkpoint(
    key: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged into a checkpoint of the original layout by its own names, it is the LoRA that was trained."""
    base = bases(key, named=True)
    tensors = tiny(key).original(base)
    if tensors is None:
        pytest.skip("no such file, or tested elsewhere")
    family = opened(key, base)
    part, denoiser = family.denoiser_part, family.load_denoiser()
    add_lora(denoiser, AdapterSettings(rank=2, alpha=3), family.targets["transformer+conv"], 0)
    weights = lora_weights({part: denoiser})
    for lora in weights.values():
        lora.up.normal_(generator=torch.Generator().manual_seed(7))
    expected = with_lora(family, family.load_denoiser(), weights).state_dict()

    file = tensors_in("comfyui", weights, family)
    for stem in {name.rpartition(".lora_")[0] for name in file} - {""}:
        up, down = file[f"{stem}.lora_B.weight"], file[f"{stem}.lora_A.weight"]
        delta = up.flatten(1) @ down.flatten(1) * file[f"{stem}.alpha"] / len(down)
        module = stem.removeprefix("diffusion_model.")
        (name,) = {f"model.diffusion_model.{module}.weight", f"{module}.weight"} & set(tensors)
        tensors[name] = tensors[name] + delta.reshape(tensors[name].shape)
    merged = tmp_path / "merged.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, merged)
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, *args, **options: base)
    for name, tensor in opened(key, merged).load_denoiser().state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


@everywhere
def test_a_quantised_base_trains(key: str, bases: Any, encoded: Any) -> None:
    embeds, latents = encoded(key)
    inputs = (torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(3)), torch.tensor([0.5]))
    step = (*inputs, embeds[:1], [Geometry.whole(SIDE, SIDE)])
    plain = opened(key, bases(key))
    with torch.no_grad():
        exact = plain.predict(plain.load_denoiser(), *step)
    for quantization, library, most in (("int8", "torchao", 0.05), ("nf4", "bitsandbytes", 0.5)):
        pytest.importorskip(library)
        family = opened(key, bases(key), quantized=quantization)
        denoiser = family.load_denoiser()
        with torch.no_grad():
            rough = family.predict(denoiser, *step)
        error = ((rough - exact).norm() / exact.norm()).item()
        assert 0 < error < most, quantization
        add_lora(denoiser, AdapterSettings(rank=2, alpha=2), family.targets["transformer"], 0)
        family.predict(denoiser, *step).sum().backward()
        ups = [p for n, p in lora_parameters({"": denoiser}).items() if "lora_B" in n]
        assert ups and all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ups), quantization
        assert len(lora_weights({"": denoiser})) == len(ups), quantization


def test_diffusers_is_the_version_that_was_tried() -> None:
    assert diffusers.__version__.startswith("0.42.")


@everywhere
def test_blocks_can_lie_in_ram(key: str, bases: Any, encoded: Any, photos: Path) -> None:
    """What a step reads of them is fetched; the same comes out."""
    found = []
    family, model_settings = opened(key, bases(key)), {"family": key, "base": str(bases(key))}
    embeds, _ = encoded(key)
    for in_ram in (False, True):
        adapter = {"rank": 2, "targets": "transformer"}
        config = recipe(
            bases(key), photos, model=model_settings, adapter=adapter, machine={"offload": in_ram}
        )
        model = assemble(family, config, Path())
        count = take_away(model)
        assert bool(count) is in_ram
        found.append(one_step(family, model, embeds[:1]))
    whole, fetched = found
    for name, expected in whole.items():
        assert torch.allclose(fetched[name], expected, rtol=1e-3, atol=1e-5), name
