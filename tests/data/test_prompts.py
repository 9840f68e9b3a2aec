"""Conversations as text, and which characters and tokens of it the assistant says."""

from typing import Any

import numpy as np
import pytest
from byte_tokenizer import MARKERS, byte_tokenizer
from conversations import ASSISTANT, SYSTEM, TOOL, USER, talk, text_of

from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.prompts import (
    TEMPLATES,
    conversation,
    find_template,
    prompt,
    render,
    tokenize_pieces,
    written,
)


def said_by(example: Example, template: Any, tokenizer: Any) -> list[str]:
    return [text for text, said in written(example, template, tokenizer, eos=tokenizer.eos_token) if said]


# ------------------------------------------------------------------ examples as conversations


def test_render_leaves_the_answer_out() -> None:
    turns = [(SYSTEM, "be kind"), (USER, "one?"), (ASSISTANT, "1"), (USER, "two?"), (ASSISTANT, "2")]
    shown = "system: be kind\nuser: one?\nassistant: 1\nuser: two?"
    assert render(talk(*turns)) == shown
    assert render(talk(*turns[:-1])) == shown
    assert render(talk(*turns, output="2")) == shown  # said twice
    assert render(talk(*turns, output="polite")) == shown + "\nassistant: 2"  # a question about the conversation
    assert render(talk(*turns[:-1], instruction="Count.", input="in English")) == "Count.\nin English\n" + shown
    assert render(Example(instruction="a", input="b", output="c")) == "a\nb"


def test_instruction_input_and_output_become_turns() -> None:
    user, assistant = Message(USER, "add\n1 2"), Message(ASSISTANT, "3")
    assert conversation(Example(instruction="add", input="1 2", output="3")) == [user, assistant]
    assert conversation(Example(instruction="add", input="1 2", output=3)) == [user, assistant]
    assert conversation(Example(instruction="add", input="1 2")) == [user]
    assert conversation(Example(instruction="add", output=2.5))[1].content == "2.5"
    assert conversation(Example(instruction="add", output=("b", "a")))[1].content == "b, a"
    assert conversation(Example(instruction="add", output=""))[1].content == ""


def test_messages_stay_as_they_are() -> None:
    turns = [(USER, "q"), (ASSISTANT, "call"), (TOOL, "r"), (ASSISTANT, "a")]
    messages = [Message(*turn) for turn in turns]
    assert conversation(talk(*turns)) == messages
    assert conversation(talk(*turns, output="a")) == messages
    assert conversation(talk(*turns[:3], output="a")) == messages
    with pytest.raises(ValueError, match="fields.output"):
        conversation(talk(*turns, output="b"))


def test_an_instruction_beside_messages_is_the_system_turn() -> None:
    (first, *rest) = conversation(talk((USER, "q"), (ASSISTANT, "a"), instruction="Be brief.", input="In German."))
    assert (first.role, first.content) == (SYSTEM, "Be brief.\nIn German.") and len(rest) == 2
    (first, *rest) = conversation(talk((SYSTEM, "You are a bot."), (USER, "q"), instruction="Be brief.", output="a"))
    assert (first.role, first.content) == (SYSTEM, "You are a bot.\n\nBe brief.") and len(rest) == 2


# ------------------------------------------------------------------ named templates


def test_auto() -> None:
    bare, own = byte_tokenizer(), byte_tokenizer(chat_template="{{ messages }}")
    assert find_template("auto", bare, "decoder") is TEMPLATES["alpaca"]
    assert find_template("auto", bare, "encoder_decoder") is TEMPLATES["plain"]
    assert find_template("auto", own, "decoder") is find_template("tokenizer", own, "decoder") is None
    assert find_template("plain", own, "decoder") is TEMPLATES["plain"]


def test_templates_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="task.template"):
        find_template("tokenizer", byte_tokenizer(), "decoder")
    with pytest.raises(ValueError, match="chatml.*<.im_start.>, <.im_end.>"):
        find_template("chatml", byte_tokenizer(markers=False), "decoder")
    with pytest.raises(ValueError, match="vicuna"):
        find_template("vicuna", byte_tokenizer(), "decoder")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tool turns"):
        text_of(talk((USER, "a"), (TOOL, "b"), (ASSISTANT, "c")), "alpaca")
    with pytest.raises(ValueError, match="eos_token"):
        text_of(Example(instruction="a", output="b"), "alpaca", byte_tokenizer(eos_token=None))


