from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from dataset_tools.images import (
    ImageError,
    OpenedImage,
    encode_png,
    open_image,
    probe_image,
    save_clean_png,
    thumbnail,
)

from .pictures import encoded, picture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def png_chunks(data: bytes) -> list[str]:
    names, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        names.append(data[at + 4 : at + 8].decode())
        at += 12 + length
    return names


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_found_by_content(format: str, tmp_path: Path) -> None:
    path = tmp_path / "misnamed.txt"
    path.write_bytes(encoded(picture(), format))
    opened = open_image(path)
    assert opened.image.mode == "RGB" and opened.image.size == (96, 64) and opened.image.info == {}
    # A 256-colour palette and JPEG lose a little.
    assert distance(opened.image, picture()) < 12
    assert probe_image(path) == (96, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(format: str, orientation: int, tmp_path: Path) -> None:
    upright = picture()
    # The stored picture is what, turned by the tag, gives the upright one.
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    tagged = Image.Exif()
    tagged[0x0112] = inverse
    turned = upright.copy()
    turned.getexif()[0x0112] = inverse
    stored = ImageOps.exif_transpose(turned)
    tagged[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = encoded(stored, format, exif=tagged, **options)
    opened = open_image(data, "photo")
    assert opened.image.size == upright.size
    assert distance(opened.image, upright) < 3
    assert ("turned upright" in opened.notes) == (orientation != 1 and format != "TIFF")
    path = tmp_path / "photo"
    path.write_bytes(data)
    assert probe_image(path) == upright.size


def test_gps_and_camera_data_are_found_and_removed() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    opened = open_image(encoded(picture(), "JPEG", exif=exif, comment=b"at home"), "photo.jpg")
    assert {"GPS position removed", "camera data removed", "comment removed"} <= set(opened.notes)
    assert png_chunks(encode_png(opened.image)) == ["IHDR", "IDAT", "IEND"]


def test_clean_png_holds_pixels_alone(tmp_path: Path) -> None:
    image = picture()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info.update(icc_profile=profile, transparency=(1, 2, 3), dpi=(72, 72), exif=b"Exif\0\0", gamma=1.0)
    path = tmp_path / "a.png"
    save_clean_png(image, path)
    assert set(png_chunks(path.read_bytes())) == {"IHDR", "IDAT", "IEND"}
    with Image.open(path) as again:
        assert np.array_equal(np.asarray(again), np.asarray(picture()))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_cmyk_becomes_rgb() -> None:
    opened = open_image(encoded(picture().convert("CMYK"), "JPEG", quality=95), "cmyk.jpg")
    assert opened.image.mode == "RGB" and "converted from CMYK" in opened.notes
    assert distance(opened.image, picture()) < 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_greys_are_scaled_not_clipped(format: str, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None, :].repeat(40, 0)
    opened = open_image(encoded(Image.fromarray(ramp.astype(dtype)), format), "scan")
    values = np.asarray(opened.image)
    expected = np.round(ramp / 257)
    assert np.abs(values[..., 0] - expected).max() <= 1
    assert "converted from 16-bit" in opened.notes


def test_16_bit_colour_png_is_scaled() -> None:
    ramp = np.linspace(0, 65535, 64).astype(">u2")
    rows = b"".join(b"\0" + np.stack([ramp, ramp[::-1], ramp], -1).astype(">u2").tobytes() for _ in range(40))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 64, 40, 16, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    values = np.asarray(open_image(data, "deep.png").image).astype(int)
    assert np.abs(values[0, :, 0] - ramp.astype(float) / 257).max() <= 1
    assert np.abs(values[0, :, 1] - ramp[::-1].astype(float) / 257).max() <= 1


def test_float_and_32_bit_pictures_are_scaled() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :].repeat(40, 0)
    values = np.asarray(open_image(encoded(Image.fromarray(ramp), "TIFF"), "f.tif").image)
    assert values.min() == 0 and values.max() == 255 and abs(int(values[0, 32, 0]) - 130) < 3
    wide = (ramp * 2**30).astype(np.int32)
    values = np.asarray(open_image(encoded(Image.fromarray(wide), "TIFF"), "i.tif").image)
    assert values.min() == 0 and values.max() == 255 and abs(int(values[0, 32, 0]) - 130) < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(mode: str) -> None:
    image = picture().convert(mode)
    image.putalpha(Image.new("L", image.size, 0))
    opened = open_image(encoded(image), "cut-out.png")
    assert opened.image.getextrema() == ((255, 255),) * 3
    assert "transparent parts put on white" in opened.notes


def test_transparent_palette_is_put_on_white() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 20, 40))
    opened = open_image(encoded(image, "PNG", transparency=0), "icon.png")
    assert opened.image.getpixel((5, 5)) == (255, 255, 255) and opened.image.getpixel((30, 5)) == (255, 0, 0)


