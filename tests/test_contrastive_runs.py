"""Contrastive tuning of a CLIP from training to evaluation, prediction and export."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from live_service import live
from test_image_runs import COLORS, write_colors
from tiny_runs import changed, final_parameters, rows

from instructrec_jax import predict, train
from instructrec_jax.answering.ensembles import ensemble_of
from instructrec_jax.answering.exporting import export
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.backbones.reading import load_backbone
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.files import read_jsonl
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.runs.run import ANYWHERE, Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.stored import flat
from instructrec_jax.runs.summary import flops_and_peak
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, ServeConfig
from instructrec_jax.tasks import ContrastiveConfig
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

LABELS = list(COLORS)
WORDS = dict(zip(LABELS, ("love", "war", "music"), strict=True))  # words that the tiny tokenizer knows


def contrastive_run(network: Path, folder: Path, **changes: Any) -> Config:
    sources = {}
    for split, count in {"train": 24, "validation": 9, "test": 12}.items():
        file = write_colors(folder / "data", split, count, 100 * count)
        said = [{"image": row["image"], "caption": f"a {WORDS[row['label']]} film"} for row in read_jsonl(file)]
        file.write_text("".join(json.dumps(row) + "\n" for row in said))
        sources[split] = [SourceConfig(path=str(file), fields=FieldsConfig(output="caption"))]
    config = Config(
        run_dir=str(folder / "run"),
        steps=20,
        backbone=BackboneConfig(path=str(network), dtype="float32"),
        task=ContrastiveConfig(),
        data=DataConfig(**sources, batch_size=6, max_length=16, store=str(folder / "store")),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluation=EvaluationConfig(every=20),
        checkpoint=CheckpointConfig(every=20),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )
    return changed(config, **changes)


@pytest.fixture(scope="module")
def tuned(pair_networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = contrastive_run(pair_networks["clip pair"], tmp_path_factory.mktemp("pairs"))
    train.train(config)
    return config


def test_it_learns_and_its_recall_is_beside_chance(tuned: Config) -> None:
    losses = [row["loss"] for row in rows(tuned.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    metrics = Run.open(Path(tuned.run_dir)).evaluate(Path(tuned.data.test[0].path)).metrics
    assert metrics["caption@1"] > 0.9 and metrics["image@5"] > 0.9
    assert "chance" in (Path(tuned.run_dir) / "evaluation.json").read_text()


def test_zero_shot_labels_of_an_export_are_what_transformers_says(tuned: Config, tmp_path: Path) -> None:
    """The exported folder opens as CLIPModel; classification by templates needs no training on labels."""
    export(tuned.run_dir, tmp_path / "out")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    assert not (tmp_path / "out" / "head.safetensors").exists()
    labels = list(WORDS.values())
    task = ContrastiveConfig(labels=labels, templates=["a {label} film"])
    run = Run.open(str(tmp_path / "out"), changed(tuned, task=task))
    record = {"image": str(Path(tuned.data.test[0].path).parent / "test" / "0.png")}
    (answer,) = run.predict([record])
    assert answer.choice == WORDS["red"]
    read = run.task.context.pixels
    assert read is not None
    pixels = torch.tensor(read(run.mapper(record, folder=ANYWHERE).images[0])).permute(2, 0, 1)[None]
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(
        [f"a {label} film" for label in labels], return_tensors="pt", padding=True
    )
    ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**ids, pixel_values=pixels).logits_per_image[0].numpy()
    np.testing.assert_allclose([answer.candidates[label] for label in labels], expected, atol=1e-4)


def test_candidates_of_a_row_are_chosen_from(tuned: Config, tmp_path: Path) -> None:
    source = Path(tuned.data.test[0].path)
    captions = [f"a {word} film" for word in WORDS.values()]
    asked = [
        {"image": (source.parent / row["image"]).read_bytes(), "candidates": captions} for row in read_jsonl(source)
    ]
    answers = Run.open(Path(tuned.run_dir)).predict(asked)
    assert [answer.choice for answer in answers] == [row["caption"] for row in read_jsonl(source)]
    with pytest.raises(ValueError, match="no captions to choose from"):
        predict.main([tuned.run_dir, "--input", str(source), "--out", str(tmp_path / "none.jsonl")])


def test_the_service_compares_pictures_and_texts(tuned: Config, tmp_path: Path) -> None:
    """/classify by captions, as `Run.predict`; vectors of both kinds in one space, as `Run.encode`."""
    run, source = Run.open(Path(tuned.run_dir)), Path(tuned.data.test[0].path)
    captions = [f"a {word} film" for word in WORDS.values()]
    data = [(source.parent / row["image"]).read_bytes() for row in read_jsonl(source)][:5]
    uris = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in data]
    expected = run.predict([{"image": each, "candidates": captions} for each in data])
    vectors = run.encode([captions[0], {"image": data[0]}, captions[1], {"image": data[1]}])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with live(make_app(open_service(ServeConfig(models=[ModelConfig(path=tuned.run_dir)])))) as url:
        with Compilations() as compilations:
            asked = [{"image": each, "candidates": captions} for each in uris]
            found = httpx.post(f"{url}/classify", json={"input": asked}, timeout=60).json()["data"]
            mixed = [captions[0], {"image": uris[0]}, captions[1], {"image": uris[1]}]
            said = httpx.post(f"{url}/v1/embeddings", json={"input": mixed}, timeout=60).json()["data"]
            ranked = httpx.post(f"{url}/rerank", json={"query": captions[0], "documents": captions}, timeout=60).json()
        assert compilations.count == 0
    assert [each["prediction"] for each in found] == [each.choice for each in expected]
    assert found[0]["candidates"] == pytest.approx(expected[0].candidates, abs=1e-4)
    np.testing.assert_allclose([each["embedding"] for each in said], vectors, atol=1e-5)
    assert ranked["results"][0]["index"] == 0
    model = transformers.CLIPModel.from_pretrained(_exported(tuned, tmp_path)).eval()
    scale = float(model.logit_scale.detach().exp())
    logits = scale * vectors[1] @ run.encode(captions).T
    assert [answer.candidates[caption] for answer in expected[:1] for caption in captions] == pytest.approx(
        logits, abs=1e-3
    )


@pytest.mark.parametrize("kind", ["CLIPText", "SiglipText"])
def test_a_text_network_alone_gives_the_vectors_of_transformers(kind: str, tuned: Config, tmp_path: Path) -> None:
    """CLIP's at the end of each text, SigLIP's of texts that are padded to their full length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned.backbone.path)
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    ids = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id, pad_token_id=0, bos_token_id=2)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(max_position_embeddings=24, **sizes, **ids)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path / "network")
    tokenizer.save_pretrained(tmp_path / "network")
    texts = ["a love film", "war", "a good film about war and music"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["--vectors", "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.npy")]
    predict.main([str(tmp_path / "network"), *arguments])
    padding = dict(padding="max_length", max_length=24) if kind == "SiglipText" else dict(padding=True)
    inputs = tokenizer(texts, return_tensors="pt", **padding)
    mask = {"attention_mask": inputs["attention_mask"]} if kind == "CLIPText" else {}
    with torch.no_grad():
        expected = model(inputs["input_ids"], **mask).pooler_output.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_it_has_no_teachers_and_no_ensemble(tuned: Config, tmp_path: Path) -> None:
    config = changed(tuned, run_dir=str(tmp_path / "run"), distil__teachers=[tuned.run_dir])
    with pytest.raises(ValueError, match="task.type contrastive has no teachers"):
        train.train(config)
    run = Run.open(Path(tuned.run_dir))
    with pytest.raises(ValueError, match="task contrastive cannot be averaged"):
        ensemble_of([run, run])


