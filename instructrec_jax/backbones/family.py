"""The declaration of a family: how to build it, and one table of HuggingFace tensor names ↔ parameter paths."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
from flax import nnx

from instructrec_jax.backbones.layers import Embedding
from instructrec_jax.backbones.tables import dense_table
from instructrec_jax.hf_types import PretrainedConfig

if TYPE_CHECKING:  # it is made of backbones
    from instructrec_jax.backbones.image_reader import ReaderSpec


@dataclass(frozen=True)
class Rule:
    """One row of a mapping table, used for both reading and writing.

    Attributes:
        name: HuggingFace's tensor name without the model prefix; "{layer}" stands for the layer number.
        path: our dotted parameter path; "{layer}" stands for the name of a stack's block.
        transform: "none" keeps the tensor; "transpose" turns [out, in] into [in, out], or [parts * out, in]
            into [in, parts, out]; "split" turns [..., parts * out] into [..., parts, out]; "row" turns [1, ...] into
            [...] and "token" [1, 1, n] into [n]; "convolution" turns [out, in, height, width] into [height, width, in,
            out], and [out, in, width] into [width, in, out].
        old_names: names of the tensor in older files; they take precedence over a stale tensor `name`.
        copies: names of possible copies of the tensor in a file; equal copies are ignored, others refused.
        module: of a linear layer, the name of transformers' module, where it is not that of the tensor.
    """

    name: str
    path: str
    transform: str = "none"
    old_names: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    module: str | None = None


def linear(name: str, path: str, *, parts: int = 1, module: str | None = None) -> tuple[Rule, ...]:
    """The rules of a torch.nn.Linear ↔ `layers.Linear`."""
    return (
        Rule(f"{name}.weight", f"{path}.kernel", "transpose", module=module),
        Rule(f"{name}.bias", f"{path}.bias", "none" if parts == 1 else "split"),
    )


def norm(name: str, path: str) -> tuple[Rule, ...]:
    """The rules of a torch.nn.LayerNorm ↔ `layers.LayerNorm`; some files use the names gamma and beta."""
    return (
        Rule(f"{name}.weight", f"{path}.scale", old_names=(f"{name}.gamma",)),
        Rule(f"{name}.bias", f"{path}.bias", old_names=(f"{name}.beta",)),
    )


def embedding(name: str, path: str) -> tuple[Rule, ...]:
    """The rule of a torch.nn.Embedding ↔ `layers.Embedding`."""
    return (Rule(f"{name}.weight", f"{path}.table"),)


@dataclass(frozen=True)
class HeadSpec:
    """HuggingFace's shape of a family's task head; `adapters.heads` builds it.

    vectors → dropout(input_dropout) → [dense → activation → [norm]] → dropout(dropout) → output layer
    """

    dropout: float = 0.0
    pooling: str = "cls"  # pooling of a segment (sequence heads): "cls" | "mean" | "lasttoken"
    use_pooler: bool = False  # pass the vector through the backbone's own pooler (BERT)
    input_dropout: float = 0.0
    dense: bool = False
    dense_size: int | None = None  # width after `dense`; None: unchanged
    dense_bias: bool = True
    activation: str = "linear"
    norm: bool = False
    norm_eps: float = 1e-12
    norm_bias: bool = True
    output_bias: bool = True
    tied: bool = True  # masked-language-model heads: the output layer is the backbone's embedding table
    initializer_range: float = 0.02  # standard deviation of new kernels
    output_range: float | None = None  # standard deviation of the output layer's kernel; None: initializer_range
    initializer_cutoff: float | None = None  # truncate the initial normal distribution at ± N standard deviations


@dataclass(frozen=True)
class LMHeadSpec:
    """The shape of a family's language-model head: logits = soft_cap(scale · hidden @ tableᵀ + bias)."""

    tied: bool = True  # the table is the backbone's embedding table
    bias: bool = False
    scale: float = 1.0
    soft_cap: float | None = None  # logits become soft_cap · tanh(logits / soft_cap)
    initializer_range: float = 0.02
    size: int | None = None  # tokens of an own table of another size than the word embeddings; None: of theirs


class Backbone(nnx.Module):
    """What the networks of all families have; see `Family` for their calls.

    Attributes:
        max_length: maximum number of tokens of an input, special tokens included.
        cache_codes: whether the keys and values of `empty_cache` are int8, see `key_value_cache`.
        prompt_type: the token type of a prompt's tokens: 1 in decoders that read prompts in both directions.
        image_vectors: V, the tokens of an image of the network's size; 0 if the network reads none beside words.
        image_size: height and width of these images, pixels.
        image_token_id: the token that stands for each of these vectors; it may lie beyond the vocabulary.
    """

    word_embeddings: Embedding
    hidden_size: int
    vocab_size: int
    max_length: int
    cache_codes: bool = False
    prompt_type: int = 0
    image_vectors: int = 0
    image_size: int = 0
    image_token_id: int | None = None

    @property
    def word_embedding_table(self) -> jax.Array:
        """The embedding table [vocab_size, hidden_size], also used by heads with a tied output layer."""
        return dense_table(self.word_embeddings.table)


@dataclass(frozen=True)
class Head:
    """One kind of task head of a family: HuggingFace's class name suffix, its shape, its mapping table."""

    suffix: str  # of the class name in config.architectures, e.g. "ForSequenceClassification"
    spec: Callable[[PretrainedConfig], HeadSpec | LMHeadSpec]  # LMHeadSpec for the kind "lm"
    mapping: tuple[Rule, ...]
    architecture: str | None = None  # the whole class name, if it is not the base class's name with the suffix


