import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import gemma3_training_chat_template

from gemma_tune.runs.checkpoints import complete_checkpoints
from gemma_tune.runs.folder import read_json
from gemma_tune.workers import callbacks, dataset, evaluate, train

from .conftest import ask_to_stop, events_of, losses_of

LORA = "method.type=lora"
FULL = "method.type=full"


def work(run, *arguments: str) -> int:
    return train.main([str(run.path), *arguments])


@pytest.mark.parametrize("method", [LORA, FULL])
def test_losses_are_those_of_a_plain_trl_script(make_run, gemma3, talks, tmp_path, method):
    run = make_run(method, "train.max_steps=12", "train.learning_rate=0.003", "eval.eval_steps=4")
    assert work(run) == 0

    kept = dataset.rows_of(run, run.config(), None)
    given = talks.read_text().splitlines()
    rows = [json.loads(given[number - 1]) for number in kept.store.facts["number"][kept.train]]
    tokenizer = AutoTokenizer.from_pretrained(gemma3)
    tokenizer.chat_template = gemma3_training_chat_template  # its loss mask is TRL's, not ours
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    args = SFTConfig(
        str(tmp_path / "plain"), max_steps=12, per_device_train_batch_size=8, learning_rate=3e-3, warmup_steps=0.03,
        gradient_checkpointing=False, max_length=128, logging_steps=1, seed=42, bf16=False, use_cpu=True,
        assistant_only_loss=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(gemma3, dtype=torch.float32),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
        if method == LORA
        else None,
    )
    trainer.train()
    plain = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses_of(run) == pytest.approx(plain, abs=1e-5)
    assert plain[-1] < plain[0] - 1


@pytest.mark.parametrize(
    "method", [(LORA, "method.lora_dropout=0.2"), (FULL, "train.gradient_accumulation_steps=2")]
)
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(make_run, stop_at, method):
    overrides = [*method, "train.max_steps=40", "train.learning_rate=0.003", "eval.eval_steps=10"]
    straight, broken = make_run(*overrides), make_run(*overrides)
    assert work(straight) == 0
    stop_at(broken, 20)
    assert work(broken) == 0
    assert events_of(broken, "trained")[-1]["stopped"] is True
    assert events_of(broken, "saved")
    assert [step for step, _ in complete_checkpoints(broken.path)][-1] == 20

    broken.stop_path.unlink()
    stop_at(broken, -1)
    assert work(broken, "--resume-from", "checkpoints/checkpoint-20") == 0
    assert losses_of(broken) == pytest.approx(losses_of(straight), abs=1e-4)
    for field in ("step", "tokens", "learning_rate"):
        assert [event[field] for event in events_of(broken, "metrics")] == [
            event[field] for event in events_of(straight, "metrics")
        ]
    assert (
        events_of(broken, "trained")[-1] | {"step": 40, "stopped": False} == events_of(broken, "trained")[-1]
    )
    assert events_of(straight, "evaluated")[-1]["eval_loss"] == pytest.approx(
        events_of(broken, "evaluated")[-1]["eval_loss"], abs=1e-4
    )


def test_a_stop_before_the_first_step_ends_without_a_model(make_run):
    run = make_run()
    ask_to_stop(run)
    assert work(run) == 0
    (trained,) = events_of(run, "trained")
    assert (trained["step"], trained["stopped"]) == (0, True)
    assert not events_of(run, "metrics") and not run.model_dir.exists()


def test_stop_now_ends_without_saving(make_run, stop_at):
    run = make_run("output.save_steps=100.0")
    stop_at(run, 2, "now")
    assert work(run) == train.STOPPED_NOW_EXIT
    assert not events_of(run, "trained") and not complete_checkpoints(run.path)


def test_a_stop_within_a_validation_does_not_wait_for_its_end(make_run, monkeypatch):
    run = make_run("eval.eval_steps=2", "eval.per_device_eval_batch_size=1")
    looks, seen = callbacks.StopCallback.on_prediction_step, []

    def ask_and_look(self, *args, **kwargs):
        seen.append(1)
        ask_to_stop(run)
        return looks(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.StopCallback, "on_prediction_step", ask_and_look)
    assert work(run) == 0
    assert len(seen) == 1
    assert [step for step, _ in complete_checkpoints(run.path)] == [1, 2]
    assert events_of(run, "trained")[0]["step"] == 2
    assert events_of(run, "saved")


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_kept(make_run, monkeypatch):
    begins = callbacks.EventCallback.on_step_begin

    def spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            next(one for one in model.parameters() if one.requires_grad).data[0] = math.nan
        begins(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.EventCallback, "on_step_begin", spoil)
    run = make_run("train.logging_steps=100", "output.save_steps=2.0")
    assert work(run) == train.FAULT_EXIT
    (error,) = events_of(run, "error")
    assert error["cause"] == "nan_loss"
    assert error["faults"][0]["where"] == "step 2"  # where it would have been saved
    assert not complete_checkpoints(run.path)


