"""The verb generate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_networks
import torch
import transformers
from byte_tokenizer import byte_tokenizer

from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel, answer_shares, in_dtype
from instructrec_jax.backbones.backbone_config import BackboneConfig
from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.generate import main
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.config import Config, to_yaml
from instructrec_jax.tasks import LanguageModelConfig
from instructrec_jax.train import train
from instructrec_jax.training.training_config import OptimizerConfig

torch.set_num_threads(1)  # its threads would wait for each other on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level vocabulary, whose bytes are often not characters."""
    path, tokenizer = tmp_path_factory.mktemp("llama"), byte_tokenizer(bos=True)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=400,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    network = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.4 if parameter.ndim == 2 else 0.1))
    network.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel(folder)


NEW = GenerationConfig(max_new_tokens=24)


def expected(folder: Path, prompt: str, **settings: Any) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt")
    out = network.generate(**tokens, do_sample=False, max_new_tokens=24, **settings)
    return tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)


def test_raw_prompts_are_continued_as_by_transformers(folder: Path, model: LanguageModel) -> None:
    prompts = ["the yes", "Hello, 你好", "a"]
    assert [a.text for a in model.generate(prompts, NEW, raw=True)] == [expected(folder, p) for p in prompts]


def test_prompts_are_written_as_in_training(folder: Path, model: LanguageModel) -> None:
    example = Example(instruction="Say yes", input="now", output="yes")
    (encoded,) = model.task.encode([example])
    begins = int(np.flatnonzero(encoded.target.supervised)[0]) + 1
    np.testing.assert_array_equal(model.read(example, "x", raw=False).tokens, encoded.text.tokens[:begins])
    text = model.tokenizer.decode(encoded.text.tokens[1:begins])
    assert text.startswith("Below is an instruction") and text.endswith("### Response:")
    assert model.generate([example], NEW)[0].text == expected(folder, text)


def test_one_text_is_one_prompt(model: LanguageModel) -> None:
    assert model.generate("the yes", NEW, raw=True) == model.generate(["the yes"], NEW, raw=True)
    example = Example(instruction="Say yes")
    assert model.generate(example, NEW) == model.generate([example], NEW)


def test_streamed_pieces_are_the_answer(model: LanguageModel) -> None:
    shown: list[str] = []
    for prompt in ("the yes", "Hello"):
        shown.clear()
        (answer,) = model.generate([prompt], NEW, raw=True, show=shown.append)
        assert "".join(shown) == answer.text == model.generate([prompt], NEW, raw=True)[0].text
        assert len(shown) > 3


def test_stop_texts_end_an_answer_and_are_not_in_it(model: LanguageModel) -> None:
    (whole,) = model.generate(["the yes"], NEW, raw=True)
    stop = whole.text[7:9]
    config = GenerationConfig(max_new_tokens=24, stop=("never there", stop))
    shown: list[str] = []
    scored: list[float] = []
    for show in (None, shown.append):
        (answer,) = model.generate(["the yes"], config, raw=True, show=show)
        assert (answer.text, answer.finish) == (whole.text[: whole.text.index(stop)], "stop")
        scored.append(answer.log_probability)  # of the tokens up to the stop text, however often it was looked for
    assert whole.log_probability < scored[0] < 0 and scored[0] == pytest.approx(scored[1], abs=1e-4)
    assert "".join(shown) == answer.text


def test_a_special_token_can_stop(model: LanguageModel) -> None:
    """It never becomes text, so the test looks for its token."""
    config = GenerationConfig(max_new_tokens=300, temperature=2.0, seed=1)
    (whole,) = model.generate(["a"], config, raw=True)
    ends = {t: GenerationConfig(max_new_tokens=300, temperature=2.0, seed=1, stop=(t,)) for t in ("<|im_end|>", "<s>")}
    answers = [model.generate(["a"], c, raw=True)[0] for c in ends.values()]
    stopped = [answer for answer in answers if answer.finish == "stop"]
    assert stopped and all(whole.text.startswith(answer.text) and answer.text != whole.text for answer in stopped)


def test_bfloat16_kernels_change_nothing(folder: Path) -> None:
    settings = Config(task=LanguageModel(folder).task.config)
    settings.backbone.dtype = "bfloat16"
    model = LanguageModel(folder, settings)
    assert {str(x.dtype) for x in _leaves(model.params)} == {"bfloat16", "float32"}
    answers = model.generate(["the yes", "a"], NEW, raw=True)
    whole = in_dtype(model.params, "float32")  # the same numbers, cast at every use
    model.params = whole
    assert model.generate(["the yes", "a"], NEW, raw=True) == answers


