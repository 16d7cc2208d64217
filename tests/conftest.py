"""Shared fixtures: a small base model, a folder of photos, and recipes over them."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from . import forks

# One thread: results are the same on every machine, and parallel jobs do not fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Gradio says so in the middle of a process; forks (tests/forks.py) want it said before they are set aside.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "True"
# What is written is there for every process at once; only a power cut would tell the difference. The tests of
# one, and of a full disk, put their own in this place. Waiting for the disk costs a third of the time.
os.fsync = lambda descriptor: None


def pytest_configure(config: pytest.Config) -> None:
    """The small models are for the processor; a GPU is shown to the tests that ask for one (-m gpu)."""
    # What is imported stays: looking through it for garbage, again and again, takes a seventh of the time.
    gc.disable()
    asked = config.getoption("markexpr")
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if not session.config.pluginmanager.hasplugin("dsession"):  # which runs no tests, but has others do so
        forks.prepare()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight SDXL folder, 64 px native, with fewer blocks than SDXL and one layer in each: what most
    of a short run's time goes by is how many layers there are, not how large they are."""
    from .tiny import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "tiny-sdxl", layers=1, blocks=2)


@pytest.fixture(scope="session")
def deeper_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all blocks of SDXL and two layers in each, for what takes more to be learnt."""
    from .tiny import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("deeper") / "tiny-sdxl")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cropped pictures in two buckets, with captions, as a project folder."""
    from .pictures import draw_project

    return draw_project(tmp_path_factory.mktemp("photos") / "photos")
