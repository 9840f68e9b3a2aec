"""What holds for every registered task: a new one is covered by its line in CASES, and fails the first test without it.

Beside other tasks = alone; packed = unpacked; k micro-batches = one batch; 8 devices = 1; trained = exported.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_cases
from flax import nnx
from helpers import assert_close, task_config
from safetensors.numpy import load_file
from task_cases import (
    ALIKE,
    CASES,
    IMAGES,
    LENGTH,
    READERS,
    REPEATED,
    SEED,
    SLOW,
    STEPS,
    Built,
    after_one_step,
    alone,
    built,
    examples_of,
    named,
    packed,
    settings_of,
    texts_of,
)
from tiny_runs import compressed_run, untrained_run

from instructrec_jax.adapters.lora import is_lora, merge_lora
from instructrec_jax.adapters.quantized import Quantized, linears
from instructrec_jax.adapters.token_rows import PEFT_NAME
from instructrec_jax.answering.exporting import write_adapter
from instructrec_jax.compression.compress import plain
from instructrec_jax.compression.quantization import Quantization, quantized
from instructrec_jax.data.batch import lay_out, lengths_of
from instructrec_jax.data.example import BadExample
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.packing import unpacked
from instructrec_jax.data.usual_columns import RecordMapper
from instructrec_jax.distributed.mesh import data_shards
from instructrec_jax.evaluation import groups
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.data import buckets
from instructrec_jax.runs.predictions import Asker
from instructrec_jax.runs.run import Run
from instructrec_jax.runs.stored import flat
from instructrec_jax.tasks import MultitaskConfig
from instructrec_jax.tasks.answers import TextAnswer
from instructrec_jax.tasks.base import LossInputs
from instructrec_jax.tasks.encoding import encode_usable
from instructrec_jax.tasks.task_config import SubtaskConfig, TaskConfig
from instructrec_jax.training.step import batch_dropout_keys

networks = task_cases.networks  # a fixture


def test_every_registered_task_has_a_case() -> None:
    known = TaskConfig.get_known_choices()  # other tests register tasks of their own
    ours = {name for name, config in known.items() if config.__module__.startswith("instructrec_jax.")}
    assert {name.partition(",")[0] for name in CASES} == ours


# ---------------------------------------------------------------- beside other tasks = alone


# With -m slow only: the loss or the network differs from that of another case, but not how tasks share a batch.
KNOWN_BESIDE = (*ALIKE, *STEPS, *REPEATED, "regression, siglip", "classification, whisper", "position_translation, ctc")
KNOWN_BESIDE += ("language_model_ranking, yes_no",)


def measured(task: Any, made: Built, batch: Any, dropout: bool, heads: list[str]) -> tuple[float, float, Any]:
    """(Σ w ℓ, Σ w, gradients by backbone and `heads`) of a task, or of one of several, on one device.

    The other heads are no part of the program, so that of the same task is the same beside any other: compiled once.
    """
    params, every = made.model.params, made.model.params.get("head", {})  # an encoder–decoder has its own head
    rest = {name: head for name, head in every.items() if name not in heads}

    def loss(params: Any, rest: Any, batch: Any) -> Any:
        keys = batch_dropout_keys(jnp.uint32(SEED), batch) if dropout else None
        whole = params | {"head": params["head"] | rest} if every else params
        return task.loss(task.view(nnx.merge(made.model.graphdef, whole)), batch, LossInputs(keys))

    trained = params | {"head": {name: head for name, head in every.items() if name in heads}} if every else params
    (total, weight), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, rest, batch)
    return float(total), float(weight), jax.device_get(gradients)


@pytest.mark.parametrize(
    ("dropout", "lora"),
    [(True, True), *(pytest.param(*each, marks=SLOW) for each in ((True, False), (False, True), (False, False)))],
)
@pytest.mark.parametrize("name", named((name for name, case in CASES.items() if case.beside), slow=KNOWN_BESIDE))
def test_beside_another_task_as_alone(name: str, dropout: bool, lora: bool, networks: Any, tmp_path: Path) -> None:
    """Loss, weight and gradients of two tasks together are the sums of those of each alone, to rounding.

    Gradients are compared as a step applies them, for the mean over targets: float32's rounding of their sum grows with
    the number of targets.
    """
    network, how = CASES[name].network, {"dropout": dropout, "lora": lora}
    others = {"classification": "regression", "transcription": "transcription"}
    other = "language_model" if network in ("t5", "bart", "codes t5") else others.get(name, "classification")
    other = "question_answering" if network in READERS else other
    configs = {
        "own": task_config(name.partition(",")[0], tmp_path / "catalogue", **CASES[name].settings),
        "other": task_config(other, tmp_path / "catalogue"),
    }
    beside = f"{other}, {network}" if network in (*IMAGES, *READERS, "whisper") else other
    records = {"own": examples_of(name, "own"), "other": examples_of(beside, "other")}
    both = MultitaskConfig([SubtaskConfig(part, config) for part, config in configs.items()])
    together = built(both, [*records["own"], *records["other"]], network, networks, **how)
    texts = texts_of(together.task, together.encoded)
    batch = packed(together, texts)
    # dropout bits hang on the numbers of texts: count those of the first task from 0, as it does alone
    order = np.argsort(texts.own.owner, kind="stable")
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    batch = replace(batch, text_numbers=numbers[batch.text_numbers].astype(np.int32))
    found = measured(together.task, together, batch, dropout, list(configs))

    first, sums = 0, []
    for part, task in together.task.subtasks.items():
        own = texts_of(task, task.encode(records[part]))
        arrays = packed(together, own)
        arrays = replace(arrays, text_numbers=arrays.text_numbers + np.int32(first))
        first += len(own.texts)
        sums.append(measured(task, together, arrays, dropout, [part]))
        assert sums[-1][1] > 0
    assert first == len(texts.texts), "no text may be left out"
    assert found[0] == pytest.approx(sums[0][0] + sums[1][0], rel=1e-5)
    assert found[1] == pytest.approx(sums[0][1] + sums[1][1])
    first_alone, second_alone = sums[0][2], sums[1][2]
    heads = first_alone.pop("head", {}) | second_alone.pop("head", {})
    alone = jax.tree.map(np.add, first_alone, second_alone) | {"head": heads}
    mean = [jax.tree.map(lambda gradient: gradient / found[1], each) for each in (found[2], alone)]
    assert_close(*mean, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.beside])
def test_what_cannot_stand_beside_others_is_refused_by_name(name: str, networks: Any, tmp_path: Path) -> None:
    kind = name.partition(",")[0]
    config = task_config(kind, tmp_path / "catalogue", **settings_of(name, networks))
    tasks = [SubtaskConfig("own", config), SubtaskConfig("other", task_config("regression", tmp_path))]
    with pytest.raises(ValueError, match=f"'own'.*{kind}"):
        built(MultitaskConfig(tasks), [], CASES[name].network, networks, dropout=False, lora=False)


# ---------------------------------------------------------------- one step, however it is worked out


WAYS = ("at once", "packed", "in micro-batches", "on 8 devices")


@pytest.mark.parametrize(
    ("way", "dropout", "lora"),
    [
        ("at once", True, True),
        *(pytest.param("at once", *each, marks=SLOW) for each in ((True, False), (False, True), (False, False))),
        *(pytest.param(way, True, True, marks=SLOW) for way in WAYS[1:]),
    ],
)
@pytest.mark.parametrize("name", named(CASES, slow=(*ALIKE, *REPEATED)))
def test_packed_split_and_spread_as_one_batch(
    name: str, way: str, dropout: bool, lora: bool, networks: Any, tmp_path: Path
) -> None:
    """One text in a row on one device = several in a row, in two micro-batches, on eight devices."""
    lora = lora and CASES[name].lora
    made = alone(name, networks, tmp_path, dropout=dropout, lora=lora)
    texts = texts_of(made.task, made.encoded)
    lengths, targets = lengths_of(texts.texts)
    plain = unpacked(lengths, made.config.data.max_length, 1, None if targets is None else 32)
    total, weight, params = after_one_step(made, lay_out(texts, plain))
    parts = 2 if way in ("at once", "in micro-batches") else 1
    if way in ("at once", "on 8 devices"):
        made = alone(name, networks, tmp_path, dropout=dropout, lora=lora, mesh=CASES[name].mesh)
    batch = packed(made, texts, parts * data_shards(made.mesh))
    assert batch.texts.segment_ids.max() > 1
    found = after_one_step(made, batch, accumulation=parts)
    assert found[0] == pytest.approx(total, rel=2e-5)
    assert found[1] == pytest.approx(weight)
    assert_close(found[2], params, atol=2e-5)


# ---------------------------------------------------------------- measured = answered


@pytest.mark.parametrize("name", named(name for name in CASES if name != "masked_lm"))
def test_answers_are_what_an_evaluation_writes(
    name: str, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For records without targets, whatever order they come in. And `evaluate --by` finds the cases of each metric."""
    made = alone(name, networks, tmp_path, dropout=False, lora=False)
    task = made.task
    predict = predictor(task, made.model.graphdef, made.mesh, (32, 64, LENGTH))(made.model.params)
    task.generation = GenerationConfig(max_new_tokens=4)
    examples = [replace(e, origin={**e.origin, "column half": "ab"[n % 2]}) for n, e in enumerate(examples_of(name))]
    encoded = task.encode(examples)
    scores = task.score(predict, encoded)
    measured = scores.predictions
    monkeypatch.setattr(groups, "LEAST", 1)
    parts = groups.group_metrics(task, {"": scores}, groups.groups_by({"": encoded}, ["half"]), task.metric, "tuned")
    assert parts or not (scores.cases or scores.corpus)
    for metric in {part["metric"] for part in parts}:
        values = scores.cases.get(metric)
        count = scores.corpus[metric].cases if values is None or metric in scores.corpus else np.sum(~np.isnan(values))
        assert sum(part["cases"] for part in parts if part["metric"] == metric) == count, metric
    asked = [replace(e, output=None, where=f"line {number}") for number, e in enumerate(examples)]
    if not getattr(task, "retrieves", True):
        asked = [replace(e, candidates=tuple(r["prediction"])) for e, r in zip(asked, measured, strict=True)]
    asker = Asker(task, predict, RecordMapper(FieldsConfig(output=None)), k=12)
    there = [asker.example(e, e.where) for e in reversed(asked)]
    answers, skipped = asker.answers(there)
    assert not skipped
    rows_of_other_forms_are_named(asker)
    if (
        name.startswith(("language_model", "preference")) and "ranking" not in name
    ):  # an evaluation of it writes no texts
        assert all(isinstance(answer, TextAnswer) and (answer.log_probability or 0) < 0 for answer in answers)
        return
    own = {record["id"]: record for record in measured if "turn" not in record["id"]}
    for example, answer in zip(reversed(asked), answers, strict=True):
        assert answer is not None
        if task.writes and isinstance(answer, TextAnswer):
            assert "log_probability" in answer.to_record() and "log_probability" in own[example.id]
        for field_name, value in answer.to_record().items():
            if field_name in own[example.id] and not name.startswith("language_model_ranking"):
                assert own[example.id][field_name] == approximately(value), field_name


