"""A network as one function of tokens; its StableHLO program runs without this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from llama_cpp_folders import KINDS, folder_of

from instructrec_jax.answering.formats.program import folder_program, write_stablehlo
from instructrec_jax.files import write_json

RUN = """
import sys
from pathlib import Path
import jax, numpy as np
folder = Path(sys.argv[1])
program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
weights, given = dict(np.load(folder / "weights.npz")), np.load(folder / "given.npz")
names = sorted({name[1:] for name in given})
found = [np.asarray(program.call(weights, *(given[kind + name] for kind in "tmy"))) for name in names]
np.savez(folder / "found.npz", *found)
assert not any(name.startswith(("instructrec", "flax", "transformers")) for name in sys.modules)
"""


def ragged(rows: int, length: int, vocabulary: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(length)
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int32)
    return (rng.integers(5, vocabulary, (rows, length)) * mask).astype(np.int32), mask


@pytest.mark.parametrize("kind", ["llama", "gemma2", "bert"])
def test_it_is_the_network_of_transformers(tmp_path: Path, kind: str) -> None:
    network = folder_of(kind, tmp_path)
    program = folder_program(tmp_path)
    tokens, mask = ragged(3, 11)
    types = [np.zeros_like(mask)] if kind == "bert" else []
    found = np.asarray(jax.jit(program.call)(program.params, tokens, mask, *types))
    with torch.no_grad():
        want = network(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask))[0].numpy()
    assert program.output == ("hidden" if kind == "bert" else "logits")
    np.testing.assert_allclose(found[mask > 0], want[mask > 0], atol=1e-4)


@pytest.mark.parametrize("suffix", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_heads(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = KINDS["bert"][1] | ({} if suffix.endswith("Answering") else {"num_labels": 3})
    network = getattr(transformers, f"Bert{suffix}")(transformers.BertConfig(**sizes)).eval()
    network.save_pretrained(tmp_path)
    program = folder_program(tmp_path)
    tokens, mask = ragged(4, 9)
    found = np.asarray(program.call(program.params, tokens, mask, np.zeros_like(mask)))
    with torch.no_grad():
        out = network(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask))
    want = torch.stack([out.start_logits, out.end_logits], -1) if suffix.endswith("Answering") else out.logits
    here = slice(None) if found.ndim == 2 else mask > 0
    np.testing.assert_allclose(found[here], want.numpy()[here], atol=1e-4)


def test_a_stablehlo_program_runs_without_this_package(tmp_path: Path) -> None:
    """With any number of rows and tokens; vectors are pooled as the folder declares."""
    pytest.importorskip("flatbuffers")
    folder_of("bert", tmp_path / "hf")
    kinds = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "p"}, {"type": "a.Normalize"}]
    write_json(tmp_path / "hf" / "modules.json", kinds)
    write_json(tmp_path / "hf" / "p" / "config.json", {"pooling_mode_mean_tokens": True})
    use = write_stablehlo(tmp_path / "hf", tmp_path)
    assert "vectors" in use and "token_type_ids" in use
    shapes = [(1, 2), (3, 17), (2, 64)]
    given = [ragged(*shape) for shape in shapes]
    arrays = {f"{kind}{n}": x for n, (t, m) in enumerate(given) for kind, x in zip("tmy", (t, m, 0 * m), strict=True)}
    np.savez(tmp_path / "given.npz", **arrays)
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, cwd=tmp_path)
    found, program = np.load(tmp_path / "found.npz"), folder_program(tmp_path / "hf")
    for number, (tokens, mask) in enumerate(given):
        want = np.asarray(program.call(program.params, tokens, mask, 0 * mask))
        np.testing.assert_allclose(found[f"arr_{number}"], want, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(want, axis=-1), 1, atol=1e-5)


def test_an_encoder_decoder_is_named(tmp_path: Path) -> None:
    sizes = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="t5 is an encoder"):
        folder_program(tmp_path)
