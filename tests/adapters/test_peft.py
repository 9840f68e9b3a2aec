"""PEFT's files: PEFT opens what is written, what PEFT writes is read, and everything else is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import tiny_networks
import torch
import transformers
from flax import nnx
from lora_networks import CONFIGS, LABELS, ONES, TOKENS, VOCABULARY, our_logits, trained
from safetensors.numpy import load_file, save_file

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.adapters.heads import build_head
from instructrec_jax.adapters.lora import add_lora
from instructrec_jax.adapters.peft import read_peft, write_peft
from instructrec_jax.adapters.peft_config import CONFIG
from instructrec_jax.backbones.folder import family_of, find_family
from instructrec_jax.backbones.reading import load_backbone, load_head

AUTO = {
    "sequence": (transformers.AutoModelForSequenceClassification, "SEQ_CLS"),
    "token": (transformers.AutoModelForTokenClassification, "TOKEN_CLS"),
    "mlm": (transformers.AutoModelForMaskedLM, None),
    "lm": (transformers.AutoModelForCausalLM, "CAUSAL_LM"),
    "seq2seq": (transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    None: (transformers.AutoModel, "FEATURE_EXTRACTION"),
}


def scatter(module: Any, seed: int) -> None:
    """Values less regular than an initialization's: a zero or a swapped matrix would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """checkpoint(model_type, kind) -> folder of a tiny random HuggingFace model, made once."""
    made: dict[Any, Path] = {}

    def make(model_type: str, kind: str | None) -> Path:
        if (model_type, kind) not in made:
            torch.manual_seed(0)
            model = AUTO[kind][0].from_config(CONFIGS[model_type]())
            scatter(model, 0)
            folder = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(folder)
            made[model_type, kind] = folder
        return made[model_type, kind]

    return make


def load(folder: Path, kind: str | None, **options: Any) -> tuple[Any, Any, Any]:
    """(backbone, head or None, HuggingFace config)"""
    loaded = load_backbone(folder, rngs=nnx.Rngs(0), **options)
    head = None
    if kind is not None:
        outputs = LABELS if kind in ("sequence", "token") else VOCABULARY
        ours = "lm" if kind == "seq2seq" else kind

        def build(key: jax.Array) -> nnx.Module:
            return build_head(loaded.config, ours, outputs, rngs=nnx.Rngs(params=key))

        head, report = load_head(folder, ours, build, rngs=nnx.Rngs(0))
        assert not report.initialized
    return loaded.module, head, loaded.config


def their_logits(model: Any, kind: str | None) -> np.ndarray:
    model.eval()
    inputs = {"input_ids": torch.tensor(TOKENS).long(), "attention_mask": torch.tensor(ONES).long()}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor(TOKENS[::-1].copy()).long()
    with torch.no_grad():
        out = model(**inputs)
    return (out.last_hidden_state if kind is None else out.logits).numpy()


FORMATS = [
    ("bert", "sequence", ["all-linear"]),
    ("bert", "token", [r".*layer\.\d+\.output\.dense", "query"]),
    ("bert", "mlm", ["attention.self.value"]),
    ("bert", None, ["query"]),
    ("modernbert", "sequence", ["all-linear"]),
    ("gpt2", "lm", ["all-linear"]),
    ("gpt2", "sequence", ["c_attn"]),
    ("llama", "lm", ["all-linear"]),
    ("llama", "sequence", ["q_proj", "v_proj"]),
    ("qwen2", "lm", ["mlp.down_proj"]),
    ("t5", "seq2seq", ["all-linear"]),
    ("bart", "seq2seq", ["all-linear"]),
    ("t5", "seq2seq", ["decoder.*EncDecAttention.[kv]"]),
]


