"""Tokenizers of HuggingFace folders: those that fit the network, and those that are refused by name."""

import io
import json
import pickle
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from instructrec_jax.backbones.tokenizer import open_tokenizer


def bigger_tokenizer(folder: Path, *, special: bool, added: bool = True) -> None:
    words = {word: number for number, word in enumerate("<pad> </s> a b c".split())}
    if not added:
        words["beyond"] = 5
    core = Tokenizer(models.WordLevel(words, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="a")
    if special:
        tokenizer.add_special_tokens({"bos_token": "<image_soft_token>"})
    elif added:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)


def test_a_token_beyond_the_table_is_refused_where_a_text_has_it(tmp_path: Path) -> None:
    """Gemma 3: <image_soft_token> has no row in the word embeddings."""
    config = transformers.Gemma3TextConfig(vocab_size=5)
    bigger_tokenizer(tmp_path, special=False)
    tokenizer = open_tokenizer(tmp_path, config)
    assert len(tokenizer) == 6 and tokenizer("a b")["input_ids"] == [2, 3]
    assert tokenizer(["a b", ""])["input_ids"] == [[2, 3], []]
    sent = pickle.loads(pickle.dumps(tokenizer))  # as worker processes get it
    assert sent("a b")["input_ids"] == [2, 3]
    for each in (tokenizer, sent):
        for texts in ("a <image_soft_token> b", ["a", "b <image_soft_token>"]):
            with pytest.raises(ValueError, match="<image_soft_token>.*vocab_size"):
                each(texts)
    tokenizer.save_pretrained(tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["tokenizer_class"]
        == (json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"])
    )
    assert len(open_tokenizer(tmp_path / "again", config)) == 6


def test_tokenizers_that_do_not_belong_to_the_network_are_refused(tmp_path: Path) -> None:
    for options in (dict(special=True), dict(special=False, added=False)):
        bigger_tokenizer(tmp_path, **options)
        with pytest.raises(ValueError, match="vocab_size"):
            open_tokenizer(tmp_path, transformers.Gemma3TextConfig(vocab_size=5))
    bigger_tokenizer(tmp_path, special=False)
    with pytest.raises(ValueError, match="vocab_size"):  # masked tokens are replaced by any of the tokenizer's
        open_tokenizer(tmp_path, transformers.BertConfig(vocab_size=5))


def test_a_sentencepiece_model_alone_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00")
    monkeypatch.setattr("instructrec_jax.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tokenizer\.model.*instructrec_jax\[sentencepiece\]"):
        open_tokenizer(tmp_path, transformers.LlamaConfig())


FILES: list[tuple[str, dict[str, object], str]] = [
    ("tokenizer_config.json", {"model_max_length": 10.5}, "model_max_length"),
    ("tokenizer_config.json", {"model_max_length": 0}, "model_max_length"),
    ("tokenizer_config.json", {"do_lower_case": 1}, "do_lower_case"),
    ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token"),
    ("tokenizer_config.json", {"padding_side": ["left"]}, "padding_side"),
    ("tokenizer_config.json", {"eos_token": {"content": 3}}, "content"),
    ("tokenizer_config.json", {"eos_token": ["</s>"]}, "eos_token"),
    ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}, "chat_template"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"1": {}}}, "added_tokens_decoder"),
    ("special_tokens_map.json", {"pad_token": {"lstrip": True}}, "content"),
]


@pytest.mark.parametrize(("file", "fields", "named"), FILES)
def test_a_field_of_a_wrong_type_is_named(file: str, fields: dict[str, object], named: str, tmp_path: Path) -> None:
    bigger_tokenizer(tmp_path, special=False)
    content = json.loads((tmp_path / file).read_text()) if (tmp_path / file).is_file() else {}
    (tmp_path / file).write_text(json.dumps({**content, **fields}))
    with pytest.raises(ValueError, match=f"{file}.*{named}"):
        open_tokenizer(tmp_path, PretrainedConfig(vocab_size=6, model_type="gemma3_text"))


@pytest.mark.parametrize(
    "fields",
    [
        {"model_max_length": 10**30},  # "no limit" in the words of transformers
        {"chat_template": "{{ messages }}"},
        {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
        {"eos_token": {"content": "</s>", "__type": "AddedToken", "special": True}},
        {"pad_token": None},
    ],
)
def test_fields_as_other_programs_write_them(fields: dict[str, object], tmp_path: Path) -> None:
    bigger_tokenizer(tmp_path, special=False)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    assert open_tokenizer(tmp_path, transformers.Gemma3TextConfig(vocab_size=6))("a b")["input_ids"] == [2, 3]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*tokenizer.json"):
        open_tokenizer(tmp_path, transformers.BertConfig())


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    bigger_tokenizer(tmp_path, special=False)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*tokenizer"):
        open_tokenizer(tmp_path, transformers.Gemma3TextConfig(vocab_size=6))


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_a_sentencepiece_model_alone_opens(kind: str, tmp_path: Path) -> None:
    """As published: tokenizer.model without tokenizer.json; Gemma 3 with one token more than the network."""
    sentencepiece = pytest.importorskip("sentencepiece")
    gemma = kind == "gemma3_text"
    words = [word for word in dir(str) if not word.startswith("_")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[n:] + words[:n]) for n in range(len(words))]),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        add_dummy_prefix=not gemma,
        **(dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["<mask>"]) if gemma else {}),
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = pieces.get_piece_size()
    beyond = {str(size): dict(content="<image_soft_token>", special=True)} if gemma else {}
    names = dict(tokenizer_class="GemmaTokenizer" if gemma else "LlamaTokenizer", legacy=False)
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | special | dict(added_tokens_decoder=beyond)))
    tokenizer = open_tokenizer(tmp_path, transformers.AutoConfig.for_model(kind, vocab_size=size))
    assert len(tokenizer) == size + len(beyond)
    tokens = tokenizer("find split é", add_special_tokens=False)["input_ids"]
    assert tokens == pieces.encode("find split é")
    assert tokenizer.decode(tokens).strip() == "find split é"
