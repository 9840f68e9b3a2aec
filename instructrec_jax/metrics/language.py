"""What has to be known of a text's language to score it."""

import re

CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def has_cjk(text: str) -> bool:
    """Whether a text has Chinese characters (or Japanese ones): its words are not set apart by spaces."""
    return CJK.search(text) is not None


def units(text: str) -> int:
    """The length of a text in words, or in characters without spaces where it is Chinese."""
    return sum(not c.isspace() for c in text) if has_cjk(text) else len(text.split())