@pytest.mark.parametrize(("model_type", "kind", "targets"), FORMATS, ids=str)
def test_peft_opens_what_is_written_with_the_same_logits(checkpoint, tmp_path, model_type, kind, targets):
    base = checkpoint(model_type, kind)
    backbone, head, config = load(base, kind)
    before = our_logits(backbone, head, kind)
    lora = LoraConfig(rank=4, alpha=6, targets=targets, rslora=model_type == "llama")
    names = add_lora(backbone, config, lora, nnx.Rngs(1))
    trained(backbone)
    if kind in ("sequence", "token"):
        head.output.kernel[...] = head.output.kernel[...] * 1.5
    ours = our_logits(backbone, head, kind)
    assert np.abs(ours - before).max() > 1e-2
    ours_kind = "lm" if kind == "seq2seq" else kind
    saved_head = head if kind in ("sequence", "token") else None
    write_peft(tmp_path, backbone, config, lora, str(base), AUTO[kind][1], saved_head, ours_kind)
    model = peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(base), tmp_path)
    np.testing.assert_allclose(ours, their_logits(model, kind), atol=1e-4, rtol=0)
    adapted = {n for n, m in model.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert {n.removeprefix(prefix_of(config)) for n in adapted} == set(names)
    # and back again
    fresh, fresh_head, _ = load(base, kind)
    settings = read_peft(tmp_path, fresh, config, fresh_head if saved_head else None, ours_kind)
    assert (settings.rank, settings.alpha, settings.rslora) == (4, 6.0, lora.rslora)
    np.testing.assert_allclose(our_logits(fresh, fresh_head, kind), ours, atol=1e-6, rtol=0)


def test_peft_adapts_the_image_network_and_the_projector_of_a_llava(tmp_path):
    words = tiny_networks.WORDS | dict(model_type="llama", vocab_size=VOCABULARY)
    tiny_networks.make("llava", tmp_path / "base", text_config=words)
    backbone, head, config = load(tmp_path / "base", "lm")
    lora = LoraConfig(rank=4, targets=["all-linear"])
    names = add_lora(backbone, config, lora, nnx.Rngs(1))
    trained(backbone)
    assert {name.partition(".")[0] for name in names} == {"language_model", "vision_tower", "multi_modal_projector"}
    write_peft(tmp_path / "adapter", backbone, config, lora, "base", "CAUSAL_LM", head_kind="lm")
    base = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    (tokens,), (images,) = tiny_networks.with_images([np.arange(5, 12)], [1], backbone.image_vectors)
    places = np.arange(len(tokens))[None]
    hidden = backbone(tokens[None], places * 0 + 1, places, places * 0, images=images)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens[None]).long(),
            pixel_values=torch.tensor(images.pixels[0]).permute(0, 3, 1, 2),
        )
    np.testing.assert_allclose(head(backbone, hidden), out.logits.numpy(), atol=1e-4, rtol=0)
    adapted = {n for n, m in model.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert {name.removeprefix("model.") for name in adapted} == set(names)
    # modules had other names in older versions
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    root = "base_model.model."
    written = {name.removeprefix(root): tensor for name, tensor in load_file(file).items()}
    old = {root + family_of(config).name_in_files(name): tensor for name, tensor in written.items()}
    assert not old.keys() & {root + name for name in written}
    for tensors in (old, {root + name: tensor for name, tensor in written.items()}):
        save_file(tensors, file)
        fresh, _, _ = load(tmp_path / "base", "lm")
        read_peft(tmp_path / "adapter", fresh, config, head_kind="lm")
        again = fresh(tokens[None], places * 0 + 1, places, places * 0, images=images)
        np.testing.assert_allclose(again, hidden, atol=1e-6, rtol=0)


def prefix_of(config: Any) -> str:
    return find_family(config.model_type).prefix


@pytest.mark.parametrize(
    ("model_type", "kind", "options"),
    [
        ("bert", "sequence", dict(target_modules=["query", "dense"], exclude_modules=["pooler.dense"])),
        ("bert", "sequence", dict(target_modules=".*(key|value)", layers_to_transform=None, use_rslora=True)),
        ("bert", "mlm", dict(target_modules=["query"], layers_to_transform=[0, 1])),
        ("modernbert", "token", dict(target_modules=["Wqkv", "mlp.Wo"], alpha_pattern={"mlp.Wo": 3}, lora_alpha=5)),
        ("gpt2", "lm", dict(target_modules="all-linear", rank_pattern={"c_fc": 2, "mlp.c_proj": 7})),
        ("llama", "lm", dict(target_modules=["q_proj", "up_proj"], init_lora_weights="gaussian")),
        ("t5", "seq2seq", dict(target_modules=["q", "wo"])),
    ],
    ids=str,
)
def test_reads_what_peft_writes(checkpoint, tmp_path, model_type, kind, options):
    base = checkpoint(model_type, kind)
    model = peft.get_peft_model(
        AUTO[kind][0].from_pretrained(base), peft.LoraConfig(task_type=AUTO[kind][1], r=4, **options)
    )
    scatter(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    # the scattering moved the base as well: its values go with it
    model.unload().save_pretrained(tmp_path / "base")
    theirs = their_logits(
        peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(tmp_path / "base"), tmp_path / "adapter"), kind
    )
    backbone, head, config = load(tmp_path / "base", kind)
    classifies = kind in ("sequence", "token")
    ours_kind = "lm" if kind == "seq2seq" else kind
    settings = read_peft(tmp_path / "adapter", backbone, config, head if classifies else None, ours_kind)
    np.testing.assert_allclose(our_logits(backbone, head, kind), theirs, atol=1e-4, rtol=0)
    # written again, with its patterns of ranks and alphas
    write_peft(
        tmp_path / "again", backbone, config, settings, "base", AUTO[kind][1], head if classifies else None, ours_kind
    )
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    # of ModernBERT's head PEFT saved the last layer alone, we write all of it
    assert {name for name in second.keys() - first.keys() if ".head." not in name} == set()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    again = peft.PeftModel.from_pretrained(AUTO[kind][0].from_pretrained(tmp_path / "base"), tmp_path / "again")
    np.testing.assert_allclose(their_logits(again, kind), theirs, atol=1e-5, rtol=0)


def test_a_pooler_that_the_base_lacks_goes_along_whole(checkpoint, tmp_path):
    base = checkpoint("bert", "sequence")
    backbone, head, config = load(base, "sequence")
    lora = LoraConfig(rank=4)
    add_lora(backbone, config, lora, nnx.Rngs(1))
    trained(backbone)
    backbone.pooler.kernel[...] = backbone.pooler.kernel[...][::-1]  # other values than the base has
    backbone.pooler.bias[...] = backbone.pooler.bias[...] + 1
    write_peft(tmp_path, backbone, config, lora, str(base), "SEQ_CLS", head, "sequence", saved=["pooler.dense"])
    model = peft.PeftModel.from_pretrained(AUTO["sequence"][0].from_pretrained(base), tmp_path)
    ours = our_logits(backbone, head, "sequence")
    np.testing.assert_allclose(ours, their_logits(model, "sequence"), atol=1e-4, rtol=0)
    fresh, fresh_head, _ = load(base, "sequence")
    read_peft(tmp_path, fresh, config, fresh_head, "sequence")
    np.testing.assert_allclose(our_logits(fresh, fresh_head, "sequence"), ours, atol=1e-5, rtol=0)


@pytest.fixture
def adapter(checkpoint, tmp_path) -> Any:
    """(folder of a written adapter for a bare BERT, load a fresh BERT and read it)"""
    backbone, _, config = load(checkpoint("bert", None), None)
    lora = LoraConfig(rank=4, targets=["query"])
    add_lora(backbone, config, lora, nnx.Rngs(1))
    write_peft(tmp_path, backbone, config, lora, "base", None)

    def read() -> Any:
        fresh, _, _ = load(checkpoint("bert", None), None)
        return read_peft(tmp_path, fresh, config)

    read()  # it is fine so far
    return tmp_path, read


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("use_dora", True, "use_dora=True"),
        ("bias", "lora_only", "bias='lora_only'"),
        ("lora_bias", True, "lora_bias=True"),
        ("layer_replication", [[0, 2]], "layer_replication"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("a_flag_of_next_year", True, "a_flag_of_next_year=True"),
        ("init_lora_weights", "pissa", "init_lora_weights='pissa'"),
        ("peft_type", "IA3", "peft_type.*'IA3'"),
        ("rank_pattern", {"layer.0.attention.self.query": 2}, "rank_pattern"),
        ("alpha_pattern", {"layer.1.attention.self.query": 2}, "rank_pattern"),
        ("r", 5, r"lora_A.weight.*\[4, 32\].*rank 5.*\[5, 32\]"),
        ("target_modules", ["query", "key"], "encoder.layer.0.attention.self.key.lora_A.weight"),
    ],
)
def test_settings_that_would_give_wrong_numbers_are_refused(adapter, setting, value, message):
    folder, read = adapter
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {setting: value}))
    with pytest.raises(ValueError, match=message):
        read()


