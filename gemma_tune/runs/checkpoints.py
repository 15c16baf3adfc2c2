"""Which checkpoints are whole: those whose COMPLETE.json, written last, names every file with its size.

Transformers writes a checkpoint file by file and resumes from half of one without a word (a fresh optimizer); a kill
during a save leaves such halves. Only whole checkpoints that we wrote are ever resumed from.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gemma_tune.runs.folder import read_json, write_json

MARKER = "COMPLETE.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_marker(checkpoint_dir: str | Path) -> int:
    """Declares the checkpoint whole; call it when nothing more will be written there. Returns its size in bytes."""
    folder = Path(checkpoint_dir)
    sizes = _sizes(folder)
    write_json(folder / MARKER, {"files": sizes})
    return sum(sizes.values())


def is_complete(checkpoint_dir: str | Path) -> bool:
    marker = read_json(Path(checkpoint_dir) / MARKER)
    expected = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(expected, dict) or not expected:
        return False
    sizes = _sizes(Path(checkpoint_dir))
    return all(sizes.get(name) == size for name, size in expected.items())


def complete_checkpoints(run_path: str | Path) -> list[tuple[int, Path]]:
    """The whole checkpoints of a run as (step, folder), lowest step first."""
    return [(step, path) for step, path in _checkpoints(run_path) if is_complete(path)]


def remove_partial_checkpoints(run_path: str | Path) -> list[Path]:
    """Deletes halves, which Transformers' rotation would count as checkpoints. Only while nothing of the run lives."""
    partial = [path for _, path in _checkpoints(run_path) if not is_complete(path)]
    for path in partial:
        shutil.rmtree(path)
    return partial


def _checkpoints(run_path: str | Path) -> list[tuple[int, Path]]:
    root = Path(run_path) / "checkpoints"
    if not root.is_dir():
        return []
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in root.iterdir()]
    return sorted(
        (int(match[1]), path) for match, path in named if match and path.is_dir() and not path.is_symlink()
    )


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file, by its path within the folder; the marker left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(f".{MARKER}.")]
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    names.pop(MARKER, None)
    return names
