"""[machine]: what of the computer is used."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting

OnOom = Literal["adapt", "stop"]


class MachineSettings(Section):
    """The machine that the training runs on."""

    on_oom: OnOom = setting("adapt", label="When the GPU is full")
    """What happens when GPU memory runs out. "adapt" goes on from the last good step with the next cheapest
    saving (checkpointing, fewer pictures at once, an 8-bit optimizer, a quantised base, blocks in RAM) and
    says what it costs; "stop" ends the run there, so that you can choose."""
    pictures_at_once: int = setting(0, label="Pictures at once", ge=0, le=256)
    """How many pictures of a batch go through the model together; 0 means all. Fewer need less memory and
    take longer, and a step is the same: it still sees the whole batch."""
    offload: bool = setting(False, label="Base in RAM")
    """Keep the weights of the base's blocks in RAM and fetch each layer when it is needed. A step then takes
    several times as long, and the LoRA is the same; for a base that does not fit otherwise."""
    gpus: int = setting(1, label="GPUs", ge=0, le=64)
    """How many GPUs of this machine train together, each with a part of every batch; 0 means all there are.
    The LoRA is the same, the steps are faster. Each GPU needs the memory for the whole model. Without a GPU
    it is that many processes of the processor. Several machines: docs/several-gpus.md."""
