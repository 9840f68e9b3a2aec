"""The fields of config.json: wrong types and ranges are refused by name, what transformers writes passes."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from instructrec_jax.backbones.folder import FAMILIES
from instructrec_jax.backbones.json_fields import Fields
from instructrec_jax.backbones.network_config import OWN_TYPES, check_fields, quantization_method, read_network_config


def check(**fields: Any) -> None:
    check_fields(Fields("config.json", fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("hidden_size", value) for value in ("48", 88.0, None, 0, -5, True, 2**31, [48])],
        *[("num_hidden_layers", value) for value in (10**9, 513, 0, "2")],
        *[("head_dim", value) for value in (0, "8", 1.5)],
        *[("hidden_dropout_prob", value) for value in (1.0, -0.1, 1.5, "0.1", None, True)],
        *[("layer_norm_eps", value) for value in (0, -1e-5, "1e-5", True)],
        *[("initializer_range", value) for value in (-0.02, "0.02")],
        *[("hidden_act", value) for value in (["gelu"], 3)],
        *[("pad_token_id", value) for value in (-2, 1.0, "0")],
        *[("dtype", value) for value in ("float17", 7, "int4", "torch.bfloat16x")],
        ("torch_dtype", 7),
        ("architectures", "BertModel"),
        ("layer_types", ["full", 3]),
        ("tie_word_embeddings", "yes"),
        ("quantization_config", "4bit"),
        ("rope_scaling", "linear"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"config.json.*{field}"):
        check(**{field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head_dim": None, "sliding_window": None, "layer_norm_eps": 1, "hidden_dropout_prob": 0},
        {"classifier_dropout": None, "initializer_range": 0.0, "pad_token_id": -1, "bos_token_id": None},
        {"dtype": "bfloat16", "torch_dtype": "torch.float8_e4m3fn", "quantization_config": {"quant_method": "fp8"}},
        {"num_hidden_layers": 512, "rope_scaling": None, "a_field_of_next_year": object()},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.0, "truncate": False}},
    ],
)
def test_fields_within_their_ranges(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"factor": -1.0}, "factor"),
        ({"factor": "2"}, "factor"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({"truncate": 1}, "truncate"),
        ({"rope_type": 3}, "rope_type"),
        ({"full_attention": {"rope_theta": 0}}, "full_attention.*rope_theta"),
    ],
)
def test_rope_is_checked_too_by_layer_type(rope: dict[str, Any], named: str) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        with pytest.raises(ValueError, match=f"config.json.*{named}"):
            check(**{name: rope})


@pytest.mark.parametrize("model_type", sorted({*FAMILIES} - {*OWN_TYPES}))
def test_configs_that_transformers_writes_pass(model_type: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    assert read_network_config(tmp_path).to_dict() == transformers.AutoConfig.from_pretrained(tmp_path).to_dict()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": 3}', '{"model_type": "bert", "a": NaN}'])
def test_a_file_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        read_network_config(tmp_path)


def test_what_transformers_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "is_decoder": "maybe"}))
    with pytest.raises(ValueError, match="config.json.*is_decoder") as error:
        read_network_config(tmp_path)
    assert "\n" not in str(error.value)


def test_the_method_of_quantization() -> None:
    assert quantization_method({}, "x") is None and quantization_method({"quantization_config": None}, "x") is None
    assert quantization_method({"quantization_config": {"quant_method": "gptq"}}, "x") == "gptq"
    assert quantization_method({"quantization_config": {}}, "x") == "quantization_config"
    assert quantization_method({"compression_config": {"quant_method": "fp8"}}, "x") == "fp8"
