"""A cut tokenizer reads the texts that it was cut for in the same pieces."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from instructrec_jax.compression.vocabulary import cut_tokenizer

CORPUS = [
    "the bright film about old love and new war",
    "lovely lovers love the brightest and the oldest films",
    "wars are newer than lights, lighter than nights",
]
USED, OTHER = ["the bright film", "lovely newer nights, old films"], "brightly unused zebra"


def trained(kind: str) -> Tokenizer:
    """Of a few hundred pieces."""
    if kind == "WordPiece":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    elif kind == "BPE":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    else:
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]")
    core.train_from_iterator(CORPUS * 20, trainer)
    ends = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return core


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_known_texts_keep_their_pieces_and_others_can_be_read(kind: str, tmp_path: Path) -> None:
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    whole = PreTrainedTokenizerFast(tokenizer_object=trained(kind), **names)
    whole.save_pretrained(tmp_path)
    used = {number for text in USED for number in whole(text)["input_ids"]}
    order = cut_tokenizer(tmp_path, used, len(whole))
    cut = AutoTokenizer.from_pretrained(tmp_path)
    assert used <= set(order.tolist()) and len(cut) == len(order) < len(whole)
    for text in USED:
        assert order[cut(text)["input_ids"]].tolist() == whole(text)["input_ids"]
    assert [cut.pad_token_id, cut.sep_token_id] == [
        np.flatnonzero(order == number).item() for number in (whole.pad_token_id, whole.sep_token_id)
    ]
    if kind != "Unigram":  # whose letters may be no pieces of the whole vocabulary either
        assert cut.unk_token_id not in cut(OTHER.replace("z", "s"))["input_ids"]


def test_what_cannot_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer with a tokenizer.json"):
        cut_tokenizer(tmp_path, [1], 10)
