"""The declarations of a HuggingFace folder: its family and its pooling."""

import json
from pathlib import Path

import pytest
from flax import nnx

from instructrec_jax.backbones.folder import PoolingSpec, find_family, read_pooling
from instructrec_jax.backbones.reading import load_backbone


@pytest.fixture(scope="module")
def bert(make_checkpoint):
    return make_checkpoint("bert", "ForMaskedLM")


def load(folder, **options):
    return load_backbone(folder, rngs=nnx.Rngs(0), **options)


def test_unsupported_model_type_lists_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "reformer"}')
    with pytest.raises(ValueError, match="'siglip2_vision_model'.*NaFlex.*fixed resolution"):
        find_family("siglip2_vision_model")
    with pytest.raises(ValueError, match="'reformer'.*bert, clip, .*distilbert,.* modernbert, mpnet,.* xlm-roberta"):
        load(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="config.json"):
        load(tmp_path)


def sentence_folder(folder: Path, modules: list[str], pooling: dict, text: dict | None = None) -> Path:
    (folder / "config.json").write_text('{"model_type": "mpnet"}')
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | pooling))
    if text is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(text))
    return folder


def test_pooling_is_read(tmp_path):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    text = {"max_seq_length": 128, "do_lower_case": True}
    folder = sentence_folder(tmp_path, ["Transformer", "Pooling", "Normalize"], pooling, text)
    assert read_pooling(folder) == PoolingSpec("cls", True, 128, lower_case=True, declared=True)
    newer = sentence_folder(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "lasttoken"})
    assert read_pooling(newer).mode == "lasttoken" and not read_pooling(newer).normalize


def test_pooling_that_would_be_wrong_is_refused(tmp_path):
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    with pytest.raises(ValueError, match=r"cls \+ mean"):
        read_pooling(sentence_folder(tmp_path, ["Transformer", "Pooling"], both))
    mean = {"pooling_mode_mean_tokens": True}
    with pytest.raises(ValueError, match="'Dense'"):
        read_pooling(sentence_folder(tmp_path, ["Transformer", "Pooling", "Normalize", "Dense"], mean))
    with pytest.raises(ValueError, match="'LSTM'"):
        read_pooling(sentence_folder(tmp_path, ["Transformer", "Pooling", "LSTM"], mean))


def test_pooling_by_family_when_nothing_is_declared(bert):
    assert read_pooling(bert) == PoolingSpec("mean")
