"""Eight virtual devices for every test, and tiny checkpoints with a real tokenizer."""

import os
import tempfile

# Programs run a few times here, so compiling them is what takes the time: a fifth of it, without optimizations. Flags
# of the environment come last and win; with
#   XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
# the tests run what training compiles.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["COLUMNS"] = "100"  # tables fit the terminal
# Nothing is written to the user's caches, also not by the commands that tests start.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="instructrec-cache-")

import atexit
import gc
import html
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers
from flax import nnx
from tiny_drawers import dalle_mini
from tiny_pictures import drawing_network, image_network, image_tokenizer, pair_network
from tiny_sounds import whisper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.evaluation import charts

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
WORDS = "the a film book good bad dull bright about love war space crime music old new long short very not".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Every kind of place that dropout can have; positions from a table, rotary, and by buckets of distance.
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "llama": (
        "LlamaForCausalLM",
        dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            attention_dropout=0.1,
        ),
    ),
    "t5": ("T5ForConditionalGeneration", dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
    "bart": (
        "BartForConditionalGeneration",
        dict(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            attention_dropout=0.1,
        ),
    ),
}


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
    """Equal programs of several tests are compiled once.

    Each worker has a folder of its own, whatever the environment says: on CPUs, some programs with collectives wait for
    each other for ever after they were read from another process's cache.
    """
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_unloaded() -> Iterator[None]:
    """Compiled programs hold memory mappings, of which Linux gives a process 65,530: all tests together need more.

    The process that asks for one more is killed by a segmentation fault somewhere in XLA. One file needs up to 25,000.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> None:
    """What torch, transformers and jax keep for ever is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)  # tracing makes many objects: 5% of a test's time


@pytest.fixture(scope="session", autouse=True)
def _charts_without_images() -> Iterator[Callable[..., str]]:
    """Reports have the alternative texts of their charts only: drawing takes a third of a tiny run's time."""
    drawn = charts._image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_image", lambda title, size, draw, says="": f'<img alt="{html.escape(says or title)}">')
        yield drawn


@pytest.fixture
def charts_are_drawn(_charts_without_images: Callable[..., str]) -> Iterator[None]:
    """For the tests of reports and charts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_image", _charts_without_images)
        yield


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[dict[str, str]]:
    from buckets import s3_server  # slow to import, and rarely needed

    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(_s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a folder of its own on a real S3 server; what is cached lies in `tmp_path`/cache."""
    import fsspec
    from buckets import new_bucket

    for name, value in _s3_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("s3").clear_instance_cache()  # it keeps the environment of an earlier test
    new_bucket()
    yield f"s3://bucket/{tmp_path.name}"


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
def language_models(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random language models, with dropout, in HuggingFace layout: model_type -> folder."""
    end = tokenizer.sep_token_id
    folders = {}
    for kind, (name, sizes) in LANGUAGE_MODELS.items():
        cls = getattr(transformers, name)
        pairs = name.endswith("ConditionalGeneration")
        ids = dict(vocab_size=len(tokenizer), eos_token_id=end, pad_token_id=0, bos_token_id=2)
        settings = ids | sizes | (dict(decoder_start_token_id=0, forced_eos_token_id=None) if pairs else {})
        torch.manual_seed(0)
        folders[kind] = tmp_path_factory.mktemp(kind)
        cls(cls.config_class(**settings)).save_pretrained(folders[kind])
        core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        single = "$A [SEP]" if pairs else "$A"
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[SEP]", end)])
        PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
        ).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def image_networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random networks of images, with dropout, in HuggingFace layout: model_type -> folder."""
    return {kind: image_network(kind, tmp_path_factory.mktemp(kind)) for kind in ("vit", "dinov2", "clip", "siglip")}


@pytest.fixture(scope="session")
def pair_networks(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random CLIP and SigLIP, with dropout and a tokenizer: "clip pair" and "siglip pair" -> folder."""
    return {f"{kind} pair": pair_network(kind, tmp_path_factory.mktemp(kind), tokenizer) for kind in ("clip", "siglip")}


@pytest.fixture(scope="session")
def seeing(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random decoders that read images of 12 pixels as 9 tokens, with dropout: model_type -> folder."""
    from tiny_networks import READERS, seeing_network

    return {kind: seeing_network(kind, tmp_path_factory.mktemp(kind), language_models["llama"]) for kind in READERS}


@pytest.fixture(scope="session")
def drawing(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny image tokenizer, "fsq", language models that write its codes, "draw llama" and "draw t5", and a
    network in dalle-mini's layout, "dallebart", beside its "vqgan".
    """
    folders = {
        f"draw {kind}": drawing_network(tmp_path_factory.mktemp(kind), language_models[kind])
        for kind in ("llama", "t5")
    }
    mini = dalle_mini(tmp_path_factory.mktemp("dallebart"), language_models["bart"])
    fsq = image_tokenizer(tmp_path_factory.mktemp("fsq"))
    return folders | {"fsq": fsq, "dallebart": mini, "vqgan": mini / "image_tokenizer"}


@pytest.fixture(scope="session")
def coded(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny language models that name the items of `task_config` by codes: "codes llama", "codes t5" -> folder."""
    from coded_networks import coded_network

    return {
        f"codes {kind}": coded_network(tmp_path_factory.mktemp(kind), language_models[kind]) for kind in ("llama", "t5")
    }


@pytest.fixture(scope="session")
def hearing(language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper, with dropout, in HuggingFace layout."""
    return whisper(tmp_path_factory.mktemp("whisper"), language_models["bart"])


@pytest.fixture(scope="session")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The settings of a classification run of six steps that is done. Leave its folder as it is."""
    from tiny_runs import tiny_run

    from instructrec_jax.train import train

    config = tiny_run("classification", checkpoint, tmp_path_factory.mktemp("finished"))
    train(config)
    return config
