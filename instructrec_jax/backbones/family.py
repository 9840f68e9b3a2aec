"""What a family declares: how to build it, and one table of HuggingFace tensor names ↔ parameter paths."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx


@dataclass(frozen=True)
class Rule:
    """One line of a mapping table; reading and writing both follow it.

    Attributes:
        name: HuggingFace's tensor name without the model prefix; "{layer}" stands for a layer number.
        path: our dotted parameter path; "{layer}" stands where a stack keeps its block name.
        transform: "none" keeps the tensor; "transpose" turns [out, in] into [in, out], or [parts * out, in]
            into [in, parts, out]; "split" turns [..., parts * out] into [..., parts, out]; "row" turns [1, n] into [n].
        old_names: other names of the same tensor in older files; looked for first, so that a stale twin
            loses.
        copies: names under which a file may hold the tensor again; equal copies are left out, others refused.
    """

    name: str
    path: str
    transform: str = "none"
    old_names: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


def linear(name: str, path: str, *, parts: int = 1) -> tuple[Rule, ...]:
    """The rules of a torch.nn.Linear ↔ `layers.Linear`."""
    return (
        Rule(f"{name}.weight", f"{path}.kernel", "transpose"),
        Rule(f"{name}.bias", f"{path}.bias", "none" if parts == 1 else "split"),
    )


def norm(name: str, path: str) -> tuple[Rule, ...]:
    """The rules of a torch.nn.LayerNorm ↔ `layers.LayerNorm`; some files say gamma and beta."""
    return (
        Rule(f"{name}.weight", f"{path}.scale", old_names=(f"{name}.gamma",)),
        Rule(f"{name}.bias", f"{path}.bias", old_names=(f"{name}.beta",)),
    )


def embedding(name: str, path: str) -> tuple[Rule, ...]:
    """The rule of a torch.nn.Embedding ↔ `layers.Embedding`."""
    return (Rule(f"{name}.weight", f"{path}.table"),)


@dataclass(frozen=True)
class HeadSpec:
    """The shape HuggingFace gives a family's task head; `adapters.heads` builds it.

    vectors → dropout(input_dropout) → [dense → activation → [norm]] → dropout(dropout) → output layer
    """

    dropout: float = 0.0
    pooling: str = "cls"  # how a segment becomes one vector: "cls" | "mean" | "lasttoken" (sequence heads)
    use_pooler: bool = False  # pass the vector through the backbone's own pooler (BERT)
    input_dropout: float = 0.0
    dense: bool = False
    dense_bias: bool = True
    activation: str = "linear"
    norm: bool = False
    norm_eps: float = 1e-12
    norm_bias: bool = True
    output_bias: bool = True
    tied: bool = True  # masked-language-model heads: the output layer is the backbone's embedding table
    initializer_range: float = 0.02  # standard deviation of fresh kernels
    output_range: float | None = None  # of the output layer's, where it differs
    initializer_cutoff: float | None = None  # truncate the draw at ± this many standard deviations


@dataclass(frozen=True)
class LMHeadSpec:
    """The shape of a family's language-model head: logits = soft_cap(scale · hidden @ tableᵀ + bias)."""

    tied: bool = True  # the table is the backbone's embedding table
    bias: bool = False
    scale: float = 1.0
    soft_cap: float | None = None  # logits become soft_cap · tanh(logits / soft_cap)
    initializer_range: float = 0.02


@dataclass(frozen=True)
class Head:
    """One kind of task head of a family: HuggingFace's class name suffix, its shape, its mapping table."""

    suffix: str  # of the class name in config.architectures, e.g. "ForSequenceClassification"
    spec: Callable[[Any], Any]  # HuggingFace config -> HeadSpec, or LMHeadSpec for the kind "lm"
    mapping: tuple[Rule, ...]
    architecture: str | None = None  # the whole class name, where it is not the base class's with the suffix


@dataclass(frozen=True)
class Family:
    """Everything that reading and writing need to know about one `model_type`.

    Attributes:
        build: build(config, dtype=, stack=, pooler=, rngs=) -> network (`stack`: see `layers.StackOptions`). Raises
            ValueError for a config field whose effect is not implemented. Every network has `hidden_size`,
            `vocab_size`, `max_length`, `word_embedding_table` and, where there is one, `pool(first)`; its calls are
            below.
        prefix: of the tensor names inside a task checkpoint, e.g. "bert.".
        mapping: the backbone's table, names without the prefix.
        heads: by kind: "sequence", "token", "span", "mlm", "lm"; their tables hold complete names.
        pooling: how a sentence becomes one vector when the checkpoint doesn't say.
        base_class: HuggingFace's class name of the bare network.
        kind: "encoder", "decoder" or "encoder_decoder".
        output_table: name of a language-model head's table for families whose config.json doesn't say whether it is
            tied (T5): it is not, if the file holds this tensor and it differs from the word embeddings.

    Encoders and decoders are called as

        network(tokens, segment_ids, positions, token_types, *, dropout=None) -> hidden [rows, length, hidden]

    with int32 [rows, length] arguments. Decoders also take `cache=network.empty_cache(rows, capacity)` and then return
    (hidden, cache): the tokens of the call are appended to the cache (also padding, which stays unseen), and see what
    is in it. A cache is {"layers": a `layers.Cache`, "segment_ids": int32 [rows, capacity], "positions": int32 [rows,
    capacity], "index": int32 scalar, the places filled}.

    Encoder–decoders have

        network.encode(tokens, segment_ids, positions, *, dropout=None) -> encoded [rows, length, hidden]
        network.decode(tokens, segment_ids, positions, encoded, encoded_segment_ids, *, dropout=None, cache=None)
            -> hidden [rows, target length, hidden], or (hidden, cache)

    where a target token sees the earlier ones of its segment, and the encoded tokens with the same segment number.
    Its `network.empty_cache(rows, capacity, encoded_length)` also keeps each layer's keys and values of `encoded`, and
    "encoded_segment_ids": the first call fills them; later calls pass neither, or `encoded=None`.
    """

    build: Callable[..., nnx.Module]
    prefix: str
    mapping: tuple[Rule, ...]
    heads: Mapping[str, Head] = field(default_factory=dict)
    pooling: str = "mean"
    base_class: str = ""
    kind: str = "encoder"
    output_table: str | None = None


def refuse(config: Any, **allowed: Any) -> None:
    """Raises ValueError for a config field that differs from the only value implemented here.

    `allowed` gives, per field, the accepted value or a tuple of them. A field that is absent or None passes.
    """
    for name, values in allowed.items():
        values = values if isinstance(values, tuple) else (values,)
        value = getattr(config, name, None)
        if value is not None and value not in values:
            raise ValueError(
                f"config.json of this {config.model_type} model has {name}={value!r}, which is not "
                f"implemented (supported: {', '.join(map(repr, values))}). Loading it anyway would give "
                "wrong numbers."
            )
