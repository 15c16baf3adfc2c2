"""Makes Pocket Gemma: `python -m gemma_tune.pocket.make`. Text, tokenizer, training, files; all from one seed.

The number of steps is fixed, so that the same seed gives the same model, bit for bit only on the same kind of
processor with the same number of threads (the shipped one: OMP_NUM_THREADS=1); `--minutes` limits the time instead.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from . import MODEL_DIR
from .text import Document, documents
from .tokenizer import VOCABULARY_TOKENS, train_tokenizer
from .world import facts

STEPS = 2400
ROWS = 8  # per step
ROW_TOKENS = 256
LEARNING_RATE = 4e-3
WARMUP = 0.02  # share of the training
IGNORED = -100  # the label of a token that is not trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=MODEL_DIR)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--minutes", type=float, help="stop after this time instead of after a fixed number of steps"
    )
    arguments = parser.parse_args()
    make(arguments.output, arguments.seed, arguments.minutes)


def make(output: Path, seed: int, minutes: float | None = None) -> None:
    import torch

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(
        text for document in islice(documents(seed + 1), 30_000) for text in _texts(document)
    )
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens in the vocabulary", flush=True)
    train(model, rows(tokenizer, documents(seed)), progress_by(minutes))
    save(model, tokenizer, output)
    report(model, tokenizer, output)


def _texts(document: Document) -> list[str]:
    return [document] if isinstance(document, str) else [message["content"] for message in document]


def new_model(tokenizer):
    """A Gemma 3 with random weights: every linear layer a multiple of 64 wide, which 4-bit loading needs."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=1024,
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 100_000.0},
        },
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=True,
    )
    model = Gemma3ForCausalLM(config)
    stops = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=stops, pad_token_id=0)
    return model


def rows(tokenizer, source: Iterator[Document]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Endless packed rows (tokens, labels, positions) of ROW_TOKENS each; no document is cut.

    Positions start again with every document, from which transformers derives a mask that keeps them apart.
    """
    open_rows: list[list] = []
    while True:
        for tokens, labels in encoded(tokenizer, list(islice(source, 1000))):
            if len(tokens) > ROW_TOKENS:
                continue
            row = next((row for row in open_rows if len(row[0]) + len(tokens) <= ROW_TOKENS), None)
            if row is None:
                if len(open_rows) == 8:
                    yield _padded(*open_rows.pop(0))
                open_rows.append(row := [[], [], []])
            for part, values in zip(row, (tokens, labels, range(len(tokens))), strict=True):
                part += values


def _padded(
    tokens: list[int], labels: list[int], positions: list[int]
) -> tuple[list[int], list[int], list[int]]:
    rest = ROW_TOKENS - len(tokens)
    return tokens + [0] * rest, labels + [IGNORED] * rest, positions + list(range(rest))


def encoded(tokenizer, batch: list[Document]) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and labels of each document: plain text is learned whole, of a chat the model's turns."""
    parts = [part for document in batch for part in _parts(document)]
    ids = iter(tokenizer([text for text, _ in parts], add_special_tokens=False)["input_ids"])
    for document in batch:
        tokens, labels = [2], [IGNORED]
        for _, learned in _parts(document):
            part = next(ids)
            tokens += part
            labels += part if learned else [IGNORED] * len(part)
        yield tokens, labels


def _parts(document: Document) -> list[tuple[str, bool]]:
    """The document as (text, learned?) without <bos>; a chat reads as the chat template renders it."""
    if isinstance(document, str):
        return [(document + "<eos>", True)]
    parts, system = [], ""
    for message in document:
        if message["role"] == "system":
            system = message["content"] + "\n\n"
        elif message["role"] == "user":
            parts.append(
                (
                    f"<start_of_turn>user\n{system}{message['content']}<end_of_turn>\n<start_of_turn>model\n",
                    False,
                )
            )
            system = ""
        else:
            parts.append((f"{message['content']}<end_of_turn>\n", True))
    return parts


def progress_by(minutes: float | None) -> Callable[[int], float]:
    """How much of the training is done before a step, from 0 to 1: by steps, or by the clock."""
    if minutes is None:
        return lambda step: step / STEPS
    start = time.monotonic()
    return lambda step: (time.monotonic() - start) / (60 * minutes)


def train(model, source: Iterator[tuple], progress: Callable[[int], float]) -> None:
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    model.train()
    start, step, seen, recent = time.monotonic(), 0, 0, 0.0
    while (done := progress(step)) < 1:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule(done)
        tokens, labels, positions = (torch.tensor(part) for part in zip(*islice(source, ROWS), strict=True))
        value = loss(model, tokens, labels, positions)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, seen, recent = step + 1, seen + tokens.numel(), recent + value.item()
        if step % 100 == 0:
            seconds = time.monotonic() - start
            print(
                f"step {step}  loss {recent / 100:.3f}  {seen / seconds:.0f} tokens/s  {seconds / 60:.1f} min",
                flush=True,
            )
            recent = 0.0
    model.eval()


def schedule(done: float) -> float:
    """The share of the learning rate: a short warm-up, then a cosine down to a hundredth."""
    if done < WARMUP:
        return (done + 0.001) / WARMUP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def loss(model, tokens, labels, positions):
    """Mean cross-entropy of the learned tokens; only their logits are computed."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state[
            :, :-1
        ]
        targets = labels[:, 1:]
        learned = targets != IGNORED
        logits = model.lm_head(hidden[learned])
    return torch.nn.functional.cross_entropy(logits.float(), targets[learned])


def save(model, tokenizer, output: Path) -> None:
    """Writes the folder in bfloat16, with the tokenizer and its chat template."""
    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def report(model, tokenizer, output: Path) -> None:
    """Prints how much of the world is known, and whether rounding to bfloat16 changed an answer."""
    import torch
    from transformers import AutoModelForCausalLM

    asked = facts()
    before = answers(model, tokenizer, [fact.questions[0] for fact in asked])
    saved = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    after = answers(saved, tokenizer, [fact.questions[0] for fact in asked])
    right = sum(answer == fact.answer for answer, fact in zip(after, asked, strict=True))
    changed = sum(x != y for x, y in zip(before, after, strict=True))
    print(f"{right} of {len(asked)} facts known; {changed} answers changed by saving in bfloat16")


def answers(model, tokenizer, questions: list[str]) -> list[str]:
    """The model's greedy answers, each asked in a chat of its own."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=80, do_sample=False)[:, batch["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in out]


if __name__ == "__main__":
    main()
