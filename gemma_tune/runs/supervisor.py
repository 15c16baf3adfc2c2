"""The detached process of one run: waits for the device, starts the worker, samples, stops it, writes the end.

`python -m gemma_tune.runs.supervisor RUN_DIR [--adopt]`. It outlives the app; one lives per run (a lock). With --adopt
it takes over a worker whose supervisor was killed. Its own output goes to supervisor.log. Imports no torch, no pydantic.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from gemma_tune.runs import evidence, survival, verdict
from gemma_tune.runs.checkpoints import complete_checkpoints, remove_partial_checkpoints
from gemma_tune.runs.device import Turn
from gemma_tune.runs.events import EventWriter, read_events
from gemma_tune.runs.folder import RunFolder, read_json, write_json
from gemma_tune.runs.folding import fold
from gemma_tune.runs.hardware import Sampler, oom_kills
from gemma_tune.runs.launch import worker_command, worker_environment
from gemma_tune.runs.locks import try_lock
from gemma_tune.runs.processes import descendants, end_processes, identity, is_alive, living, run_processes
from gemma_tune.runs.state import State

# A stop that keeps gives the worker so long to finish its step, save and end by itself.
KEEP_SECONDS = float(os.environ.get("GEMMA_TUNE_KEEP_SECONDS", 600))
TERM_SECONDS = float(os.environ.get("GEMMA_TUNE_TERM_SECONDS", 10))  # from SIGTERM to SIGKILL
SAMPLE_SECONDS = 2.0
POLL_SECONDS = 0.1
WRITE_END_SECONDS = 600.0  # how long to go on trying to write the end on a full disk
RESERVE_BYTES = 65_536

logger = logging.getLogger(__name__)


class Supervisor:
    """Guards the worker's processes of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.writer = EventWriter(folder.path, f"supervisor-{os.getpid()}")
        self.sampler = Sampler()
        self.record = read_json(folder.process_path) or {}  # what process.json holds
        self.launcher: subprocess.Popen | None = None
        self.seen: set[psutil.Process] = set()  # all that were ever below the launcher
        self.forced = False
        self.next_sample = 0.0

    def run(self) -> None:
        """From its place in the queue to its end."""
        self.note(supervisor=identity(os.getpid()), launcher=None)
        self.say("queued", behind=None)
        self.folder.reserve_path.write_bytes(b"\0" * RESERVE_BYTES)
        device = self.wait_for_device()
        self.end(exit_code=0 if device is None else self.attempt(device))

    def attempt(self, device: int) -> int | None:
        """Start the worker and mind it, again and smaller where it ran out of memory. Its exit code; frees the device."""
        try:
            self.launch(device)
            exit_code = self.watch()
            while self.survives(exit_code):
                self.launch(device)
                exit_code = self.watch()
            return exit_code
        finally:
            os.close(device)

    def survives(self, exit_code: int | None) -> bool:
        """Whether the worker, which has ended, is to be started again with settings that need less memory."""
        if self.forced or self.folder.stop_mode():
            return False
        warning = survival.shrink(self.folder, evidence.gather(self.folder, exit_code))
        return warning is not None and self.say("warning", **warning)

    def adopt(self) -> None:
        """Follow a worker that another supervisor started; its exit code stays unknown."""
        self.note(supervisor=identity(os.getpid()))
        self.say("adopted", pid=(self.record.get("launcher") or {}).get("pid"))
        device = try_lock(self.folder.home / "device.lock")  # free where the launcher, which held it, is gone
        exit_code = self.watch()
        goes_on = self.survives(exit_code)
        if goes_on and device is None:
            device = self.wait_for_device()
        if goes_on and device is not None:
            exit_code = self.attempt(device)
        elif device is not None:
            os.close(device)
        self.end(exit_code)

    def wait_for_device(self) -> int | None:
        """The descriptor that holds the device; None when a stop was asked for first."""
        turn = Turn(self.folder.home, self.folder.id, self.record["supervisor"])
        behind = None
        try:
            while self.folder.stop_mode() is None:
                if (device := turn.take()) is not None:
                    return device
                if (now_behind := turn.behind()) != behind:
                    behind = now_behind
                    self.say("queued", behind=behind)
                time.sleep(POLL_SECONDS)
            return None
        finally:
            turn.leave()

    def launch(self, device: int) -> None:
        """Start the worker, from the last complete checkpoint where there is one."""
        attempt, values = self.state().attempt + 1, self.folder.values()
        remove_partial_checkpoints(self.folder.path)
        step, checkpoint = max(complete_checkpoints(self.folder.path), default=(0, None))
        arguments = [str(self.folder.path)]
        if checkpoint is not None:
            arguments += ["--resume-from", str(checkpoint.relative_to(self.folder.path))]
        with self.folder.log_path.open("ab") as log:
            self.note(launcher=None, log_offset=log.tell(), attempt=attempt, oom_kills=oom_kills())
            self.say_started(attempt, step, values)  # before the worker can write, should this process die
            self.launcher = subprocess.Popen(
                [*worker_command(self.folder, values), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=worker_environment(self.folder.path, values),
                start_new_session=True,
                pass_fds=[device],
            )
        self.note(launcher=identity(self.launcher.pid))

    def say_started(self, attempt: int, step: int, values: dict[str, Any]) -> None:
        rank = values.get("devices", {}).get("machine_rank", 0)
        self.say("started", attempt=attempt, resume_step=step, machine_rank=rank)
        if rank:
            host_0 = values["devices"]["main_process_ip"]
            self.say(
                "warning",
                message=f"This is host {rank}. The losses and the report of the run are on host 0, {host_0}.",
                machine_rank=rank,
            )
        if attempt > 1 and step == 0:
            self.say(
                "warning",
                message=f"Attempt {attempt} begins from the start: there was no complete checkpoint.",
            )

    def watch(self) -> int | None:
        """Sample and mind the stop request until the worker has ended; then no process of the run is left."""
        keep_until = None
        while not self.worker_is_over():
            self.sample()
            mode = self.folder.stop_mode()
            if mode == "keep" and keep_until is None:
                keep_until = time.monotonic() + (KEEP_SECONDS if has_begun(self.state()) else 0)
            if mode == "now" or (keep_until is not None and time.monotonic() > keep_until):
                self.forced = True
                break
            time.sleep(POLL_SECONDS)
        end_processes(self.processes, TERM_SECONDS)
        return self.launcher.wait() if self.launcher else None

    def worker_is_over(self) -> bool:
        if self.launcher:
            return self.launcher.poll() is not None
        return not is_alive(self.record.get("launcher")) and not living(self.seen) and not self.processes()

    def processes(self) -> list[psutil.Process]:
        """The run's living processes, below the launcher or strayed from it."""
        self.note_descendants()
        self.seen |= set(run_processes(self.folder.path))
        return living(self.seen)

    def note_descendants(self) -> None:
        """Remember what is below the launcher now: it may stray from there later."""
        if is_alive(self.record.get("launcher")):
            self.seen |= set(descendants(self.record["launcher"]["pid"]))

    def sample(self) -> None:
        if time.monotonic() < self.next_sample:
            return
        self.next_sample = time.monotonic() + SAMPLE_SECONDS
        self.note_descendants()
        self.seen = set(living(self.seen))
        self.say("hardware", **self.sampler.sample(self.seen))
        if self.sampler.warning:
            self.say("warning", message=self.sampler.warning)
            self.sampler.warning = None

    def end(self, exit_code: int | None) -> None:
        """Write the verdict, whatever it takes."""
        known = evidence.gather(self.folder, exit_code, forced=self.forced)
        fields = verdict.judge(known) | survival.advice(self.folder, known)
        deadline = time.monotonic() + WRITE_END_SECONDS
        while not self.say("ended", **fields) and time.monotonic() < deadline:
            self.folder.reserve_path.unlink(missing_ok=True)
            time.sleep(POLL_SECONDS)
        self.folder.reserve_path.unlink(missing_ok=True)

    def fail(self, error: Exception) -> None:
        """A fault of ours. A worker that lives is left alone: the app adopts it."""
        if not self.processes():
            self.folder.reserve_path.unlink(missing_ok=True)
            self.say(
                "ended",
                outcome="failed",
                exit_code=None,
                cause="disk" if getattr(error, "errno", None) == 28 else "bug",
                message=f"The supervisor failed: {error}",
                way_out=f"See {self.folder.supervisor_log_path}.",
                log_tail=[],
            )

    def state(self) -> State:
        return fold(read_events(self.folder.events_path)[0])

    def say(self, kind: str, **fields: Any) -> bool:
        """Write an event; a full disk costs the event, never the run."""
        try:
            self.writer.write(kind, **fields)
        except OSError as error:
            logger.error("event %s was not written: %s", kind, error)
            return False
        return True

    def note(self, **fields: Any) -> None:
        """Write process.json; without it the run's processes are still known by their environment."""
        self.record |= fields
        try:
            write_json(self.folder.process_path, self.record)
        except OSError as error:
            logger.error("process.json was not written: %s", error)


def has_begun(state: State) -> bool:
    """Whether this attempt trains already, so that there is something to keep."""
    return bool(state.plan or state.pace_points or state.trained_step is not None)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="gemma_tune.runs.supervisor")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--adopt", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = RunFolder(options.run_dir)
    if try_lock(folder.supervisor_lock_path) is None:  # held until this process ends
        logger.info("another supervisor minds this run")
        return 0
    supervisor = Supervisor(folder)
    try:
        if not options.adopt:
            supervisor.run()
        elif supervisor.state().is_live:
            supervisor.adopt()
    except Exception as error:
        supervisor.fail(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
