"""One file per model family; ``base.py`` says what a family has to offer."""
