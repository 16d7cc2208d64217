"""All that the studio and the trainer share: settings, families, events, run folders.

Standard library, pydantic, tomlkit and filelock only, so that a page can import it in milliseconds.
"""
