"""Detectors of payment cards, bank accounts and telephone numbers.

Regular expressions of bounded length find candidates; check digits and the numbering plans (python-stdnum,
phonenumbers) decide. Why our own search for telephone numbers, in place of phonenumbers.PhoneNumberMatcher: that one
parses each candidate for each region, and misses numbers that are not in use, such as a mistyped one after "call me".
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import regex

Range = tuple[int, int]

# ------------------------------------------------------------------ payment cards

# Groups as they stand on cards and in forms (ISO/IEC 7812: 12 to 19 digits), longest first, with one mark between them.
_M = r"(?P<m>[ .\-])"
_CARD_FORMS = (
    rf"\d{{4}}{_M}\d{{4}}(?P=m)\d{{4}}(?P=m)\d{{4}}(?P=m)\d{{1,3}}",
    rf"\d{{4}}{_M}\d{{4}}(?P=m)\d{{4}}(?P=m)\d{{4}}",
    rf"\d{{4}}{_M}\d{{6}}(?P=m)\d{{4,5}}",
    rf"\d{{4}}{_M}\d{{4}}(?P=m)\d{{4,5}}",
    r"\d{8}[ .\-]\d{8}|\d{4}[ .\-]\d{12}|\d{6}[ .\-](?:\d{13}|\d{9,10})|\d{12,19}",
)
_CARDS = [regex.compile(rf"(?:{form})(?![0-9A-Za-z_])", regex.A) for form in _CARD_FORMS]
_CARD = regex.compile(r"(?<![0-9A-Za-z_])(?<!\d[.,])(?=\d{4}(?:[ .\-]?\d){8})", regex.A)
_ISSUERS = regex.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6(?:011|4[4-9]|5)|35|3(?:0[0-5]|[689])|62|81|"
    r"(?:1800|2131)|50[1-9]|5[6-8]|6(?:0|3|7)|9792|220[0-4]"
)


def cards(text: str) -> Iterator[Range]:
    """Numbers of payment cards: an issuer's first digits, grouped as on cards, with the right check digit (Luhn)."""
    for place in _CARD.finditer(text):
        for form in _CARDS:
            found = form.match(text, place.start())
            if found is None:
                continue
            digits = _digits(found[0])
            if _is_issued(digits) and _has_luhn_digit(digits):
                yield found.span()
                break


_DOUBLED = str.maketrans("0123456789", "0246813579")  # twice the digit, as the sum of its digits


