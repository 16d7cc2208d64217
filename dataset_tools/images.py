"""Reading any picture a user may drop, as an upright sRGB picture without metadata.

The format is found by content, never by file name. All that is wrong with a file becomes one
:class:`ImageError` whose sentence names the file and the remedy.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from trainer.contract.errors import UserError
from trainer.contract.files import write_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 100_000_000
MIN_SIDE = 32

# Pillow checks this in Image.open, from the header alone, but only warns up to twice the limit. Those
# sizes are refused below, in words that the user understands.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

DECODE_ERRORS = (
    OSError,  # truncated data; UnidentifiedImageError is one as well
    SyntaxError,  # Pillow's word for a broken PNG or TIFF
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged bytes. Nothing but Pillow runs where these are caught."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _GPS_IFD, _BITS_PER_SAMPLE, _NEW_SUBFILE_TYPE, _DNG_VERSION = 0x0112, 0x8825, 258, 254, 50706


class ImageError(UserError):
    """A picture, or several, cannot be used."""


@dataclass(frozen=True)
class OpenedImage:
    """A picture as the studio uses it."""

    image: Image.Image
    """upright, mode RGB, sRGB, with empty ``info``."""
    notes: tuple[str, ...]
    """what was changed on the way, e.g. "turned upright", "GPS position removed"."""
    alpha: Image.Image | None = None
    """upright, mode L, 255 where the picture is opaque; None where it is so everywhere."""


def open_image(source: Path | bytes, name: str | None = None) -> OpenedImage:
    """Decode a file, or its bytes, into an upright sRGB picture.

    ``name`` is what error sentences call it; by default the file's own name. Raises
    :class:`ImageError`.
    """
    name = name or (source.name if isinstance(source, Path) else "the picture")
    with _opened(source, name) as picture:
        notes = []
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            pages = picture.format == "TIFF"
            notes.append("only the first page used" if pages else "animated: only the first frame used")
        try:
            picture.load()
            notes += [f"{what} removed" for what in _metadata(picture)]
            orientation = _orientation(picture)
            image, alpha, colour_notes = _to_srgb(picture)
        except DECODE_ERRORS as error:
            raise ImageError(_damaged(name)) from error
    if orientation in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[orientation])
        alpha = alpha.transpose(_TRANSPOSES[orientation]) if alpha else None
        notes.append("turned upright")
    image.info = {}
    return OpenedImage(image, (*notes, *colour_notes), alpha)


def probe_image(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, after checking that all of it can be decoded.

    Faster than :func:`open_image`: JPEGs are decoded at an eighth of their size. Raises
    :class:`ImageError`.
    """
    with _opened(path, path.name) as picture:
        width, height = picture.size
        try:
            picture.draft("RGB", (width // 8, height // 8))
            picture.load()
        except DECODE_ERRORS as error:
            raise ImageError(_damaged(path.name)) from error
        # Pillow turns TIFFs upright by itself while loading; their size then tells.
        if picture.format == "TIFF":
            return picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


def may_be_transparent(path: Path) -> bool:
    """Whether a picture's header says that it has transparent parts; no pixel is decoded."""
    with _opened(path, path.name) as picture:
        return _has_alpha(picture)


def thumbnail(image: Image.Image, size: int) -> Image.Image:
    """A copy no larger than ``size`` on either side, same aspect; never enlarged."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def encode_png(image: Image.Image) -> bytes:
    """An RGB picture as PNG bytes with nothing but pixels: no EXIF, GPS, ICC, text, time."""
    return _png(image.convert("RGB"))


def encode_mask(mask: Image.Image) -> bytes:
    """A mask as PNG bytes, one channel."""
    return _png(mask.convert("L"))


def _png(bare: Image.Image) -> bytes:
    bare.info = {}
    buffer = io.BytesIO()
    # Level 1 is three times faster than the default and a seventh larger.
    bare.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def save_clean_png(image: Image.Image, path: Path) -> None:
    """Write :func:`encode_png` of a picture to ``path``, atomically."""
    write_bytes(path, encode_png(image))


def _opened(source: Path | bytes, name: str) -> Image.Image:
    """Open a picture and check all that its header tells; no pixel is decoded."""
    try:
        head = source[:64] if isinstance(source, bytes) else _read_head(source)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}); check that it is there.") from error
    if not head:
        raise ImageError(f"{name} is empty (0 bytes); copy it again from where it came.")
    refusal = _refusal(head)
    if refusal:
        raise ImageError(f"{name} {refusal}")
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name)) from error
    except DECODE_ERRORS as error:
        if _known_magic(head):
            raise ImageError(
                f"{name} is damaged or of a kind that cannot be read; save it anew as PNG or JPEG."
            ) from error
        raise ImageError(
            f"{name} is not a picture (PNG, JPEG, WebP, BMP, TIFF and GIF can be read); leave it out."
        ) from error
    width, height = picture.size
    problem = None
    if width * height > MAX_PIXELS:
        problem = _too_large(name, width, height)
    elif min(width, height) < MIN_SIDE:
        problem = (
            f"{name} is only {width} × {height} pixels; use a picture of at least {MIN_SIDE} pixels a side."
        )
    elif _is_raw(picture):
        problem = f"{name} is a camera RAW file; export it as JPEG or PNG with your photo program."
    if problem:
        picture.close()
        raise ImageError(problem)
    return picture


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _refusal(head: bytes) -> str | None:
    """Why files that start like this are refused, or None."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
            return (
                "is a HEIC photo, which cannot be read here; export it as JPEG (on an iPhone: Settings, "
                "Camera, Formats, Most Compatible)."
            )
        if brand in (b"avif", b"avis"):
            return "is an AVIF picture, which cannot be read here; save it as PNG or JPEG."
        return "is a video; save single frames as PNG or JPEG."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "is an SVG drawing; save it as PNG."
    if start.startswith(b"%pdf"):
        return "is a PDF; save its pictures as PNG or JPEG."
    if start.startswith(b"8bps"):
        return "is a Photoshop file; save it as PNG."
    if head[8:10] == b"CR" and head[:4] == b"II*\0":
        return "is a camera RAW file; export it as JPEG or PNG with your photo program."
    return None


def _known_magic(head: bytes) -> bool:
    """Whether the bytes claim to be one of the formats that can be read."""
    webp = head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"")
    return webp or head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8"))


def _damaged(name: str) -> str:
    return f"{name} is damaged or cut short; copy it again from where it came, or save it anew."


def _too_large(name: str, width: int = 0, height: int = 0) -> str:
    size = f"{width} × {height} pixels" if width else f"more than {2 * MAX_PIXELS // 10**6} megapixels"
    return f"{name} is {size}; make it smaller than {MAX_PIXELS // 10**6} megapixels first."


def _is_raw(picture: Image.Image) -> bool:
    """DNG, NEF and ARW are TIFFs whose first page is a small preview, not the photo."""
    tags: Any = getattr(picture, "tag_v2", None)
    if picture.format != "TIFF" or tags is None:
        return False
    return _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE, 0) == 1


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return orientation if orientation in _TRANSPOSES else 1


