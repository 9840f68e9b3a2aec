"""Names of ways to split texts are those ways."""

import json

import pytest
from tokenizers import Tokenizer

from instructrec_jax.backbones.llama_cpp.tokens import SPLITS

TEXT = "I'll PAY 12345 now!\n"
PLAIN = ["I", "'ll", "\u0120PAY", "\u012012345", "\u0120now", "!", "\u010a"]
SINGLE = ["I", "'ll", "\u0120PAY", "\u0120", "1", "2", "3", "4", "5", "\u0120now", "!\u010a"]


@pytest.mark.parametrize(
    "name, want",
    [
        ("gpt-2", PLAIN),
        ("smollm", ["I", "'ll", "\u0120PAY", "\u0120", "1", "2", "3", "4", "5", "\u0120now", "!", "\u010a"]),
        ("llama-bpe", ["I", "'ll", "\u0120PAY", "\u0120", "123", "45", "\u0120now", "!\u010a"]),
        ("qwen2", SINGLE),
        ("tekken", ["I", "'ll", "\u0120PAY", "\u0120", "1", "2", "3", "4", "5", "\u0120now", "!\u010a"]),
        ("gpt-4o", ["I'll", "\u0120PAY", "\u0120", "123", "45", "\u0120now", "!\u010a"]),
    ],
)
def test_splits(name: str, want: list[str]) -> None:
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    core = {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None}
    split = {"type": "Sequence", "pretokenizers": SPLITS[name]}
    tokenizer = Tokenizer.from_str(json.dumps(core | {"model": empty, "pre_tokenizer": split}))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)] == want