OTHER_FORMS: list[dict[str, object]] = [
    {},
    {"instruction": "a film"},
    {"instruction": "a film", "input": "a book"},
    {"input": "a book"},
    {"messages": [{"role": "user", "content": "a film"}]},
    {"messages": "a film"},
    {"messages": [{"role": "assistant", "content": "a film"}]},
    {"instruction": ["a", "film"]},
    {"words": ["a", "film"]},
    {"instruction": "a film", "candidates": ["b"]},
    {"instruction": "a film", "candidates": ["b", "c"]},
    {"instruction": "a film", "candidates": "b"},
    {"history": ["item-1", "nobody knows this"]},
    {"instruction": "a film", "history": ["item-1"]},
    {"instruction": "a film", "history": "item-1"},
    {"instruction": "a film", "output": {"a": 1}},
    {"instruction": 5},
    {"instruction": {"a": 1}},
    {"instruction": "a \ud800"},
    {"instruction": "word " * 999},
]


def rows_of_other_forms_are_named(asker: Asker) -> None:
    """Each is usable, or an error with its place; never another exception."""
    for number, row in enumerate(OTHER_FORMS):
        try:
            example = asker.example(row, f"row {number}")
        except BadExample as error:
            assert error.where == f"row {number}" and str(error)
            continue
        for found in encode_usable(asker.task, [replace(example, id="0")], "skip")[1]:
            assert found.where == f"row {number}"


