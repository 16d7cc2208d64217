"""The cache through whole runs: pairs stay together, damage is noticed, only what changed is made again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dataset_tools.augment import View
from dataset_tools.dataset import load_dataset, save_dataset
from tests.pictures import draw_project
from tests.tiny_families import tiny
from trainer.cache import DAMAGED, LatentCache, TextCache, pixels_of
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings
from trainer.data import load_frozen
from trainer.families.base import Geometry, ModelFamily, TextEmbeds, load_family
from trainer.families.sdxl import Family
from trainer.noise import Ddpm
from trainer.source import resolve

from .helpers import Script, recipe, train_here

CPU = torch.device("cpu")


def opened(base: Path) -> ModelFamily:
    return load_family("sdxl", resolve("sdxl", str(base)), CPU, torch.float32)


def test_every_step_has_the_picture_with_its_own_caption(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the denoiser is given, step by step: shuffled, in two buckets, mirrored, over a resume."""
    root = draw_project(tmp_path / "photos", 7)
    captions = ["a red fox", "blue boat", "c", "den of zwx", "eel, old", "four", "grey goose"]
    for number, caption in enumerate(captions):
        (root / "images" / f"picture{number}.txt").write_text(caption)
    config = recipe(
        tiny_base,
        root,
        dataset={"flip": True},
        train={"steps": 12, "batch_size": 2},
        samples={"prompts": []},
        checkpoints={"every": 5},
    )
    run = RunFolder(tmp_path / "runs" / "pairs")
    run.create(config)
    seen: list[tuple[Tensor, TextEmbeds, Geometry]] = []
    mixed: list[Tensor] = []
    mix, predict = Ddpm.mix, Family.predict

    def watched_mix(self: Ddpm, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        mixed.extend(latents_BCHW)
        return mix(self, latents_BCHW, noise_BCHW, t_B)

    def watched_predict(
        self: Family, denoiser: Any, noisy: Tensor, t_B: Tensor, embeds: Any, geometry: Any
    ) -> Tensor:
        latents = [mixed.pop(0) for _ in embeds]
        seen.extend(zip(latents, embeds, geometry, strict=True))
        return predict(self, denoiser, noisy, t_B, embeds, geometry)

    monkeypatch.setattr(Ddpm, "mix", watched_mix)
    monkeypatch.setattr(Family, "predict", watched_predict)
    assert not train_here(run, Script(run, "stop", 5))
    before = len(seen)
    assert train_here(run)

    family = opened(tiny_base)
    images = load_frozen(run.dataset)
    known = {image.caption: family.encode_captions([image.caption])[0]["prompt"] for image in images}
    shown = set()
    for latents, embeds, geometry in seen:
        caption = min(known, key=lambda each: float((known[each] - embeds["prompt"]).abs().max()))
        image = next(image for image in images if image.caption == caption)
        views = [View(flip) for flip in (False, True)]
        flips = [family.encode_images(pixels_of(root, image, view)[None])[0] for view in views]
        nearest = [latents.shape == each.shape and torch.allclose(latents, each, atol=1e-5) for each in flips]
        assert any(nearest), f"the latents beside {caption!r} are not those of its picture"
        assert geometry == image.geometry(views[nearest.index(True)])
        shown.add((caption, nearest.index(True)))
    assert {caption for caption, _ in shown} == set(captions) and len(shown) > len(captions)
    assert 0 < before < len(seen) and len({image.bucket for image in images}) == 2


def test_damage_is_told_once_and_made_good(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, photos, samples={"prompts": []}, train={"steps": 1})
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("one", "two", "three")]
    for run in runs:
        run.create(config)
    assert train_here(runs[0])
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    good = {file: file.read_bytes() for file in files}
    latents = [file for file in files if "latents" in file.parts]
    texts = [file for file in files if "text" in file.parts]
    latents[0].write_bytes(good[latents[0]][:100])  # cut off
    latents[1].write_bytes(good[latents[1]][:-1] + bytes([good[latents[1]][-1] ^ 64]))  # one bit of a number
    texts[0].write_bytes(b"")
    texts[1].write_bytes(good[texts[1]][:-1] + bytes([good[texts[1]][-1] ^ 64]))
    assert train_here(runs[1])
    assert warnings_of(runs[1]) == [DAMAGED]
    assert {file: file.read_bytes() for file in files} == good
    assert train_here(runs[2])
    assert not warnings_of(runs[2])
    last = [(run.checkpoint(1) / "adapter.safetensors").read_bytes() for run in runs]
    assert last[0] == last[1] == last[2]


