import gc
import importlib.util
import os
import subprocess
import sys
import types

import pytest

from gemma_tune.config import parse
from gemma_tune.workers import startup

LEAVES = "import atexit; from gemma_tune.workers.startup import leave; atexit.register(print, 'late'); print('said'); leave(3)"


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, False),
        ({"method": {"type": "full"}}, False),
        ({"method": {"type": "qlora"}}, True),
        ({"train": {"optim": "adamw_8bit"}}, True),
        ({"train": {"optim": "paged_adamw_32bit"}}, True),
        ({"method": {"init_lora_weights": "loftq"}}, True),
    ],
)
def test_bitsandbytes_is_hidden_where_nothing_computes_with_it(monkeypatch, values, needed):
    session = types.ModuleType("session")
    monkeypatch.setitem(sys.modules, "gemma_tune.workers.session", session)
    monkeypatch.setattr("gemma_tune.workers.session", session, raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    assert startup.import_session(parse(values)) is session
    gc.unfreeze()
    assert gc.isenabled()
    assert (importlib.util.find_spec("bitsandbytes") is not None) is needed


@pytest.mark.parametrize(("processes", "said"), [("1", "said\n"), ("2", "said\nlate\n")])
def test_a_single_process_leaves_at_once_with_its_code_and_its_words(processes, said):
    environment = os.environ | {"WORLD_SIZE": processes}
    done = subprocess.run([sys.executable, "-c", LEAVES], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, said)