def test_opaque_alpha_is_no_news() -> None:
    opened = open_image(encoded(picture().convert("RGBA")), "a.png")
    assert opened.notes == () and distance(opened.image, picture()) == 0


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_used(format: str) -> None:
    first, second = picture(seed=1), picture(seed=2)
    data = encoded(first, format, save_all=True, append_images=[second])
    opened = open_image(data, "moving")
    assert distance(opened.image, first) < 12 < distance(opened.image, second)
    assert any(note.startswith(("animated", "only the first page")) for note in opened.notes)


def test_embedded_profile_is_applied() -> None:
    """A profile that says red where sRGB says green must turn green pixels (about) red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace(b"\0s\0R\0G\0B", b"\0s\0w\0a\0p")
    green = Image.new("RGB", (40, 40), (0, 255, 0))
    opened = open_image(encoded(green, "PNG", icc_profile=swapped), "swap.png")
    red, green_, blue = opened.image.getpixel((9, 9))
    assert red > 240 and green_ < 20 and blue < 20
    assert "colours converted to sRGB" in opened.notes
    plain = open_image(encoded(green, "PNG", icc_profile=profile), "plain.png")
    assert plain.notes == () and plain.image.getpixel((9, 9)) == (0, 255, 0)
    broken = open_image(encoded(green, "PNG", icc_profile=b"no profile"), "broken.png")
    assert broken.image.getpixel((9, 9)) == (0, 255, 0)
    assert "unreadable colour profile ignored" in broken.notes


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims this size and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (header, pixels, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


BAD = {
    "empty.png": (b"", "empty (0 bytes)"),
    "note.jpg": (b"Dear diary, this is no picture at all.\n" * 9, "not a picture"),
    "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "paper.pdf": (b"%PDF-1.7\n" + bytes(100), "PDF"),
    "layers.psd": (b"8BPS\0\1" + bytes(100), "Photoshop"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "web.avif": (b"\0\0\0\x18ftypavif" + bytes(100), "AVIF"),
    "clip.mp4": (b"\0\0\0\x18ftypisom" + bytes(100), "video"),
    "raw.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "RAW"),
    "bomb.png": (huge_png(30_000, 30_000), "100 megapixels"),
    "large.png": (huge_png(12_000, 12_000), "12000 × 12000"),
    "tiny.png": (encoded(Image.new("RGB", (31, 400))), "31 × 400"),
    "cut.png": (encoded(picture(400, 400))[:2000], "damaged"),
    "cut.jpg": (encoded(picture(400, 400), "JPEG")[:1500], "damaged"),
    "cut.webp": (encoded(picture(400, 400), "WEBP")[:500], "damaged"),
    "cut.bmp": (encoded(picture(400, 400), "BMP")[:9000], "damaged"),
    "cut.tif": (encoded(picture(400, 400), "TIFF")[:9000], "damaged"),
    "cut.gif": (encoded(picture(400, 400), "GIF")[:2000], "damaged"),
    "head.jpg": (encoded(picture(400, 400), "JPEG")[:20], "damaged"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence_that_names_them(name: str, tmp_path: Path) -> None:
    data, expected = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    started = time.monotonic()
    for read in (open_image, probe_image):
        with pytest.raises(ImageError) as caught:
            read(path)
        sentence = str(caught.value)
        assert sentence.startswith(name) and expected in sentence and sentence.endswith((".", ")."))
        assert "; " in sentence or "(on an iPhone" in sentence, "a remedy follows"
        assert "\n" not in sentence
    assert time.monotonic() - started < 1.0


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png cannot be read"):
        open_image(tmp_path / "gone.png")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else(format: str) -> None:
    rng = np.random.default_rng(7)
    whole = np.frombuffer(encoded(picture(48, 40), format), dtype=np.uint8)
    for _ in range(60):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 400 if rng.random() < 0.5 else len(data)), 6)
        data[where] = rng.integers(0, 256, 6)
        try:
            assert isinstance(
                open_image(data.tobytes()[: int(rng.integers(20, len(data) + 1))], "x"), OpenedImage
            )
        except ImageError:
            continue


def test_thumbnail_keeps_aspect_and_never_enlarges() -> None:
    assert thumbnail(picture(400, 200), 100).size == (100, 50)
    assert thumbnail(picture(40, 36), 100).size == (40, 36)