def warnings_of(run: RunFolder) -> list[str]:
    return [event["text"] for event in read_events(run.events)[0] if event["kind"] == "warning"]


class Counted:
    """A family that counts what it encodes."""

    def __init__(self, base: Path) -> None:
        self._family = opened(base)
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        self.count += len(pixels_BCHW)
        return self._family.encode_images(pixels_BCHW)

    def encode_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        self.count += len(captions)
        return self._family.encode_captions(captions)


def test_another_tokenizer_encodes_captions_anew_and_another_vae_photos(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(recipe(tiny_base, photos, samples={"prompts": []}, train={"steps": 1}))
    assert train_here(run)
    images = load_frozen(run.dataset)

    def encoded(base: Path) -> tuple[int, int]:
        """(photos, captions) that are encoded."""
        one, two = Counted(base), Counted(base)
        cache: Any = LatentCache(tmp_path / "cache", one, pytest.fail)  # type: ignore[arg-type]
        cache.fill(photos, images, DatasetSettings(), lambda done, total: None)
        texts: Any = TextCache(tmp_path / "cache", two, pytest.fail)  # type: ignore[arg-type]
        texts.fill([image.caption for image in images], lambda done, total: None)
        return one.count, two.count

    assert encoded(tiny_base) == (0, 0)
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    assert encoded(other) == (0, 0)  # the same model somewhere else
    vocabulary = next((other / "tokenizer_2").glob("*"))
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\n")
    assert encoded(other) == (0, len(images) + 1)
    vae = other / "vae" / "config.json"
    vae.write_text(vae.read_text().replace('"scaling_factor": 0.18215', '"scaling_factor": 0.13'))
    assert encoded(other) == (len(images), 0)


@pytest.mark.parametrize("live", [False, True])
def test_captions_that_are_cut_are_told_once(
    live: bool, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    # The small tokenizer knows single letters: 75 fit between the two special tokens.
    for number, length in enumerate((75, 76, 200)):
        (root / "images" / f"picture{number}.txt").write_text("zwx " + "a" * (length - 3))
    train = {"steps": 1, "text_encoder_lr": 1e-4 if live else 0.0}
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(recipe(tiny_base, root, samples={"prompts": []}, train=train))
    assert train_here(run)
    names = {image.id: image.original_name for image in load_dataset(root).images}
    assert warnings_of(run) == [
        "2 captions are longer than the 77 tokens that Stable Diffusion XL reads, such as that of "
        f"{names['picture1']}; what comes after is not learnt"
    ]
    save_dataset(root, load_dataset(root).without(["picture1", "picture2"]))
    short = RunFolder(tmp_path / "runs" / "short")
    short.create(recipe(tiny_base, root, samples={"prompts": []}, train=train))
    assert train_here(short)
    assert not warnings_of(short)


def test_families_that_share_encoders_do_not_share_what_is_encoded(tmp_path: Path) -> None:
    """Qwen3 is read at one layer by Z-Image and at three by FLUX.2; both are bases of one text encoder."""
    keys = ("zimage", "flux2")
    bases = {key: tiny(key).build(tmp_path / key) for key in keys}
    for part in ("text_encoder", "tokenizer", "vae"):
        shutil.rmtree(bases["flux2"] / part)
        shutil.copytree(bases["zimage"] / part, bases["flux2"] / part)
    families = [load_family(key, resolve(key, str(bases[key])), CPU, torch.float32) for key in keys]
    families[1].tokens = families[0].tokens
    assert len({family.text_encoder_id() for family in families}) == 2
    assert len({family.image_encoder_id() for family in families}) == 2
    before = families[1].text_encoder_id()
    families[1].tokens += 1
    assert families[1].text_encoder_id() != before


class Overflowing(Counted):
    def encode_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        return [{"prompt": torch.full((2, 3), torch.inf)} for _ in captions]


def test_captions_that_overflow_are_told_and_not_kept(tiny_base: Path, tmp_path: Path) -> None:
    texts: Any = TextCache(tmp_path, Overflowing(tiny_base), pytest.fail)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"empty caption.*precision to bf16"):
        texts.fill(["zwx"], lambda done, total: None)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_captions_stay_in_the_encoders_number_format(tiny_base: Path, tmp_path: Path) -> None:
    family = load_family("sdxl", resolve("sdxl", str(tiny_base)), CPU, torch.bfloat16)
    for _ in range(2):  # encoded, then read from the disk
        texts = TextCache(tmp_path, family, pytest.fail)
        texts.fill(["zwx"], lambda done, total: None)
        assert {tensor.dtype for tensor in texts.embeds(["zwx"])[0].values()} == {torch.bfloat16}
