"""Detectors of national identity, tax, health and social-security numbers.

A number is masked where its form is rare in other texts and its check digits are right (python-stdnum); where its form
is that of any number, only after a word that names it.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import regex

Range = tuple[int, int]

_BEFORE = r"(?<![0-9A-Za-z_])(?<!\d[.,\-/])"
_AFTER = r"(?![0-9A-Za-z_]|[.,\-/]\d)"
_NEAR = 48  # characters between the word and the end of the number


@dataclass(frozen=True)
class Rule:
    """One kind of number.

    Attributes:
      check: name of a module of stdnum, with `is_valid`; "": the form alone decides.
      form: a regular expression of bounded length.
      words: a regular expression of words that name the number; "": it is found without.
    """

    check: str
    form: str
    words: str = ""


_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
_NINE = r"\d{3}[ .\-]?\d{3}[ .\-]?\d{3}"
_TWELVE = r"\d{4}[ \-]?\d{4}[ \-]?\d{4}"
_SOCIAL_US = r"SSN|ITIN|TIN|social (?:security|insurance)|tax(?:payer)? id"
RULES = (
    Rule("us.ssn", r"\d{3}-\d{2}-\d{4}"),
    Rule("us.itin", r"9\d{2}-\d{2}-\d{4}"),
    Rule("", r"\d{3}[ \-]?\d{2}[ \-]?\d{4}", _SOCIAL_US),
    Rule("", r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]"),
    Rule("", r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-DT]", r"national insurance|NINO|NI n(?:o|umber)"),
    Rule("gb.nhs", r"\d{3}[ \-]?\d{3}[ \-]?\d{4}", r"NHS|CHI|health"),
    Rule("gb.utr", r"\d{5} ?\d{5}", r"UTR|taxpayer"),
    Rule("de.idnr", r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}"),
    Rule("", rf"\d{{2}} ?{_DAY}{_MONTH}\d{{2}} ?[A-Z] ?\d{{3}}"),  # German pension insurance
    Rule("fr.nir", r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"),
    Rule("fr.nif", r"[0-3]\d ?\d{2} ?\d{3} ?\d{3} ?\d{3}", r"fiscal|SPI|impôt"),
    Rule("es.dni", r"\d{2}\.?\d{3}\.?\d{3}(?:-?[A-Z]| (?-i:[A-Z]))"),
    Rule("es.nie", r"[XYZ][ \-]?\d{7}[ \-]?[A-Z]"),
    Rule("it.codicefiscale", r"[A-Z]{3} ?[A-Z]{3} ?[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2} ?[A-Z][0-9LMNP-V]{3}[A-Z]"),
    Rule("cn.ric", r"[1-9]\d{5} ?(?:18|19|20)\d{2} ?\d{4} ?\d{3}[0-9X]"),
    Rule("jp.in_", _TWELVE, r"マイナンバー|個人番号|my ?number|individual number"),
    Rule("in_.aadhaar", _TWELVE, r"a?adhaa?r|आधार|UIDAI"),
    Rule("in_.pan", r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]"),
    Rule("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    Rule("br.cpf", r"\d{11}|\d{9}-\d{2}", r"CPF"),
    Rule("nl.bsn", _NINE, r"BSN|burgerservice|sofi"),
    Rule("se.personnummer", rf"(?:19|20)?\d{{2}}{_MONTH}(?:{_DAY}|[6-9]\d)[\-+]\d{{4}}"),
    Rule("pl.pesel", r"\d{11}", r"PESEL"),
    Rule("ch.ssn", r"756[. ]\d{4}[. ]\d{4}[. ]\d{2}|756\d{10}"),
    Rule("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    Rule("be.nn", r"\d{11}", r"rijksregister|registre national|NISS|INSZ"),
    Rule("fi.hetu", rf"{_DAY}{_MONTH}\d{{2}}[\-+A-FU-Y]\d{{3}}[0-9A-Z]"),
    Rule("dk.cpr", rf"{_DAY}{_MONTH}\d{{2}}-?\d{{4}}", r"CPR"),
    Rule("no.fodselsnummer", r"[0-7]\d[0-5]\d{3} ?\d{5}"),
    Rule("ca.sin", _NINE, r"SIN\b|NAS\b|social insurance"),
    Rule("kr.rrn", rf"\d{{2}}{_MONTH}{_DAY}-[1-8]\d{{6}}"),
    Rule("mx.curp", rf"[A-Z]{{4}}\d{{2}}{_MONTH}{_DAY}[HMX][A-Z]{{5}}[0-9A-Z]\d"),
    Rule("pt.nif", _NINE, r"NIF|contribuinte"),
    Rule("pt.cc", r"\d{8} ?\d ?[A-Z0-9]{2}\d", r"cart[ãa]o de cidad[ãa]o|\bCC\b"),
    Rule("ro.cnp", rf"[1-8]\d{{2}}{_MONTH}{_DAY}\d{{6}}"),
    Rule("tr.tckimlik", r"[1-9]\d{10}", r"T\.?C\.?|kimlik"),
    Rule("za.idnr", rf"\d{{2}}{_MONTH}{_DAY} ?\d{{4}} ?[01]\d{{2}}"),
    Rule("au.tfn", r"\d{3} ?\d{3} ?\d{2,3}", r"TFN|tax file"),
    Rule("bg.egn", r"\d{10}", r"EGN|ЕГН"),
    Rule("hr.oib", r"\d{11}", r"OIB"),
    Rule("cz.rc", r"\d{2}(?:[05][1-9]|[16][0-2]|[27]\d|[38]\d)\d{2}/\d{3,4}"),
    Rule("il.idnr", r"\d{8}-?\d", r"teudat|תעודת זהות|ת\.ז"),
    Rule("gr.amka", r"\d{11}", r"AMKA|ΑΜΚΑ"),
    Rule("at.vnr", r"\d{4} ?\d{6}", r"SVNR|sozialversicherung|versicherungsnummer"),
    Rule("ie.pps", r"\d{7}[A-W][A-IW]?", r"PPS"),
)


@cache
def _validator(name: str) -> Callable[[str], bool]:
    return importlib.import_module(f"stdnum.{name}").is_valid


@cache
def _compiled(form: str) -> regex.Pattern[str]:
    return regex.compile(rf"{_BEFORE}(?:{form}){_AFTER}", regex.I | regex.A)


_NAMED = [rule for rule in RULES if rule.words]
_UNNAMED = [rule for rule in RULES if not rule.words]
_ANY = _compiled("|".join(rule.form for rule in _UNNAMED))  # one search for all of them
_WORDS = regex.compile(rf"(?<![A-Za-z])(?:{'|'.join(rule.words for rule in _NAMED)})", regex.I | regex.A)


def _is_chinese(number: str) -> bool:
    """A birthday and the check digit; not the place of birth, since stdnum's list lacks districts of earlier years."""
    from stdnum.cn import ric  # an extra
    from stdnum.exceptions import ValidationError

    number = number.replace(" ", "")
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return False
    return bool(ric.calc_check_digit(number) == number[-1])


def _is_valid(rule: Rule, value: str) -> bool:
    if rule.check == "cn.ric":
        return _is_chinese(value.upper())
    return not rule.check or _validator(rule.check)(value.upper())  # which drops the marks of its country


def national_ids(text: str) -> Iterator[Range]:
    """Numbers of persons that states, tax offices and insurances give out."""
    for candidate in _ANY.finditer(text, overlapped=True):
        for rule in _UNNAMED:
            found = _compiled(rule.form).match(text, candidate.start())
            if found is not None and _is_valid(rule, found[0]):
                yield found.span()
                break
    for word in _WORDS.finditer(text):
        for rule in _NAMED:
            if not _compiled_words(rule.words).match(word[0]):
                continue
            found = _compiled(rule.form).search(text, word.end(), word.end() + _NEAR)
            if found is not None and _is_valid(rule, found[0]):
                yield found.span()


@cache
def _compiled_words(words: str) -> regex.Pattern[str]:
    return regex.compile(words, regex.I | regex.A)
