"""The prepared project of ``python app.py --demo``."""

from __future__ import annotations

from pathlib import Path

from trainer.contract.presets import PRESETS_DIR, load_preset

from .projects import NotFound, Project, Workspace

PHOTOS = Path(__file__).resolve().parent.parent / "demo" / "photos"
NAME = "Zwx the creature"
PROJECT_ID = "zwx-the-creature"
TRIGGER = "zwx creature"


def prepare_demo(workspace: Workspace) -> Project:
    """The demo project, made from demo/photos where it is not there yet; what is there is left alone.

    Each step is done only where its result is missing, so a start that was cut off is made good.
    """
    from dataset_tools.crop import crop_project
    from dataset_tools.ingest import ingest

    try:
        project = workspace.project(PROJECT_ID)
    except NotFound:
        project = workspace.create_project(NAME)
    if not project.dataset().images:
        project.set_trigger(TRIGGER)
        ingest([PHOTOS], project.root)
    if not (project.root / "recipe.toml").exists():
        preset = load_preset(PRESETS_DIR / "demo.toml")
        project.save_config(preset.apply(project.config()))
        project.set_preset(preset.key)
    # Drawn creatures have no faces that a detector would know: no model is fetched for them.
    crop_project(project.root, project.buckets(), models_dir=None)
    return project
