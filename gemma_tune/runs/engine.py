"""Start, stop, resume, mend and delete runs: what page and command line call. Safe between threads and processes.

Everything is decided from the run's folder. `start.lock` in the home makes starting one thing at a time; the lock that a
supervisor holds for its life makes it the only one of its run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from gemma_tune.config import RunConfig, cross_faults
from gemma_tune.errors import ConfigError, RunError
from gemma_tune.forecast import Device, forecast
from gemma_tune.hub import home
from gemma_tune.runs import evidence, verdict
from gemma_tune.runs.base import geometry_of
from gemma_tune.runs.events import EventWriter, read_events
from gemma_tune.runs.folder import (
    RunFolder,
    create_run,
    find_run,
    list_runs,
    read_json,
    runs_root,
    said_plainly,
    write_json,
)
from gemma_tune.runs.hardware import Sampler
from gemma_tune.runs.launch import supervisor_command, supervisor_environment
from gemma_tune.runs.locks import locked, try_lock
from gemma_tune.runs.processes import is_alive, run_processes
from gemma_tune.runs.reader import StateReader
from gemma_tune.runs.sharing import host_faults
from gemma_tune.runs.state import State

SPAWN_SECONDS = 30.0  # for a supervisor to show itself; about 0.3 s on an idle machine
MINIMUM_FREE_BYTES = 1_000_000_000
STATES_KEPT = 200

_readers: OrderedDict[Path, StateReader] = OrderedDict()
_readers_lock = threading.Lock()


def start(config: RunConfig, token: str | None = None) -> str:
    """The id of a new run, or of the live run with the same configuration: asking twice starts one.

    Raises ConfigError (an invalid name, devices that this host lacks) and RunError (home not writable, disk nearly full).
    """
    if faults := [*cross_faults(config), *host_faults(config)]:
        raise ConfigError(*faults)
    check_room(config)
    with said_plainly(home()), locked(home() / "start.lock"):
        if twin := _live_twin(config.digest()):
            return twin.id
        folder = create_run(config)
        _spawn(folder, token)
    return folder.id


def stop(run_id: str, now: bool = False) -> None:
    """Ask a live run to finish its step and save, or to end at once; "now" is never taken back. Over: nothing."""
    folder = find_run(run_id)
    if reconcile(folder.id).is_over:
        return
    with said_plainly(folder.path):
        try:
            _ask_to_stop(folder, now)
        except OSError as error:
            if error.errno != 28:
                raise
            folder.reserve_path.unlink(missing_ok=True)  # stopping must be possible on a full disk
            _ask_to_stop(folder, now)


def resume(run_id: str, token: str | None = None) -> str:
    """Go on from the last complete checkpoint, or from the start where there is none. Live already: nothing to do."""
    folder = find_run(run_id)
    state = reconcile(folder.id)
    with said_plainly(folder.path), locked(home() / "start.lock"):
        state = read_state(folder.id)
        if state.is_live:
            return folder.id
        if not state.can_resume:
            raise RunError.at(
                "run", folder.id, "A finished run has nothing left to do.", "Start a new run instead."
            )
        if faults := host_faults(folder.config()):
            raise ConfigError(*faults)
        check_room(folder.config())
        folder.stop_path.unlink(missing_ok=True)
        _spawn(folder, token)
    return folder.id


def reconcile(run_id: str) -> State:
    """Make the record true: a worker without supervisor gets one, a run without any process gets its end."""
    folder = find_run(run_id)
    if read_state(folder.id).is_over or _is_minded(folder):
        return read_state(folder.id)
    with said_plainly(folder.path), locked(home() / "start.lock"):  # nobody is just starting it
        if read_state(folder.id).is_live and not _is_minded(folder):
            if run_processes(folder.path):
                _spawn(folder, None, adopt=True)
            else:
                _write_lost_end(folder)
    return read_state(folder.id)


def delete_run(run_id: str) -> None:
    """Remove a run that is over, with everything in its folder. Raises RunError for a live one."""
    folder = find_run(run_id)
    root = runs_root().resolve()
    if folder.path.is_symlink() or folder.path.resolve().parent != root:
        raise RunError.at(
            "run", folder.id, "Only a folder within the runs folder is deleted.", "Remove the link by hand."
        )
    if reconcile(folder.id).is_live:
        raise RunError.at("run", folder.id, "A live run cannot be deleted.", "Stop it first.")
    with said_plainly(folder.path), locked(home() / "start.lock"):
        if read_state(folder.id).is_live:
            raise RunError.at("run", folder.id, "It was just resumed.", "Stop it first.")
        shutil.rmtree(folder.path)


def read_state(run_id: str) -> State:
    """The state of a run, read from its events; only what is new since the last call."""
    folder = find_run(run_id)
    with _readers_lock:
        reader = _readers.setdefault(folder.path, StateReader(folder.events_path))
        _readers.move_to_end(folder.path)
        while len(_readers) > STATES_KEPT:
            _readers.popitem(last=False)
    return reader.read()


def check_room(config: RunConfig, free_bytes: Callable[[Path], int] | None = None) -> None:
    """Raises RunError unless the home can be written and has room for the checkpoints."""
    root = runs_root()
    with said_plainly(root):
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / ".probe", {})
        (root / ".probe").unlink(missing_ok=True)
    free = (free_bytes or _free_bytes)(root)
    needed = needed_bytes(config)
    if free < needed:
        raise RunError.at(
            str(root),
            f"{free / 1e9:.1f} GB free",
            f"A run like this needs about {needed / 1e9:.1f} GB of disk.",
            "Free some space, keep fewer checkpoints, or set GEMMA_TUNE_HOME to a folder on a larger disk.",
        )


def needed_bytes(config: RunConfig) -> int:
    """Disk that checkpoints and result take at most, by the forecast where the model's shape is known; at least 1 GB."""
    geometry = geometry_of(config.model.id, config.model.revision)
    if geometry is None:
        return MINIMUM_FREE_BYTES
    device = Device(
        "cuda" if Sampler().gpus() else "cpu", "", 1, 0, 0
    )  # more of it does not matter for the disk
    return max(MINIMUM_FREE_BYTES, forecast(config, geometry, device).disk_bytes)


