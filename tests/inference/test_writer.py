"""From tokens to answers: ends, stop sequences and pieces, with a decoder that has its answers ready."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer

from instructrec_jax.inference import writer as writer_module
from instructrec_jax.inference.decoding import Answer
from instructrec_jax.inference.generation_config import GenerationConfig, TokenRules
from instructrec_jax.inference.writer import Generated, Writer, open_writer

TOKENIZER = byte_tokenizer()
EOS: int = TOKENIZER.eos_token_id


class Ready:
    """Gives its answers token by token, as the decoder does, the last prompt's first. log p of a token is -1."""

    def __init__(self, *answers: str):
        self.answers = [[*TOKENIZER(text, add_special_tokens=False)["input_ids"], EOS] for text in answers]
        self.rules = TokenRules(eos=(EOS,))
        self.every: list[int | None] = []

    def check(self, prompts: Sequence[np.ndarray], names: Sequence[str], config: GenerationConfig) -> None:
        for prompt, name in zip(prompts, names, strict=True):
            if not len(prompt):
                raise ValueError(f"{name} is empty.")

    def answer(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        config: GenerationConfig,
        *,
        every: int | None,
        stops: Callable[[int, list[int]], bool] | None,
        images: Any = None,
    ) -> Iterator[tuple[int, Answer]]:
        self.every.append(every)
        for number in reversed(range(len(prompts))):
            ids = self.answers[number]
            for end in range(1, len(ids) + 1):
                look = every is not None and end % every == 0
                if look and stops is not None and stops(number, ids[:end]):
                    yield number, Answer(ids[:end], "stop", [-1.0] * end)
                    break
            else:
                yield number, Answer(ids, "eos", [-1.0] * len(ids))


def write(*answers: str, prompts: int | None = None, **options: Any) -> list[Generated]:
    config = GenerationConfig(stop=tuple(options.pop("stop", ())))
    count = len(answers) if prompts is None else prompts
    asked = [np.ones(2, np.int32)] * count
    names = [f"prompt {n}" for n in range(count)]
    return Writer(Ready(*answers), TOKENIZER).write({}, asked, names, config, **options)  # type: ignore[arg-type]


def test_answers_are_in_the_order_of_the_prompts_without_their_end() -> None:
    texts = ("yes", "", "漢字 🎬")
    tokens = [len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
    assert write(*texts) == [Generated(text, "eos", -n) for text, n in zip(texts, tokens, strict=True)]
    assert write(prompts=0) == []


@pytest.mark.parametrize("stop", ["\n", "two", "one", "o\nt", "three"])
def test_an_answer_ends_before_the_first_stop_sequence(stop: str) -> None:
    text = "one\ntwo\none"
    (found,) = write(text, stop=[stop])
    expected = text.partition(stop)[0]
    assert found.text == expected and (found.finish == "stop") <= (stop in text)
    # of the tokens with the stop sequence, though it is looked for only every few tokens
    counted = len(expected + stop) if found.finish == "stop" else len(text) + 1
    assert found.log_probability == -counted
    (several,) = write(text, stop=[stop, "\ntwo"])
    assert several.text == min(text.partition(s)[0] for s in (stop, "\ntwo"))


def test_a_special_token_as_stop_sequence_ends_an_answer_too() -> None:
    (found,) = write("yes<|im_end|>no", stop=["<|im_end|>"])
    assert found.text == "yes"


@pytest.mark.parametrize("text", ["漢字 🎬 and 👩‍👩‍👧!", "one\ntwo", "a", ""])
@pytest.mark.parametrize("stop", [(), ("\n",), ("tw",)])
def test_the_pieces_shown_are_whole_characters_that_join_to_the_answer(text: str, stop: tuple[str, ...]) -> None:
    shown: list[str] = []
    (found,) = write(text, stop=stop, show=shown.append)
    assert "".join(shown) == found.text and "\ufffd" not in "".join(shown)


def test_a_stop_sequence_is_looked_for_only_where_there_is_one() -> None:
    for options, every in (({}, None), ({"stop": ["x"]}, writer_module.LOOK_EVERY), ({"show": lambda piece: None}, 1)):
        ready = Ready("yes")
        config = GenerationConfig(stop=tuple(options.get("stop", ())))  # type: ignore[arg-type]
        shown: Any = {"show": options["show"]} if "show" in options else {}
        Writer(ready, TOKENIZER).write({}, [np.ones(1, np.int32)], ["p"], config, **shown)  # type: ignore[arg-type]
        assert ready.every == [every]


def test_bad_prompts_are_named_before_anything_is_written() -> None:
    ready = Ready("a", "b")
    with pytest.raises(ValueError, match="second"):
        prompts = [np.ones(1, np.int32), np.ones(0, np.int32)]
        Writer(ready, TOKENIZER).write({}, prompts, ["first", "second"], GenerationConfig())  # type: ignore[arg-type]
    assert ready.every == []


def test_a_task_that_writes_no_text_is_named() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace"):
        open_writer(SimpleNamespace(), None, None)  # type: ignore[arg-type, type-var]
    task = SimpleNamespace(context=SimpleNamespace(folder=None), ends=(), suppressed=(), blank=None, answer_texts=None)
    task.view = lambda network: network
    with pytest.raises(ValueError, match="folder"):
        open_writer(task, None, None)  # type: ignore[arg-type, type-var]
