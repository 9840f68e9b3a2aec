"""T5 and mT5: output tables that are shared or not, and configs that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from flax import nnx
from seq2seq_networks import (
    LM,
    SOURCE,
    TARGET,
    TOLERANCE,
    edited,
    largest,
    load,
    load_both,
    open_torch,
    run,
    run_torch,
)

from instructrec_jax.backbones.folder import read_config
from instructrec_jax.backbones.reading import build_backbone

pytestmark = pytest.mark.usefixtures("exact")


def untied(folder: Path, out: Path, **config) -> Path:
    def add(tensors):
        table = np.random.default_rng(7).normal(size=tensors["shared.weight"].shape)
        return tensors | {"lm_head.weight": table.astype(tensors["shared.weight"].dtype)}

    return edited(folder, out, add, **config)


@pytest.mark.parametrize("scaled", [True, False])
def test_untied_head(t5, tmp_path, scaled):
    """Flan-T5 has its own output table, whatever transformers' config class says of it."""
    folder = untied(t5, tmp_path, scale_decoder_outputs=scaled)
    loaded, head, report = load_both(folder)
    assert head.table is not None and "lm_head.weight" in report.used and not report.unused
    expected = run_torch(open_torch(folder, "T5" + LM), SOURCE, TARGET).logits
    _, hidden = run(loaded.module, SOURCE, TARGET)
    assert largest(head(loaded.module, hidden), expected, TARGET[1]) < TOLERANCE

    # a folder with the config alone (of a run) still says so, and transformers reads it as before
    loaded.config.save_pretrained(tmp_path / "alone")
    assert not read_config(tmp_path / "alone").tie_word_embeddings
    assert transformers.AutoConfig.from_pretrained(tmp_path / "alone").scale_decoder_outputs == scaled


def test_mt5_has_its_own_output_table_too(make_checkpoint, tmp_path):
    folder = untied(make_checkpoint("mt5", LM), tmp_path, tie_word_embeddings=False)
    loaded, head, _ = load_both(folder)
    expected = run_torch(open_torch(folder, "MT5" + LM), SOURCE, TARGET).logits
    assert largest(head(loaded.module, run(loaded.module, SOURCE, TARGET)[1]), expected, TARGET[1]) < TOLERANCE


def test_config_that_says_untied_of_a_tied_file(make_checkpoint, tmp_path):
    """transformers ties whatever the file does not hold apart."""
    folder = edited(make_checkpoint("t5", LM, tie_word_embeddings=False), tmp_path, tie_word_embeddings=False)
    loaded, head, _ = load_both(folder)
    assert head.table is None
    expected = run_torch(open_torch(folder, "T5" + LM), SOURCE, TARGET).logits
    assert largest(head(loaded.module, run(loaded.module, SOURCE, TARGET)[1]), expected, TARGET[1]) < TOLERANCE


def test_weights_that_do_not_belong_to_the_config(t5, tmp_path):
    with pytest.raises(ValueError, match="wi_0"):
        load(edited(t5, tmp_path / "gated", feed_forward_proj="gated-gelu", is_gated_act=True, dense_act_fn="gelu"))
    with pytest.raises(ValueError, match=r"decoder\.block\.2\."):
        load(edited(t5, tmp_path / "shallow", num_decoder_layers=2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feed_forward_proj", "gated-selu"),
        ("relative_attention_num_buckets", 3),
        ("relative_attention_max_distance", 5),
        ("is_decoder", True),
        ("is_encoder_decoder", False),
        ("tie_encoder_decoder", True),
    ],
)
def test_refused(t5, field, value):
    settings = json.loads((t5 / "config.json").read_text())
    for derived in ("dense_act_fn", "is_gated_act"):
        settings.pop(derived, None)
    config = transformers.AutoConfig.for_model(**(settings | {field: value}))
    with pytest.raises(ValueError, match=f"{field}|selu"):
        build_backbone(config, rngs=nnx.Rngs(0))
