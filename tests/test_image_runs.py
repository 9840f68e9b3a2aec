"""An image classifier from training to prediction and export."""

import base64
import io
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest
import torch
import transformers
from live_service import live
from PIL import Image
from tiny_pictures import image_network, png
from tiny_runs import changed, final_parameters, rows

from instructrec_jax import evaluate, explain, predict, train
from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.answering.ensembles import ensemble_of
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.evaluation.evaluation_config import EvaluationConfig
from instructrec_jax.evaluation.explained import Explanations
from instructrec_jax.explanation import overview
from instructrec_jax.files import read_json, read_jsonl, write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.config import Config
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.runs.run import ANYWHERE, Run
from instructrec_jax.runs.setup import TrainingSetup
from instructrec_jax.runs.stored import flat
from instructrec_jax.runs.summary import flops_and_peak
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import ModelConfig, PrivacyConfig, ServeConfig
from instructrec_jax.tasks import ClassificationConfig, QuestionAnsweringConfig
from instructrec_jax.training.training_config import CheckpointConfig, OptimizerConfig, TrackingConfig

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def write_colors(folder: Path, split: str, count: int, first: int) -> Path:
    """Pictures of one color and some noise, as files that a JSONL file names."""
    (folder / split).mkdir(parents=True)
    records = []
    for number in range(count):
        label = list(COLORS)[number % 3]
        noise = np.random.default_rng(first + number).integers(-20, 20, (18, 20, 3))
        values = np.clip(np.array(COLORS[label]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / split / f"{number}.png")
        records.append({"image": f"{split}/{number}.png", "label": label})
    write_jsonl(folder / f"{split}.jsonl", records)
    return folder / f"{split}.jsonl"


def image_run(network: Path, folder: Path, **changes: Any) -> Config:
    sources = {
        split: [SourceConfig(path=str(write_colors(folder / "data", split, count, 100 * count)))]
        for split, count in {"train": 24, "validation": 9, "test": 12}.items()
    }
    config = Config(
        run_dir=str(folder / "run"),
        steps=6,
        backbone=BackboneConfig(path=str(network), dtype="float32"),
        task=ClassificationConfig(),
        data=DataConfig(**sources, batch_size=6, max_length=16, store=str(folder / "store")),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluation=EvaluationConfig(every=3),
        checkpoint=CheckpointConfig(every=3),
        tracking=TrackingConfig(log_every=1, tensorboard=False),
    )
    return changed(config, **changes)


@pytest.fixture(scope="module")
def tuned(image_networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = image_run(image_networks["vit"], tmp_path_factory.mktemp("images"), steps=12)
    train.train(config)
    return config


def test_it_learns_and_predicts_what_was_measured(tuned: Config, tmp_path: Path) -> None:
    losses = [row["loss"] for row in rows(tuned.run_dir) if row["kind"] == "train"]
    assert losses[-1] < losses[0] / 2
    assert "TF-IDF" not in (Path(tuned.run_dir) / "evaluation.json").read_text()
    source = Path(tuned.data.test[0].path)
    predict.main([tuned.run_dir, "--input", str(source), "--out", str(tmp_path / "out.jsonl")])
    written = read_jsonl(tmp_path / "out.jsonl")
    assert [row["image"] for row in written] == [row["image"] for row in read_jsonl(source)]
    accuracy = np.mean([row["prediction"] == row["label"] for row in written])
    run = Run.open(Path(tuned.run_dir))
    assert accuracy == run.evaluate(source).metrics["accuracy"] > 0.9
    answers = run.predict([{"image": str(source.parent / row["image"])} for row in written])
    assert [answer.label for answer in answers] == [row["prediction"] for row in written]
    inline = run.predict({"image": (source.parent / written[0]["image"]).read_bytes()})[0]
    assert inline.probabilities == pytest.approx(answers[0].probabilities, abs=1e-6)


def test_a_row_that_cannot_be_answered_is_rejected(tuned: Config, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png(0))
    (tmp_path / "bad.png").write_bytes(png(0)[:80])
    write_jsonl(tmp_path / "in.jsonl", [{"image": name} for name in ("good.png", "bad.png", "../x.png", "gone.png")])
    arguments = [tuned.run_dir, "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(ValueError, match=r"line 3, field 'image': no such picture.*lies outside"):
        predict.main(arguments)
    predict.main([*arguments, "--on_bad_row", "skip"])
    assert [row["image"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["good.png"]
    assert len(read_jsonl(next(tmp_path.glob("*rejected*")))) == 3


@pytest.mark.slow  # as in tests/training/test_resume.py, with other batches
def test_resumed_as_if_never_stopped(tuned: Config, tmp_path: Path) -> None:
    """The later checkpoints are lost; the same bits and lines come again."""
    config = changed(tuned, run_dir=str(tmp_path / "run"))
    shutil.copytree(tuned.run_dir, config.run_dir)
    steps = sorted(int(path.name) for path in (Path(config.run_dir) / "checkpoints").iterdir() if path.name.isdigit())
    for step in steps[1:]:
        shutil.rmtree(Path(config.run_dir) / "checkpoints" / str(step))
    train.train(config)
    assert rows(config.run_dir) == rows(tuned.run_dir)
    ours, theirs = (final_parameters(each.run_dir, tuned.steps) for each in (config, tuned))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.array_equal(one, other)


def test_a_changed_picture_stops_the_run(tuned: Config, tmp_path: Path) -> None:
    shutil.copytree(Path(tuned.data.train[0].path).parent, tmp_path / "data")
    moved = [SourceConfig(path=str(tmp_path / "data" / "train.jsonl"))]
    config = changed(tuned, run_dir=str(tmp_path / "run"), steps=1, data__train=moved, data__store=str(tmp_path / "s"))
    train.train(config)
    (tmp_path / "data" / "train" / "0.png").write_bytes(png(77))
    again = changed(config, run_dir=str(tmp_path / "again"), steps=4)
    with pytest.raises(ValueError, match=r"0\.png is another one than when the data were read"):
        train.train(again)


@pytest.mark.parametrize("kind", ["vit", pytest.param("dinov2", marks=pytest.mark.slow)])
def test_an_export_opens_in_transformers_with_the_same_numbers(kind: str, tuned: Config, tmp_path: Path) -> None:
    network = image_network(kind, tmp_path / kind, head=True, num_labels=3)
    config = changed(
        tuned, run_dir=str(tmp_path / "run"), steps=1, backbone__path=str(network), optimizer__learning_rate=1e-2
    )
    train.train(config)
    export(config.run_dir, tmp_path / "out")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert list(model.config.id2label.values()) == sorted(COLORS)
    run = Run.open(Path(config.run_dir))
    record = {"image": str(Path(config.data.test[0].path).parent / "test" / "0.png")}
    assert run.task.context.pixels is not None
    pixels = run.task.context.pixels(run.mapper(record, folder=ANYWHERE).images[0])
    with torch.no_grad():
        logits = model(torch.tensor(pixels).permute(2, 0, 1)[None]).logits
    expected = dict(zip(sorted(COLORS), torch.softmax(logits, -1)[0].tolist(), strict=True))
    assert run.predict(record)[0].probabilities == pytest.approx(expected, abs=1e-5)


def test_a_classifier_of_transformers_keeps_its_head(tmp_path: Path) -> None:
    """Of a folder with the same labels; the numbers before training are transformers' own."""
    labels = sorted(COLORS)
    network = image_network("vit", tmp_path / "vit", head=True, id2label=dict(enumerate(labels)), num_labels=3)
    config = image_run(network, tmp_path, task=ClassificationConfig(labels=labels))
    run = Run.open(str(network), config)
    data = png(3)
    model = transformers.ViTForImageClassification.from_pretrained(network).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(network)
    (tmp_path / "a.png").write_bytes(data)
    inputs = processor(Image.open(tmp_path / "a.png"), return_tensors="pt")
    with torch.no_grad():
        expected = torch.softmax(model(**inputs).logits, -1)[0].tolist()
    (answer,) = run.predict([{"image": data}])
    assert [answer.probabilities[label] for label in labels] == pytest.approx(expected, abs=1e-5)


def test_vectors_of_texts_are_not_there(tuned: Config) -> None:
    with pytest.raises(ValueError, match="reads pictures alone"):
        Run.open(Path(tuned.run_dir)).encode("a text")


def test_explain_draws_heat_maps(tuned: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pictures beside the file of records; their scores are those of the JSON."""
    (tmp_path / "a b.png").write_bytes(png(1))
    write_jsonl(tmp_path / "in.jsonl", [{"image": "a b.png"}])
    for ending in ("html", "jsonl"):
        arguments = [tuned.run_dir, "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / f"out.{ending}")]
        explain.main([*arguments, "--method", "occlusion"])
    (record,) = read_jsonl(tmp_path / "out.jsonl")
    (patches,) = [np.array(each["patches"]) for each in record["pictures"]]
    assert patches.shape == (2, 2) and patches.any() and record["words"] == [] and "history" not in record
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    heat = page[page.index('class="heat"') :].partition("</span>")[0]
    largest = int(np.abs(patches).argmax())
    shades = re.findall(r"<i(?: style=\"--(for|against): (\d+)%\")?></i>", heat)
    assert len(shades) == 4 and shades[largest] == ("for" if patches.flat[largest] > 0 else "against", "80")
    file = re.search(r"base64,([^']+)'", heat)
    assert file is not None and Image.open(io.BytesIO(base64.b64decode(file[1]))).size == (16, 16)
    explain.main([tuned.run_dir, "--image", str(tmp_path / "a b.png"), "--method", "occlusion"])
    assert f"picture 1, row {largest // 2 + 1}, column {largest % 2 + 1}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"nothing\.png cannot be read"):
        explain.main([tuned.run_dir, "--image", str(tmp_path / "nothing.png")])


def test_its_patches_are_explained_in_the_report(
    tuned: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(tuned.run_dir, tmp_path / "run")
    monkeypatch.setattr(overview, "most_faithful", lambda measured: measured.rows[-1])
    evaluate.main([str(run), "--explanations", "3", "--no_baselines", "--split", "validation"])
    found, page = read_json(run / "explanations.json", Explanations), (run / "report.html").read_text()
    assert found["method"] == "occlusion" and [each["name"] for each in found["methods"]][0] == "integrated gradients"
    assert len(found["texts"]) == 3 == page.count('class="heat"')
    assert all(len(each["pictures"][0]["shades"]) == 4 for each in found["texts"])
    assert found["targets"] == [] and "Words for and against each prediction" not in page  # there are no words


def test_a_student_learns_from_it_and_an_ensemble_averages_it(
    tuned: Config, image_networks: dict[str, Path], tmp_path: Path
) -> None:
    """Another network is the student, of the same pixels; both are averaged, as their probabilities say."""
    config = changed(
        tuned,
        run_dir=str(tmp_path / "student"),
        steps=2,
        evaluation__every=0,
        backbone__path=str(image_networks["dinov2"]),
        distil__teachers=[tuned.run_dir],
    )
    with pytest.raises(ValueError, match=r"has other pixels of a picture \(size, or preprocessor_config.json\)"):
        train.train(config)
    shutil.copytree(image_networks["dinov2"], tmp_path / "dinov2")
    shutil.copy(image_networks["vit"] / "preprocessor_config.json", tmp_path / "dinov2")
    student = changed(config, backbone__path=str(tmp_path / "dinov2"), overwrite=True)
    train.train(student)
    both = ensemble_of([Run.open(Path(each.run_dir)) for each in (tuned, student)])
    records = [{"image": png(number)} for number in range(3)]
    one, other = (Run.open(Path(each.run_dir)).predict(records) for each in (tuned, student))
    for said, first, second in zip(both.predict(records), one, other, strict=True):
        mean = {label: (first.probabilities[label] + second.probabilities[label]) / 2 for label in COLORS}
        assert said.probabilities == pytest.approx(mean, abs=1e-5)


def test_the_service_classifies_pictures_and_gives_their_vectors(tuned: Config) -> None:
    """As `Run.predict` and `Run.encode`, in a crowd; nothing is compiled."""
    run = Run.open(Path(tuned.run_dir))
    data = [png(number, (20 + number, 18)) for number in range(9)]
    records = [{"image": f"data:image/png;base64,{base64.b64encode(each).decode()}"} for each in data]
    expected = run.predict([{"image": each} for each in data])
    vectors = run.encode([{"image": each} for each in data])
    config = ServeConfig(models=[ModelConfig(path=tuned.run_dir)], mask=PrivacyConfig(kinds=["all"]))
    with live(make_app(open_service(config))) as url, httpx.Client(base_url=url, timeout=60) as client:

        def asked(path: str, records: Any) -> Any:
            answer = client.post(path, json={"input": records})
            return answer.json()["data"] if answer.status_code == 200 else answer.json()["error"]["message"]

        with Compilations() as compilations, ThreadPoolExecutor(4) as pool:
            answers = [row for some in pool.map(lambda one: asked("/classify", one), records) for row in some]
            answers += asked("/classify", records)
            found = asked("/v1/embeddings", records) + asked("/v1/embeddings", records[0])
        assert compilations.count == 0
        assert "reads one a record" in asked("/classify", {"images": [each["image"] for each in records[:2]]})
        assert "URLs are never fetched" in asked("/classify", {"image": "https://example.com/a.png"})
        assert "files are never opened" in asked("/v1/embeddings", {"image": "/etc/passwd"})
        assert "reads pictures alone" in asked("/v1/embeddings", ["words"])
        assert "cannot be read as a picture" in asked("/classify", {"image": records[0]["image"][: 22 + 120]})
        assert client.post("/rerank", json={"query": "a", "documents": ["b"]}).status_code == 404
    for said, one in zip(answers, [*expected, *expected], strict=True):
        assert said["prediction"] == one.label
        assert said["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
    np.testing.assert_allclose([each["embedding"] for each in found], [*vectors, vectors[0]], atol=1e-5)


def test_vectors_of_a_file_of_pictures(tuned: Config, image_networks: dict[str, Path], tmp_path: Path) -> None:
    """Of a run, and of a folder, whose vectors are transformers' class token after the final norm."""
    source = Path(tuned.data.test[0].path)
    out = [str(tmp_path / f"{number}.npy") for number in range(2)]
    predict.main([tuned.run_dir, "--vectors", "--input", str(source), "--out", out[0]])
    files = [source.parent / row["image"] for row in read_jsonl(source)]
    run = Run.open(Path(tuned.run_dir))
    np.testing.assert_array_equal(np.load(out[0]), run.encode([{"image": str(file)} for file in files]))
    write_jsonl(tmp_path / "in.jsonl", [{"image": file.name} for file in files[:2]])
    for file in files[:2]:
        shutil.copy(file, tmp_path)
    predict.main([str(image_networks["vit"]), "--vectors", "--input", str(tmp_path / "in.jsonl"), "--out", out[1]])
    model = transformers.ViTModel.from_pretrained(image_networks["vit"]).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(image_networks["vit"])
    with torch.no_grad():
        expected = model(**processor([Image.open(file) for file in files[:2]], return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(np.load(out[1]), expected[:, 0].numpy(), atol=1e-5)
    write_jsonl(tmp_path / "both.jsonl", [{"image": files[0].name, "instruction": "words"}])
    with pytest.raises(ValueError, match="line 1, field 'image': .*words beside a picture"):
        predict.main(
            [tuned.run_dir, "--vectors", "--input", str(tmp_path / "both.jsonl"), "--out", str(tmp_path / "x.npy")]
        )


def test_the_flops_of_a_step_are_those_of_patches(tuned: Config) -> None:
    """Forward and backward of 10 images of 5 tokens: 12 and 4 matrices by hand."""
    folder = Path(tuned.backbone.path)
    task = open_task(changed(tuned, task=ClassificationConfig(labels=sorted(COLORS))), folder)
    mesh = make_mesh(tuned.mesh)
    setup = TrainingSetup.load(tuned, task, folder, mesh)
    data = RunData(tuned).training(task, 8)
    width, inner, patch, labels, layers = 32, 48, 8 * 8 * 3, 3, 2
    tokens = 10 * 5
    products = 6 * layers * (4 * width * width + 2 * width * inner) * tokens
    first = 4 * patch * width * tokens  # the input needs no gradient
    attention = 12 * layers * tokens * 5 * width
    head = 6 * width * labels * 10
    assert flops_and_peak(setup, data)[0](10) == products + first + attention + head


def test_questions_about_pictures_are_answered_as_measured(seeing: dict[str, Path], tmp_path: Path) -> None:
    """Training with LoRA in the image network, too; `evaluate` and `generate --image` write the same."""
    task = QuestionAnsweringConfig(template="plain", max_new_tokens=4)
    lora = LoraConfig(rank=4, targets=["q_proj", "linear_2"])
    config = image_run(seeing["llava"], tmp_path, task=task, lora=lora, data__max_length=32)
    for split in ("train", "validation", "test"):
        file = tmp_path / "data" / f"{split}.jsonl"
        asked = [{"image": row["image"], "instruction": "the film", "output": row["label"]} for row in read_jsonl(file)]
        write_jsonl(file, asked)
    train.train(config)
    run = Run.open(Path(config.run_dir))
    changed_ones = {path for path, x in flat(run.model.params).items() if path.endswith("/lora/b") and np.any(x)}
    assert any("reader/vision" in path for path in changed_ones) and any("/layers/" in path for path in changed_ones)
    asked = read_jsonl(tmp_path / "data" / "test.jsonl")
    files = [tmp_path / "data" / row["image"] for row in asked]
    measured = list(run.evaluate(tmp_path / "data" / "test.jsonl").predictions)
    settings = GenerationConfig(max_new_tokens=4)
    served = LanguageModel(config.run_dir).generate(["the film"] * len(files), settings, images=[[f] for f in files])
    assert [row["prediction"] for row in measured] == [each.text.strip() for each in served]
    for row, each in zip(measured, served, strict=True):
        assert row["log_probability"] == pytest.approx(each.log_probability, abs=1e-4)
    assert len({each.log_probability for each in served}) > 3, "the pictures should matter"
