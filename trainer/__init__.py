"""The training side: ``python -m trainer …``. Talks to the studio only through the run folder."""
