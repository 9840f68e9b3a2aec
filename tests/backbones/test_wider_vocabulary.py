"""A network with more tokens computes what it did, and knows the new ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.backbones.wider_vocabulary import widen
from instructrec_jax.files import read_json, write_json

NEW = [f"<a_{number}>" for number in range(5)]


@pytest.fixture(params=["llama", "gpt2", "t5", "bart"])
def pair(request: pytest.FixtureRequest, language_models: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    old = language_models[request.param]
    widen(old, NEW, tmp_path, seed=0)
    return old, tmp_path


def test_old_logits_stay_and_transformers_opens_it(pair: tuple[Path, Path]) -> None:
    old, new = pair
    pairs = read_config(old).is_encoder_decoder
    cls = transformers.AutoModelForSeq2SeqLM if pairs else transformers.AutoModelForCausalLM
    tokens = torch.tensor([[5, 9, 17, 30]])
    more = {"decoder_input_ids": torch.tensor([[0, 7, 12]])} if pairs else {}
    with torch.no_grad():
        before, after = (cls.from_pretrained(x).eval()(input_ids=tokens, **more).logits for x in pair)
    size = before.shape[-1]
    assert after.shape[-1] == size + len(NEW)
    torch.testing.assert_close(after[..., :size], before, atol=1e-5, rtol=1e-5)
    tokenizer = open_tokenizer(new, read_config(new))
    ids = tokenizer("a<a_3><a_0> film", add_special_tokens=False)["input_ids"]
    assert (
        ids[1:3] == [size + 3, size]
        and tokenizer("a film")["input_ids"] == open_tokenizer(old, read_config(old))("a film")["input_ids"]
    )


def test_new_rows_are_like_the_old_ones(language_models: dict[str, Path], tmp_path: Path) -> None:
    many = [f"<a_{number}>" for number in range(4000)]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    widen(language_models["llama"], many, tmp_path / "one", seed=3)
    widen(language_models["llama"], many, tmp_path / "two", seed=3)
    table = load_file(tmp_path / "one" / "model.safetensors")["model.embed_tokens.weight"]
    old, new = table[: -len(many)], table[-len(many) :]
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=4 * old.std(0).max() / 60)
    np.testing.assert_allclose(new.std(0), old.std(0), rtol=0.1)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), "the same seed, the same bytes"


def test_a_folder_without_weights_stays_one(language_models: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(language_models["t5"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "new").mkdir()
    widen(bare, NEW, tmp_path / "new", seed=0)
    assert not list((tmp_path / "new").glob("*.safetensors"))
    assert read_json(tmp_path / "new" / "config.json", dict)["vocab_size"] == read_config(bare).vocab_size + len(NEW)


def test_rows_beyond_the_tokenizer_are_used_first(language_models: dict[str, Path], tmp_path: Path) -> None:
    """T5's table has more rows than its tokenizer has tokens."""
    bare = tmp_path / "bare"
    shutil.copytree(language_models["t5"], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    config = read_json(bare / "config.json", dict)
    write_json(bare / "config.json", config | {"vocab_size": config["vocab_size"] + 3})
    (tmp_path / "new").mkdir()
    widen(bare, NEW, tmp_path / "new", seed=0)
    assert read_json(tmp_path / "new" / "config.json", dict)["vocab_size"] == config["vocab_size"] + len(NEW)


def test_known_tokens_and_encoders_are_refused(
    language_models: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has the token \[SEP\] already"):
        widen(language_models["llama"], ["<a_0>", "[SEP]"], tmp_path, seed=0)
    with pytest.raises(ValueError, match="holds a bert: tokens are added to decoders"):
        widen(checkpoint, NEW, tmp_path, seed=0)
    assert not list(tmp_path.iterdir())
