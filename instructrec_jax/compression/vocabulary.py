"""A smaller vocabulary: the tokens that a run's data use, and a tokenizer that cuts these data into the same pieces.

Kept are, beside the tokens in use, special and added tokens, single characters and bytes, so that an unknown word falls
apart rather than becoming [UNK], and with BPE the parts of each kept token and the merges among them. The pieces of a
known text stay: WordPiece takes the longest piece at each place and Unigram the best path, and all of these are left;
BPE carries out the merge of the lowest rank, and those that it carried out are left.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.files import read_json, write_json, write_text

Json = dict[str, object]
NAMES_OF_IDS = (  # of config.json and generation_config.json
    *("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("image_token_index", "image_token_id", "boi_token_index", "eoi_token_index"),  # of what stands for a picture
)
FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def cut_tokenizer(folder: Path, used: Iterable[int], size: int) -> np.ndarray:
    """Cuts the tokenizer of a run directory's folder in place; returns the old numbers of the kept tokens, ascending.

    Args:
      used: numbers of the tokens in use.
      size: rows of the embedding table; the kept numbers are below it.

    Raises ValueError for a folder without tokenizer.json, and for a kind of tokenizer that cannot be cut.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError("--vocabulary needs a tokenizer with a tokenizer.json, which this network does not have.")
    tree = read_json(file, dict)
    model = tree["model"]
    kind = model.get("type")
    vocabulary = _vocabulary(model)
    added = {int(entry["id"]): str(entry["content"]) for entry in tree.get("added_tokens", [])}
    if any(number >= size for number in added):
        raise ValueError(
            f"--vocabulary: the tokenizer has added tokens beyond the network's {size:,} embeddings: remove them first."
        )
    by_number = {number: piece for piece, number in vocabulary.items()} | added
    kept = {number for number in used if number in by_number} | set(added)
    prefix = model.get("continuing_subword_prefix") or ""
    kept |= {number for number, piece in by_number.items() if _is_basic(piece, prefix)}
    kept |= {vocabulary[name] for name in [model.get("unk_token")] if name in vocabulary}
    if kind == "Unigram" and model.get("unk_id") is not None:
        kept.add(int(model["unk_id"]))
    if kind == "BPE":
        kept = _closed(kept, by_number, vocabulary, [_pair(merge) for merge in model["merges"]])
    order = np.array(sorted(number for number in kept if number < size), int)
    new = {int(old): number for number, old in enumerate(order)}
    _rewrite_model(model, new)
    for entry in tree.get("added_tokens", []):
        entry["id"] = new[int(entry["id"])]
    _rewrite_processors(tree.get("post_processor"), new)
    if tree.get("padding"):
        tree["padding"]["pad_id"] = new[int(tree["padding"]["pad_id"])]
    write_text(file, json.dumps(tree, ensure_ascii=False))
    _rewrite_config(folder / "tokenizer_config.json", new)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    return order


def _vocabulary(model: dict[str, object]) -> dict[str, int]:
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        return {str(piece): int(number) for piece, number in vocab.items()}
    if model.get("type") == "Unigram" and isinstance(vocab, list):
        return {str(piece): number for number, (piece, _) in enumerate(vocab)}
    raise ValueError(f"--vocabulary cannot cut a tokenizer of kind {model.get('type')}: WordPiece, BPE, Unigram only.")


def _is_basic(piece: str, prefix: str) -> bool:
    """Whether a piece is one character or byte, which unknown words consist of."""
    bare = piece.removeprefix(prefix) if prefix else piece.removeprefix("▁") or piece
    return len(bare) == 1 or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _closed(
    kept: set[int], by_number: dict[int, str], vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]
) -> set[int]:
    """With the parts of each kept token, by any of the merges that make it."""
    parts: dict[str, list[str]] = {}
    for first, second in merges:
        parts.setdefault(first + second, []).extend((first, second))
    waiting = [by_number[number] for number in kept]
    while waiting:
        for piece in parts.get(waiting.pop(), ()):
            if vocabulary[piece] not in kept:
                kept.add(vocabulary[piece])
                waiting.append(piece)
    return kept


def _rewrite_model(model: dict[str, object], new: dict[int, int]) -> None:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [entry for number, entry in enumerate(vocab) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[int(str(model["unk_id"]))]
        return
    assert isinstance(vocab, dict)
    model["vocab"] = left = {piece: new[number] for piece, number in vocab.items() if number in new}
    merges = model.get("merges")
    if isinstance(merges, list):
        pairs = [(merge, _pair(merge)) for merge in merges]
        model["merges"] = [merge for merge, (a, b) in pairs if a in left and b in left and a + b in left]


def _rewrite_processors(node: object, new: dict[int, int]) -> None:
    """The numbers of special tokens that post-processors add."""
    if isinstance(node, list):
        for each in node:
            _rewrite_processors(each, new)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in ("sep", "cls") and isinstance(value, list):
                node[name] = [value[0], new[int(value[1])]]
            elif name == "ids" and isinstance(value, list):
                node[name] = [new[int(number)] for number in value]
            else:
                _rewrite_processors(value, new)


def _rewrite_config(file: Path, new: dict[int, int]) -> None:
    if not file.is_file():
        return
    tree = read_json(file, dict)
    if isinstance(entries := tree.get("added_tokens_decoder"), dict):
        tree["added_tokens_decoder"] = {str(new[int(number)]): value for number, value in entries.items()}
    write_json(file, tree)


def renumbered(value: object, new: dict[int, int], name: str) -> object:
    """A token number of config.json, or a list of them; unchanged where it is none (null, -1)."""
    if isinstance(value, list):
        return [renumbered(each, new, name) for each in value]
    if not isinstance(value, int) or value < 0:
        return value
    if value not in new:
        raise ValueError(f"--vocabulary: {name} {value} of config.json is not a token of the tokenizer.")
    return new[value]