def _exported(config: Config, folder: Path) -> Path:
    export(config.run_dir, folder / "exported")
    return folder / "exported"


def test_a_frozen_image_network_stays_where_it_was(tuned: Config, tmp_path: Path) -> None:
    """Zhai et al., 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning"."""
    config = changed(tuned, run_dir=str(tmp_path / "run"), steps=2, backbone__freeze=["backbone/vision"])
    train.train(config)
    before, after = (final_parameters(each.run_dir, each.steps)["backbone"] for each in (tuned, config))
    start = load_backbone(tuned.backbone.path, rngs=nnx.Rngs(0), images=True).module
    first = nnx.to_pure_dict(nnx.state(start))
    for name, moved in (("vision", False), ("text", True), ("image_projection", True)):
        one, other = (flat(each[name]) for each in (first, after))
        assert all(bool(np.any(np.asarray(one[path]) != other[path])) == moved for path in one if "table" not in path)
    assert any(np.any(value != flat(before["vision"])[path]) for path, value in flat(first["vision"]).items())


def test_the_flops_of_a_step_are_those_of_both_networks(tuned: Config) -> None:
    """Ten pairs of seven words and an image of five tokens: the matrices of each network by hand."""
    folder = Path(tuned.backbone.path)
    setup = TrainingSetup.load(tuned, open_task(tuned, folder), folder, make_mesh(tuned.mesh))
    data = RunData(tuned).training(setup.task, 8)
    length = int(data.encoded.lengths.mean())
    words, patches = 10 * (length - 1), 10 * 5
    text = 6 * (4 * 16 * 16 + 2 * 16 * 16) * words + 12 * words * (length - 1) / 2 * 16
    vision = 6 * 2 * (4 * 32 * 32 + 2 * 32 * 48) * patches + 4 * (8 * 8 * 3) * 32 * patches + 2 * 12 * patches * 5 * 32
    assert flops_and_peak(setup, data)[0](10 * length) == pytest.approx(text + vision)
