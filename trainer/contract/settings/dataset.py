"""[dataset]: the pictures."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from .captions import CaptionSettings
from .section import Section, setting

BucketList = Literal["standard", "all", "no_upscale"]
LEAST, MOST = 64, 2048
"""Sides in pixels that can be trained at."""


def _listed(value: Any) -> Any:
    """Sides as they are kept, "512, 768": of such a text, a number or a list."""
    if value is None:
        return None
    given = value if isinstance(value, (list, tuple)) else re.split(r"[\s,;]+", str(value).strip(" []"))
    sides = [str(one).strip() for one in given if str(one).strip()]
    if not all(one.isdecimal() and LEAST <= int(one) <= MOST for one in sides):
        raise ValueError(f"{value!r} is not allowed; give sides from {LEAST} to {MOST} px, such as 512, 768")
    return ", ".join(map(str, sorted({int(one) for one in sides})))


Sides = Annotated[str, BeforeValidator(_listed)]


class OwnSettings(Section):
    """What a folder has of its own, in the place of [captions] and [dataset]; None is what they say."""

    prefix: str | None = setting(None, label="Prefix", max_length=500, pattern=r"^[^|]*$")
    """Put before the captions of this folder, instead of captions.prefix; given empty, nothing is."""
    suffix: str | None = setting(None, label="Suffix", max_length=500, pattern=r"^[^|]*$")
    """Put after the captions of this folder, instead of captions.suffix; given empty, nothing is."""
    shuffle: bool | None = setting(None, label="Shuffle tags")
    """As captions.shuffle, for this folder."""
    keep_tokens: int | None = setting(None, label="Keep first tags", ge=0, le=100)
    """As captions.keep_tokens, for this folder."""
    dropout: float | None = setting(None, label="Caption dropout", ge=0, le=1)
    """As captions.dropout, for this folder."""
    flip: bool | None = setting(None, label="Mirror at random")
    """As dataset.flip, for this folder."""
    resolution: int | None = setting(None, label="Resolution", unit="px", ge=LEAST, le=MOST)
    """As dataset.resolution, for this folder."""
    more_resolutions: Annotated[str | None, BeforeValidator(_listed)] = setting(
        None, label="More resolutions", unit="px"
    )
    """As dataset.more_resolutions, for this folder; given empty, it is shown at one."""

    def captions(self, settings: CaptionSettings, regularisation: bool = False) -> CaptionSettings:
        """[captions] as it holds for this folder."""
        own = {
            name: getattr(self, name) for name in ("prefix", "suffix", "shuffle", "keep_tokens", "dropout")
        }
        usual = {"prefix": "", "suffix": ""} if regularisation else {}
        given = usual | {name: value for name, value in own.items() if value is not None}
        return settings.model_copy(update=given) if given else settings

    def flips(self, settings: DatasetSettings) -> bool:
        """Whether pictures of this folder are mirrored at random."""
        return settings.flip if self.flip is None else self.flip


NOTHING_OWN = OwnSettings()


class Subset(OwnSettings):
    """One more folder of pictures: another concept, or class pictures.

    In a form it is a line, ``../mia | trigger = qrt cat | repeats = 5``: the folder, then what differs
    from the defaults; ``regularisation`` alone means true.
    """

    path: str = setting(..., label="Folder", min_length=1, max_length=1000, pattern=r"^[^|]*$")
    """The folder, as dataset.path."""
    trigger: str = setting("", label="Trigger word", max_length=100, pattern=r"^[^|]*$")
    """What calls up this concept, and the caption of its pictures that have none; for a regularisation
    set the class ("dog"). Empty means the word of dataset.trigger, and none for a regularisation set."""
    repeats: int = setting(1, label="Repeats", ge=1, le=1000)
    """How often each picture is shown an epoch."""
    regularisation: bool = setting(False, label="Regularisation set")
    """Whether these are pictures of the class in general, which keep it from becoming the subject. They
    are shown no more often than the other pictures together: what is too many is left out."""
    weight: float = setting(1.0, label="Weight", gt=0, le=10)
    """Factor of their loss."""

    @model_validator(mode="before")
    @classmethod
    def _from_line(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        path, *rest = (part.strip() for part in data.split("|"))
        table: dict[str, Any] = {"path": path}
        for part in rest:
            name, equals, value = part.partition("=")
            table[name.strip()] = value.strip() if equals else True
        return table

    @property
    def line(self) -> str:
        """The line that makes this subset."""
        parts = [self.path]
        fields = type(self).model_fields
        for name, field in sorted(fields.items(), key=lambda pair: pair[0] in OwnSettings.model_fields):
            value = getattr(self, name)
            if name != "path" and value != field.default:
                written = str(value).lower() if value is False else value
                parts.append(name if value is True else f"{name} = {written}".strip())
        return " | ".join(parts)

    @property
    def own(self) -> OwnSettings:
        """What it has of its own, by itself."""
        return OwnSettings(**{name: getattr(self, name) for name in OwnSettings.model_fields})


class DatasetSettings(Section):
    """The pictures and how they are prepared."""

    path: str = setting("photos", label="Folder", min_length=1, max_length=1000)
    """Folder of images with sidecar .txt captions, or a project folder of the studio.
    A relative path is looked up beside the recipe, then in the current folder."""
    trigger: str = setting("", label="Trigger word", basic=True, max_length=100)
    """The word or short phrase that calls up what the LoRA learns. It is the caption of every picture
    that has none."""
    resolution: int | None = setting(None, label="Resolution", unit="px", ge=LEAST, le=MOST)
    """Side of the square bucket; the other buckets have about the same area. Empty means the native
    size of the base."""
    more_resolutions: Sides = setting("", label="More resolutions", unit="px")
    """Show every photo at these sizes too, such as 512, 768 beside a resolution of 1024: the LoRA then
    draws well at several sizes, and an epoch takes as many times longer. A photo is never enlarged for it: at
    a size that its crop does not reach, it is shown once more at the next smaller one."""
    flip: bool = setting(False, label="Mirror at random")
    """Show half of the pictures mirrored, chosen anew each epoch. Not for faces with a parting, text or
    anything else that is not symmetric."""
    rotate: float = setting(0.0, label="Turn at random", unit="°", ge=0, le=45)
    """Turn pictures by up to this many degrees to either side; frames are made smaller so far that no corner
    is empty. 3 to 5 helps with few photos; more teaches a tilted horizon."""
    random_crop: float = setting(0.0, label="Reframe at random", ge=0, le=0.5)
    """Make the frame smaller, and move it, by up to this share of its sides. 0.1 helps with few photos of the
    same framing; more cuts heads off."""
    hue: float = setting(0.0, label="Shift hues at random", unit="°", ge=0, le=180)
    """Turn all colours by up to this many degrees around the colour circle. For shapes whose colour does not
    matter; not for a pet, a face or a style, whose colours are to be learnt."""
    colour: float = setting(0.0, label="Vary light and colour", ge=0, le=0.5)
    """Change brightness, contrast and saturation by up to this share each. 0.1 is mild, and keeps the light
    of single photos from being learnt."""
    variants: int = setting(8, label="Variants", ge=2, le=64)
    """How many variants of each picture are made where they are turned, reframed or coloured, the picture
    itself among them. They are encoded once and kept, so more cost time before the first step, and disk."""
    buckets: BucketList = setting("standard", label="Buckets")
    """The shapes that photos are cropped to. "standard" are the nine that guides name for SDXL, scaled to the
    resolution; "all" is every shape of that area in whole steps, which cuts off less and makes more, smaller
    batches; "no_upscale" shrinks a large photo to that area and leaves a small one at its own size, in whole
    steps. Frames that are chosen already are cut to the nearest shape when a training starts."""
    bucket_step: int | None = setting(None, label="Bucket step", unit="px", ge=8, le=512)
    """The sides of buckets are multiples of this, with "all" and "no_upscale". Empty means a sixteenth of the
    resolution: 64 for 1024, 32 for 512."""
    bucket_min: int | None = setting(None, label="Shortest side", unit="px", ge=8, le=4096)
    """Shortest side of a bucket, with "all". Empty means half the resolution: shapes of up to 1 : 4."""
    bucket_max: int | None = setting(None, label="Longest side", unit="px", ge=64, le=8192)
    """Longest side of a bucket, with "all". Empty means twice the resolution. Less cuts long sides off, and
    trains such photos at a smaller area: 1024 at a resolution of 1024 spoils every shape but the square."""
    repeats: int = setting(1, label="Repeats", ge=1, le=1000)
    """How often each picture is shown an epoch. Alone it only makes epochs longer; beside other folders
    it balances them. Subfolders named like 10_zwx dog bring repeats of their own, which multiply."""
    subsets: tuple[Subset, ...] = setting((), label="More folders", max_length=16)
    """Further concepts, each with a folder and a trigger word of its own, and regularisation sets (class
    pictures). In a recipe each is a table [[dataset.subsets]] with path, trigger, repeats, regularisation and
    weight; here one line each: folder | trigger = qrt cat | repeats = 5, or folder | trigger = dog |
    regularisation | weight = 0.5. prefix, suffix, shuffle, keep_tokens, dropout, flip, resolution and
    more_resolutions take the place of what [captions] and [dataset] say for all, such as | keep_tokens = 2 |
    flip = false | resolution = 512; a prefix or suffix given empty ("prefix =") is none."""


def resolutions_of(settings: DatasetSettings, own: OwnSettings = NOTHING_OWN) -> tuple[int | None, ...]:
    """The sides that the pictures of a folder are shown at; None is the base's own."""
    more = settings.more_resolutions if own.more_resolutions is None else own.more_resolutions
    return (own.resolution or settings.resolution, *listed_sides(more))


def listed_sides(more: str | None) -> list[int]:
    """The sides of more_resolutions."""
    return [int(side) for side in (more or "").split(", ") if side]


def all_resolutions(settings: DatasetSettings, native: int) -> tuple[int, ...]:
    """The sides of all folders, for a base of ``native`` pixels; the largest first."""
    folders = (NOTHING_OWN, *settings.subsets)
    return tuple(
        sorted(
            {side or native for own in folders for side in resolutions_of(settings, own)},
            reverse=True,
        )
    )


def is_mirrored(settings: DatasetSettings) -> bool:
    """Whether pictures of any folder are mirrored."""
    return settings.flip or any(one.flip for one in settings.subsets)


def is_varied(settings: DatasetSettings) -> bool:
    """Whether a recipe varies its pictures, mirroring aside."""
    return bool(settings.rotate or settings.hue or settings.colour or settings.random_crop)


def variants_of(settings: DatasetSettings) -> int:
    """How many variants each picture has, itself among them."""
    return settings.variants if is_varied(settings) else 1
