"""Tokenizers in llama.cpp's files: byte-level BPE ("gpt2"), sentencepiece's BPE ("llama") and WordPiece ("bert").

The file names how a byte-level tokenizer splits texts before it merges (`tokenizer.ggml.pre`); `SPLITS` has these
names, for both directions. `writing_tokens` has the way out.
"""

import json
from collections.abc import Sequence

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.hf_types import PreTrainedTokenizerBase

Json = dict[str, object]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
KEY = "tokenizer.ggml."
SPACE = "\u2581"  # sentencepiece's visible space
# Roles of tokens: llama.cpp's name (with its spelling) -> transformers' name.
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "cls": "cls",
    "mask": "mask",
}
BERT_ROLES = {"cls": ("bos", "[CLS]"), "sep": ("eos", "[SEP]"), "mask": (None, "[MASK]"), "pad": (None, "[PAD]")}
BERT_ROLES |= {"unk": (None, "[UNK]")}
# Tokens that end a turn, which llama.cpp finds by their text and stops at.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


def _bytes(use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[Json]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        _bytes(False),
    ]


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS: Json = {"type": "Digits", "individual_digits": True}
# Name of a way to split -> the pre-tokenizers of tokenizer.json. Of names for the same way, the first is written.
SPLITS: dict[str, list[Json]] = {
    "gpt-2": [_bytes(True)],
    "smollm": [_DIGITS, _bytes(True)],
    "starcoder": [_DIGITS, _bytes(True)],
    "llama-bpe": _split(_WORDS + "{1,3}" + _REST),
    "llama3": _split(_WORDS + "{1,3}" + _REST),
    "llama-v3": _split(_WORDS + "{1,3}" + _REST),
    "qwen2": _split(_WORDS + _REST),
    "deepseek-r1-qwen": _split(_WORDS + _REST),
    "tekken": _split(_CASED % ("", "") + _CASED_REST),
    "gpt-4o": _split(_CASED % (_SHORT, _SHORT) + "{1,3}" + _CASED_REST),
}
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word in the vocabulary is not merged from its letters
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # texts are brought into Unicode's form NFC


