"""Recipes of other trainers, read and written: pure parsing, nothing is ever run or downloaded."""
