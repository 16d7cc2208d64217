"""[machine]: what of the machine is used, what it costs, and what is done when it is taken away."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting

OnOom = Literal["adapt", "stop"]


class MachineSettings(Section):
    """The machine that the training runs on: what of it is used, its price, and how it says that it goes.
    docs/rented-gpus.md has more."""

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
    shard: bool = setting(False, label="Split the base")
    """Each of several GPUs holds only its part of the base's weights, and fetches the others when their turn
    comes (FSDP). For a base that does not fit one GPU: two hold half of it each. Steps are slower, the LoRA
    is the same. For plain LoRAs over a base that is not quantised."""
    price_per_hour: float | None = setting(None, label="Price per hour", ge=0, le=10_000)
    """What the machine costs an hour. With it the run shows what it has cost, what it will cost until its
    end, and what 1,000 steps cost. Empty shows no costs."""
    currency: str = setting("$", label="Currency", min_length=1, max_length=4)
    """What stands before amounts: $, €, £."""
    budget: float | None = setting(None, label="Budget", gt=0, le=1_000_000)
    """The most that the run may cost, over all its attempts: when it is reached, the training is saved and
    stops. Raise it to go on. Empty sets no limit."""
    grace_s: float = setting(30.0, label="Grace", unit="s", ge=5, le=3600)
    """Seconds between the word that the machine goes (SIGTERM, or a notice of the cloud) and its end. The
    step is finished, saved, uploaded and told within them. Most clouds give 30, AWS 120, docker stop 10."""
    notices: Literal["off", "auto", "aws", "gcp", "azure"] = setting("off", label="Notices of the cloud")
    """Ask the cloud every 5 seconds whether it will take the machine away, and stop saved when it says so.
    For spot and preemptible machines of AWS, Google and Azure; auto finds out which it is. Other clouds send
    SIGTERM, which is always heard."""