def approximately(value: Any) -> Any:
    """Equal but for the rounding of floats, inside of dicts and lists too."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


# ---------------------------------------------------------------- compressed = what its codes stand for


COMPRESSED = {"nf4": Quantization("nf4"), "w8a8": Quantization(activations="int8")}
COMPRESSIBLE = [name for name in CASES if name != "image_tokenization"]
# a head, a network on items' vectors, a cache, a pooling that no module of transformers is, images between words
FAST = ("span", "sequence", "language_model_ranking, yes_no", "regression, siglip", "choice, llava")


def test_an_image_tokenizer_is_not_compressed(networks: Any, tmp_path: Path) -> None:
    config = task_config("image_tokenization", tmp_path / "catalogue")
    dense = untrained_run(tmp_path / "dense", config, networks["fsq", False], LENGTH)
    with pytest.raises(ValueError, match="holds an image tokenizer, which compress leaves alone"):
        compressed_run(dense, tmp_path / "small", COMPRESSED["nf4"])


@pytest.mark.parametrize("how", [pytest.param(how, marks=SLOW) if how == "w8a8" else how for how in COMPRESSED])
@pytest.mark.parametrize("name", named(COMPRESSIBLE, slow=[name for name in CASES if name not in FAST]))
def test_a_compressed_run_answers_what_its_codes_stand_for(name: str, how: str, networks: Any, tmp_path: Path) -> None:
    """Opened from its directory: weights in codes as the dequantized ones, integer products as before writing."""
    case, kind = CASES[name], name.partition(",")[0]
    config = task_config(kind, tmp_path / "catalogue", **settings_of(name, networks))
    length = 64 if case.network == "bert" else LENGTH
    dense = untrained_run(tmp_path / "dense", config, networks[case.network, False], length)
    run = Run.open(compressed_run(dense, tmp_path / "small", COMPRESSED[how]))
    shutil.rmtree(dense)
    assert any(path.endswith("/codes") for path in flat(run.model.params))
    assert run.config.backbone.quantize_activations == ("int8" if how == "w8a8" else "none")
    network = run.model.network
    if how == "nf4":
        network = merge_lora(network)  # without codes
        assert not any(isinstance(linear.kernel, Quantized) for linear in linears(network.backbone))
    else:
        source = Run.open(untrained_run(tmp_path / "again", config, networks[case.network, False], length))
        network = quantized(plain(source.model), source.mesh, [], COMPRESSED[how])[0]
    graphdef, params = nnx.split(network)
    expected = predictor(run.task, graphdef, run.mesh, buckets(run.config))(nnx.to_pure_dict(params))
    if run.task.writes:
        run.task.generation = GenerationConfig(max_new_tokens=4)
    encoded = run.task.encode(examples_of(name))
    found, wanted = (run.task.score(predict, encoded).predictions for predict in (run.predictor, expected))
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one == approximately(other)


# ---------------------------------------------------------------- trained = exported


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.lora])
def test_lora_without_effect_is_refused(name: str, networks: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora.rank"):
        alone(name, networks, tmp_path, dropout=False, lora=True)


@pytest.mark.parametrize("name", named(name for name, case in CASES.items() if case.lora))
def test_what_lora_trains_is_what_is_exported(name: str, networks: Any, tmp_path: Path) -> None:
    made = alone(name, networks, tmp_path, dropout=False, lora=True)
    flat = jax.tree_util.tree_flatten_with_path(made.model.params)[0]
    sizes = {"/".join(str(part.key) for part in path): x.size for path, x in flat}
    trained = {path: size for path, size in sizes.items() if not made.model.is_frozen(path)}
    assert any(map(is_lora, trained))
    subtasks = made.task.subtasks or {"": made.task}
    heads: set[str] = set()
    for part, task in subtasks.items():
        folder = tmp_path / f"adapter-{part}"
        folder.mkdir()
        write_adapter(folder, made.model, tmp_path, task)
        written = {key: x.size for file in folder.glob("*.safetensors") for key, x in load_file(file).items()}
        whole = {
            key for key in written if ".pooler." in key and ".lora_" not in key
        }  # new where the base has none, with its update merged
        lora = {path: size for path, size in trained.items() if is_lora(path) and not (whole and "/pooler/" in path)}
        updates = {key for key in written if ".lora_" in key or key.endswith(PEFT_NAME)}
        assert sum(written[key] for key in updates) == sum(lora.values())
        place = f"head/{part}/" if part else "head/"
        own = [path for path in trained if path.startswith(place) and not is_lora(path)]
        rest = sum(size for key, size in written.items() if key not in updates | whole)
        assert rest == sum(trained[path] for path in own)
        heads |= set(own)
    assert all(is_lora(path) or path in heads for path in trained)
