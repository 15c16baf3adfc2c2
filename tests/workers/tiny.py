"""Tiny random Gemmas with a tokenizer of their own: the smallest real thing that trains in seconds."""

from pathlib import Path

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
)

from gemma_tune.pocket.tokenizer import train_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
COLOURS = ["red", "blue", "green", "yellow", "grey", "pink"]
THINGS = ["boat", "hat", "door", "cup", "tree", "bird", "stone", "lamp"]


def conversations() -> list[list[dict]]:
    return [
        [
            {"role": "user", "content": f"What colour is the {thing} number {number}?"},
            {
                "role": "assistant",
                "content": f"The {thing} is {COLOURS[(number + len(thing)) % len(COLOURS)]}.",
            },
        ]
        for number in range(8)
        for thing in THINGS
    ]


def tokenizer():
    return train_tokenizer(turn["content"] for talk in conversations() for turn in talk)


def save_gemma3(folder: Path) -> Path:
    tokens = tokenizer()
    return _save(folder, Gemma3ForCausalLM, Gemma3TextConfig(vocab_size=len(tokens), **SHAPE), tokens)


def save_gemma2(folder: Path) -> Path:
    tokens = tokenizer()
    return _save(folder, Gemma2ForCausalLM, Gemma2Config(vocab_size=len(tokens), **SHAPE), tokens)


def save_multimodal_gemma3(folder: Path) -> Path:
    tokens = tokenizer()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = SHAPE | {"vocab_size": len(tokens)}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return _save(folder, Gemma3ForConditionalGeneration, config, tokens)


def _save(folder: Path, kind: type, config, tokens) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # answers that differ from prompt to prompt
    end = tokens.convert_tokens_to_ids("<end_of_turn>")
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, end], pad_token_id=0)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