def read_tokenizer(fields: Fields, rows: int, *, gemma: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file.

    Args:
        fields: the file's metadata.
        rows: tokens in the table of word embeddings.
        gemma: order sentencepiece's merges by the tokens' numbers, which Gemma's scores do not follow.

    Raises ValueError for missing metadata, another kind of tokenizer, and more tokens than rows.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens, types = _vocabulary(fields, rows)
    kind = fields.text(f"{KEY}model")
    if kind == "gpt2":
        parts = _byte_level(fields, tokens, types)
    elif kind == "llama":
        parts = _sentencepiece(fields, tokens, types, gemma)
    elif kind == "bert":
        parts = _word_pieces(tokens, types)
    else:
        fields.refuse(f"{KEY}model", "gpt2, llama or bert: other tokenizers are not implemented")
    names = _roles(fields, parts["vocab"], kind == "bert")  # type: ignore[arg-type]
    spelled = {number: token for token, number in parts.pop("vocab").items()}  # type: ignore[attr-defined]
    special = [spelled[n] for n, each in enumerate(types) if each == CONTROL and n in spelled]
    user = [n for n, each in enumerate(types) if each == USER_DEFINED and n in spelled and SPACE not in spelled[n]]
    added = [_added(spelled, n, n not in user) for n in sorted({*user, *(_number(spelled, special))})]
    around = _around(fields, kind, names, spelled)
    core: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": around,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core | parts)),
        **{f"{role}_token": token for role, token in names.items()},
        additional_special_tokens=special,
        chat_template=fields.text("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def _number(spelled: dict[int, str], tokens: Sequence[str]) -> list[int]:
    numbers = {token: number for number, token in spelled.items()}
    return [numbers[token] for token in tokens]


def _vocabulary(fields: Fields, rows: int) -> tuple[list[str], list[int]]:
    """The tokens and their kinds. Raises ValueError for more tokens than rows of the table."""
    tokens = fields.texts(f"{KEY}tokens")
    if not tokens:
        fields.refuse(f"{KEY}tokens", "the list of tokens")
    if len(tokens) > rows:
        raise ValueError(
            f"{fields.where}: {KEY}tokens has {len(tokens):,} tokens, but the table of word embeddings only "
            f"{rows:,} rows: "
            "the file is damaged or was made of two models; convert the original checkpoint again."
        )
    types = fields.values.get(f"{KEY}token_type")
    if types is None:
        types = [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        fields.refuse(f"{KEY}token_type", f"a list of {len(tokens)} numbers, one for each token")
    return tokens, [int(each) for each in types]


def _used(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Token -> number, without those that only fill up the table. Raises ValueError for a token that is there twice."""
    used: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == UNUSED and token == f"[PAD{number}]":
            continue
        if used.setdefault(token, number) != number:
            raise ValueError(f"{KEY}tokens has {token!r} twice, as tokens {used[token]:,} and {number:,}.")
    return used


def _byte_level(fields: Fields, tokens: list[str], types: list[int]) -> Json:
    split = fields.text(f"{KEY}pre")
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        fields.refuse(
            f"{KEY}pre", f"one of {known}: how texts are split is not known otherwise; use the HuggingFace folder"
        )
    merges = fields.texts(f"{KEY}merges")
    if merges is None:
        fields.refuse(f"{KEY}merges", "the list of merges")
    vocab = _used(tokens, types)
    return {
        "vocab": vocab,
        "normalizer": {"type": "NFC"} if split in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[split]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocab, [merge.split(" ") for merge in merges], ignore_merges=split in WHOLE_WORDS),
    }


def _bpe(vocab: dict[str, int], merges: Sequence[Sequence[str]], **more: object) -> Json:
    plain: Json = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    plain |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return plain | {"type": "BPE", "vocab": vocab, "merges": merges} | more


def _sentencepiece(fields: Fields, tokens: list[str], types: list[int], gemma: bool) -> Json:
    scores = fields.values.get(f"{KEY}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        fields.refuse(f"{KEY}scores", f"a list of {len(tokens)} numbers, one for each token")
    # llama.cpp writes user-defined runs of spaces as spaces, which texts have no more where they are looked up
    pairs = zip(tokens, types, strict=True)
    spelled = [t.replace(" ", SPACE) if k == USER_DEFINED and not t.strip(" ") else t for t, k in pairs]
    vocab = _used(spelled, types)
    parts = {t: n for t, n in vocab.items() if types[n] in (NORMAL, USER_DEFINED)}
    rank = (lambda n: n) if gemma else (lambda n: -scores[n])
    merges = [
        (rank(number), token[:cut], token[cut:])
        for token, number in parts.items()
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    merges.sort(key=lambda merge: merge[0])
    prefix = fields.flag(f"{KEY}add_space_prefix", True)
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first: Json = {"type": "Prepend", "prepend": SPACE}
    back: Json = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[Json] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = fields.integer(f"{KEY}unknown_token_id", 0, len(tokens) - 1)
    return {
        "vocab": vocab,
        "normalizer": {"type": "Sequence", "normalizers": [first, spaces]} if prefix else spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocab,
            [merge[1:] for merge in merges],
            unk_token=None if unknown is None else spelled[unknown],
            fuse_unk=True,
            byte_fallback=any(kind == BYTE for kind in types),
        ),
    }


def _word_pieces(tokens: list[str], types: list[int]) -> Json:
    def spelled(token: str, kind: int) -> str:
        if token.startswith(SPACE):
            return token[1:]
        return token if kind == CONTROL or token[:1] + token[-1:] == "[]" else f"##{token}"

    vocab = _used([spelled(token, kind) for token, kind in zip(tokens, types, strict=True)], types)
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    cleaned = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {
        "vocab": vocab,
        "normalizer": {"type": "BertNormalizer"} | cleaned,  # llama.cpp reads every BERT in lower case
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model | {"max_input_chars_per_word": 100, "vocab": vocab},
    }


def _roles(fields: Fields, vocab: dict[str, int], bert: bool) -> dict[str, str]:
    """The special tokens by transformers' names of their roles."""
    spelled = {number: token for token, number in vocab.items()}
    names: dict[str, str] = {}
    for theirs, role in ROLES.items():
        number = fields.integer(f"{KEY}{theirs}_token_id", 0)
        if number is not None and number not in spelled:
            fields.refuse(f"{KEY}{theirs}_token_id", "the number of a token")
        if number is not None:
            names[role] = spelled[number]
    if bert:
        for role, (other, usual) in BERT_ROLES.items():
            if role not in names and (found := names.get(other or "", usual)) in vocab:
                names[role] = found
        names = {role: token for role, token in names.items() if role not in ("bos", "eos")}
    return names


def _added(spelled: dict[int, str], number: int, special: bool) -> Json:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": spelled[number], "special": special} | switches


def _around(fields: Fields, kind: str | None, names: dict[str, str], spelled: dict[int, str]) -> Json | None:
    """What the tokenizer puts around each text."""
    if kind == "bert":
        first, last = names.get("cls"), names.get("sep")
    else:
        adds = kind == "llama" or fields.text(f"{KEY}pre") in (
            "llama-bpe",
            "llama3",
            "llama-v3",
        )  # llama.cpp's defaults
        first = names.get("bos") if fields.flag(f"{KEY}add_bos_token", adds) else None
        last = names.get("eos") if fields.flag(f"{KEY}add_eos_token") else None
    if first is None and last is None:
        return None
    numbers = {token: number for number, token in spelled.items()}

    def layout(*texts: str) -> list[Json]:
        found: list[Json] = []
        for side, text in enumerate(texts):
            before = [first] if first and (side == 0 or kind != "bert") else []
            found += [{"SpecialToken": {"id": token, "type_id": side}} for token in before]
            found.append({"Sequence": {"id": text, "type_id": side}})
            found += [{"SpecialToken": {"id": last, "type_id": side}}] if last else []
        return found

    used = {t: {"id": t, "ids": [numbers[t]], "tokens": [t]} for t in (first, last) if t}
    return {"type": "TemplateProcessing", "single": layout("A"), "pair": layout("A", "B"), "special_tokens": used}
