"""Masks: told from photos by their names, taken in with them, read in the photo's frame."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tools.dataset import load_dataset
from dataset_tools.folder import load_photos, scan_folder
from dataset_tools.images import ImageError, open_image
from dataset_tools.ingest import ingest, remove_images
from dataset_tools.masks import is_transparent, load_mask, mask_path, open_mask

from .pictures import encoded, photo, picture, tree


def left_half(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """White on the left."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def write_mask(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    left_half(size).save(path)
    return path


def cut_out(seed: int = 0) -> Image.Image:
    """A picture that is transparent on the right."""
    image = picture(seed=seed).convert("RGBA")
    image.putalpha(left_half())
    return image


def masks_in(folder: Path) -> dict[str, str]:
    """photo -> mask"""
    photos = load_photos(folder)
    return {r.original_name: photos.masks[r.id] for r in photos.dataset.images if r.id in photos.masks}


@pytest.mark.parametrize(
    "name",
    [
        "cat-mask.png",
        "cat.mask.png",
        "CAT_MASK.PNG",
        "cat-masklabel.png",
        "masks/cat.png",
        "cat.jpg.mask.png",
    ],
)
def test_masks_beside_photos(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "cat.jpg", 1)
    photo(tmp_path / "dog.png", 2)
    write_mask(tmp_path / name)
    before = tree(tmp_path)
    photos = scan_folder(tmp_path)
    assert masks_in(tmp_path) == {"cat.jpg": name}
    assert [r.file for r in photos.dataset.images] == ["cat.jpg", "dog.png"] and not photos.notes
    assert tree(tmp_path) == before


def test_masks_of_class_folders(tmp_path: Path) -> None:
    photo(tmp_path / "10_zwx" / "cat.png", 1)
    write_mask(tmp_path / "10_zwx" / "masks" / "cat.png")
    photo(tmp_path / "cat.png", 2)  # another folder's photo of the same name
    assert load_photos(tmp_path).masks == {
        next(r.id for r in scan_folder(tmp_path).dataset.images if r.repeats == 10): "10_zwx/masks/cat.png"
    }


def test_what_is_called_a_mask_and_belongs_to_no_photo_is_a_photo(tmp_path: Path) -> None:
    photo(tmp_path / "venetian-mask.png", 1)
    assert [r.file for r in scan_folder(tmp_path).dataset.images] == ["venetian-mask.png"]
    photos = tmp_path / "masks"
    photo(photos / "one.png", 1)
    assert len(scan_folder(photos).dataset.images) == 1, "a folder of photos may be called masks"


def test_masks_that_no_photo_takes_are_told(tmp_path: Path) -> None:
    photo(tmp_path / "cat.png", 1)
    write_mask(tmp_path / "masks" / "dog.png")
    write_mask(tmp_path / "cat-mask.png")
    write_mask(tmp_path / "cat_mask.png")
    photos = scan_folder(tmp_path)
    assert len(photos.dataset.images) == 1 and len(photos.masks) == 1
    assert "the masks dog.png, cat_mask.png" in photos.notes[0]


def test_transparency_is_a_mask(tmp_path: Path) -> None:
    cut_out().save(tmp_path / "cat.png")
    picture(seed=1).convert("RGBA").save(tmp_path / "opaque.png")
    assert masks_in(tmp_path) == {"cat.png": "cat.png"}
    assert is_transparent(tmp_path / "cat.png") and not is_transparent(tmp_path / "opaque.png")
    record = load_photos(tmp_path).dataset.images[0]
    mask = load_mask(tmp_path, record, record.file)
    assert np.array_equal(np.asarray(mask), np.asarray(left_half()))
    write_mask(tmp_path / "cat-mask.png")
    assert masks_in(tmp_path) == {"cat.png": "cat-mask.png"}, "a file goes before it"


def test_transparency_turns_with_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    opened = open_image(encoded(cut_out(), "PNG", exif=exif), "cat.png")
    assert opened.image.size == (64, 96) and opened.alpha
    alpha = np.asarray(opened.alpha)
    assert alpha[:40].min() == 255 and alpha[56:].max() == 0  # the left has become the top


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "I;16"])
def test_masks_of_any_kind_of_file(mode: str) -> None:
    mask = left_half()
    made = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    assert np.array_equal(np.asarray(open_mask(encoded(made), (96, 64), "m.png")), np.asarray(mask))


def test_white_on_transparent_is_white_on_black() -> None:
    drawn = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    drawn.paste((255, 255, 255, 255), (0, 0, 48, 64))
    assert np.array_equal(np.asarray(open_mask(encoded(drawn), (96, 64), "m.png")), np.asarray(left_half()))


def test_masks_have_the_frame_of_their_photo_at_any_size() -> None:
    small = np.asarray(open_mask(encoded(left_half((48, 32))), (96, 64), "m.png"))
    assert small.shape == (64, 96) and small[:, :40].min() == 255 and small[:, 56:].max() == 0
    with pytest.raises(ImageError, match=r"m\.png is 64 × 96 pixels, but its photo 96 × 64"):
        open_mask(encoded(left_half((64, 96))), (96, 64), "m.png")


