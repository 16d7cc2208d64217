"""Masks made for photos: cut out by colour or found by a prompt, kept, replaced, and read by a training."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_tools import cutout
from dataset_tools.__main__ import main
from dataset_tools.augment import View
from dataset_tools.captioning import work_of
from dataset_tools.cutout import Cutter
from dataset_tools.dataset import load_dataset, update_dataset
from dataset_tools.folder import load_photos
from dataset_tools.ingest import ingest, remove_images
from dataset_tools.masking import Length, Outcome, Wishes, mask_project
from dataset_tools.masks import mask_path
from trainer.concepts import TrainImage
from trainer.contract.errors import RunError
from trainer.masks import mask_at

from .pictures import encoded, picture

SIZE = (240, 180)
PLAIN = Image.new("RGB", (8, 6), (120, 160, 190))
BUSY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def drawn(background: Image.Image, size: tuple[int, int] = SIZE) -> tuple[Image.Image, Image.Image]:
    """A toy of three colours before a background, and its mask."""
    image, truth = background.resize(size), Image.new("L", size, 0)
    shapes = (
        ("ellipse", (0.34, 0.29, 0.66, 0.83), (200, 90, 30)),
        ("ellipse", (0.4, 0.15, 0.6, 0.4), (215, 110, 40)),
        ("rectangle", (0.39, 0.79, 0.46, 0.92), (190, 80, 30)),
        ("rectangle", (0.55, 0.79, 0.62, 0.92), (190, 80, 30)),
    )
    for canvas, colours in ((image, [shape[2] for shape in shapes]), (truth, [255] * 4)):
        for (kind, box, _), colour in zip(shapes, colours, strict=True):
            at = [round(share * size[axis % 2]) for axis, share in enumerate(box)]
            getattr(ImageDraw.Draw(canvas), kind)(at, fill=colour)
    return image, truth


def overlap(mask: Image.Image, truth: Image.Image) -> float:
    """Intersection over union."""
    one, other = np.asarray(mask) > 127, np.asarray(truth) > 127
    return float((one & other).sum() / (one | other).sum())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three photos: the toy before a plain and a busy background, and an even one without anything in it."""
    for name, background in (("plain", PLAIN), ("busy", BUSY)):
        (tmp_path / f"{name}.png").write_bytes(encoded(drawn(background)[0]))
    (tmp_path / "empty.png").write_bytes(encoded(Image.new("RGB", SIZE, (90, 90, 90))))
    root = tmp_path / "project"
    ingest([tmp_path / f"{name}.png" for name in ("plain", "busy", "empty")], root)
    return root


def path_of(root: Path, name: str) -> Path:
    record = next(r for r in load_dataset(root).images if r.original_name == f"{name}.png")
    return mask_path(root, record.id)


