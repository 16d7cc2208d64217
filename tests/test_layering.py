"""Who may import whom, told on the imports in the source and on what really gets loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import pytest

from trainer.contract.families import CATALOGUE

from .conftest import ROOT

PACKAGES = ("studio", "trainer", "dataset_tools")
ALLOWED = {
    "studio": {"studio", "trainer.contract", "dataset_tools"},
    "trainer": {"trainer", "dataset_tools"},
    "dataset_tools": {"dataset_tools", "trainer.contract"},
    "trainer.contract": {"trainer.contract"},
}
TORCH_AT_WORK = {f"dataset_tools.{name}" for name in ("describe", "segment", "pretrained", "device")}
"""What a caption job imports once it has a photo for its model."""
FOREIGN = {
    "studio": {"torch", "diffusers", "transformers", "peft", "accelerate"},
    "trainer": {"gradio", "fastapi"},
    "dataset_tools": {"gradio", "fastapi", "torch"},
}


def imports() -> list[tuple[str, str]]:
    """(importing module, imported module) for every import statement of our packages."""
    pairs = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            home = module.split(".") if parts[-1] == "__init__" else module.split(".")[:-1]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    pairs += [(module, alias.name) for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    base = home[: len(home) - node.level + 1] if node.level else []
                    pairs.append((module, ".".join([*base, *([node.module] if node.module else [])])))
    return pairs


IMPORTS = imports()


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", ALLOWED)
def test_our_packages_import_downwards_only(package: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in IMPORTS
        if inside(module, package)
        and any(inside(imported, ours) for ours in PACKAGES)
        and not any(inside(imported, allowed) for allowed in ALLOWED[package])
    ]
    assert not wrong


@pytest.mark.parametrize("package", FOREIGN)
def test_no_forbidden_library(package: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in IMPORTS
        if inside(module, package)
        and imported.split(".")[0] in FOREIGN[package]
        and module not in TORCH_AT_WORK
    ]
    assert not wrong


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_studio_never_loads_torch() -> None:
    loaded = loaded_by("import app, studio.server, studio.pages.shell, studio.jobs, studio.publish")
    assert "gradio" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "peft", "cv2", "mediapipe"}


def test_the_contract_loads_nothing_heavy() -> None:
    names = [path.stem for path in (ROOT / "trainer" / "contract").glob("*.py") if path.stem != "__init__"]
    loaded = loaded_by("; ".join(f"import trainer.contract.{name}" for name in names))
    assert not loaded & {"torch", "numpy", "PIL", "gradio", "huggingface_hub", "cv2"}


def test_a_check_loads_little() -> None:
    """Of a real recipe with its photos; importing torch alone would take longer than it may."""
    recipe = ["check", "presets/sdxl-subject.toml", "--set", "dataset.path=demo/photos"]
    loaded = loaded_by(f"from trainer.__main__ import main; assert main({recipe}) == 0")
    assert "trainer.contract.lint" in loaded
    assert not loaded & {"torch", "numpy", "psutil", "gradio", "huggingface_hub"}


def test_photos_load_no_detector_until_they_are_looked_at() -> None:
    light = "ingest, dataset_tools.crop, dataset_tools.check, dataset_tools.captioning, dataset_tools.tagger"
    loaded = loaded_by(f"import dataset_tools.{light}")
    assert not loaded & {"torch", "transformers", "onnxruntime", "cv2", "mediapipe", "gradio"}


def test_catalogue_and_family_files_are_the_same_set() -> None:
    files = (ROOT / "trainer" / "families").glob("*.py")  # others are what families share
    families = {file.stem for file in files if "\nclass Family(" in file.read_text(encoding="utf-8")}
    assert families == set(CATALOGUE)


def test_a_family_costs_one_short_file_one_row_and_one_preset() -> None:
    """In all at most 300 lines."""
    contract = (ROOT / "trainer" / "contract").glob("families*.py")
    rows = {
        keyword.value.value: node.end_lineno - node.lineno + 1
        for file in contract
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Family"
        for keyword in node.keywords
        if keyword.arg == "key" and isinstance(keyword.value, ast.Constant) and node.end_lineno
    }
    assert set(rows) == set(CATALOGUE)
    for key in CATALOGUE:
        file = ROOT / "trainer" / "families" / f"{key}.py"
        presets = [
            preset.read_text(encoding="utf-8")
            for preset in (ROOT / "presets").glob("*.toml")
            if tomllib.loads(preset.read_text(encoding="utf-8")).get("model", {}).get("family", "sdxl") == key
        ]
        assert presets, key
        lines = rows[key] + min(text.count("\n") for text in presets)
        assert lines + len(file.read_text(encoding="utf-8").splitlines()) <= 300, key


def test_no_family_is_named_outside_its_file() -> None:
    """What the trunk has to know of a family is an attribute of it, never a question about its name."""
    wrong = []
    for package in ("studio", "trainer", "dataset_tools"):
        for file in (ROOT / package).rglob("*.py"):
            where = file.relative_to(ROOT).as_posix()
            if where.startswith("trainer/families/") or where == "trainer/contract/families.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                    wrong += [f"{where}:{node.lineno}" for value in constants if value in CATALOGUE]
    assert not wrong


def test_files_stay_readable() -> None:
    long = {
        file.relative_to(ROOT).as_posix(): lines
        for package in (*PACKAGES, "demo", "bench", "tests")
        for file in (ROOT / package).rglob("*.py")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
    assert len((ROOT / "trainer" / "train.py").read_text(encoding="utf-8").splitlines()) <= 300
