"""Eight virtual devices for every test, and one tiny checkpoint with a real tokenizer."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.writing import save_pretrained

WORDS = "the a film book good bad dull bright about love war space crime music old new long short very not".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_config(vocab_size: int, **changes: Any) -> BertConfig:
    settings = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=2,
    )
    return BertConfig(**(settings | changes))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Equal programs of several tests are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    # Written out, because a trained vocabulary is numbered anew in every process. Words are two pieces or letters.
    letters, rest = "abcdefghijklmnopqrstuvwxyz", "0123456789.,:;!?'"
    halves = [half for word in WORDS if len(word) > 1 for half in (word[:2], "##" + word[2:]) if half != "##"]
    unused = [f"[unused{n}]" for n in range(7)]  # the size, 112, can be split over eight devices
    pieces = [*SPECIAL, *unused, *letters, *rest, *("##" + letter for letter in letters), *halves]
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, SPECIAL, strict=True)))


@pytest.fixture(scope="session")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT (with dropout) in HuggingFace layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = tiny_config(len(tokenizer))
    save_pretrained(folder, build_backbone(config, rngs=nnx.Rngs(1)), config)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The settings of a classification run of six steps that is done. Leave its folder as it is."""
    from tiny_runs import tiny_run

    from instructrec_jax.train import train

    config = tiny_run("classification", checkpoint, tmp_path_factory.mktemp("finished"))
    train(config)
    return config