def _metadata(picture: Image.Image) -> list[str]:
    """What kinds of metadata a loaded picture carries."""
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    try:
        exif = picture.getexif()
        gps, camera = bool(exif.get_ifd(_GPS_IFD)), bool(set(exif) - {_ORIENTATION, _GPS_IFD})
    except DECODE_ERRORS:
        gps, camera = False, True
    found = []
    if gps or b"GPSLatitude" in xmp:
        found.append("GPS position")
    if (camera and picture.format != "TIFF") or xmp or "photoshop" in picture.info:
        found.append("camera data")
    if picture.info.get("comment") or getattr(picture, "text", None):
        found.append("comment")
    return found


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info


def _to_srgb(picture: Image.Image) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """(mode RGB in sRGB, alpha if there is any, notes) for a loaded picture of any mode, put on white."""
    notes: list[str] = []
    profile = picture.info.get("icc_profile")
    image, depth_note = _to_8_bit(picture)
    if depth_note:
        notes.append(depth_note)
    alpha = None
    if _has_alpha(image):
        colours = "L" if image.mode in ("L", "LA", "La") else "RGB"  # what a grey ICC profile fits
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(colours)
    elif image.mode in ("P", "1", "RGBX"):
        image = image.convert("RGB")
    if image.mode == "LAB":
        profile = profile or ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if image.mode == "CMYK":
        notes.append("converted from CMYK")
    if profile:
        image, note = _apply_profile(image, profile)
        notes += [note] if note else []
    image = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image, None, notes
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white, alpha, [*notes, "transparent parts put on white"]


def _to_8_bit(picture: Image.Image) -> tuple[Image.Image, str | None]:
    """Bring 16-bit, 32-bit and float greys to 8 bits by scaling, where Pillow would clip."""
    if not (picture.mode.startswith("I") or picture.mode == "F"):
        return picture, None
    import numpy as np  # for this rare kind of picture alone

    values = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        top = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
        note = "converted from 16-bit"
        scaled = (values.astype(np.uint32) * 255 + top // 2) // top
    else:
        values = np.nan_to_num(values.astype(np.float64))
        low, high = float(values.min()), float(values.max())
        if picture.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif picture.mode == "I" and low >= 0 and high <= 65535:
            low, high = 0.0, 65535.0 if high > 255 else 255.0
        note = "converted from 16-bit" if high == 65535.0 else "converted from 32-bit"
        scaled = np.round((values - low) * (255 / max(high - low, 1e-12)))
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)), note


def _apply_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Convert by the embedded ICC profile; a profile that does not fit is ignored with a note."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).strip().startswith("sRGB") and image.mode == "RGB":
            return image, None
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "unreadable colour profile ignored"
    return converted or image, "colours converted to sRGB"