TOKENIZER = "image_tokenizer"  # the kind of a network that makes codes of images
WORDLESS = ("image", "sound", TOKENIZER)  # kinds of networks that read no words
PAIR = "image_text"  # the kind of an image network and a text network side by side


@dataclass(frozen=True)
class Family:
    """The description of one `model_type` for reading and writing.

    Attributes:
        build: build(config, dtype=, stack=, pooler=, rngs=) -> network (`stack`: see `layers.StackOptions`). Raises
            ValueError for a config field whose effect is not implemented. A network with a pooler has `pool(first)`;
            see below for the calls.
        prefix: of the tensor names in a task checkpoint, e.g. "bert.".
        mapping: the backbone's table, names without the prefix.
        heads: by kind: "sequence", "token", "span", "mlm", "lm", "image" (or sound); their tables have complete names.
        pooling: default pooling for sentence vectors.
        base_class: HuggingFace's class name of the bare network.
        kind: "encoder", "decoder" or "encoder_decoder"; "image" and "sound" for networks that read these alone,
            "image_text" for pairs of an image network and a text network, "image_tokenizer" for image tokenizers: only
            `images=True` opens these four.
        sounds: whether the encoder of an encoder–decoder reads sounds in place of words.
        output_table: name of the language-model head's table in families whose config.json does not declare whether it
            is tied (T5): it is untied if the file has this tensor and it differs from the word embeddings.
        prompt_type: that of its networks, see `Backbone`.
        layouts: (start of a name in files, start of the same name here), for families whose files have had several
            layouts: the first that fits counts when a file is read, the first of a start when one is written.
        tower: the config of the network of images or sounds alone, of families that have one beside another network.
        padded: whether an encoder's texts are padded to the network's `max_length`, and attend to this padding.
        reader: how a config's decoder reads images beside words; None: it reads none.
        variant: the family of a config, where tables depend on the config (of the network of texts within it).
        whole: whether a file has no tensors but those of the table, so that another one means another config.
        trained: whether this package trains the network; False: it is read as it is.
        stacked: starts of names, with the prefix, of tensors whose first axis is that of all layers; the table has them
            layer by layer, with the number behind such a start.
        draws: whether the decoder of an encoder–decoder writes codes of images, of a vocabulary of its own.

    Encoders and decoders are called as

        network(tokens, segment_ids, positions, token_types, *, dropout=None) -> hidden [rows, length, hidden]

    with int32 [rows, length] arguments. Decoders also take `cache=network.empty_cache(rows, capacity)` and then return
    (hidden, cache): the call's tokens (including padding, which stays masked) are appended to the cache and attend to
    it. A cache is {"layers": a `layers.Cache`, "segment_ids": int32 [rows, capacity], "positions": int32 [rows,
    capacity], "index": int32 scalar, the number of filled slots}. Those that read images (`Backbone.image_vectors`)
    take them as `images=`, a `row_images.RowImages`.

    Encoder–decoders have

        network.encode(tokens, segment_ids, positions, *, dropout=None) -> encoded [rows, length, hidden]
        network.decode(tokens, segment_ids, positions, encoded, encoded_segment_ids, *, dropout=None, cache=None)
            -> hidden [rows, target length, hidden], or (hidden, cache)

    where a target token attends to itself and earlier tokens of its segment, and to the encoded tokens of the same
    segment number. Its `network.empty_cache(rows, capacity, encoded_length)` also has each layer's keys and values of
    `encoded`, and "encoded_segment_ids": the first call fills them; later calls omit both, or pass `encoded=None`.

    Image networks are `vision.VisionEncoder`s, called with pixels [rows, height, width, channels]; those of sounds are
    `whisper.SoundEncoder`s; pairs are `image_text.ImageText`s, called as encoders, with `images=`. Whisper's `encode`
    needs the rows' sounds as `images=`. Image tokenizers are `image_tokenizer.ImageCoder`s, which are not called.
    """

    build: Callable[..., Backbone]
    prefix: str
    mapping: tuple[Rule, ...]
    heads: Mapping[str, Head] = field(default_factory=dict)
    pooling: str = "mean"
    base_class: str = ""
    kind: str = "encoder"
    output_table: str | None = None
    prompt_type: int = 0
    layouts: tuple[tuple[str, str], ...] = ()
    tower: Callable[[PretrainedConfig], PretrainedConfig] | None = None
    variant: "Callable[[PretrainedConfig], Family] | None" = None
    whole: bool = False
    trained: bool = True
    stacked: tuple[str, ...] = ()
    draws: bool = False
    sounds: bool = False
    padded: bool = False
    reader: "Callable[[PretrainedConfig], ReaderSpec] | None" = None

    def name_here(self, name: str) -> str:
        """The table's name (with its prefix) of a tensor in a file."""
        return next((here + name[len(start) :] for start, here in self.layouts if name.startswith(start)), name)

    def name_in_files(self, name: str) -> str:
        """The name in a file to be written of a tensor of the table, with its prefix."""
        return next((start + name[len(here) :] for start, here in self.layouts if name.startswith(here)), name)


def refuse(config: PretrainedConfig, **allowed: object) -> None:
    """Raises ValueError for a config field whose value is not implemented.

    `allowed` has the supported value, or a tuple of values, per field. An absent field or None passes.
    """
    for name, values in allowed.items():
        supported = values if isinstance(values, tuple) else (values,)
        value = getattr(config, name, None)
        if value is not None and value not in supported:
            raise ValueError(
                f"config.json of this {config.model_type} model has {name}={value!r}, which is not implemented "
                f"(supported: {', '.join(map(repr, supported))}); loading the model would give wrong numbers."
            )
