"""Files of HuggingFace folders as other programs (and damage) leave them: read right, or refused by name."""

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from instructrec_jax.adapters.peft import read_peft
from instructrec_jax.backbones.folder import keep_declared_files, read_config, read_pooling
from instructrec_jax.backbones.reading import build_backbone, input_limit, load_backbone
from instructrec_jax.backbones.tensor_names import abstract_module, weight_files
from instructrec_jax.backbones.tokenizer import open_tokenizer
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.tasks.base import TaskContext
from instructrec_jax.tasks.texts import tokenize, with_default_prompt

Json = dict[str, Any]


def change(folder: Path, name: str, **fields: Any) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **fields}))


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, with sentence-transformers' files."""
    copied = tmp_path / "copy"
    shutil.copytree(checkpoint, copied)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(kinds)
    ]
    (copied / "modules.json").write_text(json.dumps(modules))
    (copied / "1_Pooling").mkdir()
    change(copied / "1_Pooling", "config.json", pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    change(copied, "sentence_bert_config.json", max_seq_length=32, do_lower_case=False)
    change(copied, "config_sentence_transformers.json", prompts={"query": "find "}, default_prompt_name=None)
    return copied


def load(folder: Path, **options: Any) -> Any:
    return load_backbone(folder, rngs=nnx.Rngs(0), **options)


# ---------------------------------------------------------------- JSON


def test_deep_nesting_and_numbers_beyond_a_float_are_named(folder: Path) -> None:
    text = (folder / "config.json").read_text().rstrip()[:-1]
    for depth in (100, 100_000):
        (folder / "config.json").write_text(text + f', "a": {"[" * depth}{"]" * depth}}}')
        with pytest.raises(ValueError, match="config.json"):
            read_config(folder)
    (folder / "config.json").write_text(text + ', "layer_norm_eps": 1e999}')
    with pytest.raises(ValueError, match="config.json"):
        read_config(folder)


@pytest.mark.parametrize(
    ("file", "fields", "named"),
    [
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
        ("tokenizer_config.json", {"pad_token": 3}, "pad_token"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
        ("sentence_bert_config.json", {"max_seq_length": "32"}, "max_seq_length"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case"),
        ("config_sentence_transformers.json", {"default_prompt_name": "nothing"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"prompts": ["a"], "default_prompt_name": "a"}, "prompts"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "pooling_mode_mean_tokens"),
    ],
)
def test_a_wrong_field_of_another_file_is_named(folder: Path, file: str, fields: Json, named: str) -> None:
    change(folder, file, **fields)
    with pytest.raises(ValueError, match=rf"{file.split('/')[-1]}.*{named}"):
        read_pooling(folder)
        open_tokenizer(folder, read_config(folder))


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    1.5,
    -0.0,
    1e308,
    "",
    "48",
    "../..",
    "\x00é",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
]


def mutated(content: Any, rng: random.Random) -> Any:
    """The same JSON value with one place in it changed, removed, added or wrapped."""
    content = copy.deepcopy(content)
    where: Any = content
    while isinstance(where, dict | list) and where:
        key: Any = rng.choice(sorted(where)) if isinstance(where, dict) else rng.randrange(len(where))
        if not isinstance(where[key], dict | list) or not where[key] or rng.random() < 0.4:
            break
        where = where[key]
    else:
        return rng.choice(ODD)
    kind = rng.random()
    if kind < 0.75:
        where[key] = rng.choice(ODD)
    elif kind < 0.85:
        del where[key]
    elif kind < 0.95:
        where[key] = [where[key]]
    else:
        return rng.choice(ODD)
    return content


def fuzz(file: Path, read: Callable[[], object], count: int, seed: int) -> int:
    """Reads a mutated file `count` times; how many were refused, by an error that names the file or its folder."""
    whole = json.loads(file.read_text())
    rng, refused = random.Random(seed), 0
    for _ in range(count):
        text = json.dumps(mutated(whole, rng))
        file.write_text(text if rng.random() < 0.95 else text[: rng.randrange(len(text))])
        try:
            read()
        except (ValueError, OSError) as error:
            assert str(file.parent) in str(error) or "config.json" in str(error), f"{error}\n{text[:2000]}"
            refused += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{text[:2000]}")
    file.write_text(json.dumps(whole))
    return refused


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("config.json", 500),
        ("modules.json", 500),
        ("1_Pooling/config.json", 500),
        ("sentence_bert_config.json", 500),
        ("config_sentence_transformers.json", 500),
    ],
)
def test_fuzz_of_the_declarations(folder: Path, tmp_path: Path, name: str, count: int) -> None:
    def read() -> None:
        if name == "config.json":
            read_config(folder)
        read_pooling(folder)
        keep_declared_files(folder, tmp_path / "kept")

    (tmp_path / "kept").mkdir()
    assert count // 10 < fuzz(folder / name, read, count, seed=7) < count


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "bart", "gemma3_text", "qwen2", "modernbert"])
def test_fuzz_of_every_kind_of_config(tmp_path: Path, model_type: str) -> None:
    """What config.json describes is built, or refused by name, without a traceback (shapes alone: nothing is made)."""
    config = transformers.AutoConfig.for_model(model_type).to_dict()
    sizes = {n: 2 for n in ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")}
    config |= {name: size for name, size in sizes.items() if name in config}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][-2:]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert fuzz(tmp_path / "config.json", lambda: input_limit(read_config(tmp_path)), 72, seed=11) > 3


def test_fuzz_of_tokenizer_config(folder: Path) -> None:
    config = read_config(folder)
    assert fuzz(folder / "tokenizer_config.json", lambda: open_tokenizer(folder, config), 500, seed=5) > 50


