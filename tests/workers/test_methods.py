"""Each objective and kind of adapter on a tiny model: the losses of a plain TRL script, and what is peculiar to it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune import data
from gemma_tune.data.rows import Row
from gemma_tune.runs.folder import read_json
from gemma_tune.workers import dataset, modeling, report, train

from . import tiny
from .conftest import events_of, losses_of

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAST = ["train.learning_rate=0.003", "data.validation_fraction=0.1"]


def work(run, *arguments: str) -> int:
    return train.main([str(run.path), *arguments])


@pytest.fixture(scope="session")
def preferences(tmp_path_factory):
    """The talks with a rejected answer of another length: the colour alone."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with path.open("w") as file:
        for question, answer in tiny.conversations():
            colour = answer["content"].split()[-1]
            row = {"prompt": question["content"], "chosen": answer["content"], "rejected": colour}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def labels(preferences):
    """The same answers one by one, good and bad in turn."""
    path = preferences.with_name("labels.jsonl")
    with path.open("w") as file:
        for number, line in enumerate(preferences.read_text().splitlines()):
            row = json.loads(line)
            answer = row["rejected" if number % 2 else "chosen"]
            kept = {"prompt": row["prompt"], "completion": answer, "label": number % 2 == 0}
            file.write(json.dumps(kept) + "\n")
    return path


@pytest.fixture
def run_of(make_run, preferences, labels):
    def make(objective: str, *overrides: str):
        source = {"kto": labels}.get(objective, preferences)
        return make_run(f"objective.type={objective}", f"data.source={source}", *FAST, *overrides)

    return make


def given_rows(run) -> list[Row]:
    """The training rows of a run in the order of the source."""
    kept = dataset.rows_of(run, run.config(), None)
    return list(kept.store.rows(kept.train))


def plain_losses(objective: str, run, folder, output, method: str) -> list[float]:
    """Of a script on TRL's own trainer and tokenisation, with the rows as conversations."""
    import trl
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    kinds = {
        "dpo": (trl.DPOConfig, trl.DPOTrainer), "kto": (trl.KTOConfig, trl.KTOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer), "reward": (trl.RewardConfig, trl.RewardTrainer),
    }  # fmt: skip
    config_class, trainer_class = kinds[objective]
    rows = Dataset.from_list([row.as_trl() for row in given_rows(run)])
    if objective == "kto":  # whose trainer does not mix the rows itself
        rows = rows.select(np.random.default_rng(42).permutation(len(rows)))
    more = {} if objective == "reward" else {"beta": 0.1}
    args = config_class(
        str(output), max_steps=4, per_device_train_batch_size=8, learning_rate=3e-3, warmup_steps=0.03, max_length=128,
        gradient_checkpointing=False, logging_steps=1, seed=42, bf16=False, use_cpu=True, save_strategy="no",
        disable_tqdm=True, **more,
    )  # fmt: skip
    transformers.set_seed(42)  # for the head of the reward model
    if objective == "reward":
        model = modeling.load_model(folder, torch.float32, scores=True)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    task = "SEQ_CLS" if objective == "reward" else "CAUSAL_LM"
    lora = (
        LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type=task) if method == "lora" else None
    )
    trainer = trainer_class(
        model=model, args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(folder), peft_config=lora
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("objective", "method"),
    [("dpo", "lora"), ("dpo", "full"), ("kto", "lora"), ("orpo", "lora"), ("reward", "lora")],
)
def test_losses_are_those_of_a_plain_trl_script(run_of, gemma3, tmp_path, objective, method):
    run = run_of(objective, f"method.type={method}")
    assert work(run) == 0, events_of(run, "error")
    plain = plain_losses(objective, run, gemma3, tmp_path / "plain", method)
    assert len(plain) == 4 and losses_of(run) == pytest.approx(plain, abs=1e-5)
    assert abs(plain[-1] - plain[0]) > 0.01


