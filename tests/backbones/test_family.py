"""Declarations of families: rules that name each tensor and each parameter once, and configs that are refused."""

import re

import pytest
from transformers import BertConfig, PretrainedConfig

from instructrec_jax.backbones.family import Rule, embedding, linear, norm, refuse
from instructrec_jax.backbones.folder import FAMILIES
from instructrec_jax.backbones.tensor_names import file_shape

TRANSFORMS = {"none", "transpose", "split", "row", "token", "convolution"}


def test_rules_of_layers() -> None:
    assert linear("a.q", "b.query") == (
        Rule("a.q.weight", "b.query.kernel", "transpose"),
        Rule("a.q.bias", "b.query.bias"),
    )
    weight, bias = linear("a", "b", parts=3)
    assert file_shape(weight.transform, (8, 3, 4)) == (12, 8) and file_shape(bias.transform, (3, 4)) == (12,)
    assert {rule.old_names for rule in norm("a", "b")} == {("a.gamma",), ("a.beta",)}
    assert embedding("a", "b") == (Rule("a.weight", "b.table"),)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_table_names_each_tensor_and_each_parameter_once(model_type: str) -> None:
    """Otherwise a tensor would be read twice, or written over another one."""
    family = FAMILIES[model_type]
    for rules in (family.mapping, *(head.mapping for head in family.heads.values())):
        names = [name for rule in rules for name in (rule.name, *rule.old_names, *rule.copies)]
        paths = [rule.path for rule in rules]
        assert len(set(names)) == len(names) and len(set(paths)) == len(paths)
        for rule in rules:
            assert rule.transform in TRANSFORMS
            assert ("{layer}" in rule.name) == ("{layer}" in rule.path), rule
            assert set(re.findall(r"\{\w*\}", rule.name + rule.path)) <= {"{layer}"}
            assert all(("{layer}" in old) == ("{layer}" in rule.name) for old in rule.old_names)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_family_says_what_it_is(model_type: str) -> None:
    family = FAMILIES[model_type]
    kinds = ("encoder", "decoder", "encoder_decoder", "image", "image_text", "image_tokenizer")
    assert family.kind in kinds and family.base_class.endswith("Model")
    assert ("lm" in family.heads) == (family.kind in ("decoder", "encoder_decoder"))
    assert family.prefix == "" or family.prefix.endswith(".")
    assert set(family.heads) <= {"sequence", "token", "span", "mlm", "lm", "image"}


def test_a_value_that_is_not_implemented_is_named() -> None:
    config = BertConfig(position_embedding_type="relative_key", is_decoder=False)
    refuse(config, is_decoder=False, hidden_act=("gelu", "relu"), a_field_of_next_year=1)
    refuse(PretrainedConfig(), hidden_act="gelu")  # absent
    with pytest.raises(ValueError, match="bert.*position_embedding_type='relative_key'.*'absolute'"):
        refuse(config, position_embedding_type="absolute")
    with pytest.raises(ValueError, match="hidden_act='gelu'.*'relu', 'silu'"):
        refuse(config, hidden_act=("relu", "silu"))
