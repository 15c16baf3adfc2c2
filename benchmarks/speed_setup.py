"""What the speed benchmark trains on, made once: Gemma 3 at its true shape with random weights, chats, LLaMA-Factory.

The tokenizer has Gemma's 262,144 entries: consonant and vowel make a syllable, one to three syllables a word, and each
word is one token. A chat is made of random words, so nothing can be learned but everything costs what it costs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("GEMMA_TUNE_BENCH", Path.home() / ".cache" / "gemma-tune-bench"))
PEER = CACHE / "llamafactory"  # an environment of its own: it wants an older Transformers
PEER_PYTHON = PEER / "bin" / "python"

VOCABULARY = 262_144
ROWS = 2_000
MICRO_BATCH = 4
SHORTEST, LONGEST = 20, 800  # tokens of a chat; their logarithm is uniform
SUPERVISED = 0.4
FRAME_TOKENS = 20  # what the chat template adds

TEXT = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512}
SHAPES = {  # of Gemma 3's config.json
    "270m": TEXT | {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18},
    "1b-4": TEXT | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 4},
    "4b-2": TEXT | {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 2,
                    "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 1024,
                    "initializer_range": 0.01},  # else two layers leave the word that was read as the likeliest: loss 23
    "tiny": TEXT | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32},
}  # fmt: skip
TITLES = {
    "270m": "Gemma 3 270M",
    "1b-4": "Gemma 3 1B cut to 4 layers",
    "4b-2": "Gemma 3 4B cut to 2 layers",
    "tiny": "Tiny, only to try the command",
}
TORCHAUDIO = '"""Stands in for the real one, which needs CUDA: LLaMA-Factory imports it and calls it for audio only."""\n'


def model_folder(shape: str) -> Path:
    """Weights in float32, in which LLaMA-Factory then computes: many CPUs only emulate bfloat16. And the tokenizer."""
    folder = CACHE / f"model-{shape}"
    if not folder.is_dir():
        import torch
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        torch.manual_seed(0)
        ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        config = Gemma3TextConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=32_768,
            query_pre_attn_scalar=256,
            **SHAPES[shape],
            **ends,
        )
        draft = folder.with_suffix(".part")
        Gemma3ForCausalLM(config).save_pretrained(draft)
        tokenizer().save_pretrained(draft)
        draft.rename(folder)
    return folder


def tokenizer():
    """A `GemmaTokenizer` of VOCABULARY entries that makes one token of each word after a space."""
    from transformers import GemmaTokenizer

    from gemma_tune.pocket.tokenizer import CHAT_TEMPLATE, CONTROL_TOKENS

    pieces = [
        *CONTROL_TOKENS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "\n",
        *map(chr, range(33, 127)),
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for left, right in _merges():
        if len(vocab) == VOCABULARY:
            break
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    made = GemmaTokenizer(
        vocab=vocab, merges=merges, extra_special_tokens=["<start_of_turn>", "<end_of_turn>"], add_bos_token=True,
        clean_up_tokenization_spaces=False, model_max_length=32_768,
    )  # fmt: skip
    made.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return made


SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
LONG_BEGINNINGS = SYLLABLES[:20]  # words of three syllables that begin so are within the vocabulary


def _merges():
    """Syllables, then words of one, two and three of them; no two merges compete for a letter."""
    yield from map(tuple, SYLLABLES)
    begun = ["▁"]
    for _ in range(3):
        yield from itertools.product(begun, SYLLABLES)
        begun = ["".join(pair) for pair in itertools.product(begun, SYLLABLES)]


def rows_folder() -> Path:
    """The same chats as `messages` (ours, LLaMA-Factory) and as prompt and completion (TRL), in one order."""
    folder = CACHE / "rows"
    if not folder.is_dir():
        draft = folder.with_suffix(".part")
        draft.mkdir(parents=True, exist_ok=True)
        chats = _chats(random.Random(0))
        _write(draft / "messages.jsonl", [{"messages": chat} for chat in chats])
        _write(draft / "trl.jsonl", [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats])
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        described = {
            "file_name": "messages.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags,
        }
        (draft / "dataset_info.json").write_text(json.dumps({"chats": described}))
        draft.rename(folder)
    return folder


def _chats(chosen: random.Random) -> list[list[dict[str, str]]]:
    """ROWS questions with an answer."""
    chats = []
    for _ in range(ROWS):
        words = round(SHORTEST * (LONGEST / SHORTEST) ** chosen.random()) - FRAME_TOKENS
        answer = max(round((words + FRAME_TOKENS) * SUPERVISED), 1)
        texts = {"user": max(words - answer, 1), "assistant": answer}
        chats.append([{"role": role, "content": _text(chosen, count)} for role, count in texts.items()])
    return chats


def _text(chosen: random.Random, words: int) -> str:
    return " ".join(
        chosen.choice(LONG_BEGINNINGS) * chosen.randint(0, 1) + "".join(chosen.choices(SYLLABLES, k=2))
        for _ in range(words)
    )


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_peer() -> None:
    """LLaMA-Factory from the registry on the same torch, about 2 GB and 6 minutes.

    PyPI's torchvision and torchaudio are built for CUDA and don't load beside torch for CPUs; text needs neither.
    """
    if not PEER_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
    pip = [PEER_PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for packages in (["torch==2.13.0"], ["torch==2.13.0", "llamafactory==0.9.5"]):
        subprocess.run([*pip, "install", *packages], check=True)
    subprocess.run([*pip, "uninstall", "-y", "torchvision", "torchaudio"], check=True)
    site = next(PEER.glob("lib/python*/site-packages"))
    (site / "torchaudio.py").write_text(TORCHAUDIO)


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_tile" in flags


def tcmalloc() -> str | None:
    """The library to preload, where Debian's libtcmalloc-minimal4 or google-perftools has put it."""
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin") or "ldconfig"
    known = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout.split()
    return next((part for part in known if part.startswith("/") and "libtcmalloc_minimal.so" in part), None)


def token_counts(shape: str) -> list[int]:
    """Tokens of each row as it is trained on, by the model's own template."""
    path = CACHE / "rows" / "tokens.json"
    if not path.is_file():
        from gemma_tune.data.rendering import ChatTokenizer

        chat = ChatTokenizer.from_folder(model_folder(shape))
        lines = (rows_folder() / "trl.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [chat.render(row["prompt"] + row["completion"]) for row in map(json.loads, lines)]
        counts = [len(one.ids) for one in chat.tokenizer.encode_batch(texts, add_special_tokens=False)]
        path.write_text(json.dumps(counts))
    return json.loads(path.read_text())