def test_the_best_checkpoint_becomes_the_result_and_the_run_ends_early(make_run, stop_at):
    overrides = [
        "train.max_steps=40", "train.learning_rate=0.1", "train.lr_scheduler_type=constant", "eval.eval_steps=2",
        "eval.early_stopping_patience=2",
        "eval.load_best_model_at_end=true", "output.save_steps=0.25",
    ]  # fmt: skip
    run = make_run(*overrides)
    assert work(run) == 0, events_of(run, "error")
    losses = {event["step"]: event["eval_loss"] for event in events_of(run, "evaluated")}
    best = min(losses, key=losses.get)
    (trained,) = events_of(run, "trained")
    assert (trained["best_step"], trained["step"], trained["early_stopped"]) == (best, best + 4, True)
    assert not trained["stopped"]
    result, kept = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.model_dir, run.checkpoints_dir / f"checkpoint-{best}")
    )
    assert all(torch.equal(result[name], kept[name]) for name in kept)

    broken = make_run(*overrides)  # its patience is as far used up as it was when it goes on
    stop_at(broken, best + 3)
    assert work(broken) == 0
    broken.stop_path.unlink()
    stop_at(broken, -1)
    assert work(broken, "--resume-from", f"checkpoints/checkpoint-{best + 3}") == 0
    assert events_of(broken, "trained")[-1]["step"] == best + 4


def test_a_stop_within_a_validation_is_none_of_the_best(make_run, monkeypatch):
    run = make_run("eval.eval_steps=2", "eval.load_best_model_at_end=true")
    looks = callbacks.StopCallback.on_prediction_step

    def ask_and_look(self, *args, **kwargs):
        ask_to_stop(run)
        return looks(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.StopCallback, "on_prediction_step", ask_and_look)
    assert work(run) == 0, events_of(run, "error")
    assert events_of(run, "saved") and events_of(run, "trained")[0]["best_step"] is None


@pytest.mark.parametrize("method", [LORA, FULL])
def test_the_report_compares_tuned_and_base(make_run, gemma3, method):
    run = make_run(
        method, "train.max_steps=80", "train.learning_rate=0.01", "eval.eval_steps=0.5",
        "eval.exact_match_rows=5", "eval.max_new_tokens=12", "data.validation_fraction=0.2",
    )  # fmt: skip
    assert work(run) == 0
    (report,) = events_of(run, "report")
    assert report["rows"] == 5
    assert report["base_exact_match"] == 0
    assert report["tuned_loss"] == pytest.approx(events_of(run, "evaluated")[-1]["eval_loss"], abs=1e-5)
    assert report["base_loss"] > report["tuned_loss"] + 1
    assert len(events_of(run, "sample")) == 5
    written = read_json(run.report_dir / "report.json")
    right = [answer["tuned"].strip() == answer["expected"] for answer in written["answers"]]
    assert report["tuned_exact_match"] == sum(right) / 5


def test_a_report_that_fails_leaves_a_warning_and_the_model(make_run, monkeypatch):
    run = make_run("eval.exact_match_rows=4")
    monkeypatch.setattr(evaluate, "answer_all", lambda *rest: 1 / 0)
    assert work(run) == 0
    assert "division by zero" in events_of(run, "warning")[0]["message"]
    assert run.model_dir.is_dir()


def test_a_stop_ends_the_report_and_keeps_the_model(make_run, monkeypatch):
    run = make_run("eval.exact_match_rows=4")
    answers = evaluate.answer_batch

    def ask_and_answer(*args):
        ask_to_stop(run)
        return answers(*args)

    monkeypatch.setattr(evaluate, "answer_batch", ask_and_answer)
    assert work(run) == 0
    assert events_of(run, "saved") and not events_of(run, "report")


