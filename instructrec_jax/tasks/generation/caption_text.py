"""Prompts as dalle-mini's networks were trained on them (`normalize_text` in config.json).

The rules are those of dalle-mini's TextNormalizer for texts in ASCII. Accents are left out, and typographic quotes and
dashes become plain ones, as there. What it takes other packages or tables for is an error here: transliterations of
other scripts, and hashtags, which it splits by the frequency of words.
"""

import html
import re
import unicodedata

PLAIN = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "..."}
QUOTE, DOT, SLASH = "xtokxquotextokx", "xtokxdotxtokx", "xtokxslashxtokx"  # stand for what is not punctuation
# (pattern, what it becomes), one after the other: in front of hashtags, and behind them
FIRST = (
    (r"<person>([,\s]*(and)*[,\s]*<person>)+", " people "),
    (r"<person>", " a person "),  # the most frequent of the three that are drawn there
    (r"\A\s*\[\d+\]", ""),
    (r"\[\d+\]\s*\Z", ""),
    (r"<[^<]+?>", ""),
    (r"http\S+", ""),
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\d),(\d{3})", r"\1\2"),
    (r"(\w)\.(\w)", rf"\1{DOT}\2"),
    (r"'(?=([stdm]|(ll)|(re)|(ve)|(ll))\b)", QUOTE),
    (r"(\d)/(\d)", rf"\1{SLASH}\2"),
    (r"(\w)-(\w)", r"\1 \2"),
    (r"([%&\/$*])", r" \1 "),
)
THEN = (
    (r"[_#\\]", " "),
    (r"""['"`]""", ' " '),
    (r"[()[\].,|:;?!=+~\-\/{}]", ","),
    (DOT, "."),
    (QUOTE, "'"),
    (SLASH, "/"),
    (r"(\D)(\1{3,})", r"\1"),
    (r'(\s*"+\s*)+', ' " '),
    (r"(\s*,+\s*)+", ", "),
    (r"\s+", " "),
)


def normalized(text: str) -> str:
    """The text in lower case, with commas for punctuation, behind a space.

    Raises ValueError for a character that is not in ASCII but for accents, and for a hashtag.
    """
    text = html.unescape(html.unescape(text))
    text = "".join(PLAIN.get(letter, letter) for letter in text)
    text = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    strange = next((letter for letter in text if not letter.isascii()), None)
    if strange is not None:
        raise ValueError(
            f"it has the character {unicodedata.normalize('NFC', strange)!r}, but the network reads texts in ASCII "
            "(normalize_text in config.json): write it in Latin letters."
        )
    text = _changed(text.lower(), FIRST)
    if (tag := re.search(r"#\w+", text)) is not None:
        raise ValueError(
            f"it has the hashtag {tag[0]!r}, which is not implemented (normalize_text in config.json): write its words."
        )
    text = _changed(text, THEN)
    text = text.strip().removesuffix(",").removeprefix(",").strip()
    return f" {text}"


def _changed(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
