"""What llama.cpp's tokenizers do not have is named; `test_writing` compares those that they have."""

from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from llama_cpp_folders import sentencepiece_tokenizer
from tokenizers import normalizers, pre_tokenizers, processors

from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.backbones.llama_cpp.tokens import COMPOSED, SPLITS, WHOLE_WORDS
from instructrec_jax.backbones.llama_cpp.writing_tokens import chat_ends, split_name, write_tokens

gguf = pytest.importorskip("gguf")


def written(file: Path, tokenizer: Any, ends: list[int] | None = None) -> None:
    write_tokens(gguf.GGUFWriter(file, "llama"), tokenizer, 400, ends or [])


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_each_way_to_split_has_its_name(name: str) -> None:
    core = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[name]},
        "normalizer": {"type": "NFC"} if name in COMPOSED else None,
    }
    found = split_name(Fields("", core), Fields("", {"ignore_merges": name in WHOLE_WORDS}))
    assert SPLITS[found] == SPLITS[name]


def test_what_differs_is_named(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="no name here for its pre_tokenizer.*add_prefix_space"):
        written(tmp_path / "1", tokenizer)
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="normalizer.*Lowercase"):
        written(tmp_path / "2", tokenizer)
    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(ValueError, match="normalizer.*NFKC"):
        written(tmp_path / "3", tokenizer)
    tokenizer = byte_tokenizer()
    around = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = around
    with pytest.raises(ValueError, match=r"\[1, 1\] before each text"):
        written(tmp_path / "4", tokenizer)
    with pytest.raises(ValueError, match="answers end with"):
        written(tmp_path / "5", byte_tokenizer(), [2, 5, 20, 21])


def test_ends_of_answers() -> None:
    assert [chat_ends({"eos_token_id": ends}) for ends in (None, 3, [4, 5])] == [[], [3], [4, 5]]
