"""The architecture as a test: who may import whom, and which libraries live where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gemma_tune"
FLOORS = [
    {"errors"},
    {"pocket"},
    {"geometry", "objectives", "sections", "sight"},
    {"catalog", "footprint", "support"},
    {"config"},
    {"schedule"},
    {"hub_adapters", "hub_client", "hub_config", "hub_errors", "reference", "forecast"},
    {"fit", "hub"},
    {"hub_access"},
    {"data", "runs"},
    {"outlook", "listing"},
    {"workers", "ui"},
    {"server"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_floors_below_and_never_its_siblings(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if not name.startswith("gemma_tune."):
            continue
        other = name.split(".")[1]
        if other in FLOOR_OF and other != part:
            assert FLOOR_OF[other] < FLOOR_OF[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_lives_only_in_workers_and_gradio_only_in_ui(path):
    roots = {name.split(".")[0] for name in imports(path)}
    part = part_of(path)
    if part != "workers" and path.name != "make.py" and part != "pocket":
        assert not roots & HEAVY
    if part != "ui":
        assert "gradio" not in roots


def test_the_page_and_the_command_line_never_import_torch():
    code = (
        "import sys, gemma_tune.server, gemma_tune.ui, gemma_tune.cli; gemma_tune.ui.build(); "
        "print(sorted({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert shown.stdout.strip().endswith("[]"), shown.stdout + shown.stderr


def test_no_shell_no_remote_code_no_catch_all_module():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert "shell=True" not in text and "os.system" not in text, path
        assert "trust_remote_code=True" not in text, path
        assert path.stem not in ("util", "utils", "misc", "common", "helpers"), path
