"""One file per model family; ``base.py`` says what a family has to offer."""

from diffusers.utils import logging as _diffusers
from transformers.utils import logging as _transformers

# Loading a pipeline draws a bar per part; the run's own stages tell more.
_diffusers.disable_progress_bar()
_transformers.disable_progress_bar()