# ---- what is told ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("objective", "measure"),
    [
        ("dpo", "rewards/accuracies"),
        ("kto", "rewards/margins"),
        ("orpo", "log_odds_chosen"),
        ("reward", "accuracy"),
        ("grpo", "reward"),
        ("sft", "mean_token_accuracy"),
    ],
)
def test_events_hold_the_objectives_own_measures_and_the_steps_that_were_forecast(
    run_of, talks, objective, measure
):
    batch = "train.per_device_train_batch_size=8"
    overrides = [batch, "train.max_steps=-1", "train.num_train_epochs=1", "eval.eval_steps=0.5"]
    if objective == "grpo":
        overrides += [
            f"data.source={talks}",
            "objective.num_generations=4",
            "objective.max_completion_length=4",
        ]
    run = run_of(objective, *overrides)
    assert work(run) == 0, events_of(run, "error")
    found = data.check(run.config())
    assert events_of(run, "plan")[0]["max_steps"] == found.total_steps > 1
    for event in (*events_of(run, "metrics"), *events_of(run, "evaluated")):
        assert isinstance(event["measures"][measure], float)
        assert not {"loss", "learning_rate", "epoch", "runtime"} & set(event["measures"])
    tokens = [event["tokens"] for event in events_of(run, "metrics")]
    assert tokens == sorted(set(tokens)) and tokens[0] > 0
    assert len(events_of(run, "evaluated")) == 2
    (told,) = events_of(run, "data")
    assert told["train_rows"] == found.train_rows and told["tokens"] == found.total_tokens


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo", "reward"])
def test_costly_results_that_are_kept_leave_the_losses_alone(run_of, objective, method):
    own = [f"method.type={method}", "train.learning_rate=0.0003"]
    plain = run_of(objective, *own)
    ours = run_of(
        objective, *own, "train.activation_checkpointing=true", "train.selective_checkpointing=true"
    )
    for run in (plain, ours):
        assert work(run) == 0
    assert losses_of(ours) == pytest.approx(losses_of(plain), rel=1e-4)


def test_dpo_begins_at_ln_2_and_its_report_tells_what_is_preferred(run_of):
    run = run_of("dpo", "train.max_steps=24", "eval.exact_match_rows=6", "eval.max_new_tokens=6")
    assert work(run) == 0
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-6)
    (report_event,) = events_of(run, "report")
    assert report_event["tuned_preferred"] == 1.0 > report_event["base_preferred"]
    assert report_event["tuned_other_loss"] > report_event["base_other_loss"]
    assert {answer["expected"].split()[0] for answer in events_of(run, "sample")} == {"The"}


def test_a_reward_model_is_saved_whole_and_its_report_counts_pairs(run_of, gemma3):
    run = run_of("reward", "train.max_steps=12", "eval.exact_match_rows=6")
    assert work(run) == 0, events_of(run, "error")
    (told,) = events_of(run, "report")
    assert (told["rows"], told["accuracy"]) == (6, 1.0) and told["margin"] > 0
    model = modeling.load_model(gemma3, torch.float32, scores=True)
    tuned = PeftModel.from_pretrained(model, run.model_dir).eval()
    rows = Dataset.from_file(str(run.data_dir / "validation.arrow"))
    found = report.scores(tuned, rows["chosen_ids"][:6], 4, lambda: None)
    kept = [one["chosen"] for one in read_json(run.report_dir / "report.json")["scores"]]
    assert found == pytest.approx(kept, abs=1e-5)


def test_a_tool_call_is_rewarded_in_the_sight_of_its_rows_functions(make_run, function_gemma, tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    }
    rows = [
        {"messages": [{"role": "user", "content": f"How is Rome {n}?"}, call], "tools": tools}
        for n in range(8)
    ]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run(
        "objective.type=grpo", "objective.reward=tool_call", f"model.id={function_gemma}", "train.max_steps=1",
        f"data.source={tmp_path / 'calls.jsonl'}", "objective.max_completion_length=4", "train.max_length=400",
        "eval.exact_match_rows=1",
    )  # fmt: skip
    assert work(run) == 0, events_of(run, "error")
    kept = Dataset.from_file(str(run.data_dir / "training.arrow"))
    chat = data.ChatTokenizer.from_folder(function_gemma)
    assert "declaration:weather" in chat.decode(kept[0]["prompt"], skip_special_tokens=False)
    assert kept[0]["answer"].startswith("<start_function_call>call:weather{city:<escape>Rome<escape>}")
    assert events_of(run, "report")[0]["base_reward"] == 0
    assert events_of(run, "sample")[0]["expected"] == kept[0]["answer"]


