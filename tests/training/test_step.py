"""The sharded step: the same numbers however the batch is packed, split or spread, and those of an oracle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from helpers import Setup, assert_close, run_steps
from transformers import BertForSequenceClassification

from instructrec_jax.data.batch import BatchTexts, Text, lay_out
from instructrec_jax.data.loader import pack
from instructrec_jax.data.packing import Plan, fit, unpacked
from instructrec_jax.training.step import batch_dropout_keys
from instructrec_jax.training.training_config import OptimizerConfig

# Adam divides by |gradient|, so where a gradient is all rounding its update is too; plain comparisons of parameters
# after steps therefore use this epsilon. Losses and gradients themselves are compared to 1e-5.
SMOOTH = OptimizerConfig(learning_rate=1e-3, warmup=0.0, schedule="constant", epsilon=1e-3, clip_norm=1.0)


def test_two_steps_of_adam_on_eight_devices_in_micro_batches(checkpoint: Path, tmp_path: Path) -> None:
    """One step of every task and mesh: tests/tasks/test_properties.py."""

    def steps(**how: Any) -> tuple[Setup, list[float], Any]:
        setup = Setup("classification", checkpoint, tmp_path, optimizer=SMOOTH, **how)
        return setup, *run_steps(setup, [pack(setup.parts(), setup.buckets, 8).batch] * 2)

    _, losses, params = steps()
    setup, spread_losses, spread_params = steps(accumulation=4, mesh=(2, 2, 2))
    np.testing.assert_allclose(spread_losses, losses, atol=1e-5)
    assert_close(spread_params, params, atol=1e-5)
    used = {device for leaf in jax.tree.leaves(setup.state.params) for device in leaf.sharding.device_set}
    assert len(used) == 8


def test_parameters_are_really_split(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("classification", checkpoint, tmp_path, mesh=(2, 2, 2))
    kernel = setup.state.params["backbone"]["layers"]["block0"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moment = setup.state.optimizer[1].mu["backbone"]["layers"]["block0"]["mlp_in"]["kernel"]
    assert moment.sharding == kernel.sharding


def test_three_steps_equal_pytorch(checkpoint: Path, tmp_path: Path) -> None:
    """Loss, gradients, clipping, AdamW with decay on θ and ω but not on biases and norms: against torch.optim.AdamW."""
    settings = OptimizerConfig(
        learning_rate=1e-3,
        head_learning_rate=5e-3,
        weight_decay=0.1,
        epsilon=1e-3,
        warmup=0.0,
        schedule="constant",
    )
    silent = tmp_path / "silent"
    torch.manual_seed(0)
    theirs = BertForSequenceClassification.from_pretrained(checkpoint, num_labels=5, dtype=torch.float32)
    theirs.config.hidden_dropout_prob = theirs.config.attention_probs_dropout_prob = 0.0
    theirs.config.id2label = dict(enumerate("love war space crime music".split()))
    theirs.save_pretrained(silent)
    theirs = BertForSequenceClassification.from_pretrained(silent, attn_implementation="eager")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(silent)
    setup = Setup("classification", silent, tmp_path, optimizer=settings)
    parts = setup.parts()
    losses, params = run_steps(setup, [pack(parts, setup.buckets, 1).batch] * 3)

    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in theirs.named_parameters():
        rate = 5e-3 if name.startswith("classifier") else 1e-3
        decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1
        groups.setdefault((rate, decay), []).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()], eps=1e-3
    )
    longest = max(len(text.tokens) for text in parts.texts)
    tokens = torch.zeros(len(parts.texts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, text in enumerate(parts.texts):
        tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
        mask[row, : len(text.tokens)] = 1
    labels = torch.tensor(parts.own.targets, dtype=torch.long)
    expected, total = [], 0.0
    for step in range(3):
        loss = theirs(input_ids=tokens, attention_mask=mask, labels=labels).loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        total += loss.item()
        expected.append(total / (step + 1))
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    after = theirs.state_dict()
    for ours, name in [
        (params["head"]["output"]["kernel"].T, "classifier.weight"),
        (params["head"]["output"]["bias"], "classifier.bias"),
        (params["backbone"]["word_embeddings"]["table"], "bert.embeddings.word_embeddings.weight"),
        (params["backbone"]["pooler"]["kernel"].T, "bert.pooler.dense.weight"),
        (
            params["backbone"]["layers"]["block0"]["mlp_norm"]["scale"][1],
            "bert.encoder.layer.1.output.LayerNorm.weight",
        ),
        (
            params["backbone"]["layers"]["block0"]["attention"]["query"]["kernel"][0].T,
            "bert.encoder.layer.0.attention.self.query.weight",
        ),
    ]:
        np.testing.assert_allclose(ours, after[name].numpy(), atol=1e-5, err_msg=name)


def test_frozen_backbone_stays(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("classification", checkpoint, tmp_path, freeze=["^backbone/"])
    before = jax.device_get(setup.state.frozen["backbone"])
    _, params = run_steps(setup, [pack(setup.parts(), setup.buckets, 8).batch] * 2)
    assert set(params) == {"head"}
    assert_close(jax.device_get(setup.state.frozen["backbone"]), before, atol=0)


def test_nonfinite_updates_are_skipped_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("regression", checkpoint, tmp_path)
    good = pack(setup.parts(), setup.buckets, 8).batch
    bad = replace(good, own=replace(good.own, targets=np.full_like(good.own.targets, np.nan)))
    before = jax.device_get(setup.state.params)
    _, params = run_steps(setup, [bad, bad])
    assert_close(params, before, atol=0)
    assert int(setup.state.skipped) == int(setup.state.skipped_in_a_row) == 2 and int(setup.state.step) == 2
    _, params = run_steps(setup, [good])
    assert int(setup.state.skipped_in_a_row) == 0 and int(setup.state.skipped) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.abs(params["head"]["output"]["kernel"] - before["head"]["output"]["kernel"]).max() > 0


def test_old_state_is_donated(checkpoint: Path, tmp_path: Path) -> None:
    from instructrec_jax.data.loader import to_devices

    setup = Setup("classification", checkpoint, tmp_path)
    old = setup.state.params["backbone"]["word_embeddings"]["table"]
    setup.step(setup.state, to_devices(pack(setup.parts(), setup.buckets, 8).batch, setup.mesh))
    assert old.is_deleted()


def test_dropout_changes_with_the_step(checkpoint: Path, tmp_path: Path) -> None:
    still = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0, warmup=0.0, schedule="constant")
    setup = Setup("classification", checkpoint, tmp_path, optimizer=still)
    batch = pack(setup.parts(), setup.buckets, 8).batch
    means, _ = run_steps(setup, [batch] * 2)
    assert abs(means[1] - means[0]) > 1e-6 and jnp.isfinite(means[1])


def test_targets_have_dropout_keys_of_their_own() -> None:
    """From the step, the text's number and the position, wherever the text lies; not those of the text itself."""
    rng = np.random.default_rng(0)
    lengths, targets = rng.integers(2, 30, 12), rng.integers(2, 30, 12)
    texts = [Text(np.ones(a, np.int32), target=np.ones(b, np.int32)) for a, b in zip(lengths, targets, strict=True)]
    seed = jnp.uint32(3)

    def of_texts(plan: Plan, seed: jax.Array = seed) -> list[tuple[np.ndarray, np.ndarray]]:
        keys = batch_dropout_keys(seed, lay_out(BatchTexts(texts, None), plan))
        assert keys.target is not None and plan.target_start is not None
        return [
            (np.asarray(keys.tokens)[r, s : s + a], np.asarray(keys.target.tokens)[r, t : t + b])
            for r, s, a, t, b in zip(plan.row, plan.start, lengths, plan.target_start, targets, strict=True)
        ]

    packed, plain = of_texts(fit(lengths, 64, targets, 32)), of_texts(unpacked(lengths, 32, 1, 32))
    for mine, theirs in zip(packed, plain, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    every = np.concatenate([side for pair in packed for side in pair])
    assert len(set(every.tolist())) == len(every)
    assert not set(every.tolist()) & set(
        np.concatenate([t for _, t in of_texts(unpacked(lengths, 32, 1, 32), seed + 1)])
    )


def test_the_old_state_gives_its_memory_to_the_new_one(checkpoint: Path, tmp_path: Path) -> None:
    """By the aliasing of the compiled program: every byte of parameters and moments."""
    setup = Setup("classification", checkpoint, tmp_path, mesh=(2, 2, 2))
    program = setup.step.lower(setup.state, setup.batch()).compile()  # type: ignore[attr-defined]
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(setup.state))
    assert program.memory_analysis().alias_size_in_bytes >= own
