"""Begins and ends a worker's process at less cost: measured in `docs/devices.md`. What it does holds for the whole process."""

from __future__ import annotations

import gc
import os
import sys
from types import ModuleType
from typing import NoReturn

from gemma_tune.config import RunConfig

BITSANDBYTES = "bitsandbytes"
QUANTIZED_OPTIMIZERS = ("8bit", "paged")


def import_session(config: RunConfig) -> ModuleType:
    """The module `session` with all that it imports, but bitsandbytes only where the run computes with it.

    PEFT imports bitsandbytes wherever it finds it, and with it most of torch's compiler: a quarter of the whole.
    """
    if not needs_bitsandbytes(config):
        sys.modules.setdefault(BITSANDBYTES, None)  # Python's own mark for a module that is not to be found
    gc.disable()  # nothing of what modules make is garbage, and looking for it takes a tenth of the time
    try:
        from gemma_tune.workers import session
    finally:
        gc.enable()
    gc.freeze()
    return session


def needs_bitsandbytes(config: RunConfig) -> bool:
    quantized_optimizer = any(word in config.train.optim for word in QUANTIZED_OPTIMIZERS)
    return quantized_optimizer or config.method.type == "qlora" or config.method.init_lora_weights == "loftq"


def leave(exit_code: int) -> NoReturn:
    """Ends the process without taking thousands of modules apart first; ranks of several take leave of each other."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.exit(exit_code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)
