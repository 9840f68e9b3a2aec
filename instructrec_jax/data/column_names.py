"""The usual names of columns, in lower case, by what they hold."""

from collections.abc import Sequence

MESSAGES = ("conversations", "conversation", "dialogue", "dialog")
WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "token_labels")
PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2")),
    *(("sentence_a", "sentence_b"), ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b")),
    *(("question1", "question2"), ("question_1", "question_2"), ("anchor", "positive")),
)
QUESTIONS = ("question", "query")
CONTEXTS = ("context", "passage", "paragraph", "article", "document")
TEXTS = (
    *("text", "sentence", "review", "content", "comment", "tweet", "message", "utterance", "headline", "description"),
    *("review_text", "reviewtext", "sentence_text", "body", "article", "document"),
)
PROMPTS = ("prompt", "query", "question", "request")
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "emotion", "topic")
ANSWERS = ("completion", "response", "answer", "answers", "reply", "summary", "highlights")
PREFERENCES = ("chosen", "rejected")
NUMBERS = ("score", "rating", "stars", "similarity")
_ALL = {*PREFERENCES, *MESSAGES, *WORDS, *TAGS, *QUESTIONS, *CONTEXTS, *TEXTS, *PROMPTS, *LABELS, *ANSWERS, *NUMBERS}
_ALL |= {name for pair in PAIRS for name in pair}


def is_usual(column: str) -> bool:
    """Whether a column has one of these names."""
    return column.strip().lower() in _ALL


def advice(columns: Sequence[str]) -> str:
    """The setting to add where the default columns are missing and no usual name fits; "" without two columns."""
    if len(columns) < 2:
        return ""
    last = next((name for name in columns if name.lower() in (*LABELS, *TAGS, *ANSWERS, *NUMBERS)), columns[-1])
    first = next((name for name in columns if name.lower() in (*TEXTS, *PROMPTS) and name != last), None)
    first = first or next(name for name in columns if name != last)
    return f"for example fields: {{instruction: {_quoted(first)}, output: {_quoted(last)}}}"


def _quoted(name: str) -> str:
    return name if name.replace("_", "").isalnum() and not name.isdecimal() else f'"{name}"'
