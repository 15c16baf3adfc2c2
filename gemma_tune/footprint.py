"""What one training process holds in memory, part by part, from a model's shape and what is asked of it. No torch.

Bytes throughout. H is the hidden size, I the MLP's, Q and K the widths of queries and of keys, V the vocabulary. The
constants of activations were fitted to the tensors that live during a step of small models of every generation, with our
own attention, norms and loss; `docs/forecast.md` compares the whole with real runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from gemma_tune.geometry import Geometry, Layer

FLOAT = 4
NF4_SCALES = {False: FLOAT / 64, True: 1 / 64 + FLOAT / (64 * 256)}  # per weight; True: quantized twice
OPTIMIZER_BYTES = {  # of state per trained number; what is not named keeps two of the number's own width
    "adamw_8bit": 2 + 2 * FLOAT / 256, "paged_adamw_8bit": 2 + 2 * FLOAT / 256, "lion_8bit": 1 + FLOAT / 256,
    "adafactor": 0.01, "sgd": 0.0,
}  # fmt: skip
EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit", "lion_8bit")
MOMENTS = {"lion_8bit": 1}  # of the tables, which Transformers keeps in 32 bits beside an 8-bit optimizer

# Bytes per token and layer, for each of H, I, Q, K: (float32, bfloat16 with float32 weights, bfloat16 alone).
Constants = tuple[float, float, float, float]
KEPT: dict[str, tuple[Constants, ...]] = {  # from the forward to the backward pass
    "adapter": ((27, 17, 18, 14), (30, 9, 13, 9), (28, 8, 11, 9)),
    "full": ((45, 16, 22, 17), (48, 9, 17, 12), (40, 8, 15, 13)),
}
WORKED: dict[
    str, tuple[Constants, ...]
] = {  # the most at once while a layer is computed again and differentiated
    "adapter": ((48, 20, 17, 14), (50, 14, 12, 9), (48, 13, 11, 9)),
    "full": ((60, 20, 18, 22), (67, 9, 15, 19), (58, 8, 14, 18)),
}
FORWARD: tuple[Constants, ...] = ((9, 16, 3, 4), (13, 7, 7, 3), (8, 7, 7, 2))  # where nothing is kept
# Gemma 3n carries further hidden states side by side: bytes per number of each, kept, worked and forward.
STREAMS = ((20, 39, 38), (22, 45, 40), (11, 30, 25))
SCORES = (9.4, 19.4, 14.8)  # per pair of tokens and head where attention writes its scores down
TABLE_COPIES = 5  # of a token's per-layer embeddings, on their way from table to layer

HEAD_BYTES = {"cpu": 2**28, "cuda": 2**30}  # scores of one chunk (`workers.fused_head`)
LOGIT_COPIES = 3.1  # of float32 logits where they are not made in chunks
TRL_TOKENS, TRL_VOCABULARY = 4_096, 32_768  # a chunk of TRL's own loss
TRL_COPIES = {"cpu": 8, "cuda": 1}  # of such a chunk: on a GPU a kernel works in place
SCRATCH = {"adafactor": 2, "adamw_torch": 2}  # copies of the largest weight while the optimizer steps
PINNED_SHARE = 0.5  # of what a layer gives up, with huge pages; nearly all where the system forbids them
BITSANDBYTES_SCRATCH = {"cpu": 3.2, "cuda": 0}  # on a CPU it computes tensor by tensor in Python


@dataclass(frozen=True)
class Work:
    """What a process computes in one micro-batch. Tokens are those of all its rows, both sides of pairs counted."""

    tokens: int
    longest: int  # tokens of its longest row
    learned: int  # tokens with loss
    method: str = "lora"
    rank: int = 0
    targets: str = "all-linear"
    dora: bool = False
    weight_bytes: int = FLOAT
    quantization: str = ""  # "nf4", "int8"
    double_quantization: bool = True
    bfloat16: bool = False  # arithmetic
    optimizer: str = "adamw_torch_fused"
    checkpointing: bool = True
    selective: bool = False  # of checkpointing: the costly results are kept
    accumulates: bool = False
    score_pairs: int = 0  # of tokens that see each other, where attention writes its scores down
    head: str = "fused"  # "fused", "chunked" (TRL's), "whole", "none" (a reward model)
    joins_tables: bool = False  # head and embeddings make one gradient (`workers.fused_head.TiedTable`)
    device: str = "cpu"
    pins: bool = False  # the allocator keeps what layers needed for a moment (glibc's malloc)
    cache_tokens: int = 0  # of answers being generated, all rows together
    references: int = 0  # whole further copies of the model
    validation_tokens: int = 0  # of one batch
    tower_parameters: int = 0  # frozen, beside the language part of a model that sees
    image_numbers: int = 0  # that live at once while it looks at the images of the batch
    validation_image_numbers: int = 0  # of those of a validation batch

    @property
    def adapter(self) -> bool:
        return self.method != "full"

    @property
    def trained_bytes(self) -> int:
        """Of one trained number. TRL makes adapters of a quantized base bfloat16; PEFT keeps others in float32."""
        if self.adapter:
            return 2 if self.quantization else FLOAT
        return self.weight_bytes

    @property
    def column(self) -> int:
        return (
            0 if not self.bfloat16 and self.weight_bytes == FLOAT else 1 if self.weight_bytes == FLOAT else 2
        )

    @property
    def kind(self) -> str:
        return "adapter" if self.adapter else "full"


@dataclass(frozen=True)
class Share:
    """In how many parts each thing lies on the devices, and what sharing itself takes."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    buckets: bool = False  # DDP's second copy of the gradients
    masters: bool = False  # float32 copies that ZeRO keeps of trained bfloat16 numbers


