"""What to say of a trigger word: whether the base model knows it for something else already."""

from __future__ import annotations

_WORDS = """
a an the of in on with and my our your his her this that one some photo photograph picture image
painting drawing art artwork illustration portrait style sketch render cartoon anime person people
man woman men women boy girl boys girls kid child children baby guy lady face body hair eyes mother
father mom dad sister brother son daughter friend wife husband family bride groom dog cat puppy
kitten pet animal bird horse fish cow sheep pig rabbit bunny hamster mouse bear fox wolf lion tiger
elephant monkey duck chicken goat frog turtle snake dragon unicorn creature monster robot alien car
bike bicycle truck bus train plane boat ship house home building room chair table sofa bed lamp cup
mug bottle vase clock watch phone camera computer toy doll teddy ball book bag backpack shoe shoes
hat shirt dress jacket glasses sunglasses flower flowers tree plant food cake pizza fruit apple red
blue green yellow black white brown grey gray pink purple orange gold silver big small little old
young cute beautiful pretty new good nice happy sad alice anna emma mia sofia maria sarah laura
julia lisa kate emily luna bella lucy daisy molly max charlie leo oscar milo rocky buddy jack john
james david michael peter paul tom alex sam ben thomas daniel mark
"""
COMMON = frozenset(_WORDS.split())
"""Words that every text-to-image model has seen so often that they stand for something already."""


def trigger_hint(trigger: str) -> tuple[str, str]:
    """(kind, sentence) on a trigger word; kind is "good", "warn" or ""."""
    words = trigger.split()
    if not words:
        return "", "A rare word that will call up what you teach, best with its kind: for example zwx cat."
    common = [word for word in words if word.casefold().strip(".,;:!?'’") in COMMON]
    if len(common) == len(words):
        known = f"“{trigger}” is" if len(words) == 1 else "These are words that stand for something"
        tail = "a word that stands for something already" if len(words) == 1 else "already"
        return "warn", f"{known} {tail}: the base mixes it in. Put a rare word first: zwx {trigger}."
    if any(mark in trigger for mark in ",.;:!?"):
        return "warn", "Punctuation splits a trigger word; use letters and digits only."
    if common:
        return "good", "Good: a rare word, and what kind of thing it is."
    return (
        "good",
        "Good: a rare word. Adding its kind (zwx cat) helps the base to start from the right place.",
    )