def test_a_zip_of_photos_and_masks(tmp_path: Path) -> None:
    archive = tmp_path / "pet.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, name in enumerate(["cat.png", "sub/dog.png", "owl.png"]):
            file.writestr(name, encoded(picture(seed=number)))
        file.writestr("cat-mask.png", encoded(left_half()))
        file.writestr("sub/masks/dog.png", encoded(left_half((48, 32))))
    report = ingest([archive], tmp_path / "project")
    assert (len(report.added), report.masks, report.skipped) == (3, 2, ())
    assert "2 masks" in report.summary()
    project = tmp_path / "project"
    records = {r.original_name: r for r in load_dataset(project).images}
    assert masks_in(project) == {name: f"masks/{records[name].id}.png" for name in ("cat.png", "dog.png")}
    for name in ("cat.png", "dog.png"):
        with Image.open(mask_path(project, records[name].id)) as mask:
            assert mask.mode == "L" and mask.size == (96, 64)


def test_transparency_is_kept_and_the_picture_is_what_it_was(tmp_path: Path) -> None:
    cut_out().save(tmp_path / "cat.png")
    report = ingest([tmp_path / "cat.png"], tmp_path / "project")
    (image_id,) = report.added
    assert report.masks == 1
    kept = Image.open(tmp_path / "project" / "images" / f"{image_id}.png")
    assert kept.mode == "RGB" and kept.getpixel((90, 5)) == (255, 255, 255)
    mask = Image.open(mask_path(tmp_path / "project", image_id))
    assert np.array_equal(np.asarray(mask), np.asarray(left_half()))
    remove_images(tmp_path / "project", [image_id])
    assert not mask_path(tmp_path / "project", image_id).exists()


def test_masks_may_come_after_their_photos_and_anew(tmp_path: Path) -> None:
    project = tmp_path / "project"
    cat = photo(tmp_path / "cat.jpg", 1)
    (image_id,) = ingest([cat], project).added
    mask = write_mask(tmp_path / "cat-mask.png")
    report = ingest([mask], project)
    assert (report.added, report.skipped, report.masks) == ((), (), 1)
    assert mask_path(project, image_id).exists() and len(load_dataset(project).images) == 1
    Image.new("L", (96, 64), 255).save(mask)
    kept = ingest([cat, mask], project).skipped[0].reason
    assert "its other mask is kept" in kept
    assert ingest([mask], project).masks == 1
    with Image.open(mask_path(project, image_id)) as replaced:
        assert replaced.getextrema() == (255, 255)


def test_a_mask_comes_with_a_photo_that_is_there(tmp_path: Path) -> None:
    project = tmp_path / "project"
    cat = photo(tmp_path / "cat.png", 1)
    ingest([cat], project)
    report = ingest([cat, write_mask(tmp_path / "cat.mask.png")], project)
    assert report.masks == 1 and "its mask was added" in report.skipped[0].reason


def test_a_mask_that_cannot_be_used_costs_no_photo(tmp_path: Path) -> None:
    project = tmp_path / "project"
    sources = [photo(tmp_path / "a.png", 1), photo(tmp_path / "b.png", 2), photo(tmp_path / "c.png", 3)]
    broken = tmp_path / "a-mask.png"
    broken.write_bytes(b"\x89PNG nonsense")
    lone = write_mask(tmp_path / "d-masklabel.png")
    report = ingest([*sources, broken, write_mask(tmp_path / "b-mask.png", (64, 96)), lone], project)
    assert (len(report.added), report.masks) == (3, 0)
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert set(reasons) == {"a-mask.png", "b-mask.png", "d-masklabel.png"}
    assert "make the mask from the whole photo" in reasons["b-mask.png"]
    assert "is the mask of no photo here" in reasons["d-masklabel.png"]


def test_two_photos_of_one_name(tmp_path: Path) -> None:
    project = tmp_path / "project"
    ingest([photo(tmp_path / "x" / "cat.png", 1), photo(tmp_path / "y" / "cat.png", 2)], project)
    assert len(load_dataset(project).images) == 2
    report = ingest([write_mask(tmp_path / "cat-mask.png")], project)
    assert report.masks == 0 and "could be the mask of 2 photos" in report.skipped[0].reason


def test_encoded_masks_are_small(tmp_path: Path) -> None:
    """One channel, nothing but pixels."""
    (image_id,) = ingest([_with_mask(tmp_path)], tmp_path / "project").added
    data = mask_path(tmp_path / "project", image_id).read_bytes()
    assert len(data) < 1000 and Image.open(io.BytesIO(data)).info == {}


def _with_mask(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    photo(folder / "cat.png", 1)
    write_mask(folder / "cat-mask.png")
    return folder
