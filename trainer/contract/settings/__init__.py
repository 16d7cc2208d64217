"""The sections of a recipe, one file each; trainer/contract/config.py puts them together."""