def test_the_command_cuts_out_what_training_then_learns(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mask", str(project)]) == 1, "a photo got no mask"
    said = capsys.readouterr().out
    assert "empty.png got no mask: nothing was found" in said and "2 masked, 1 not: empty.png" in said
    truth = drawn(PLAIN)[1]
    for name in ("plain", "busy"):
        with Image.open(path_of(project, name)) as mask:
            assert mask.mode == "L" and mask.size == SIZE
            assert overlap(mask, truth) > 0.8, name
    assert not path_of(project, "empty").exists()
    photos = load_photos(project)
    assert len(photos.masks) == 2
    # What the masked loss reads, in the frame of a crop that has only the right part of the photo.
    record = next(r for r in photos.dataset.images if r.original_name == "busy.png")
    box = (120, 0, 240, 180)
    image = TrainImage(
        **record.model_dump(exclude={"crop", "bucket"}),
        caption="",
        crop=box,
        bucket=(120, 180),
        mask=photos.masks[record.id],
    )
    learnt = mask_at(project, image, View(), (180, 120))[0].numpy() > 0.5
    wanted = np.asarray(truth.crop(box)) > 127
    assert (learnt & wanted).sum() / (learnt | wanted).sum() > 0.8


def test_what_cannot_be_cut_is_not_guessed() -> None:
    cut = Cutter(Path("nowhere"))
    assert cut(Image.new("RGB", (64, 48), "grey")).getextrema() == (0, 0)
    for size in ((1, 1), (2, 2), (3, 400), (5, 5)):
        assert cut(picture(*size)).size == size


def test_what_opencv_refuses_costs_one_photo(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Cutter(Path("nowhere"))

    def refuse(*asked: Any) -> None:
        raise cut.cv2.error("!samples.empty()")

    monkeypatch.setattr(cut.cv2, "grabCut", refuse)
    outcome, lines = make(project, cut)
    assert len(outcome.failed) == 3 and "could not be cut out (!samples.empty())" in "".join(lines)


def test_the_face_detector_is_closed(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked where its model is, and its graph is not left to the end of the process."""
    open_ones: list[Path] = []

    class Detector:
        def __init__(self, model: Path) -> None:
            open_ones.append(model)

        def find(self, image: Image.Image) -> list[Any]:
            assert open_ones
            return [((80.0, 30.0, 150.0, 70.0), 0.9)] if image.getcolors(1) is None else []

        def close(self) -> None:
            open_ones.clear()

    monkeypatch.setattr(cutout, "FaceDetector", Detector)
    (tmp_path / cutout.FACE_MODEL_FILE).write_bytes(b"")
    main(["mask", str(project), "--models", str(tmp_path)])
    assert not open_ones and "2 masked" in capsys.readouterr().out
    with Image.open(path_of(project, "plain")) as mask:
        assert overlap(mask, drawn(PLAIN)[1]) > 0.8


def test_without_opencv_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return importing(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RunError, match=r"Masks without a model need OpenCV: .*apt-get install libgl1$"):
        Cutter(Path("nowhere"))


def left_half(image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, image.width // 2, image.height))
    return mask


def top_half(image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, image.width, image.height // 2))
    return mask


def make(root: Path, model: Any, wishes: Wishes = Wishes(), **more: Any) -> tuple[Outcome, list[str]]:  # noqa: B008
    lines: list[str] = []
    work = work_of(wishes, model=getattr(model, "__name__", ""))
    return mask_project(root, lambda: model, wishes, work=work, tell=lines.append, **more), lines


def test_masks_that_are_there_are_kept_and_replaced_only_when_asked(project: Path) -> None:
    by_hand = encoded(Image.new("L", SIZE, 200))
    path_of(project, "busy").parent.mkdir()
    path_of(project, "busy").write_bytes(by_hand)
    outcome, _ = make(project, left_half)
    assert outcome.summary() == "2 masked" and path_of(project, "busy").read_bytes() == by_hand

    def never(image: Image.Image) -> Image.Image:
        raise AssertionError("no model looks at a photo for nothing")

    assert make(project, never)[0].summary() == "0 masked: every photo has its mask"
    before = path_of(project, "plain").read_bytes()
    replace = Wishes("replace")
    outcome, lines = make(project, top_half, replace)
    assert outcome.written == 3 and path_of(project, "plain").read_bytes() != before
    kept = path_of(project, "busy").with_suffix(".before.png")
    assert kept.read_bytes() == by_hand and f"kept as masks/{kept.name}" in "".join(lines)
    assert not path_of(project, "plain").with_suffix(".before.png").exists(), "it was made here"
    assert make(project, top_half, replace)[0].written == 3, "asked for again, it begins anew"
    second = encoded(Image.new("L", SIZE, 220))
    path_of(project, "busy").write_bytes(second)
    make(project, top_half, replace)
    assert kept.read_bytes() == by_hand, "another one of one's own gets a file of its own"
    assert kept.with_name(kept.name.replace("before", "before-2")).read_bytes() == second
    assert len(load_photos(project).masks) == 3
    remove_images(project, [r.id for r in load_dataset(project).images])
    assert not [*(project / "masks").iterdir()]


def test_a_failure_is_named_and_a_second_try_goes_on(project: Path) -> None:
    damaged = next(r for r in load_dataset(project).images if r.original_name == "busy.png")
    good = (project / damaged.file).read_bytes()
    (project / damaged.file).write_bytes(b"nothing")
    replace = Wishes("replace")
    outcome, lines = make(project, left_half, replace)
    assert [*outcome.failed] == ["busy.png"] and outcome.written == 2 and len(lines) == 3
    (project / damaged.file).write_bytes(good)
    outcome, lines = make(project, left_half, replace)
    assert outcome.summary() == "1 masked" and "busy.png: 50% of the photo" in lines[0]
    outcome, _ = make(project, lambda image: Image.new("L", image.size, 255), replace)
    assert "no background was found (100.0% of the photo)" in outcome.summary()


def test_one_drawn_meanwhile_is_kept(project: Path) -> None:
    mine = encoded(Image.new("L", SIZE, 10))

    def slow(image: Image.Image) -> Image.Image:
        path_of(project, "plain").parent.mkdir(exist_ok=True)
        path_of(project, "plain").write_bytes(mine)
        return left_half(image)

    outcome, lines = make(project, slow, photos=["plain"])
    assert outcome.written == 0 and "a mask of yours by now" in lines[0]
    assert path_of(project, "plain").read_bytes() == mine


def test_named_photos_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(project, left_half, photos=["plain.png", "EMPTY"])[0].written == 2
    assert main(["mask", str(project), "--photos", "cat"]) == 1
    assert "There is no photo cat in this project" in capsys.readouterr().err


def test_masks_grow_and_soften() -> None:
    mask = Image.new("L", (200, 100), 0)
    mask.paste(255, (80, 40, 120, 60))
    grown = np.asarray(Wishes(grow=Length(10)).shape(mask)) > 127
    rows, columns = np.flatnonzero(grown.any(1)), np.flatnonzero(grown.any(0))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (70, 129, 30, 69)
    assert np.array_equal(np.asarray(Wishes(grow=Length(10, percent=True)).shape(mask)) > 127, grown)
    soft = np.asarray(Wishes(blur=Length(8)).shape(mask))
    assert 0 < soft[50, 78] < soft[50, 81] < 255 and soft[50, 100] > 250 and soft[5, 5] == 0


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPSeg with random weights, small."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerFast
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("clipseg")
    words = ["<pad>", "<unk>", "<start>", "<end>", "a", "dog", "the", "subject"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=sizes | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 3},
        vision_config=sizes | {"image_size": 64, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=0,
    )
    torch.manual_seed(0)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    return folder


def test_a_model_masks_what_the_prompt_names(
    project: Path, clipseg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update_dataset(project, lambda d: d.without([r.id for r in d.images if r.original_name == "empty.png"]))
    asked = ["mask", str(project), "--model", str(clipseg), "--threshold", "0.5"]
    code = main([*asked, "--prompt", "a dog"])
    said = capsys.readouterr()
    assert "to look for 'a dog'" in said.out, said.err
    assert code == 0, said.out
    with Image.open(path_of(project, "busy")) as mask:
        assert mask.size == SIZE and {level for _, level in mask.getcolors() or ()} == {0, 255}
    assert main([*asked, "--existing", "replace", "--grow", "2%", "--blur", "4"]) == 0
    assert "to look for 'the subject'" in capsys.readouterr().out


def test_other_models_are_refused_in_one_sentence(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    asked = ["mask", str(project), "--model", str(other)]
    for config, sentence in (
        (None, "other is no model of transformers (it has no config.json)"),
        ({"model_type": "bert"}, "other is a bert, not a CLIPSeg"),
        ({"model_type": "clipseg"}, "other has no .safetensors weights"),
    ):
        if config:
            (other / "config.json").write_text(json.dumps(config))
        assert main(asked) == 1 and sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["mask", str(project), "--prompt", "a dog"])
    assert "--prompt goes with --model" in capsys.readouterr().err
    for length, sentence in (("much", "'much' is no length; write 8 or 2%"), ("90%", "90% is not between")):
        with pytest.raises(SystemExit):
            main(["mask", str(project), "--grow", length])
        assert sentence in capsys.readouterr().err
