"""lm-eval on our language models gives the same numbers as PyTorch on the same tokens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from tiny_runs import language_run
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from instructrec_jax.adapters.adapter_config import LoraConfig
from instructrec_jax.answering.exporting import export
from instructrec_jax.answering.language_model import LanguageModel
from instructrec_jax.answering.lm_eval import Harness
from instructrec_jax.evaluate import main as evaluate
from instructrec_jax.files import read_json, write_jsonl
from instructrec_jax.train import train

PAIRS = [("the old film", " is good"), ("", "a book about war"), ("new ", "old"), ("very " * 30, "long")]


@dataclass
class Asked:
    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def decoder(language_models: dict[str, Path]) -> tuple[Harness, Any]:
    folder = language_models["llama"]
    return Harness(LanguageModel(folder)), AutoModelForCausalLM.from_pretrained(folder).eval()


def test_likelihoods_and_greedy_flags(decoder: tuple[Harness, Any]) -> None:
    ours, theirs = decoder
    asked = list(PAIRS)
    with torch.no_grad():  # and one greedy continuation
        start = ours.tok_encode("the old film")
        out = theirs.generate(torch.tensor([start]), do_sample=False, max_new_tokens=3, eos_token_id=None)
    found = ours._loglikelihood_tokens([(None, start, out[0, len(start) :].tolist())])
    assert found[0][1] is True
    for (context, continuation), (value, greedy) in zip(
        asked, ours.loglikelihood([Asked(pair) for pair in asked]), strict=True
    ):
        tokens, answer = (
            ours._encode_pair(context, continuation)
            if context
            else ([ours.prefix_token_id], ours.tok_encode(continuation))
        )
        with torch.no_grad():
            logits = theirs(torch.tensor([[*tokens, *answer]])).logits[0, len(tokens) - 1 : -1]
        each = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]
        assert value == pytest.approx(float(each.sum()), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == torch.tensor(answer)).all())


def test_whole_texts_in_windows(decoder: tuple[Harness, Any]) -> None:
    ours, theirs = decoder
    text = "a good book about love and war " * 8
    tokens = ours.tok_encode(text)
    limit, ours.limit = ours.limit, 50
    try:
        (value,) = ours.loglikelihood_rolling([Asked((text,))])
    finally:
        ours.limit = limit
    expected, read = 0.0, [ours.prefix_token_id, *tokens]
    for start in range(0, len(tokens), 50):
        part = tokens[start : start + 50]
        end = start + len(part)
        with torch.no_grad():  # the last window is full too: tokens it does not predict are context
            logits = theirs(torch.tensor([read[max(0, end - 50) : end]])).logits[0, -len(part) :]
        expected += float(torch.log_softmax(logits, -1)[torch.arange(len(part)), torch.tensor(part)].sum())
    assert len(tokens) > 100 and value == pytest.approx(expected, abs=1e-3)


def test_answers_stop_where_they_are_asked_to(decoder: tuple[Harness, Any]) -> None:
    ours, theirs = decoder
    prompts = ["the old film", "war"]
    plain = ours.generate_until([Asked((p, {"max_gen_toks": 6})) for p in prompts], disable_tqdm=True)
    for prompt, answer in zip(prompts, plain, strict=True):
        tokens = ours.tok_encode(prompt)
        with torch.no_grad():
            out = theirs.generate(torch.tensor([tokens]), do_sample=False, max_new_tokens=6)[0, len(tokens) :]
        assert answer == ours.tokenizer.decode(out, skip_special_tokens=True)
    word = plain[0].split()[1]
    (cut,) = ours.generate_until([Asked((prompts[0], {"max_gen_toks": 6, "until": [word]}))], disable_tqdm=True)
    assert cut == plain[0][: plain[0].index(word)]


def test_an_encoder_decoder(language_models: dict[str, Path]) -> None:
    folder = language_models["t5"]
    ours, theirs = Harness(LanguageModel(folder)), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    (found,) = ours.loglikelihood([Asked(("the old film", "is good"))])
    source, answer = ours._encode_pair("the old film", "is good")
    inputs = torch.tensor([[0, *answer[:-1]]])
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([source]), decoder_input_ids=inputs).logits[0]
    each = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]
    assert found[0] == pytest.approx(float(each.sum()), abs=1e-4)
    with pytest.raises(ValueError, match="--lm_eval"):
        ours.loglikelihood_rolling([Asked(("a",))])


@pytest.mark.slow
def test_a_task_of_ones_own(language_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Multiple choice from a local file, on eight devices; the accuracy follows from the likelihoods."""
    rows = [
        {"question": f"the {word} film", "choices": ["good", "bad", "about war"], "answer": n % 3}
        for n, word in enumerate("old new long short dull bright".split())
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    task = {
        "task": "my_films",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "my_films.yaml").write_text(json.dumps(task))
    folder = str(language_models["llama"])
    options = ["--lm_eval", "my_films", "--lm_eval_tasks", str(tmp_path), "--out", str(tmp_path / "out")]
    evaluate([folder, *options, "--task.type", "language_model", "--mesh.fsdp", "4", "--mesh.data", "2"])
    result = read_json(tmp_path / "out" / "lm_eval.json")["results"]["my_films"]
    model = Harness(LanguageModel(folder))
    hits = []
    for row in rows:
        asked = [Asked((str(row["question"]), f" {choice}")) for choice in row["choices"]]  # type: ignore[attr-defined]
        hits.append(int(np.argmax([value for value, _ in model.loglikelihood(asked)])) == row["answer"])
    assert result["acc,none"] == pytest.approx(np.mean(hits))
    assert "my_films" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'nothing'"):
        evaluate([folder, "--lm_eval", "nothing", "--task.type", "language_model"])


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def folder_with_bos(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose tokenizer does or does not put <s> before each text."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_tokenizer(bos=request.param)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    size = -(-len(tokenizer) // 8) * 8
    config = LlamaConfig(
        vocab_size=size, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def assert_same_numbers(ours: Harness, theirs: HFLM) -> None:
    pairs = [*PAIRS[:3], ("<s>the", " end"), ("", "<s>yes"), ("very " * 12, "long")]
    for (a, greedy), (b, theirs_greedy) in zip(
        ours.loglikelihood([Asked(pair) for pair in pairs]),
        theirs.loglikelihood([Asked(pair) for pair in pairs], disable_tqdm=True),  # type: ignore[list-item]
        strict=True,
    ):
        assert a == pytest.approx(b, abs=1e-4) and greedy == theirs_greedy
    texts = ["yes or no", "<s>a man", "yes the man " * 12]  # the last one in several windows
    found = ours.loglikelihood_rolling([Asked((text,)) for text in texts])
    expected = theirs.loglikelihood_rolling([Asked((text,)) for text in texts], disable_tqdm=True)  # type: ignore
    assert found == pytest.approx(expected, abs=1e-3)
    asked = [Asked((text, {"max_gen_toks": 5, "until": ["zz"]})) for text in texts[:2]]
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)  # type: ignore


def test_the_numbers_are_those_of_lm_evals_own_model(folder_with_bos: Path) -> None:
    ours, theirs = Harness(LanguageModel(folder_with_bos)), HFLM(pretrained=str(folder_with_bos), device="cpu")
    assert_same_numbers(ours, theirs)
    chat = [{"role": "user", "content": "hi"}]
    begins = "<s>" if ours.tokenizer("a")["input_ids"][0] == 1 else ""
    assert ours.apply_chat_template(chat) == begins + theirs.apply_chat_template(chat)


def test_the_numbers_of_a_run_are_those_of_its_exported_folder(folder_with_bos: Path, tmp_path: Path) -> None:
    """Tuned with LoRA, which the export merges."""
    config = language_run(folder_with_bos, tmp_path, steps=2, lora=LoraConfig(rank=2), optimizer__learning_rate=0.05)
    train(config)
    export(Path(config.run_dir), tmp_path / "hf", format="hf")
    ours = Harness(LanguageModel(config.run_dir))
    assert_same_numbers(ours, HFLM(pretrained=str(tmp_path / "hf"), device="cpu"))
    before = Harness(LanguageModel(folder_with_bos)).loglikelihood([Asked(PAIRS[0])])
    assert abs(before[0][0] - ours.loglikelihood([Asked(PAIRS[0])])[0][0]) > 1e-3