# ---- one stage after another -----------------------------------------------------------------------------------------
def test_a_second_stage_goes_on_from_the_first_and_holds_to_it(run_of, make_run, stop_at):
    first = make_run("train.learning_rate=0.003")
    assert work(first) == 0
    run = run_of("dpo", f"model.id=run:{first.id}", "eval.exact_match_rows=4", "eval.max_new_tokens=4")
    assert work(run) == 0, events_of(run, "error")
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-6)
    names = {path.name for path in run.model_dir.iterdir()}
    assert "adapter_model.safetensors" in names and "ref" not in names
    assert events_of(run, "report")[0]["base_loss"] != events_of(first, "metrics")[0]["loss"]

    broken = run_of("dpo", f"model.id=run:{first.id}")
    stop_at(broken, 2)
    assert work(broken) == 0
    broken.stop_path.unlink()
    stop_at(broken, -1)
    assert work(broken, "--resume-from", "checkpoints/checkpoint-2") == 0
    assert losses_of(broken) == pytest.approx(losses_of(run), abs=1e-5)


def test_a_reward_model_does_not_go_on_from_an_adapter_that_writes(run_of, make_run):
    first = make_run("train.max_steps=1")
    assert work(first) == 0
    run = run_of("reward", f"model.id=run:{first.id}")
    assert work(run) == train.FAULT_EXIT
    assert events_of(run, "error")[0]["faults"][0]["where"] == "model.id"


# ---- kinds of adapters -----------------------------------------------------------------------------------------------
def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[2, 9, 17, 30, 41, 52]])).logits.float()


def reloaded(run, folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the saved adapter, computed in `dtype`, makes of the base as everybody has it."""
    model = PeftModel.from_pretrained(modeling.load_base(run.config(), folder), run.model_dir)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return logits_of(model)


@pytest.fixture
def trained_logits(monkeypatch):
    """The logits of the model in memory when its run has ended."""
    found, writes = {}, report.write_report

    def look(job, chat, model, *rest, **named):
        found["tuned"] = logits_of(model)
        return writes(job, chat, model, *rest, **named)

    monkeypatch.setattr(report, "write_report", look)
    return found


@pytest.mark.parametrize("start", ["gaussian", "pissa", "olora"])
def test_every_start_saves_an_adapter_for_the_base_as_it_is(make_run, gemma3, trained_logits, start):
    run = make_run(
        "method.r=4", f"method.init_lora_weights={start}", "method.use_rslora=true", "train.learning_rate=0.003",
        "eval.exact_match_rows=2", "eval.max_new_tokens=2",
    )  # fmt: skip
    plain = make_run(
        "method.r=4", "train.learning_rate=0.003", "eval.exact_match_rows=2", "eval.max_new_tokens=2"
    )
    assert work(run) == 0 and work(plain) == 0
    assert losses_of(run)[0] == pytest.approx(losses_of(plain)[0], abs=1e-4)  # it begins as the base
    assert work(run, "--resume-from", "checkpoints/checkpoint-4") == 0
    assert torch.allclose(reloaded(run, gemma3), trained_logits["tuned"], atol=1e-4)
    base = events_of(run, "report")[0]["base_loss"]
    assert base == pytest.approx(events_of(plain, "report")[0]["base_loss"], abs=1e-6)


def test_dpo_with_an_adapter_that_took_from_the_base_has_the_base_as_its_reference(run_of):
    run = run_of("dpo", "method.init_lora_weights=pissa", "method.r=4")
    assert work(run) == 0, events_of(run, "error")
    assert losses_of(run)[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_qlora_trains_on_a_cpu_and_reloads_to_the_same_logits(make_run, gemma3, trained_logits, quantization):
    run = make_run(
        "method.type=qlora", f"method.quantization={quantization}", "train.max_steps=12", "train.learning_rate=0.01",
        "eval.eval_steps=4.0", "eval.exact_match_rows=2", "eval.max_new_tokens=2",
    )  # fmt: skip
    assert work(run) == 0, events_of(run, "error")
    assert losses_of(run)[-1] < losses_of(run)[0] - 1
    # on a quantized base TRL computes the adapter in bfloat16
    assert torch.allclose(reloaded(run, gemma3, torch.bfloat16), trained_logits["tuned"], atol=1e-5)