def _has_luhn_digit(digits: str) -> bool:
    """Why our own: stdnum.luhn is slow, and a hostile text has many candidates (ISO/IEC 7812-1, annex B)."""
    return (sum(map(int, digits[-1::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def _is_issued(digits: str) -> bool:
    if len(digits) < 14 and not digits.startswith(("4", "50", "56", "57", "58", "63", "67")):  # old Visa, Maestro
        return False
    if len(set(digits)) < 2:
        return False
    return _ISSUERS.match(digits) is not None


# ------------------------------------------------------------------ bank accounts

_IBAN = regex.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}\d{2}(?=[ \-]?[0-9A-Za-z])", regex.A)
_MARKS = regex.compile(r"[ \-]")
_NAMED_IBAN = regex.compile(r"IBAN[\s:=#.]{0,4}([A-Z]{2}\d{2}(?:[ \-]?[A-Z0-9]{1,4}){2,8})(?![A-Za-z0-9])", regex.A)


@cache
def _iban_length(country: str) -> int:
    """Characters of an IBAN of a country; 0 where there is none."""
    from stdnum import numdb  # an extra

    structure = numdb.get("iban").info(country)[0][1].get("bban", "")
    return 4 + sum(map(int, regex.findall(r"(\d+)!?[nac]", structure))) if structure else 0


@cache
def _of_length(length: int) -> regex.Pattern[str]:
    return regex.compile(rf"[a-z0-9](?:[ \-]?[a-z0-9]){{{length - 1}}}(?![a-z0-9])", regex.I | regex.A)


def ibans(text: str) -> Iterator[Range]:
    """IBANs with the right check digits, also in lower case and in groups; after the word IBAN also mistyped ones."""
    from stdnum import iban  # an extra

    for found in _IBAN.finditer(text):
        length = _iban_length(found[0][:2].upper())
        if not length:
            continue
        whole = _of_length(length).match(text, found.start())
        if whole is None:
            continue
        value = _MARKS.sub("", whole[0]).upper()
        if int("".join(str(int(each, 36)) for each in value[4:] + value[:4])) % 97 == 1 and iban.is_valid(
            value, check_country=False
        ):
            yield whole.span()
    for named in _NAMED_IBAN.finditer(text):
        length = _iban_length(named[1][:2])
        whole = _of_length(length).match(text, named.start(1)) if length else None
        yield whole.span() if whole is not None else named.span(1)


# ------------------------------------------------------------------ telephone numbers

_GAP = r"(?:[ ]?[\-./()]{0,2}[ ]?)"
_DIGITS = rf"\d(?:{_GAP}\d)"
_BEFORE = r"(?<![0-9A-Za-z_+])(?<![0-9A-Za-z]-)(?<!\d[.,:/])(?<![0-9A-Fa-f]{4}[/.])"
_UNIT = r" ?(?:€|\$|£|¥|%|EUR\b|USD\b|GBP\b|SEK\b|euros?\b|dollars?\b|mn\b|million|bn\b|円|元|kg\b|km\b)"
_AFTER = rf"(?![0-9A-Za-z_]|[.,:/\-]\d|{_UNIT})"
_MONEY = regex.compile(r"(?:[€$£¥]|EUR|USD|GBP|SEK|Rs\.?|CHF) ?$")
_EXTENSION = regex.compile(
    r"[ ,;]{0,2}(?:x|ext\.?|extension|poste|durchwahl|int\.?|interno|anexo|доб\.?|内線|转|#)[ .:]{0,2}\d{1,6}(?!\d)",
    regex.I | regex.A,
)
_INTERNATIONAL = regex.compile(
    rf"(?<![0-9A-Za-z+])(?:\+|\(\+|(?<!\d[ .,\-])(?:00|011)[ \-.]?(?=[1-9])){_DIGITS}{{6,16}}", regex.A
)
_TRUNK = regex.compile(rf"{_BEFORE}\(?0{_GAP}{_DIGITS}{{6,11}}{_AFTER}", regex.A)
_NORTH_AMERICAN = regex.compile(
    rf"{_BEFORE}(?:1[ .\-])?(?:\([2-9]\d\d\)[ \-]?|(?P<a>[2-9]\d\d)(?P<m>[ .\-]))[2-9]\d\d(?(m)(?P=m)|[ .\-])\d{{4}}"
    rf"(?![0-9A-WYZa-wyz_]|[.,:/\-]\d|{_UNIT})",
    regex.A,
)
# Numbers without a trunk prefix, in the groups that are usual.
_NINE = regex.compile(
    rf"{_BEFORE}[5-9]\d\d(?:(?P<m>[ .\-])\d{{3}}(?P=m)\d{{3}}|[ ]\d\d \d\d \d\d)(?! \d|[.\-]\d){_AFTER}", regex.A
)
_CHINESE_MOBILE = regex.compile(rf"{_BEFORE}(?:86[ \-]?)?1[3-9]\d[ \-]?\d{{4}}[ \-]?\d{{4}}{_AFTER}", regex.A)
_NAMES = (
    r"(?:tele)?phone(?: ?n(?:o|umber)s?)?|tel|mobile?|cell(?:phone| ?number)?|call(?: me| us)?|dial|fax|"
    r"ring(?: me| us)?|whatsapp|sms|text me|hotline|contact(?: number)?|telefon(?:nummer|e|o|u)?|"
    r"handy(?:nummer)?|mobil(?:nummer|funk)?|rufnummer|anrufen|rückruf|erreichbar|"
    r"reach [^\d\n]{2,24}? (?:on|at)|téléphone|portable|appelez|joindre|teléfono|móvil|celular|llam[ae]\w{0,4}|"
    r"il mio numero|mi número|mon numéro|meine nummer|my number|cellulare|chiam\w{1,4}|telefone|ligue|telefoon|"
    r"puhelin|mobilnummer|телефон\w{0,2}|тел|звоните|мой номер|电话|電話(?:番号)?|手机|手機|携帯|联系方式|联系|"
    r"連絡先|致电|拨打|号码|お電話|ファックス|传真|전화(?:번호)?|휴대폰|연락처|फ़ोन|फोन|मोबाइल|संपर्क|هاتف|"
    r"جوال|اتصل|טלפון|נייד"
)
_NAMED = regex.compile(
    rf"(?<![A-Za-zÀ-ÿ])(?:{_NAMES})(?![a-zà-ÿ])(?P<gap>[^\d\n]{{0,24}}?)"
    rf"(?P<v>(?<![\d+])(?:\(?\d{_GAP})(?:{_DIGITS}{{5,13}})){_AFTER.replace('0-9A-Za-z_', '0-9A-WYZa-wyz_')}",
    regex.I | regex.A,
)
_DATE = regex.compile(
    r"\d{1,2}([./\- ])\d{1,2}\1(?:19|20)\d\d(?!\d)|(?:19|20)\d\d([./\- ])\d{1,2}\2\d{1,2}(?!\d)|"
    r"(?:19|20)\d\d ?[\-/] ?(?:19|20)?\d\d(?!\d)|"
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?![ ]?\d)"
)
_THOUSANDS = regex.compile(r"[1-9]\d{0,2}(?:\.\d{3})+$|[1-9]\d{0,2} \d{3}(?: \d{3})?$(?<!\d{3} \d{3} \d{3})")
_OF_ANOTHER = regex.compile(  # what has a number too, between the word and the number
    r"order|invoice|ticket|case|ref|account|bestell|rechnung|auftrag|konto|pedido|factura|commande|facture|ordine|"
    r"fattura|订单|发票|注文|請求",
    regex.I,
)
_DECIMAL = regex.compile(r"0\.\d+$")
_FEWEST = 7  # digits of a number after a word such as "phone"


@cache
def _valid_numbers(region: str) -> Any:
    """A compiled pattern of the national numbers in use in a region (phonenumbers' metadata)."""
    from phonenumbers import PhoneMetadata  # an extra

    data = PhoneMetadata.metadata_for_region(region)
    if data is None:
        raise ValueError(
            f"region {region!r} of telephone numbers is unknown: use codes of two letters, such as US or DE."
        )
    kinds = (data.fixed_line, data.mobile, data.toll_free, data.premium_rate, data.shared_cost, data.voip, data.uan)
    patterns = [each.national_number_pattern for each in (*kinds, data.personal_number, data.pager) if each is not None]
    return regex.compile("|".join(f"(?:{each})" for each in patterns if each))


def check_regions(regions: Sequence[str]) -> None:
    """Raises ValueError for a region that phonenumbers does not know."""
    for region in regions:
        _valid_numbers(region)


def _is_valid(digits: str, region: str) -> bool:
    """Whether digits are a number in use, dialed inside a region."""
    national = digits if region == "IT" else digits.removeprefix("0")
    return _valid_numbers(region).fullmatch(national) is not None


@cache
def _calling_codes() -> dict[str, tuple[str, ...]]:
    """Calling code -> its regions (those of places without one left out)."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE  # an extra

    return {str(code): tuple(each for each in of if each != "001") for code, of in COUNTRY_CODE_TO_REGION_CODE.items()}


_MARKS_OF_NUMBERS = str.maketrans("", "", " +-./()\t")


def _digits(text: str) -> str:
    return text.translate(_MARKS_OF_NUMBERS)


def phones(text: str, regions: Sequence[str]) -> Iterator[Range]:
    """Telephone numbers: international ones; those of `regions`; and any number after a word such as "phone"."""
    known = set[int]()  # places of digits
    for start, end in (*_of_known_form(text, regions), *_named(text)):
        if known.isdisjoint(range(start, end)):  # a form that is known says better where a number ends
            known.update(range(start, end))
            extension = _EXTENSION.match(text, end)
            yield start, extension.end() if extension is not None else end


def _of_known_form(text: str, regions: Sequence[str]) -> Iterator[Range]:
    for found in _INTERNATIONAL.finditer(text):
        end = _international_end(text, found.start(), found.end())
        if end is not None:
            yield found.start(), end
    trunk = [each for each in regions if each not in ("US", "CA", "ES")]
    for found in _TRUNK.finditer(text) if trunk else ():
        digits = _digits(found[0])
        if not 8 < len(digits) < 13 or _DATE.search(found[0]) or _DECIMAL.match(found[0]):
            continue
        is_written_so = len(found[0]) > len(digits)
        valid = any(_is_valid(digits, region) for region in trunk)
        if valid or is_written_so and found[0].startswith("(") or "/" in found[0] and found[0].count("/") == 1:
            yield found.span()
    if "US" in regions or "CA" in regions:
        for found in _NORTH_AMERICAN.finditer(text):
            is_marked = found[0][0] == "(" or found["m"] == "-" or found["m"] == "."
            if is_marked or _is_valid(_digits(found[0])[-10:], "US") and not _is_money(text, found.start()):
                yield found.span()
    if "CN" in regions:
        for found in _CHINESE_MOBILE.finditer(text):
            yield found.span()
    nine = [each for each in regions if each in ("ES", "PL", "PT", "CZ", "GR", "NO", "DK")]
    for found in _NINE.finditer(text) if nine else ():
        if any(_is_valid(_digits(found[0]), region) for region in nine) and not _is_money(text, found.start()):
            yield found.span()


def _named(text: str) -> Iterator[Range]:
    for found in _NAMED.finditer(text):
        value = found["v"].strip(" ")
        enough = _FEWEST <= len(_digits(value)) <= 15 and not _OF_ANOTHER.search(found["gap"])
        if enough and not _DATE.match(value) and (value[0] == "0" or not _THOUSANDS.match(value)):
            yield found.span("v")


def _is_money(text: str, start: int) -> bool:
    return _MONEY.search(text[max(0, start - 5) : start]) is not None


def _international_end(text: str, start: int, end: int) -> int | None:
    """Where an international number ends, at the latest at `end`; None: it is none.

    It ends where it is a number in use, else where it has as many digits as one may have (E.164: 7 to 15).
    """
    while True:
        if not text[end : end + 1].isdigit():
            digits = _digits(text[start:end])
            prefix = 0 if "+" in text[start : start + 2] else 3 if digits.startswith("011") else 2
            digits = digits[prefix:]
            code = next((digits[:size] for size in (1, 2, 3) if digits[:size] in _calling_codes()), None)
            if code is None or len(digits) < 7:
                return None
            if len(digits) <= 15 and _ends_well(text, start, end, digits, code):
                return end
        cut = regex.search(r"(?r)\d(?=[ .\-/()]+\d)", text, pos=start, endpos=end)  # the group before
        if cut is None or cut.end() >= end:
            return None
        end = cut.end()


def _ends_well(text: str, start: int, end: int, digits: str, code: str) -> bool:
    national = digits[len(code) :]
    if "(0)" in text[start:end]:
        national = national.removeprefix("0")
    if any(_is_valid(national, region) for region in _calling_codes()[code]):
        return True
    # not in use, but written as one: without a group that would stand for something else
    return len(digits) <= 13 and not regex.search(r"[ ]\d{1,2}[./]\d{1,2}", text[start:end])