@dataclass(frozen=True)
class Footprint:
    geometry: Geometry
    work: Work
    share: Share = Share()

    # ---- numbers that are trained -----------------------------------------------------------------------------------
    @cached_property
    def adapter_parameters(self) -> int:
        work = self.work
        if not work.adapter:
            return 0
        names = ("q_proj", "k_proj", "v_proj", "o_proj") if work.targets == "attention" else None
        count = 0
        for layer in self.geometry.layers:
            for name, (inputs, outputs) in self.geometry.linears(layer).items():
                if names is None or name in names:
                    count += work.rank * (inputs + outputs) + outputs * work.dora
        return count

    @property
    def trained_parameters(self) -> int:
        return self.adapter_parameters if self.work.adapter else self.geometry.parameters

    # ---- what is held all the time -------------------------------------------------------------------------------------
    def weights(self) -> float:
        """The model as it is loaded, and where shared out the one layer and the tables that are gathered at a time."""
        whole = self.model_bytes()
        if self.share.weights == 1:
            return whole
        shape = self.geometry
        layer = max(sum(a * b for a, b in shape.linears(one).values()) for one in shape.layers)
        gathered = 2 * layer + shape.embedding_parameters  # the next layer is fetched meanwhile
        return whole / self.share.weights + gathered * self.work.weight_bytes

    def model_bytes(self) -> float:
        work, shape = self.work, self.geometry
        quantized = shape.quantizable_parameters if work.quantization else 0
        each = 1.0 if work.quantization == "int8" else 0.5 + NF4_SCALES[work.double_quantization]
        whole = shape.parameters - quantized + work.tower_parameters
        return quantized * each + whole * work.weight_bytes

    def adapters(self) -> float:
        return self.adapter_parameters * self.work.trained_bytes

    def optimizer(self) -> float:
        work, shape = self.work, self.geometry
        masters = self.share.masters and work.trained_bytes < FLOAT
        own = 2.0 * (FLOAT if masters else work.trained_bytes)
        each = OPTIMIZER_BYTES.get(work.optimizer, own)
        state = self.trained_parameters * (each + FLOAT * masters)
        if work.optimizer in EIGHT_BIT and not work.adapter:
            tables = shape.embedding_parameters + shape.ple_parameters
            state += tables * (FLOAT * MOMENTS.get(work.optimizer, 2) - each)
        return state / self.share.optimizer

    def reference(self) -> float:
        return self.work.references * self.model_bytes() / self.share.weights

    # ---- what comes and goes within a step -------------------------------------------------------------------------------
    def gradients(self) -> float:
        """When the backward pass has ended."""
        whole = self.trained_parameters * self.work.trained_bytes
        return whole / self.share.gradients + whole * self.share.buckets

    def head_gradient(self) -> float:
        """Of the table that scores the vocabulary, made before that of any layer."""
        return 0 if self.work.adapter else self.geometry.embedding_parameters * self.work.trained_bytes

    def table_copies(self) -> float:
        """What the same table's gradient as embeddings takes when it comes last, and where autograd can't add in place, the sum."""
        copies = 0 if self.work.joins_tables else 2 if self.work.head == "fused" else 1
        return copies * self.head_gradient()

    def activations(self) -> float:
        """Kept between the forward and the backward pass."""
        shape, work = self.geometry, self.work
        if work.checkpointing:
            states = (len(shape.layers) + 2) * max(shape.altup_inputs, 1) * shape.hidden_size
            bytes_per_token = states * work.weight_bytes
            if work.selective:
                bytes_per_token += self._kept_width() * (2 if work.bfloat16 else work.weight_bytes)
            return work.tokens * bytes_per_token + self._tables() + self._pinned()
        kept = KEPT[work.kind][work.column]
        layers = sum(self._of_layer(layer, kept, 0) for layer in shape.layers)
        return layers + self._casts() + self._tables() + self._pinned() / 2

    def working(self) -> float:
        """While one layer is differentiated, computed once more before that with checkpointing. The largest counts."""
        work = self.work
        worked, kept = WORKED[work.kind][work.column], KEPT[work.kind][work.column]
        constants = worked if work.checkpointing else tuple(a - b for a, b in zip(worked, kept, strict=True))
        return (
            max(self._of_layer(layer, constants, 1) for layer in self.geometry.layers) + self._dequantized()
        )

    def validation(self) -> float:
        """While a batch is only measured: one layer at a time."""
        constants = FORWARD[self.work.column]
        layer = max(self._of_layer(layer, constants, 2) for layer in self.geometry.layers)
        return layer * self.work.validation_tokens / max(self.work.tokens, 1) + self._dequantized()

    def logits(self) -> float:
        shape, work = self.geometry, self.work
        vocabulary, hidden = shape.vocabulary_tokens, shape.hidden_size
        around = 2 * work.learned * hidden * FLOAT  # the hidden states that are scored, and their gradient
        if work.head == "none":
            return 0
        if work.head == "whole":
            return LOGIT_COPIES * work.learned * vocabulary * FLOAT + around
        if work.head == "chunked":
            chunk = min(work.tokens, TRL_TOKENS) * min(vocabulary, TRL_VOCABULARY) * FLOAT
            return TRL_COPIES[work.device] * chunk + around
        width = 2 if work.bfloat16 else work.weight_bytes
        scores = min(work.learned * vocabulary * width, HEAD_BYTES[work.device])
        wide = FLOAT / width if width < FLOAT and work.device != "cpu" else 0  # on a CPU block by block
        table = vocabulary * hidden * 2 if work.column == 1 else 0  # the head in bfloat16
        return scores * (1 + wide) + around + table

    def looking(self, numbers: int) -> float:
        """While the tower looks at images, before the language part reads anything."""
        return numbers * self.work.weight_bytes

    def cache(self) -> float:
        """Keys and values while answers are generated."""
        own = [layer for layer in self.geometry.layers if not layer.shares_key_values]
        width = sum(2 * layer.key_value_heads * layer.head_dim for layer in own)
        return width * self.work.cache_tokens * (2 if self.work.bfloat16 else self.work.weight_bytes)

    def scratch(self) -> float:
        """Of the optimizer's step."""
        shape, work = self.geometry, self.work
        if work.adapter:
            return 0
        own = BITSANDBYTES_SCRATCH[work.device] if "bit" in work.optimizer else 0
        return (
            SCRATCH.get(work.optimizer, own) * max(shape.embedding_parameters, shape.ple_parameters) * FLOAT
        )

    def _of_layer(self, layer: Layer, constants: Constants, moment: int) -> float:
        """`moment`: 0 kept, 1 worked, 2 forward."""
        shape, work = self.geometry, self.work
        inner = layer.intermediate_size + shape.experts_per_token * shape.expert_intermediate_size
        keys = 0 if layer.shares_key_values else layer.key_value_heads * layer.head_dim
        widths = (shape.hidden_size, inner, layer.heads * layer.head_dim, keys)
        bytes_per_token = sum(each * width for each, width in zip(constants, widths, strict=True))
        streams = STREAMS[work.column][moment] * max(shape.altup_inputs - 1, 0) * shape.hidden_size
        scores = SCORES[moment] * layer.heads * work.score_pairs
        return work.tokens * (bytes_per_token + streams) + scores

    def _kept_width(self) -> int:
        """Of the results that selective checkpointing keeps, of all layers; of an adapter it keeps the way in."""
        shape, rank = self.geometry, self.work.rank if self.work.adapter else 0
        return sum(
            sum(outputs for _, outputs in shape.kept_linears(layer).values())
            + rank * len(shape.linears(layer))
            for layer in shape.layers
        )

    def _pinned(self) -> float:
        """What a layer keeps lands behind what it has given up, whose pages glibc then cannot use again: measured."""
        if not self.work.pins:
            return 0
        forward = FORWARD[self.work.column]
        return PINNED_SHARE * sum(self._of_layer(layer, forward, 2) for layer in self.geometry.layers)

    def _tables(self) -> float:
        """What the per-layer embeddings of the tokens take."""
        shape, work = self.geometry, self.work
        return TABLE_COPIES * work.tokens * len(shape.layers) * shape.ple_size * work.weight_bytes

    def _casts(self) -> float:
        """bfloat16 copies of float32 weights, which autocast keeps until the backward pass."""
        return self.geometry.quantizable_parameters * 2 if self.work.column == 1 else 0

    def _dequantized(self) -> float:
        """The largest quantized weight, whole for its product."""
        shape = self.geometry
        largest = max(a * b for layer in shape.layers for a, b in shape.linears(layer).values())
        return largest * (2 if self.work.device != "cpu" else FLOAT) if self.work.quantization else 0

    # ---- the moment that needs the most ---------------------------------------------------------------------------------
    def parts(self) -> Mapping[str, int]:
        """The parts at the peak, which is one of: the loss, the backward pass's begin and end, answers, validation, images."""
        held = {"weights": self.weights(), "adapters": self.adapters(), "optimizer": self.optimizer(),
                "reference": self.reference()}  # fmt: skip
        work = self.work
        gradients, head, kept, scores = (
            self.gradients(),
            self.head_gradient(),
            self.activations(),
            self.logits(),
        )
        earlier = gradients if work.accumulates else 0  # of the micro-batches before
        moments = (
            {"gradients": earlier + head, "activations": kept, "logits": scores},
            {"gradients": earlier + head, "activations": kept + self.working(), "logits": 0},
            {
                "gradients": gradients + self.table_copies() + min(earlier, head),
                "activations": self.working(),
                "logits": 0,
            },
            {"gradients": gradients + self.scratch(), "activations": 0, "logits": 0},
            {"gradients": earlier, "activations": self.cache(), "logits": 0},
            {"gradients": 0, "activations": self.validation(), "logits": scores},
            {"gradients": earlier, "activations": self.looking(work.image_numbers), "logits": 0},
            {"gradients": 0, "activations": self.looking(work.validation_image_numbers), "logits": 0},
        )  # fmt: skip
        most = max(moments, key=lambda moment: sum(moment.values()))
        return {name: round(value) for name, value in {**held, **most}.items()}