@pytest.mark.parametrize("name", [*TEMPLATES])
def test_examples_without_an_answer(name: Any) -> None:
    with pytest.raises(ValueError, match="fields.output"):
        text_of(Example(instruction="a"), name)
    with pytest.raises(ValueError, match="assistant turn"):
        text_of(talk((USER, "a"), (ASSISTANT, "b"), (USER, "c")), name)
    for output in ("", " \n", ()):
        with pytest.raises(ValueError, match="answer"):
            text_of(Example(instruction="a", output=output), name)


# ------------------------------------------------------------------ the tokenizer's own template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}INSIDE{% endgeneration %}OUTSIDE{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turns here') }}{% endif %}{% endfor %}"
)
TWO_TURNS = talk((USER, "a"), (ASSISTANT, "b"), (USER, "c"), (ASSISTANT, "d"))


def own(chat_template: str, **settings: Any) -> Any:
    return byte_tokenizer(chat_template=chat_template, **settings)


def test_own_template_without_marks_equals_the_named_one() -> None:
    tokenizer = own(CHATML)
    example = talk((SYSTEM, "s"), (USER, "b"), (ASSISTANT, "b"), (USER, "answer0e"), (ASSISTANT, " d\n"))
    assert text_of(example, "tokenizer", tokenizer) == text_of(example, "chatml", tokenizer)
    assert said_by(example, None, tokenizer) == ["b<|im_end|>", " d\n<|im_end|>"]


def test_own_template_that_strips() -> None:
    tokenizer = own(LLAMA_2)
    example = talk((USER, " a"), (ASSISTANT, "\n b "), (USER, "c"), (ASSISTANT, "d\t"))
    assert text_of(example, "tokenizer", tokenizer) == "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>"
    assert said_by(example, None, tokenizer) == ["b </s>", "d </s>"]
    left = own("{% for m in messages %}[{{ m.role }}]{{ m.content.lstrip('\\n') }}<|im_end|>{% endfor %}")
    assert said_by(talk((USER, "a"), (ASSISTANT, "\n\n  b \n")), None, left) == ["  b \n<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}: {{ messages[1].content | upper }}",
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content }}|{{ m.content }}<|im_end|>{% endfor %}",  # said twice
        "{{ messages[0].content }}<|im_end|>",  # left out
    ],
)
def test_own_template_that_changes_the_words(template: str) -> None:
    example = Example(instruction="q", output="<think>hm</think>yes")
    with pytest.raises(ValueError, match="alpaca.* generation %}"):
        written(example, None, own(template), eos="</s>")


