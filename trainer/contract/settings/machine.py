"""[machine]: what of the computer is used."""

from __future__ import annotations

from .section import Section, setting


class MachineSettings(Section):
    """The machine that the training runs on."""

    gpus: int = setting(1, label="GPUs", ge=0, le=64)
    """How many GPUs of this machine train together, each with a part of every batch; 0 means all there are.
    The LoRA is the same, the steps are faster. Each GPU needs the memory for the whole model. Without a GPU
    it is that many processes of the processor. Several machines: docs/several-gpus.md."""