def test_resuming_a_run_that_was_trained_only_saves_it(make_run):
    run = make_run()
    work(run)
    weights = load_file(run.model_dir / "adapter_model.safetensors")
    shutil.rmtree(run.model_dir)
    assert work(run, "--resume-from", "checkpoints/checkpoint-4") == 0
    assert len(events_of(run, "metrics")) == 4
    again = load_file(run.model_dir / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_only_a_whole_checkpoint_of_the_run_is_resumed(make_run):
    run, other = make_run(), make_run()
    work(other)
    for name in ("checkpoints/checkpoint-4", str(other.checkpoints_dir / "checkpoint-4")):
        assert work(run, "--resume-from", name) == train.FAULT_EXIT
        assert "not a whole checkpoint" in events_of(run, "error")[-1]["faults"][0]["rule"]


def test_the_same_rows_are_read_again_though_the_source_changed(make_run, talks, tmp_path):
    source = shutil.copy(talks, tmp_path / "mine.jsonl")
    run = make_run(f"data.source={source}")
    work(run)
    kept = {path.name: path.read_bytes() for path in run.data_dir.iterdir()}
    assert {"rows.jsonl", "facts.bin", "meta.json", "split.npz", "training.arrow", "validation.arrow"} <= set(
        kept
    )
    (tmp_path / "mine.jsonl").write_text("gone")
    shutil.rmtree(run.home / "cache")
    assert work(run, "--resume-from", "checkpoints/checkpoint-4") == 0
    assert {path.name: path.read_bytes() for path in run.data_dir.iterdir()} == kept
    assert read_json(run.provenance_path)["data_fingerprint"]


def test_bad_data_is_told_as_such(make_run, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    run = make_run(f"data.source={tmp_path / 'bad.jsonl'}")
    assert work(run) == train.FAULT_EXIT
    assert events_of(run, "error")[0]["cause"] == "data"


def test_rows_that_are_all_prompt_are_named_or_refused(make_run, talks, tmp_path):
    long = {"messages": [{"role": "user", "content": "boat " * 200}, {"role": "assistant", "content": "red"}]}
    (tmp_path / "one.jsonl").write_text(talks.read_text() + json.dumps(long) + "\n")
    run = make_run(f"data.source={tmp_path / 'one.jsonl'}", "data.validation_fraction=0")
    assert work(run) == 0
    assert "(row 65)" in events_of(run, "warning")[0]["message"]
    assert events_of(run, "data")[0]["cut_rows"] == 1
    (tmp_path / "all.jsonl").write_text((json.dumps(long) + "\n") * 9)
    run = make_run(f"data.source={tmp_path / 'all.jsonl'}")
    assert work(run) == train.FAULT_EXIT
    assert events_of(run, "error")[0]["faults"][0]["where"] == "train.max_length"


def test_settings_that_do_not_go_together_are_a_fault(make_run):
    run = make_run("advanced.trainer.loss_type=bogus")
    assert work(run) == train.FAULT_EXIT
    assert "bogus" in events_of(run, "error")[0]["faults"][0]["rule"]


def test_packing_and_padding_free_train(make_run):
    for override in ("train.packing=true", "train.padding_free=true"):
        run = make_run(override, "train.per_device_train_batch_size=2")
        assert work(run) == 0
        assert events_of(run, "metrics")[-1]["tokens"] > 0


def test_a_full_fine_tuning_of_a_text_part_resumes(make_run, multimodal, break_off):
    overrides = [FULL, f"model.id={multimodal}", "train.max_steps=4", "train.learning_rate=0.003"]
    straight, broken = make_run(*overrides), make_run(*overrides)
    work(straight)
    break_off(broken, 2)
    assert losses_of(broken) == pytest.approx(losses_of(straight), abs=1e-4)


def test_an_adapter_for_the_attention_of_gemma2_trains(make_run, gemma2):
    run = make_run(
        f"model.id={gemma2}", "method.target_modules=attention", "train.activation_checkpointing=true"
    )
    assert work(run) == 0
    names = load_file(run.model_dir / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_result_is_whole_and_holds_no_pickle_and_no_secret(make_run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    run = make_run(FULL)
    work(run)
    names = {path.name for path in run.model_dir.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    assert len(read_json(run.model_dir / "generation_config.json")["eos_token_id"]) == 2
    everything = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert b"hf_canary" not in everything
