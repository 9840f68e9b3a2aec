"""Scripts and word boundaries of texts in different languages."""

import re
import unicodedata

CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile(r"[\u3040-\u30ff]")
# Scripts of South East Asia without spaces between words: Thai, Lao, Burmese, Khmer.
SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def has_cjk(text: str) -> bool:
    """Whether a text has Chinese or Japanese characters, so that spaces do not separate its words."""
    return CJK.search(text) is not None


def units(text: str) -> int:
    """The length of a text in words, or in non-space characters if its script has no spaces between words."""
    spaceless = has_cjk(text) or SPACELESS.search(text)
    return sum(not c.isspace() for c in text) if spaceless else len(text.split())


def script_words(text: str) -> list[str]:
    """The words of a text in any script, in lower case: runs of letters, marks and digits.

    In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each character with its
    marks is a word. The words of an ASCII text are the runs of [a-z0-9], as in rouge-score.
    """
    words: list[str] = []
    inside = False  # whether the next character may belong to the last word
    for c in unicodedata.normalize("NFC", text.lower()):
        kind = unicodedata.category(c)
        if kind[0] == "M":
            if inside:
                words[-1] += c
        elif kind[0] != "L" and kind != "Nd":
            inside = False
        elif CJK.match(c) or SPACELESS.match(c):
            words.append(c)
            inside = True
        elif inside and not (CJK.match(words[-1]) or SPACELESS.match(words[-1])):
            words[-1] += c
        else:
            words.append(c)
            inside = True
    return words
