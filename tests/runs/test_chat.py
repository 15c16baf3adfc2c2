import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gemma_tune import catalog, config
from gemma_tune.errors import ConfigError, ModelError, RunError
from gemma_tune.runs.chat import ChatSession, Sampling
from gemma_tune.runs.checkpoints import write_marker
from gemma_tune.runs.folder import create_run

POCKET = Path(catalog.local_path("pocket"))
HELLO = [{"role": "user", "content": "Hello. Who are you?"}]
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("GEMMA_TUNE_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


def make_run(method: str = "lora"):
    return create_run(config.parse({"method": {"type": method}}))


@pytest.fixture(scope="module")
def adapters(home) -> list[Path]:
    """Two random ones, each as a training would leave it. Made in a process of its own: this test stays torch-free."""
    folders = [home / "adapter-0", home / "adapter-1"]
    script = f"""
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
for seed, folder in enumerate({list(map(str, folders))!r}):
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained({str(POCKET)!r})
    random = LoraConfig(lora_alpha=400, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(base, random).save_pretrained(folder)
    AutoTokenizer.from_pretrained({str(POCKET)!r}).save_pretrained(folder)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return folders


@pytest.fixture(scope="module")
def run(home, adapters):
    run = make_run()
    shutil.copytree(adapters[0], run.model_dir)
    return run


@pytest.fixture(scope="module")
def session(run):
    with ChatSession(run.id) as session:
        session.wait_ready(120)
        yield session


def text_of(lines: list[dict], column: str) -> str:
    return "".join(line["text"] for line in lines if line["column"] == column and "text" in line)


def ends_of(lines: list[dict]) -> dict[str, dict]:
    return {line["column"]: line for line in lines if line.get("done")}


@pytest.mark.training
def test_both_columns_stream_and_are_counted(session):
    lines = list(session.ask(HELLO, GREEDY))
    assert text_of(lines, "base") and text_of(lines, "base") != text_of(lines, "tuned")
    ends = ends_of(lines)
    assert set(ends) == {"base", "tuned"}
    assert all(0 < end["tokens"] <= 12 and end["seconds"] > 0 for end in ends.values())
    assert session.facts["mixed"] is True
    assert list(session.ask(HELLO, GREEDY))[0] == lines[0]


@pytest.mark.training
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(session):
    def sampled(seed):
        lines = list(session.ask(HELLO, {"temperature": 2, "top_p": 1, "max_new_tokens": 20, "seed": seed}))
        return text_of(lines, "tuned")

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.training
def test_a_stop_in_mid_answer_ends_it_and_the_next_one_is_whole(session):
    answer = session.ask(HELLO, {"temperature": 3, "top_p": 1, "top_k": 0, "max_new_tokens": 900})
    lines = [next(answer) for _ in range(4)]
    with pytest.raises(RunError, match="still being written"):
        next(session.ask(HELLO, GREEDY))
    session.stop()
    lines += list(answer)
    assert {end["why"] for end in ends_of(lines).values()} <= {"stopped", "end"}
    left = session.ask(HELLO, {"temperature": 3, "top_p": 1, "top_k": 0, "max_new_tokens": 900})
    next(left)
    left.close()
    assert set(ends_of(list(session.ask(HELLO, GREEDY)))) == {"base", "tuned"}


@pytest.mark.training
def test_what_cannot_be_answered_is_a_fault_and_the_session_goes_on(session):
    with pytest.raises(ModelError, match="context holds"):
        list(session.ask([{"role": "user", "content": "long " * 2000}], GREEDY))
    with pytest.raises(ModelError, match="take turns"):
        list(session.ask(HELLO + HELLO, GREEDY))
    with pytest.raises(ConfigError, match="sampling.top_p"):
        list(session.ask(HELLO, {"top_p": 0}))
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert list(session.ask([*system, {"role": "assistant", "content": "I am."}, *HELLO], GREEDY))


@pytest.mark.training
def test_a_newer_model_of_the_run_is_taken_up(home, adapters):
    run = make_run()
    shutil.copytree(adapters[0], run.checkpoints_dir / "checkpoint-3")
    write_marker(run.checkpoints_dir / "checkpoint-3")
    with ChatSession(run.id) as session:
        assert session.wait_ready(120)["tuned"] == "checkpoint-3"
        before = text_of(list(session.ask(HELLO, GREEDY)), "tuned")
        shutil.copytree(adapters[1], run.model_dir)
        assert text_of(list(session.ask(HELLO, GREEDY)), "tuned") != before


@pytest.mark.training
def test_a_full_fine_tuning_is_compared_with_two_models(home):
    run = make_run("full")
    shutil.copytree(POCKET, run.model_dir)
    with ChatSession(run.id) as session:
        assert session.wait_ready(120)["mixed"] is False
        lines = list(session.ask(HELLO, GREEDY))
        assert text_of(lines, "base") == text_of(lines, "tuned") != ""


@pytest.mark.training
def test_a_run_without_a_model_says_so(home):
    with ChatSession(make_run().id) as session, pytest.raises(ModelError, match="neither a model nor"):
        session.wait_ready(120)


@pytest.mark.training
def test_the_worker_ends_with_the_process_that_started_it(run):
    script = f"""
from gemma_tune.runs.chat import ChatSession
session = ChatSession({run.id!r})
session.start()
print(session._process.pid, flush=True)
import time; time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=30)


@pytest.mark.training
def test_a_killed_worker_is_said_and_close_is_harmless(run):
    session = ChatSession(run.id)
    session.start()
    session.wait_ready(120)
    session._process.kill()
    with pytest.raises(ModelError, match="has ended"):
        list(session.ask(HELLO, GREEDY))
    assert not session.alive
    began = time.monotonic()
    session.close()
    session.close()
    assert time.monotonic() - began < 2


def test_every_wrong_sampling_setting_is_named():
    with pytest.raises(ConfigError) as caught:
        Sampling.of({"temperature": -1, "top_k": 1.5, "seed": True, "warmth": 1})
    assert [fault.where.removeprefix("sampling.") for fault in caught.value.faults] == [
        "temperature", "top_k", "seed", "warmth",
    ]  # fmt: skip
    assert Sampling.of({"temperature": 0, "top_k": 5.0}) == Sampling(temperature=0.0, top_k=5)