def _leaves(tree: Any) -> list[Any]:
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def test_records_keep_their_order_and_fields(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"prompt": "the yes " * 12, "note": 1},
        {"instruction": "Say", "input": "yes", "output": "no", "id": "b"},
        {"messages": [{"role": "user", "content": "yes?"}]},
        {"prompt": "a"},
    ]
    file, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    main([str(folder), "--input", str(file), "--out", str(out), "--max_new_tokens", "8", "--batch_size", "3"])
    written = read_jsonl(out)
    assert [{k: v for k, v in w.items() if k not in ("generated", "finish")} for w in written] == records
    some = GenerationConfig(max_new_tokens=8)
    assert written[3]["generated"] == LanguageModel(folder).generate(["a"], some)[0].text
    assert {w["finish"] for w in written} <= {"eos", "length"}
    with pytest.raises(ValueError, match="--out"):
        main([str(folder), "--input", str(file), "--out", str(out)])
    capsys.readouterr()
    main([str(folder), "--input", str(file), "--max_new_tokens", "8"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written


def test_one_prompt_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(folder), "--prompt", "the yes", "--raw", "--max_new_tokens", "24"]
    for stream in ("--stream", "--no-stream"):
        main([*args, stream])
        assert capsys.readouterr().out == expected(folder, "the yes") + "\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl.*2"),
        ('{"prompt": " "}', "in.jsonl.*2.*'prompt'"),
        ('{"instruction": ""}', "in.jsonl.*2.*instruction"),
        ('{"instruktion": "a"}', "in.jsonl.*2.*instruktion"),
        (json.dumps({"prompt": "a" * 500}), "in.jsonl.*2.* 400"),
    ],
)
def test_bad_records_are_named(folder: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        main([str(folder), "--input", str(file), "--max_new_tokens", "8"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens"),
        (["--prompt", ""], "prompt"),
        (["--prompt", "a", "--raw", "--max_new_tokens", "399"], "2 .*max_new_tokens.*399.*400"),
        (["--prompt", "a", "--temprature", "1"], "temprature.*temperature"),
        (["--prompt", "a", "--stream", "--beams", "2"], "beams"),
        (["--prompt", "a", "--task.template", "tokenizer"], "chat template"),
    ],
)
def test_bad_arguments_are_named(folder: Path, args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(folder), *args])


def test_a_run_answers_as_its_export(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"instruction": "Say yes", "output": "yes yes yes"}) + "\n")
    config = Config(
        run_dir=str(tmp_path / "run"),
        steps=2,
        backbone=BackboneConfig(path=str(folder), dtype="float32"),
        task=LanguageModelConfig(template="plain"),
        data=DataConfig(train=[SourceConfig(path=str(tmp_path / "data.jsonl"))], batch_size=1, max_length=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.0),
    )
    train(config)
    run, prompt = Path(config.run_dir), "Say yes"
    export(run, tmp_path / "exported", format="hf")
    (answer,) = LanguageModel(run).generate([prompt], NEW)
    assert answer.text == expected(tmp_path / "exported", prompt + "\n") != expected(folder, prompt + "\n")


def test_encoders_and_other_tasks_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoder"):
        main([str(checkpoint), "--prompt", "a"])
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    with pytest.raises(ValueError, match="question_answering"):
        main([str(tmp_path), "--prompt", "a"])


# ---------------------------------------------------------------- answers that name items


def test_answers_are_held_against_a_catalogue(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = Catalogue(["a", "b", "c"], ["Alien", "Up", "Moon"], ["Alien", "Up", "Moon"])
    written = [
        {"generated": "Alien; up\nSolaris", "history": ["a"]},
        {"generated": "Moon;c;", "history": []},
        {"generated": ""},
    ]
    expected = {"invalid": 1 / 5, "duplicate": 1 / 5, "already seen": 1 / 5}
    assert answer_shares(catalogue, written) == pytest.approx(expected)
    (tmp_path / "items").mkdir()
    catalogue.save(tmp_path / "items")
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "Which film?", "history": ["a"]}))
    main([str(folder), "--input", str(file), "--max_new_tokens", "8", "--catalogue", str(tmp_path / "items")])
    assert "invalid 100.0%" in capsys.readouterr().err  # random text names no item


