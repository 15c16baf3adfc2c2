"""Pocket Gemma's tokenizer: a small byte-pair encoding under the conventions of `GemmaTokenizer`."""

from collections.abc import Iterable

from . import MODEL_DIR

VOCABULARY_TOKENS = 1536
CONTROL_TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
]  # ids 0 to 6
CHAT_TEMPLATE = MODEL_DIR / "chat_template.jinja"  # written by hand; everything else in that folder is made


def train_tokenizer(texts: Iterable[str]):
    """A `GemmaTokenizer` learned from the texts.

    Merges never cross a space, a line break or a punctuation mark, and digits stay single, so that numbers
    can be computed with. Gemma splits nothing when it encodes; learning from split words has the same effect.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁|\p{N}|[^\p{L}\p{N}▁]"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=CONTROL_TOKENS + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=["▁", "\n", *map(chr, range(33, 127))],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    vocab, merges = _vocab_and_merges(learner)
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def _vocab_and_merges(learner) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