def test_fuzz_of_an_index_and_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {f"tensor{number}": f"model-{number % 2 + 1:05d}-of-00002.safetensors" for number in range(4)}
    change(folder, "model.safetensors.index.json", metadata={"total_size": 3}, weight_map=names)
    assert fuzz(folder / "model.safetensors.index.json", lambda: weight_files(folder), 500, seed=1) > 50

    config = read_config(folder)
    network = abstract_module(lambda key: build_backbone(config, rngs=nnx.Rngs(params=key)))
    change(tmp_path, "adapter_config.json", peft_type="LORA", r=4, lora_alpha=8, target_modules=["query", ".*key"])
    change(tmp_path, "adapter_config.json", rank_pattern={"query": 2}, alpha_pattern={"ke+y": 3}, use_rslora=False)
    save_file({"base_model.model.x": np.zeros(1, np.float32)}, tmp_path / "adapter_model.safetensors")
    assert fuzz(tmp_path / "adapter_config.json", lambda: read_peft(tmp_path, network, config), 500, seed=2) == 500


# ---------------------------------------------------------------- weights


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    tensors = edit(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    name = "encoder.layer.1.output.dense.weight"

    def damage(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors[name][3, 5] = value
        return tensors

    edit_tensors(folder, damage)
    with pytest.raises(ValueError, match=name):
        load(folder)


def test_a_tensor_in_two_files_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    twice = "encoder.layer.0.output.dense.weight"
    save_file(tensors, folder / "model-1.safetensors")
    save_file({twice: tensors[twice] + 1}, folder / "model-2.safetensors")
    places = dict.fromkeys(tensors, "model-1.safetensors") | {twice: "model-2.safetensors"}
    change(folder, "model.safetensors.index.json", weight_map=places)
    with pytest.raises(ValueError, match=f"{twice}.*model-1.safetensors.*model-2.safetensors"):
        load(folder)


def test_weights_are_verified_against_the_hubs_checksum(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone.verify"):
        load(folder, verify=True)
    content = (folder / "model.safetensors").read_bytes()
    name = hashlib.sha256(content).hexdigest()
    note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0' * 40}\n{name}\n1.0\n")
    load(folder, verify=True)  # downloaded into a folder
    note.unlink()
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    load(folder, verify=True)  # the hub's cache
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load(folder)
    with pytest.raises(ValueError, match="model.safetensors.*SHA-256"):
        load(folder, verify=True)


@pytest.mark.parametrize("before", ["_orig_mod.", "module.", "bert.bert."])
def test_a_prefix_too_many_is_named(folder: Path, before: str) -> None:
    edit_tensors(folder, lambda tensors: {before + name: value for name, value in tensors.items()})
    with pytest.raises(ValueError, match=before.removeprefix("bert.").replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize(
    ("method", "ending", "dtype"), [("gptq", ".qweight", np.int32), ("bitsandbytes", ".absmax", np.uint8)]
)
def test_quantized_weights_name_their_method(folder: Path, method: str, ending: str, dtype: Any) -> None:
    change(folder, "config.json", quantization_config={"quant_method": method})
    assert not hasattr(read_config(folder), "quantization_config")
    load(folder)  # plain weights beside a declaration that was left behind
    edit_tensors(folder, lambda tensors: tensors | {f"encoder.layer.0.output.dense{ending}": np.zeros(4, dtype)})
    with pytest.raises(ValueError, match=method):
        load(folder)
    assert load(folder, random_init=True).module is not None  # only the architecture is taken


def test_nothing_that_is_stale_is_written(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    config = copy.deepcopy(loaded.config)
    config.quantization_config, config.auto_map = {"quant_method": "awq"}, {"AutoModel": "x--y.Z"}
    save_pretrained(tmp_path / "out", loaded.module, config)
    assert not {"quantization_config", "auto_map"} & set(json.loads((tmp_path / "out" / "config.json").read_text()))


# ---------------------------------------------------------------- tokenizers and prompts


def test_the_default_prompt_is_read_and_kept(folder: Path, tmp_path: Path) -> None:
    assert read_pooling(folder).prompt == ""
    change(folder, "config_sentence_transformers.json", default_prompt_name="query")
    assert read_pooling(folder).prompt == "find "
    keep_declared_files(folder, tmp_path)
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    assert read_pooling(tmp_path) == read_pooling(folder)
    change(folder / "1_Pooling", "config.json", include_prompt=False)
    with pytest.raises(ValueError, match="include_prompt"):
        read_pooling(folder)


def test_no_file_is_written_outside_of_the_target(folder: Path, tmp_path: Path) -> None:
    modules = [{"path": "../outside", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "config.json").write_text("{}")
    (tmp_path / "a" / "b").mkdir(parents=True)
    keep_declared_files(folder, tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "outside").exists()


def test_the_default_prompt_stands_before_texts_that_become_vectors(folder: Path) -> None:
    change(folder, "config_sentence_transformers.json", default_prompt_name="query")
    context = TaskContext(open_tokenizer(folder, read_config(folder)), 32, folder=folder)
    (plain,) = tokenize(["find a book"], ["text"], context)
    (prompted,) = tokenize(["a book"], ["text"], with_default_prompt(context))
    assert plain is not None and prompted is not None and plain.tokens.tolist() == prompted.tokens.tolist()
    with pytest.raises(ValueError, match=r"data\.truncate"):
        with_default_prompt(TaskContext(context.tokenizer, 32, "left", folder=folder))