def _live_twin(start_key: str) -> RunFolder | None:
    for folder in list_runs():
        if folder.provenance().get("start_key") != start_key:
            continue
        if read_state(folder.id).is_live and (_is_minded(folder) or run_processes(folder.path)):
            return folder
    return None


def _ask_to_stop(folder: RunFolder, now: bool) -> None:
    if folder.stop_mode() == "now":
        return
    mode = "now" if now else "keep"
    try:
        write_json(folder.stop_path, {"mode": mode}, replace=now)
    except FileExistsError:
        return  # another asked first
    with _writer(folder) as writer:
        writer.write("stop_requested", mode=mode)


def _is_minded(folder: RunFolder) -> bool:
    return is_alive((read_json(folder.process_path) or {}).get("supervisor"))


def _spawn(folder: RunFolder, token: str | None, *, adopt: bool = False) -> None:
    """Start a supervisor and wait for its first event. Call it with start.lock held."""
    offset = read_events(folder.events_path)[1]
    with folder.supervisor_log_path.open("ab") as log:
        process = subprocess.Popen(
            supervisor_command(folder.path, adopt=adopt),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=supervisor_environment(token),
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie is left of it
    deadline = time.monotonic() + SPAWN_SECONDS
    while time.monotonic() < deadline:
        events, _ = read_events(folder.events_path, offset)
        if any(event.get("by") == f"supervisor-{process.pid}" for event in events):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    if process.poll() == 0:
        return  # another supervisor minds the run
    _write_failed_start(folder)


def _write_failed_start(folder: RunFolder) -> None:
    lines = evidence.log_lines(folder.supervisor_log_path)[-verdict.TAIL_LINES :]
    message, way_out = "The supervisor of the run did not start.", f"See {folder.supervisor_log_path}."
    with _writer(folder) as writer:
        writer.write(
            "ended",
            outcome="failed",
            exit_code=None,
            cause="bug",
            message=message,
            way_out=way_out,
            log_tail=lines,
        )
    raise RunError.at("run", folder.id, message, way_out)


def _write_lost_end(folder: RunFolder) -> None:
    descriptor = try_lock(folder.supervisor_lock_path)
    if descriptor is None:
        return  # a supervisor has it after all
    try:
        known = evidence.gather(folder, exit_code=None)
        if known.state.is_live:
            with _writer(folder) as writer:
                writer.write("ended", **verdict.lost(known))
    finally:
        os.close(descriptor)


def _writer(folder: RunFolder) -> EventWriter:
    return EventWriter(folder.path, f"app-{os.getpid()}")


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free
