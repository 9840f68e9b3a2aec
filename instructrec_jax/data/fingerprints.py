"""What identifies examples, the same on every machine; and examples as JSON."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable

from instructrec_jax.data.example import Example

_WORD = re.compile(r"\w+")


def normalized(text: str) -> str:
    """The words in lower case, joined by spaces (Unicode NFKC, case-folded); without words, the text without spaces
    at its ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_WORD.findall(folded)) or folded.strip()


def fingerprint(examples: Iterable[Example]) -> str:
    """See `fingerprint_of`; the same on every machine."""
    return fingerprint_of(map(digest_of_example, examples))


def fingerprint_of(digests: Iterable[bytes]) -> str:
    """SHA-256 (64 hex digits) of the examples' digests in order. So processes that each hold some can tell it."""
    found = hashlib.sha256()
    for digest in digests:
        found.update(digest)
    return found.hexdigest()


def digest_of_example(example: Example) -> bytes:
    """SHA-256 (32 bytes) of the example's `fingerprint_bytes`."""
    return hashlib.sha256(fingerprint_bytes(example)).digest()


def fingerprint_bytes(example: Example) -> bytes:
    """The example's JSON with sorted keys, and a line break. Of a picture or sound it has the digest, not its place."""
    record = example.to_record()
    for name, media in (("images", example.images), ("sounds", example.sounds)):
        if media:
            record[name] = [each.digest for each in media]
    return json.dumps(record, sort_keys=True).encode() + b"\n"


def json_and_digest(example: Example) -> tuple[bytes, bytes]:
    """(JSON from which `Example.from_record` makes the example, `digest_of_example`).

    The order of keys inside tools, calls and origins is kept, because a chat template may write it.
    """
    record = dict(sorted(example.to_record().items()))
    if example.messages:
        record["messages"] = [dict(sorted(message.to_record().items())) for message in example.messages]
    kept = json.dumps(record).encode() + b"\n"
    if example.messages or example.media or example.tools or len(example.origin) > 1:
        return kept, digest_of_example(example)
    return kept, hashlib.sha256(kept).digest()  # the keys are sorted
