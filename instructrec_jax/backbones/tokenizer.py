"""The tokenizer of a HuggingFace folder."""

from collections.abc import Callable
from pathlib import Path

from instructrec_jax.backbones.folder import find_family
from instructrec_jax.backbones.json_fields import Fields, read_fields
from instructrec_jax.extras import require
from instructrec_jax.hf_types import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "cls_token_id", "sep_token_id")


def open_tokenizer(folder: Path, network_config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The `transformers` tokenizer of a folder, without running remote code.

    Tokenizers of some published decoders have a few tokens beyond the network's vocabulary (Gemma 3:
    <image_soft_token>). Such a tokenizer can be opened, but raises ValueError for a text with one of these tokens.

    Args:
        network_config: the network's `transformers` config.

    Raises ValueError for missing or invalid files (naming file and field), and for a tokenizer that does not fit the
    network.
    """
    from transformers import AutoTokenizer

    _check_settings(folder)
    _need_sentencepiece(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise ValueError(
            f"{folder} has no readable tokenizer ({type(error).__name__}: {str(error).partition(chr(10))[0]}): put the "
            "tokenizer's files, in particular tokenizer.json, beside config.json."
        ) from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"{folder} has no tokenizer files (such as tokenizer.json): put them beside config.json.")
    size: int = network_config.get_text_config().vocab_size
    beyond = {number: token for token, number in vocabulary.items() if number >= size}
    if not beyond:
        return tokenizer
    added = {number for number in beyond if number in tokenizer.added_tokens_decoder}
    needed = [name for name in SPECIAL if getattr(tokenizer, name, None) in beyond]
    encoder = (
        find_family(network_config.model_type).kind == "encoder"
    )  # masked-language modeling samples from all tokens
    if encoder or needed or len(added) < len(beyond):
        some = needed[0].removesuffix("_id") + " " if needed else ""
        raise ValueError(
            f"the tokenizer of {folder} has {len(vocabulary):,} tokens, but the network only {size:,} (vocab_size in "
            f"config.json), so its {some}{_named(beyond)} has no row in the word embeddings: use the network's own "
            "tokenizer."
        )
    return _refusing(tokenizer, beyond, size)


def _refusing(tokenizer: PreTrainedTokenizerBase, beyond: dict[int, str], size: int) -> PreTrainedTokenizerBase:
    """The tokenizer, changed so that a call raises ValueError for a text with one of the tokens `beyond`."""
    plain = type(tokenizer)
    tokenize: Callable[..., BatchEncoding] = plain.__call__

    def call(self: PreTrainedTokenizerBase, *texts: object, **options: object) -> BatchEncoding:
        encoded = tokenize(self, *texts, **options)
        rows = encoded["input_ids"]
        for row in rows if len(rows) and not isinstance(rows[0], int) else [rows]:
            if len(row) and max(row) >= size:
                token = beyond[next(number for number in row if number >= size)]
                raise ValueError(
                    f"a text contains {token!r}, which has no row in the network's word embeddings (vocab_size is "
                    f"{size:,} in config.json): remove it from the text."
                )
        return encoded

    def reduced(self: PreTrainedTokenizerBase) -> tuple[object, ...]:
        """Pickles the tokenizer without its class, which no module has: worker processes make it again."""
        other = plain.__new__(plain)
        other.__dict__.update(self.__dict__)
        return _refusing, (other, beyond, size)

    # A class of the same name, because save_pretrained writes the name into tokenizer_config.json.
    own = {"__call__": call, "__reduce__": reduced, "__module__": plain.__module__}
    tokenizer.__class__ = type(plain.__name__, (plain,), own)
    return tokenizer


def _named(tokens: dict[int, str]) -> str:
    first = min(tokens)
    return f"token {tokens[first]!r} (number {first:,})"


def _check_settings(folder: Path) -> None:
    """Raises ValueError for a field of a wrong type in tokenizer_config.json or special_tokens_map.json."""
    file = folder / "tokenizer_config.json"
    if file.is_file():
        fields = read_fields(file)
        length = fields.number("model_max_length", 1.0)  # transformers writes 1e30 as an integer for "no limit"
        if length is not None and length != int(length):
            fields.refuse("model_max_length", "an integer")
        for name in ("do_lower_case", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"):
            fields.flag(name)
        for name in ("tokenizer_class", "padding_side", "truncation_side"):
            fields.text(name)
        _check_tokens(fields)
        _check_template(fields)
        added = fields.object("added_tokens_decoder")
        for number in added.values if added is not None else ():
            entry = added.object(number) if added is not None else None
            if not number.isdecimal() or entry is None or entry.text("content") is None:
                fields.refuse("added_tokens_decoder", "an object of token numbers, each with the token's content")
    file = folder / "special_tokens_map.json"
    if file.is_file():
        _check_tokens(read_fields(file))


def _check_tokens(fields: Fields) -> None:
    for name, value in fields.values.items():
        if not name.endswith("_token") or name.startswith("add_") or isinstance(value, str | None):
            continue
        token = fields.object(name)
        if token is not None and token.text("content") is None:
            token.refuse("content", "the token's text")


def _check_template(fields: Fields) -> None:
    """Raises ValueError unless chat_template is a template or a list of {"name", "template"}."""
    value = fields.values.get("chat_template")
    if value is None or isinstance(value, str):
        return
    entries = value if isinstance(value, list) else [None]
    if not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("template"), str) for e in entries
    ):
        fields.refuse("chat_template", "a text, or a list of objects with name and template")


def _need_sentencepiece(folder: Path) -> None:
    models = [
        name for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model") if (folder / name).is_file()
    ]
    if not models or (folder / "tokenizer.json").is_file():
        return
    require("sentencepiece", f"{folder / models[0]} (there is no tokenizer.json)")
