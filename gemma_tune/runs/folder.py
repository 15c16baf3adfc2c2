"""The run folder: where everything of one run lies, and how runs are created and found.

The supervisor imports this module and must start fast: what needs pydantic or YAML is imported inside functions.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tune.errors import RunError
from gemma_tune.hub import home
from gemma_tune.runs.events import EVENTS_FILE, EventWriter

if TYPE_CHECKING:
    from gemma_tune.config import RunConfig

RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9-]+-[0-9a-f]{4}")
SLUG_CHARACTERS = 32


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def home(self) -> Path:
        return self.path.parent.parent

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance_path(self) -> Path:
        return self.path / "provenance.json"

    @property
    def events_path(self) -> Path:
        return self.path / EVENTS_FILE

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def supervisor_log_path(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def supervisor_lock_path(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def process_path(self) -> Path:
        return self.path / "process.json"

    @property
    def stop_path(self) -> Path:
        return self.path / "stop.json"

    @property
    def reserve_path(self) -> Path:
        """Some space that is given up so that the end of a run can be written on a full disk."""
        return self.path / ".reserve"

    @property
    def data_dir(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def report_dir(self) -> Path:
        return self.path / "report"

    @property
    def export_dir(self) -> Path:
        return self.path / "export"

    @property
    def overrides_path(self) -> Path:
        return self.path / "overrides.json"

    def config(self) -> RunConfig:
        """The complete configuration that the run computes by. Raises ConfigError where the file was edited into something invalid.

        config.yaml is what was asked for; what the run itself had to change since then lies over it.
        """
        from gemma_tune import config

        changes = [f"{name}={json.dumps(value)}" for name, value in self.overrides().items()]
        return config.load(self.config_path, changes)

    def overrides(self) -> dict[str, Any]:
        """Settings that the run changed by itself, by their dotted names: a smaller batch after it ran out of memory."""
        return read_json(self.overrides_path) or {}

    def values(self) -> dict[str, Any]:
        """config.yaml as it stands, unchecked and without pydantic; empty where `config` will tell what is wrong with it."""
        import yaml

        try:
            values = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return values if isinstance(values, dict) else {}

    def provenance(self) -> dict:
        return read_json(self.provenance_path) or {}

    def stop_mode(self) -> str | None:
        """What was asked for by stop.json: "keep", "now" or nothing."""
        return (read_json(self.stop_path) or {}).get("mode")


def runs_root() -> Path:
    return home() / "runs"


def create_run(config: RunConfig, start_key: str | None = None) -> RunFolder:
    """A new run folder with its configuration and the event `created`; nothing is started.

    `start_key` is what makes two starts the same one; without it the configuration's digest.
    """
    from gemma_tune.runs.provenance import gather

    root = runs_root()
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{_slug(config.output.name)}-{secrets.token_hex(2)}"
    draft = root / f".{run_id}"  # renamed when whole: nobody ever sees half a run
    with said_plainly(root):
        try:
            draft.mkdir(parents=True)
            (draft / "config.yaml").write_text(config.to_yaml(complete=True), encoding="utf-8")
            write_json(
                draft / "provenance.json", {"start_key": start_key or config.digest()} | gather(config)
            )
            _write_created(draft, run_id, config)
            draft.rename(root / run_id)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return RunFolder(root / run_id)


def list_runs() -> list[RunFolder]:
    """Every run, newest first."""
    root = runs_root()
    if not root.is_dir():
        return []
    folders = [RunFolder(path) for path in root.iterdir() if RUN_ID.fullmatch(path.name)]
    dated = [(_created_ns(folder), folder.id, folder) for folder in folders]
    return [folder for created, _, folder in sorted(dated, reverse=True) if created]


def find_run(name: str) -> RunFolder:
    """The run of an id, of an unambiguous beginning of one, or of "latest". Raises RunError."""
    exact = RunFolder(runs_root() / name) if RUN_ID.fullmatch(name) else None
    if exact and exact.config_path.is_file():
        return exact
    folders = list_runs()
    if name == "latest" and folders:
        return folders[0]
    found = [folder for folder in folders if name and folder.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError.at(
            "run", name, f"{len(found)} runs begin like this.", "Give more of the id: " + _ids(found)
        )
    way_out = f"There are: {_ids(folders)}" if folders else "There is no run yet; start one."
    raise RunError.at("run", name, "There is no such run.", way_out)


def write_json(path: Path, value: Any, *, replace: bool = True) -> None:
    """Writes the file at once: a reader sees the old or the new one, also after a crash.

    With replace=False the first writer wins: FileExistsError for the others.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(2)}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> Any | None:
    """The file's value; None where there is none or it is not JSON (an older crash may have left it empty)."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


@contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """The operating system's refusals as RunError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunError:
    if error.errno == 28:
        free = _free_text(path)
        return RunError.at(
            str(path), free, "The disk is full.", "Free some space, then do it again; nothing was lost."
        )
    return RunError.at(
        str(path),
        error.strerror or error,
        "Gemma Tune must be able to write there.",
        "Give yourself write permission, or set GEMMA_TUNE_HOME to a folder that you may write to.",
    )


def _free_text(path: Path) -> str:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB free"


def _write_created(draft: Path, run_id: str, config: RunConfig) -> None:
    about = {"model": config.model.id, "method": config.method.type, "objective": config.objective.type}
    about["source"] = config.data.source
    with EventWriter(draft, f"app-{os.getpid()}") as writer:
        writer.write("created", run=run_id, name=config.output.name, **about)


def _created_ns(folder: RunFolder) -> int:
    """The configuration is written once, at creation. 0: none, this is no run (or it is just being deleted)."""
    try:
        return folder.config_path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:SLUG_CHARACTERS].strip("-")
    return slug or "run"


def _ids(folders: list[RunFolder]) -> str:
    return ", ".join(folder.id for folder in folders[:3]) + (", …" if len(folders) > 3 else ".")