def test_what_is_no_prompt_is_named(model: LanguageModel) -> None:
    for wrong in (None, 3, [3], {"prompt": "a"}, [{"role": "user", "content": "a"}], b"a"):
        with pytest.raises(ValueError, match=r"prompts(\[0\])? is "):
            model.generate(wrong, NEW)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="config is "):
        model.generate("a", {"max_new_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="path is null"):
        LanguageModel(None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("llava"), byte_tokenizer(bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made = tiny_networks.make(
        "llava",
        path,
        text_config=tiny_networks.WORDS
        | dict(model_type="llama", vocab_size=len(tokenizer), max_position_embeddings=200, eos_token_id=2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    assert made.kind == "llava"
    tokenizer.save_pretrained(path)
    size = {"height": 12, "width": 12}
    process = dict(image_processor_type="CLIPImageProcessor", size=size, crop_size=size)
    (path / "preprocessor_config.json").write_text(json.dumps(process))
    return path


def test_a_prompt_with_a_picture(llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer of transformers to its processor's inputs; another picture gets another answer."""
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    files, pictures = [], []
    for number in range(2):
        array = np.random.default_rng(number).integers(0, 256, (16, 20, 3)).astype(np.uint8)
        pictures.append(Image.fromarray(array))
        files.append(tmp_path / f"{number}.png")
        pictures[-1].save(files[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(llava)
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(llava),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    network = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    written = []
    for file, picture in zip(files, pictures, strict=True):
        inputs = processor(images=[picture], text=["<image>\nyes?"], return_tensors="pt")
        out = network.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        main([str(llava), "--prompt", "yes?", "--image", str(file), "--raw", "--max_new_tokens", "12"])
        written.append(capsys.readouterr().out.rstrip("\n"))
        assert written[-1] == tokenizer.decode(out, skip_special_tokens=True).rstrip("\n")
    assert written[0] != written[1]


def test_pictures_that_do_not_fit_are_named(llava: Path, folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(ValueError, match="llama.*reads no images"):
        LanguageModel(folder).generate(["yes?"], images=[[file]])
    opened = LanguageModel(llava)
    with pytest.raises(ValueError, match="'prompt 1': the prompt has 2 × <image>, but 1 images"):
        opened.generate(["<image><image> yes?"], images=[[file]])
    with pytest.raises(ValueError, match="'prompt 1': the prompt has 1 × <image>, but 0 images"):
        opened.generate(["<image> yes?"])
    with pytest.raises(ValueError, match="--image is for --prompt"):
        main([str(llava), "--input", str(tmp_path / "x.jsonl"), "--image", str(file)])


def test_a_file_of_prompts_with_pictures(llava: Path, tmp_path: Path) -> None:
    """Each record is answered as --prompt with --image; pictures in columns, in parts of messages, and as bytes."""
    from PIL import Image

    (tmp_path / "pics").mkdir()
    for number in range(2):
        array = np.random.default_rng(number).integers(0, 256, (16, 20, 3)).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / "pics" / f"{number}.png")
    files = [tmp_path / "pics" / f"{number}.png" for number in range(2)]
    content = [{"type": "image", "path": "pics/1.png"}, {"type": "text", "text": "yes?"}]
    records: list[dict[str, object]] = [
        {"prompt": "yes?", "image": "pics/0.png"},
        {"prompt": "<image> or <image>?", "images": ["pics/0.png", "pics/1.png"]},
        {"messages": [{"role": "user", "content": content}]},
        {"instruction": "yes?", "image": "pics/0.png", "id": "7"},
        {"instruction": "no picture?"},
    ]
    write_jsonl(tmp_path / "in.jsonl", records)
    plain = ["--max_new_tokens", "6", "--task.type", "language_model", "--task.template", "plain"]
    main([str(llava), "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), *plain])
    written = read_jsonl(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in record} for row, record in zip(written, records, strict=True)] == records
    model = LanguageModel(llava, plain[2:])
    asked = ["yes?", "<image> or <image>?", "<image>yes?", "yes?", "no picture?"]
    pictures = [[files[0]], files, [files[1]], [files[0]], []]
    expected = model.generate(asked, GenerationConfig(max_new_tokens=6), images=pictures)
    assert [row["generated"] for row in written] == [each.text for each in expected]
    assert written[0]["generated"] != written[2]["generated"]
    pq.write_table(
        pa.table({"prompt": ["yes?"], "image": [{"bytes": files[1].read_bytes(), "path": "1.png"}]}),
        tmp_path / "in.parquet",
    )
    main([str(llava), "--input", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "bytes.jsonl"), *plain])
    (alone,) = model.generate(["yes?"], GenerationConfig(max_new_tokens=6), images=[[files[1]]])
    (found,) = read_jsonl(tmp_path / "bytes.jsonl")
    assert found == {"prompt": "yes?", "generated": alone.text, "finish": alone.finish}
    write_jsonl(tmp_path / "bad.jsonl", [records[0], {"prompt": "a", "image": "../x.png"}])
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2, field 'image': no such picture.*lies outside"):
        main([str(llava), "--input", str(tmp_path / "bad.jsonl"), *plain])
