"""The training side: ``python -m trainer …``. Talks to the studio only through the run folder."""

import logging
import os

# The libraries below us announce every fallback and draw their own bars; our log is for people.
# Read when transformers and diffusers are imported, so it has to stand before any of our modules.
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")
# peft imports these two where they are installed; they tell of kernels that this machine cannot use.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
