"""A tokenizer of `transformers` as the metadata of a llama.cpp file; `tokens` is the way back.

llama.cpp computes with tokenizers of its own, so one is written only where both give the same tokens: what its kinds of
tokenizers do not have is an error that names it.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.backbones.llama_cpp.tokens import (
    BYTE,
    COMPOSED,
    CONTROL,
    NORMAL,
    SPACE,
    SPLITS,
    TURN_ENDS,
    UNUSED,
    USER_DEFINED,
    WHOLE_WORDS,
)
from instructrec_jax.hf_types import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from gguf import GGUFWriter

LOWEST = -1e4  # score of a token that no merge makes


def write_tokens(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerBase, rows: int, ends: list[int]) -> None:
    """Adds a tokenizer to a GGUF file.

    Args:
        rows: tokens in the table of word embeddings; those without a text are marked as unused.
        ends: tokens that end an answer.

    Raises ValueError for a tokenizer that llama.cpp does not have, naming what differs.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse("it is not a fast one: save it with a tokenizer.json")
    core = Fields("tokenizer.json", json.loads(backend.to_str()))
    model = core.object("model")
    kind = model.text("type") if model is not None else None
    tokens, types = _vocabulary(tokenizer, rows)
    assert model is not None
    writer.add_token_types(types)
    if kind == "WordPiece":
        _check_word_pieces(core, model)
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("bert-bge")  # llama.cpp's name of the tokenizer of BERT in lower case
        writer.add_token_type_count(2)
        tokens = [_phantom(token, types[number]) for number, token in enumerate(tokens)]
    elif kind == "BPE" and "ByteLevel" in json.dumps(core.values["pre_tokenizer"]):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_name(core, model))
        writer.add_token_merges([" ".join(_pair(merge)) for merge in _merges(model)])
    elif kind == "BPE" and model.flag("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_has_space_prefix(core))
        writer.add_token_scores(_scores(model, tokens, types))
        tokens = [t.replace(SPACE, " ") if types[n] == USER_DEFINED else t for n, t in enumerate(tokens)]
    else:
        _refuse(f"it is a {kind} tokenizer; supported are byte-level BPE, BPE with byte_fallback, and WordPiece")
    writer.add_token_list(tokens)
    _write_roles(writer, tokenizer, ends, bert=kind == "WordPiece")
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _refuse(why: str) -> NoReturn:
    raise ValueError(f"the tokenizer cannot be written for llama.cpp: {why}.")


def _vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """The tokens of all rows of the table, and their kinds.

    Added tokens beyond the table, which published Gemma tokenizers have, are left out: no text of theirs can be read.
    """
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for token, number in tokenizer.get_vocab().items():
        if number < rows:
            tokens[number] = token
            types[number] = BYTE if re.fullmatch("<0x[0-9A-F]{2}>", token) else NORMAL
    special = set(tokenizer.all_special_ids)
    for number, added in tokenizer.added_tokens_decoder.items():
        if number < rows:
            types[number] = CONTROL if added.special or number in special else USER_DEFINED
    return tokens, types


def _pair(merge: object) -> tuple[str, str]:
    """The two parts of a merge in tokenizer.json: "a b", or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        _refuse(f"its merge {merge!r} has not two parts")
    return str(parts[0]), str(parts[1])


def _merges(model: Fields) -> list[object]:
    merges = model.values.get("merges")
    return merges if isinstance(merges, list) else []


def split_name(core: Fields, model: Fields) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits texts. Raises ValueError if it has none."""
    normalizer, split = core.values.get("normalizer"), _plain(core.values["pre_tokenizer"])
    if normalizer is not None and not (isinstance(normalizer, dict) and normalizer.get("type") == "NFC"):
        _refuse(f"llama.cpp does not have its normalizer, {json.dumps(normalizer)[:200]}")
    alike = [name for name, parts in SPLITS.items() if split == _plain({"type": "Sequence", "pretokenizers": parts})]
    for name in alike:
        if (name in WHOLE_WORDS) == model.flag("ignore_merges") and (name in COMPOSED) == (normalizer is not None):
            return name
    if alike and not model.flag("ignore_merges"):
        return alike[0]  # llama.cpp does not compose characters, for any tokenizer
    _refuse(f"llama.cpp has no name here for its pre_tokenizer, {json.dumps(core.values['pre_tokenizer'])[:300]}")


def _plain(split: object) -> list[object]:
    """What decides on the splits of a pre-tokenizer in tokenizer.json."""
    parts = split.get("pretokenizers", [split]) if isinstance(split, dict) else []
    return [
        {key: value for key, value in part.items() if key != "trim_offsets"} | {"behavior": part.get("behavior")}
        for part in parts
    ]


def _check_word_pieces(core: Fields, model: Fields) -> None:
    cleaned = core.object("normalizer")
    if cleaned is None or cleaned.text("type") != "BertNormalizer" or not cleaned.flag("lowercase"):
        _refuse("llama.cpp reads every WordPiece tokenizer in lower case, which this one does not")
    if cleaned.values.get("strip_accents") is False or not cleaned.flag("handle_chinese_chars", True):
        _refuse("llama.cpp strips accents and splits Chinese characters, which this one does not")
    if model.text("continuing_subword_prefix") != "##":
        _refuse("its continuing_subword_prefix is not ##")


def _phantom(token: str, kind: int) -> str:
    """llama.cpp marks the beginnings of words, where BERT marks their continuations."""
    if kind in (CONTROL, UNUSED):
        return token
    return token[2:] if token.startswith("##") else SPACE + token


def _has_space_prefix(core: Fields) -> bool:
    """Whether sentencepiece puts a space before each text. Raises ValueError for another normalizer."""
    steps = core.values.get("normalizer")
    parts = steps.get("normalizers", [steps]) if isinstance(steps, dict) else []
    kinds = [part.get("type") for part in parts]
    before = core.object("pre_tokenizer")
    if before is not None and before.text("type") == "Metaspace" and not kinds:
        return before.text("prepend_scheme") != "never"
    if kinds not in (["Prepend", "Replace"], ["Replace"]) or parts[-1].get("content") != SPACE:
        _refuse(f"llama.cpp does not have its normalizer, {json.dumps(steps)[:200]}")
    return len(kinds) == 2


def _scores(model: Fields, tokens: list[str], types: list[int]) -> list[float]:
    """Scores that order the merges as they are: sentencepiece joins the neighbors whose union has the highest."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(model)):
        ranks.setdefault("".join(_pair(merge)), rank)
    last = float(len(ranks) + 1)
    plain = [kind in (NORMAL, USER_DEFINED) for kind in types]
    return [-float(ranks.get(t, last)) if plain[n] else min(LOWEST, -last) for n, t in enumerate(tokens)]


def _write_roles(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerBase, ends: list[int], *, bert: bool) -> None:
    numbers: dict[str, int | None] = {
        role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "sep", "pad", "mask", "cls")
    }
    if bert:
        numbers |= {"bos": numbers["cls"], "eos": numbers["sep"]}
    ends = [end for end in [numbers["eos"], *ends] if end is not None]
    ends = list(dict.fromkeys(ends))
    found = {token for token in tokenizer.convert_ids_to_tokens(ends[1:]) if token in TURN_ENDS}
    if ends[1:] and not bert:
        writer.add_eot_token_id(ends[1])
        left = [t for t in tokenizer.convert_ids_to_tokens(ends[2:]) if t not in found]
        if left:
            _refuse(f"answers end with {', '.join(left)} too, and llama.cpp has no more places for ends")
    numbers["eos"] = ends[0] if ends else None
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unk": writer.add_unk_token_id}
    adders |= {"sep": writer.add_sep_token_id, "pad": writer.add_pad_token_id, "mask": writer.add_mask_token_id}
    for role, add in adders.items():
        if (number := numbers[role]) is not None:
            add(number)
    first, last = _around(tokenizer)
    _check_around("before", first, numbers["bos"])
    _check_around("behind", last, numbers["eos"])
    writer.add_add_bos_token(bool(first))
    writer.add_add_eos_token(bool(last))


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind each text."""
    inner: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    size = len(inner)
    start = next((n for n in range(len(whole) - size + 1) if whole[n : n + size] == inner), None)
    if start is None:
        _refuse("its special tokens change the tokens of the text")
    return whole[:start], whole[start + size :]


def _check_around(where: str, found: list[int], number: int | None) -> None:
    if found not in ([], [number]):
        _refuse(f"it puts the tokens {found} {where} each text, but llama.cpp only {number}")


def chat_ends(generation: Mapping[str, object]) -> list[int]:
    """`eos_token_id` of a generation_config.json, as a list."""
    ends = generation.get("eos_token_id")
    return [int(end) for end in ends] if isinstance(ends, list) else [ends] if isinstance(ends, int) else []
