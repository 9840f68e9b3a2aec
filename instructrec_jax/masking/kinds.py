"""The kinds of personal data, each with its detector, and the search for several of them in one text."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from instructrec_jax.extras import require
from instructrec_jax.masking.addresses import credentials, emails, ip_addresses, mac_addresses
from instructrec_jax.masking.known_secrets import secrets
from instructrec_jax.masking.national_ids import national_ids
from instructrec_jax.masking.numbers import cards, check_regions, ibans, phones
from instructrec_jax.masking.plain import plain
from instructrec_jax.masking.spans import Span, merged

ALL = "all"
# In order of priority among equally long spans. A detector gets the plain text (see `plain`) and the regions of phones.
DETECTORS: Mapping[str, Callable[[str, Sequence[str]], Iterator[tuple[int, int]]]] = {
    "secret": lambda text, regions: secrets(text),
    "credentials": lambda text, regions: credentials(text),
    "iban": lambda text, regions: ibans(text),
    "national_id": lambda text, regions: national_ids(text),
    "card": lambda text, regions: cards(text),
    "email": lambda text, regions: emails(text),
    "mac": lambda text, regions: mac_addresses(text),
    "ip": lambda text, regions: ip_addresses(text),
    "phone": phones,
}
KINDS = tuple(DETECTORS)
_NEEDS = {"iban": "stdnum", "national_id": "stdnum", "phone": "phonenumbers"}
_WITHOUT_DIGITS = ("email", "secret", "credentials")


def chosen_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """The kinds of a setting, in order of priority; `all` stands for every one.

    Raises ValueError for an unknown kind, and where a package is missing.
    """
    for name in names:
        if name not in (*KINDS, ALL):
            raise ValueError(f"kind {name!r} of personal data is unknown: choose from {ALL}, {', '.join(KINDS)}.")
    found = KINDS if ALL in names else tuple(kind for kind in KINDS if kind in names)
    for kind in found:
        if kind in _NEEDS:
            require(_NEEDS[kind], f"masking of {kind}")
    if "phone" in found:
        require("phonenumbers", "masking of phone")
    return found


def check_phone_regions(regions: Sequence[str]) -> None:
    """Raises ValueError for a region that phonenumbers does not know."""
    check_regions(regions)


def find(text: str, kinds: Sequence[str], regions: Sequence[str] = ()) -> list[Span]:
    """The places of personal data in a text, in order, without overlaps.

    Args:
      kinds: of `KINDS`, in their order.
      regions: whose telephone numbers are found without + and country code, as codes of two letters.
    """
    seen = plain(text)
    if not seen.text:
        return []
    has_digit = any(each in seen.text for each in "0123456789")
    found: dict[str, list[tuple[int, int]]] = {}
    for kind in kinds:
        if has_digit or kind in _WITHOUT_DIGITS:
            found[kind] = list(DETECTORS[kind](seen.text, regions))
    if found.get("credentials") and found.get("email"):  # password@host of a URL is no address
        ats = {end for _, end in found["credentials"]}
        found["email"] = [(start, end) for start, end in found["email"] if seen.text.find("@", start, end) not in ats]
    spans = [Span(*seen.place(start, end), kind) for kind, ranges in found.items() for start, end in ranges]
    return merged(spans)
