import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gemma_tune.runs.folder import RunFolder
from gemma_tune.workers import modeling, quantization
from gemma_tune.workers.chat import Chat
from gemma_tune.workers.decoding import InTurn, MixedBatch

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
IDS = [2, 300, 301, 302, 303]


@pytest.fixture
def finished(make_run, gemma3):
    """A run as a training would leave it, with a random result."""

    def make(*overrides: str, seed: int = 1, **lora) -> RunFolder:
        run = make_run(*overrides)
        torch.manual_seed(seed)
        result = modeling.load_model(gemma3, torch.float32)
        if run.config().method.type == "full":
            for parameter in result.parameters():
                parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
        else:
            targets = modeling.lora_targets(result)
            settings = {"target_modules": targets, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
            result = get_peft_model(result, LoraConfig(**settings | lora))
        result.save_pretrained(run.model_dir)
        for name in TOKENIZER:
            shutil.copy(gemma3 / name, run.model_dir)
        return run

    return make


def columns(run: RunFolder) -> tuple[MixedBatch | InTurn, torch.Tensor]:
    """What answers, and its first logits (2, V)."""
    chat = Chat(run, None, None)
    return chat._models, chat._models.logits([IDS] * 2)


def alone(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0, -1]


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_qlora_run_answers_on_the_quantized_base_that_it_was_trained_on(finished, gemma3, kind):
    run = finished("method.type=qlora", f"method.quantization={kind}")
    models, logits = columns(run)
    assert isinstance(models, MixedBatch) and quantization.is_quantized(models.model.get_base_model())
    base = modeling.load_base(run.config(), gemma3)
    plain = alone(modeling.load_model(gemma3, torch.float32))
    assert (logits[0] - alone(base)).norm() < 0.1 * (logits[0] - plain).norm()
    tuned = alone(modeling.load_adapter(base, run.model_dir))
    assert (logits[1] - tuned).norm() < 0.1 * (tuned - plain).norm()


def test_a_dora_run_answers_in_turn(finished, gemma3):
    run = finished("method.use_dora=true", use_dora=True)
    models, logits = columns(run)
    assert isinstance(models, InTurn)
    base = modeling.load_model(gemma3, torch.float32)
    assert same(logits[0], alone(base))
    assert same(logits[1], alone(modeling.load_adapter(base, run.model_dir)))


def test_a_checkpoint_that_took_from_the_base_is_compared_with_the_whole_base(finished, gemma3):
    run = finished("method.init_lora_weights=pissa", init_lora_weights="pissa")
    path = run.model_dir / "adapter_model.safetensors"
    save_file({name: 1.1 * one for name, one in load_file(path).items()}, path)
    _, logits = columns(run)
    assert same(logits[0], alone(modeling.load_model(gemma3, torch.float32)))
    tuned = modeling.load_adapter(modeling.load_model(gemma3, torch.float32), run.model_dir)
    assert same(logits[1], alone(tuned)) and not same(logits[0], logits[1])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_went_on_is_compared_with_the_run_that_it_began_from(finished, gemma3, method):
    first = finished()
    second = finished(f"model.id=run:{first.id}", f"method.type={method}", seed=2)
    models, logits = columns(second)
    assert isinstance(models, MixedBatch if method == "lora" else InTurn)
    start = modeling.load_adapter(modeling.load_model(gemma3, torch.float32), first.model_dir)
    assert same(logits[0], alone(start))
    base = modeling.load_model(gemma3, torch.float32)
    tuned = modeling.load_adapter(base, second.model_dir) if method == "lora" else modeling.load_model(second.model_dir, torch.float32)  # fmt: skip
    assert same(logits[1], alone(tuned)) and not same(logits[0], logits[1])