def test_null_settings_have_pefts_defaults(adapter):
    folder, read = adapter
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"lora_alpha": None, "lora_dropout": None}))
    assert (read().alpha, read().dropout) == (8.0, 0.0)


QUERY = "base_model.model.encoder.layer.1.attention.self.query.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY + "B.weight"), "layer.1.attention.self.query.lora_B.weight"),
        (lambda t: (t.pop(QUERY + "A.weight"), t.pop(QUERY + "B.weight")), "encoder.layer.1"),
        (lambda t: t.update({QUERY + "C.weight": t[QUERY + "A.weight"]}), "lora_C"),
        (
            lambda t: t.update({"base_model.model.classifier.weight": np.ones((3, 32), np.float32)}),
            "bert.*classifier.weight",
        ),
        (lambda t: t.update({QUERY + "A.weight": t[QUERY + "A.weight"][:, :16]}), "query.lora_A.weight.*shape"),
        (lambda t: t.update({"other.weight": np.ones(2, np.float32)}), "other.weight.*'base_model.model.'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(adapter, change, message):
    folder, read = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        read()


def test_layer_ranges_and_pickles_are_refused(adapter):
    folder, read = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if ".layer.0." in n}, folder / "adapter_model.safetensors")
    settings = json.loads((folder / CONFIG).read_text()) | {"layers_to_transform": [0]}
    (folder / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="layers_to_transform.*encoder.layer.1"):
        read()
    shutil.move(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin"):
        read()


def test_what_cannot_be_written_is_named(checkpoint, tmp_path):
    backbone, head, config = load(checkpoint("bert", "sequence"), "sequence")
    lora = LoraConfig(rank=2)
    with pytest.raises(ValueError, match="LoRA"):
        write_peft(tmp_path, backbone, config, lora, "base", None)
    add_lora(backbone, config, lora, nnx.Rngs(0))
    with pytest.raises(ValueError, match="'SEQ_CLS'.*'sequence'"):
        write_peft(tmp_path, backbone, config, lora, "base", "SEQ_CLS")
    with pytest.raises(ValueError, match="'CLASSIFY'"):
        write_peft(tmp_path, backbone, config, lora, "base", "CLASSIFY", head, "sequence")
    with pytest.raises(ValueError, match="'lm'"):
        write_peft(tmp_path, backbone, config, lora, "base", "CAUSAL_LM", None, "lm")
    with pytest.raises(ValueError, match="encoder.layer.0.output.dense"):
        name = "encoder.layer.0.output.dense"
        write_peft(tmp_path, backbone, config, lora, "base", "SEQ_CLS", head, "sequence", saved=[name])
    assert not list(tmp_path.iterdir())
