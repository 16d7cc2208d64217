"""The training side: ``python -m trainer …``. Talks to the studio only through the run folder."""

import os

# The libraries below us announce every fallback and draw their own bars; our log is for people.
# Read when transformers and diffusers are imported, so it has to stand before any of our modules.
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")