def test_own_template_that_refuses_the_conversation() -> None:
    with pytest.raises(ValueError, match="system, user, assistant: no system turns"):
        written(talk((SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b")), None, own(LLAMA_2), eos="</s>")


@pytest.mark.parametrize("inside, outside", [("<|im_end|>", ""), ("", "<|im_end|>"), ("<|im_end|>\n", "")])
def test_own_template_with_marks(inside: str, outside: str) -> None:
    tokenizer = own(MARKED.replace("INSIDE", inside).replace("OUTSIDE", outside))
    example = talk((SYSTEM, "s"), (USER, "b"), (ASSISTANT, "b </think> "), (USER, "c"), (ASSISTANT, "d"))
    end = inside or outside
    assert said_by(example, None, tokenizer) == ["b </think> " + end, "d" + end]
    misleading = talk((USER, "a"), (ASSISTANT, "b<|im_end|>"), (USER, "c"), (ASSISTANT, "d</s>"))
    assert said_by(misleading, None, tokenizer) == ["b<|im_end|>" + end, "d</s>" + end]
    assert text_of(example, "tokenizer", tokenizer).endswith(f"<|im_start|>assistant\nd{end}")


def test_marks_may_hold_what_the_template_makes_of_the_words() -> None:
    tokenizer = own(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | upper }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert said_by(TWO_TURNS, None, tokenizer) == ["B</s>", "D</s>"]


def test_marks_of_the_last_turn_or_of_none() -> None:
    marks = "{% for m in messages %}[{% if CONDITION %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
    marks += "{{ m.content }}{% endif %}]{% endfor %}"
    assert said_by(TWO_TURNS, None, own(marks.replace("CONDITION", "loop.last"))) == ["d]</s>"]
    for condition in ("false", "loop.index == 2"):
        with pytest.raises(ValueError, match="generation %}"):
            said_by(TWO_TURNS, None, own(marks.replace("CONDITION", condition)))


def test_an_end_is_added_where_the_template_has_none() -> None:
    tokenizer = own("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert text_of(TWO_TURNS, "tokenizer", tokenizer) == "user: a\nassistant: b\nuser: c\nassistant: d\n</s>"
    assert said_by(TWO_TURNS, None, tokenizer) == ["b", "d\n</s>"]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        written(TWO_TURNS, None, tokenizer, eos=None)


def test_the_beginning_of_a_text_is_no_end() -> None:
    tokenizer = own("{% for m in messages %}{{ '<s>' if m.role == 'user' }}{{ m.content }}{% endfor %}")
    assert said_by(TWO_TURNS, None, tokenizer) == ["b", "d</s>"]


def test_no_text_depends_on_the_day() -> None:
    tokenizer = own("{{ date_string if date_string is defined else strftime_now('%d') }}" + CHATML)
    assert text_of(TWO_TURNS, "tokenizer", tokenizer).startswith("26 Jul 2024<|im_start|>")


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize("name", [*TEMPLATES, CHATML, LLAMA_2, MARKED.replace("INSIDE", "").replace("OUTSIDE", "</s>")])
def test_a_prompt_is_what_stands_before_the_answer_in_training(name: str) -> None:
    tokenizer = byte_tokenizer() if name in TEMPLATES else own(name)
    template = TEMPLATES.get(name)
    for example in (TWO_TURNS, Example(instruction="add", input="1 2", output=3)):
        *before, (answer, said) = written(example, template, tokenizer, eos="</s>")
        expected = "".join(text for text, _ in before)
        # without a generation prompt of its own, the space before an answer belongs to the answer's first token
        expected = expected.rstrip() if name == LLAMA_2 else expected
        assert said and prompt(example, template, tokenizer) == expected
    unanswered = talk(*[(m.role, m.content) for m in TWO_TURNS.messages[:-1]])
    assert prompt(unanswered, template, tokenizer) == prompt(TWO_TURNS, template, tokenizer)


def test_prompts_of_encoder_decoders() -> None:
    tokenizer = byte_tokenizer()

    def source(example: Example, name: str) -> str:
        return prompt(example, TEMPLATES[name], tokenizer, "encoder_decoder")

    assert source(Example(instruction="add", input="1 2\n", output="3"), "plain") == "add\n1 2\n"
    assert source(TWO_TURNS, "plain") == "a\nb\nc"  # no EOS inside
    assert source(Example(instruction="add"), "alpaca").endswith("### Instruction:\nadd\n\n### Response:")


# ------------------------------------------------------------------ tokens

WORDS = [
    "yes",
    " the",
    "ye",
    "\n",
    "\n\n",
    " ",
    "  ",
    "é",
    "漢字",
    "你好。",
    "🙂",
    "👩‍👩‍👧",
    "🇩🇪",
    "ẞ",
    "a\u0301",
    "\t",
    "### Response:",
]
WORDS += [
    "</s>",
    "<s>",
    *MARKERS,
    "### Instruction:",
    "assistant\n",
    "answer0e",
    "answer",
    "{{",
    "{% if %}",
    "\u200b",
    "\xa0",
]


def words(rng: np.random.Generator) -> str:
    while True:
        text = "".join(rng.choice(WORDS, rng.integers(1, 9)))
        if text.strip():
            return text


def random_talk(rng: np.random.Generator) -> Example:
    turns = [(SYSTEM, words(rng))] if rng.random() < 0.4 else []
    for _ in range(rng.integers(1, 4)):
        turns += [(USER, words(rng)), (ASSISTANT, words(rng))]
    return talk(*turns)


def said_tokens(tokenizer: Any, tokens: Any) -> list[str]:
    """The texts of the runs of the assistant's tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.said.astype(int), [0]])))
    return [tokenizer.decode(tokens.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("name", ["chatml", "llama-3", "tokenizer"])
def test_the_assistants_tokens_are_its_words_and_the_end(name: Any, trim_offsets: bool) -> None:
    """Random conversations. Markers are single tokens, so that no token of these templates is half the assistant's,
    except for a newline that an answer begins with."""
    template = "{% for m in messages %}<|im_start|>{{ m.role }}<|eot_id|>{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = own(template, trim_offsets=trim_offsets)
    rng, end = np.random.default_rng(7), {"llama-3": "<|eot_id|>"}.get(name, "<|im_end|>")
    examples = [random_talk(rng) for _ in range(150)]
    pieces = [written(e, find_template(name, tokenizer, "decoder"), tokenizer, eos="</s>") for e in examples]
    for example, tokens, texts in zip(examples, tokenize_pieces(pieces, tokenizer), pieces, strict=True):
        assert tokenizer.decode(tokens.ids) == "".join(text for text, _ in texts)
        found = said_tokens(tokenizer, tokens)
        expected = [m.content + end for m in example.messages if m.role == ASSISTANT]
        if name != "tokenizer":
            found, expected = [f.lstrip("\n") for f in found], [e.lstrip("\n") for e in expected]
        assert found == expected
        assert tokens.said[-1] and tokens.ids[-1] == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_token_belongs_where_its_first_visible_character_lies(trim_offsets: bool) -> None:
    tokenizer = byte_tokenizer(trim_offsets=trim_offsets)

    def said(*pieces: tuple[str, bool]) -> list[tuple[str, bool]]:
        (tokens,) = tokenize_pieces([list(pieces)], tokenizer)
        return [(tokenizer.decode([i]), bool(s)) for i, s in zip(tokens.ids, tokens.said, strict=True)]

    assert said(("q:", False), (" yes", True)) == [("q", False), (":", False), (" yes", True)]
    assert said(("q: ", False), ("yes", True)) == [("q", False), (":", False), (" yes", True)]
    assert said(("y", False), ("es", True)) == [("yes", False)]
    assert said(("a ", True), ("the", False)) == [("a", True), (" the", False)]
    assert said(("q\n", False), ("\n\na", True)) == [("q", False), ("\n\n", False), ("\n", True), ("a", True)]
    assert said(("a", False), ("", True), ("b", False)) == [("a", False), ("b", False)]


def test_torn_answers_are_counted() -> None:
    tokenizer = byte_tokenizer()

    def torn(*pieces: tuple[str, bool]) -> int:
        return tokenize_pieces([list(pieces)], tokenizer)[0].torn

    assert torn(("y", False), ("es", True), ("y", False), ("es", True)) == 2
    assert torn(("q\n", False), ("\n\na", True)) == 1
    assert torn(("q: ", False), ("yes", True), ("y", True), ("es", False), ("y", False), ("es", False)) == 0


def test_bytes_of_one_character_stay_together() -> None:
    tokenizer = byte_tokenizer()
    (tokens,) = tokenize_pieces([[("漢", False), ("字🙂", True), ("é", False)]], tokenizer)
    assert tokens.said.tolist() == [False] * 3 + [True] * 7 + [False] * 2


def test_no_doubled_bos() -> None:
    example = Example(instruction="a", output="b")
    adds, adds_not = byte_tokenizer(bos=True), byte_tokenizer()
    for tokenizer, count in ((adds, 1), (adds_not, 0)):
        plain = written(example, TEMPLATES["plain"], tokenizer, eos="</s>")
        (tokens,) = tokenize_pieces([plain], tokenizer)
        assert (tokens.ids == tokenizer.bos_token_id).sum() == count == tokens.opening
        assert tokenizer.decode(tokens.ids) == "<s>" * count + "a\nb</s>"
        assert said_tokens(tokenizer, tokens) == ["b</s>"]
    for settings in (dict(bos=True), dict(bos=False)):  # the template writes it itself
        tokenizer = own(LLAMA_2, **settings)
        (tokens,) = tokenize_pieces([written(example, None, tokenizer, eos="</s>")], tokenizer)
        assert (tokens.ids == tokenizer.bos_token_id).sum() == 1 == tokens.opening and tokens.ids[0] == 1
        assert tokenizer.decode(tokens.ids[tokens.said]).strip() == "b </s>"


def test_an_eos_of_the_tokenizer_is_not_added_again() -> None:
    tokenizer = byte_tokenizer(bos=True, eos=True)
    pieces = written(Example(instruction="a", output="b"), TEMPLATES["plain"], tokenizer, eos="</s>")
    (tokens,) = tokenize_pieces([pieces], tokenizer)
    assert tokenizer.decode(tokens.ids) == "<s>a\nb</s>"


def test_sentencepiece_like_tokenizers() -> None:
    """Metaspace and byte fallback, as Llama's first tokenizers: a token of the answer may begin with the prompt's
    space, a text begins with a space of its own, and a character that is no token is its bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdefgyesINT[]/:\n"]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys([*pieces, "▁y", "▁b"]))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "y"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=LLAMA_2, **names)
    example = talk((USER, "a🙂"), (ASSISTANT, "yes🙂"), (USER, "c"), (ASSISTANT, "漢b"))
    (tokens,) = tokenize_pieces([written(example, None, tokenizer, eos="</s>")], tokenizer)
    assert [text.strip() for text in said_tokens(tokenizer, tokens)] == ["yes🙂 </s>", "漢b </s>"]


def test_slow_tokenizers_are_refused() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ValueError, match="SlowTokenizer"):
        tokenize_pieces([[("a", True)]], SlowTokenizer())
