"""Made texts with personal data in eight locales, and what masking finds in them: recall and precision.

    python scripts/personal_data.py measure                     5,000 texts (seed 1), by kind and by locale
    python scripts/personal_data.py measure --seed 2            others: no detector was changed by looking at them
    python scripts/personal_data.py write --out texts.jsonl     the texts, with the places of their values
    python scripts/personal_data.py false_masks FILE... [--column text]   masks in texts of yours

`--locales nl_NL ko_KR` makes English sentences with the names and numbers of other countries. Names, numbers and
addresses are Faker's (frozen by the seed and Faker's version); what Faker has not, tax numbers of Germany and Japan
and secrets, is made here with right check digits. A value counts as found where every letter and digit of it is
masked, as whatever kind; a mask is right where nine tenths of its letters and digits belong to values. Most texts
have sentences with numbers that are nobody's: amounts, dates, orders, versions, postal addresses.
"""

import argparse
import csv
import gzip
import io
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from faker import Faker

from instructrec_jax.files import write_jsonl
from instructrec_jax.masking.kinds import KINDS
from instructrec_jax.masking.masker import MaskConfig, Masker
from instructrec_jax.masking.spans import Span

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "zh_CN", "ja_JP")
COUNT = 5000
# Sentences around a value {v}, by language and kind; {n} is a name.
SENTENCES: dict[str, dict[str, list[str]]] = {
    "en": {
        "email": [
            "Please write to {v}.",
            "{n} <{v}> asked for a refund.",
            "My address is {v}, thanks!",
            "Send it to '{v}' (not to me).",
        ],
        "phone": [
            "Call me at {v} after five.",
            "{n}, phone: {v}",
            "My number is {v}.",
            "You can reach {n} on {v}, or in the office.",
        ],
        "card": ["My card {v} was charged twice.", "Card number: {v}, please check.", "I paid with {v}."],
        "iban": ["Transfer it to {v}.", "IBAN {v}, holder {n}", "The account {v} belongs to {n}."],
        "national_id": ["{i} {v}.", "For your records, my {i} is {v}.", "{n} ({i}: {v})"],
        "ip": ["The login came from {v}.", "Host {v} does not answer.", "Blocked {v}: too many attempts."],
        "mac": ["The router has the address {v}.", "Device {v} is offline."],
        "credentials": [
            "Clone https://{v}@git.example.com/app.git first.",
            "DATABASE_URL=postgres://{v}@db.internal:5432/shop",
        ],
        "secret": ["The key {v} leaked.", "api_key={v}", "Authorization: Bearer {v}", "It fails with {v}, why?"],
        "password": ["password={v}", 'My login does not work, password: "{v}"', "The password is {v}"],
    },
    "de": {
        "email": ["Schreiben Sie bitte an {v}.", "{n} ({v}) hat sich beschwert.", "Meine E-Mail lautet {v}!"],
        "phone": [
            "Rufen Sie mich unter {v} an.",
            "Tel.: {v}",
            "Meine Handynummer ist {v}, danke.",
            "{n}, {v}, ab 17 Uhr",
        ],
        "card": ["Meine Karte {v} wurde gesperrt.", "Kartennummer: {v}"],
        "iban": ["Bitte überweisen Sie auf {v}.", "IBAN: {v}", "Das Konto {v} gehört {n}."],
        "national_id": ["Meine {i} lautet {v}.", "{i}: {v}", "{n}, {v}"],
        "ip": ["Der Zugriff kam von {v}.", "Server {v} antwortet nicht."],
        "mac": ["Der Router hat die Adresse {v}."],
        "credentials": ["Siehe ftp://{v}@files.example.de/bilder"],
        "secret": ["Der Schlüssel {v} ist öffentlich.", "token: {v}"],
        "password": ["Passwort: {v}", "Mein Passwort ist {v}"],
    },
    "fr": {
        "email": ["Écrivez à {v}.", "{n} ({v}) demande un remboursement.", "Mon adresse : {v} !"],
        "phone": ["Appelez-moi au {v}.", "Tél. : {v}", "Mon portable est le {v}, merci.", "{n} - {v} - le soir"],
        "card": ["Ma carte {v} est bloquée.", "Numéro de carte : {v}"],
        "iban": ["Virement sur {v}.", "IBAN : {v}", "Le compte {v} est à {n}."],
        "national_id": ["Mon {i} est le {v}.", "{i} : {v}", "{n}, {v}"],
        "ip": ["Connexion depuis {v}.", "Le serveur {v} ne répond pas."],
        "mac": ["Le routeur a l'adresse {v}."],
        "credentials": ["Voir https://{v}@depot.example.fr/x"],
        "secret": ["La clé {v} est publique.", "token : {v}"],
        "password": ["mot de passe : {v}", "Mon mot de passe est {v}"],
    },
    "es": {
        "email": ["Escriba a {v}.", "{n} ({v}) pide un reembolso.", "Mi correo es {v}, gracias."],
        "phone": ["Llámame al {v}.", "Teléfono: {v}", "Mi móvil es {v}.", "{n}, {v}, por la tarde"],
        "card": ["Mi tarjeta {v} está bloqueada.", "Número de tarjeta: {v}"],
        "iban": ["Transfiera a {v}.", "IBAN: {v}", "La cuenta {v} es de {n}."],
        "national_id": ["Mi {i} es {v}.", "{i}: {v}", "{n}, con {v}"],
        "ip": ["El acceso vino de {v}.", "El servidor {v} no responde."],
        "mac": ["El router tiene la dirección {v}."],
        "credentials": ["Vea https://{v}@repo.example.es/x"],
        "secret": ["La clave {v} es pública.", "token: {v}"],
        "password": ["contraseña: {v}", "Mi contraseña es {v}"],
    },
    "it": {
        "email": ["Scriva a {v}.", "{n} ({v}) chiede un rimborso.", "La mia mail: {v}!"],
        "phone": ["Chiamami al {v}.", "Tel. {v}", "Il mio numero è {v}.", "{n}, cellulare {v}"],
        "card": ["La mia carta {v} è bloccata.", "Numero della carta: {v}"],
        "iban": ["Bonifico su {v}.", "IBAN: {v}", "Il conto {v} è di {n}."],
        "national_id": ["Il mio {i} è {v}.", "{i}: {v}", "{n}, {v}"],
        "ip": ["Accesso da {v}.", "Il server {v} non risponde."],
        "mac": ["Il router ha l'indirizzo {v}."],
        "credentials": ["Vedi https://{v}@repo.example.it/x"],
        "secret": ["La chiave {v} è pubblica.", "token: {v}"],
        "password": ["password: {v}", "La mia password è {v}"],
    },
    "zh": {
        "email": ["我的邮箱是{v}，谢谢。", "请发到{v}", "{n}（{v}）要求退款。"],
        "phone": ["请拨打{v}联系我。", "手机：{v}", "我的电话是{v}。", "{n}，{v}，晚上有空"],
        "card": ["我的卡{v}被锁了。", "卡号：{v}"],
        "iban": ["请转到{v}。", "IBAN：{v}"],
        "national_id": ["我的{i}是{v}。", "{i}：{v}", "{n}，{v}"],
        "ip": ["登录来自{v}。", "服务器{v}没有响应。"],
        "mac": ["路由器地址是{v}。"],
        "credentials": ["见 https://{v}@repo.example.cn/x"],
        "secret": ["密钥{v}泄露了。", "token：{v}"],
        "password": ["密码：{v}", "我的密码是{v}"],
    },
    "ja": {
        "email": ["{v}までご連絡ください。", "メールは{v}です。", "{n}（{v}）が返金を希望しています。"],
        "phone": ["電話番号は{v}です。", "携帯：{v}", "{n}の連絡先は{v}です。"],
        "card": ["カード{v}が使えません。", "カード番号：{v}"],
        "iban": ["{v}に振り込んでください。", "IBAN：{v}"],
        "national_id": ["{i}は{v}です。", "{i}：{v}"],
        "ip": ["{v}からログインがありました。", "サーバー{v}が応答しません。"],
        "mac": ["ルーターのアドレスは{v}です。"],
        "credentials": ["https://{v}@repo.example.jp/x を見てください。"],
        "secret": ["キー{v}が漏れました。", "token：{v}"],
        "password": ["パスワード：{v}", "パスワードは{v}です。"],
    },
}
# Sentences with numbers of nobody.
OTHERS = {
    "en": [
        "Order {order} of {date} cost {amount}.",
        "The flight on {date} at {time} was late.",
        "Revenue rose to EUR {amount} mn from EUR {amount} mn in {year}.",
        "Version {version} needs {small} GB.",
        "Parcel {order} weighs {small} kg.",
        "See chapter {small}.{small}, pages {small}-{year}.",
        "ISBN {isbn}, {year}.",
    ],
    "de": [
        "Die Bestellung {order} vom {date} kostete {amount}.",
        "Der Flug am {date} um {time} war verspätet.",
        "Version {version} braucht {small} GB.",
        "Rechnung Nr. {order} über {amount} Euro.",
        "ISBN {isbn}.",
    ],
    "fr": [
        "La commande {order} du {date} a coûté {amount}.",
        "Le vol du {date} à {time} avait du retard.",
        "La version {version} demande {small} Go.",
        "Facture no {order} de {amount} euros.",
    ],
    "es": [
        "El pedido {order} del {date} costó {amount}.",
        "El vuelo del {date} a las {time} llegó tarde.",
        "La versión {version} pide {small} GB.",
        "Factura {order} de {amount} euros.",
    ],
    "it": [
        "L'ordine {order} del {date} è costato {amount}.",
        "Il volo del {date} alle {time} era in ritardo.",
        "La versione {version} chiede {small} GB.",
        "Fattura {order} di {amount} euro.",
    ],
    "zh": [
        "{date}的订单{order}花了{amount}元。",
        "{time}的航班晚点了。",
        "版本{version}需要{small}GB。",
        "发票{order}，{year}年。",
    ],
    "ja": [
        "{date}の注文{order}は{amount}円でした。",
        "{time}の便が遅れました。",
        "バージョン{version}には{small}GB必要です。",
        "請求書{order}、{year}年。",
    ],
}
ID_NAMES = {
    "en_US": ["SSN", "social security number"],
    "en_GB": ["National Insurance number", "NI number"],
    "de_DE": ["Steuer-ID", "Steueridentifikationsnummer"],
    "fr_FR": ["numéro de sécurité sociale", "NIR"],
    "es_ES": ["DNI", "NIE"],
    "it_IT": ["codice fiscale", "CF"],
    "zh_CN": ["身份证号", "身份证号码"],
    "ja_JP": ["マイナンバー", "個人番号"],
}


@dataclass(frozen=True)
class Made:
    """A text with the places of its values."""

    locale: str
    text: str
    spans: tuple[Span, ...]


# ------------------------------------------------------------------ values


def _grouped(value: str, size: int, mark: str) -> str:
    return mark.join(value[place : place + size] for place in range(0, len(value), size))


def _card(fake: Any, draw: random.Random) -> str:
    value = fake.credit_card_number()
    return _grouped(value, 4, draw.choice(" -")) if len(value) == 16 and draw.random() < 0.5 else value


def _iban(fake: Any, locale: str, draw: random.Random) -> str:
    # countries without IBANs: Faker's for them have a length that no bank has
    if locale in ("en_US", "zh_CN", "ja_JP"):
        fake = Faker("de_DE")
        fake.seed_instance(draw.randrange(10**9))
    value = _grouped(fake.iban(), 4, " ") if draw.random() < 0.5 else fake.iban()
    return value.lower() if draw.random() < 0.1 else value


def _steuer_id(draw: random.Random) -> str:
    """An identification number of Germany: ten digits, one of them twice, and a check digit (ISO 7064, MOD 11,10)."""
    from stdnum.iso7064 import mod_11_10

    digits = draw.sample("0123456789", 9)
    digits.insert(draw.randrange(1, 9), digits[draw.randrange(9)])
    if digits[0] == "0" or len(set(digits)) != 9:
        return _steuer_id(draw)
    number = "".join(digits)
    number += mod_11_10.calc_check_digit(number)
    return f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}" if draw.random() < 0.5 else number


def _my_number(draw: random.Random) -> str:
    from stdnum.jp import in_

    number = "".join(draw.choices(string.digits, k=11))
    number += in_.calc_check_digit(number)
    return _grouped(number, 4, draw.choice(["", " ", "-"]))


def _nino(draw: random.Random) -> str:
    number = f"{draw.choice('ABCEHJLMPRSW')}{draw.choice('ABCEHJLMPRSW')}" + "".join(draw.choices(string.digits, k=6))
    number += draw.choice("ABCD")
    return _grouped(number, 2, " ") if draw.random() < 0.5 else number


def _day(draw: random.Random) -> datetime:
    """Not Faker's, which depends on today."""
    return datetime(1970, 1, 1) + timedelta(seconds=draw.randrange(55 * 365 * 86400))


def _chinese(fake: Any, draw: random.Random) -> str:
    from stdnum.cn import ric

    number = f"{fake.ssn()[:6]}{_day(draw):%Y%m%d}{draw.randrange(1000):03}"
    return number + str(ric.calc_check_digit(number + "0"))


def _national_id(fake: Any, locale: str, draw: random.Random) -> str:
    made: dict[str, Callable[[], str]] = {
        "en_GB": lambda: fake.ssn() if draw.random() < 0.5 else _nino(draw),
        "de_DE": lambda: _steuer_id(draw),
        "es_ES": lambda: fake.nie() if draw.random() < 0.5 else fake.nif(),
        "zh_CN": lambda: _chinese(fake, draw),
        "ja_JP": lambda: _my_number(draw),
    }
    return str(made.get(locale, fake.ssn)())


def _secret(draw: random.Random) -> str:
    def some(letters: str, count: int) -> str:
        return "".join(draw.choices(letters, k=count))

    word, upper = string.ascii_letters + string.digits, string.ascii_uppercase + string.digits
    jwt = ".".join(("eyJ" + some(word, 17), "eyJ" + some(word, 40), some(word, 43)))
    forms = ["AKIA" + some(upper, 16), "ghp_" + some(word, 36), "glpat-" + some(word, 20), "AIza" + some(word, 35), jwt]
    forms += [f"xoxb-{some(string.digits, 12)}-{some(word, 24)}", "sk-" + some(word, 48), "sk_live_" + some(word, 24)]
    return draw.choice(forms)


def _password(fake: Any) -> str:
    return str(fake.password(length=12)).translate(str.maketrans("&;,:.!?)(@/%#'\"<>", "x" * 17))


def _value(kind: str, fake: Any, locale: str, draw: random.Random) -> str:
    made: dict[str, Callable[[], str]] = {
        "email": lambda: draw.choice([fake.email, fake.company_email, fake.free_email, fake.ascii_email])(),
        "phone": fake.phone_number,
        "card": lambda: _card(fake, draw),
        "iban": lambda: _iban(fake, locale, draw),
        "national_id": lambda: _national_id(fake, locale, draw),
        "ip": lambda: fake.ipv4() if draw.random() < 0.6 else fake.ipv6(),
        "mac": fake.mac_address,
        "credentials": lambda: f"{fake.user_name()}:{_password(fake)}",
        "secret": lambda: _secret(draw),
        "password": lambda: _password(fake),
    }
    return str(made[kind]())


# ------------------------------------------------------------------ texts


def _other(fake: Any, language: str, draw: random.Random) -> str:
    if draw.random() < 0.4:
        return str(draw.choice([fake.sentence, fake.sentence, lambda: fake.address().replace("\n", ", ")])())
    amount = draw.randrange(1, 10**9) / 100
    day = _day(draw)
    marks = "X".join if language == "en" else ".".join
    shown = f"{amount:,.2f}"
    if language in ("de", "es", "it", "fr"):
        shown = shown.translate(str.maketrans(",.", ".," if language != "fr" else " ,"))
    values = {
        "order": draw.choice(
            [
                f"{draw.randrange(10**6, 10**8)}",
                f"A-{draw.randrange(10**5)}-{draw.randrange(10**4)}",
                marks((f"{draw.randrange(1000)}", f"{draw.randrange(100)}")),
            ]
        ),
        "date": day.strftime(draw.choice(["%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%Y%m%d"])),
        "time": day.strftime("%H:%M:%S"),
        "amount": shown,
        "year": str(draw.randrange(1970, 2026)),
        "version": f"{draw.randrange(20)}.{draw.randrange(30)}.{draw.randrange(99)}",
        "small": str(draw.randrange(1, 500)),
        "isbn": fake.isbn13(),
    }
    return draw.choice(OTHERS[language]).format(**values)


def make(count: int, seed: int, locales: Sequence[str] = LOCALES) -> Iterator[Made]:
    """Texts in turn of each locale, the same for the same seed and version of Faker."""
    draw = random.Random(seed)
    fakes = {locale: Faker(locale) for locale in locales}
    for locale, fake in fakes.items():
        fake.seed_instance(seed * 1000 + locales.index(locale))
    for number in range(count):
        locale = locales[number % len(locales)]
        yield _text(locale, fakes[locale], draw)


def _text(locale: str, fake: Any, draw: random.Random) -> Made:
    language = locale[:2] if locale[:2] in SENTENCES else "en"
    text, spans = "", []
    sentences = [_other(fake, language, draw) for _ in range(draw.randrange(1, 3))]
    kinds = draw.choices([*KINDS, "password"], k=draw.choice([0, 1, 1, 2, 3]))
    for kind in draw.sample([*kinds, *[""] * len(sentences)], len(kinds) + len(sentences)):
        if text:
            # without spaces a sentence ends with its own mark
            text += draw.choice(["\n", "" if language in ("zh", "ja") and text[-1] in "。，！" else " "])
        if not kind:
            text += sentences.pop()
            continue
        sentence = draw.choice(SENTENCES[language][kind])
        value = _value(kind, fake, locale, draw)
        before, after = (
            sentence.replace("{n}", fake.name()).replace("{i}", draw.choice(ID_NAMES.get(locale, ["ID"]))).split("{v}")
        )
        text += before
        spans.append(Span(len(text), len(text) + len(value), "secret" if kind == "password" else kind))
        text += value + after
    return Made(locale, text, tuple(spans))


# ------------------------------------------------------------------ measurement


def _covered(inner: Span, outer: Sequence[Span], text: str) -> float:
    """Share of the letters and digits of a span that lie in others."""
    places = [place for place in range(inner.start, inner.end) if text[place].isalnum()]
    hidden = [place for place in places if any(each.start <= place < each.end for each in outer)]
    return len(hidden) / len(places) if places else 1.0


@dataclass(frozen=True)
class Measured:
    """Counts by kind and by locale: values, those found, masks, right masks.

    `wrong`: (what, locale, kind, value, text) of each value missed and each wrong mask.
    """

    counts: dict[str, Counter[str]]
    wrong: list[tuple[str, str, str, str, str]]

    def row(self, name: str) -> str:
        count = self.counts[name]
        recall, precision = count["found"] / max(count["values"], 1), count["right"] / max(count["masks"], 1)
        return f"| {name} | {count['values']:,} | {recall:.4f} | {count['masks']:,} | {precision:.4f} |"

    def ratio(self, part: str, whole: str) -> float:
        return self.counts["all"][part] / self.counts["all"][whole]


def measure(texts: Iterator[Made], masker: Masker) -> Measured:
    """What masking finds in texts with known values."""
    counts: dict[str, Counter[str]] = {}
    wrong = []

    def count(kind: str, locale: str, what: str) -> None:
        for name in (kind, locale, "all"):
            counts.setdefault(name, Counter())[what] += 1

    for made in texts:
        masks = masker.find(made.text)
        for span in made.spans:
            count(span.kind, made.locale, "values")
            if _covered(span, masks, made.text) == 1:
                count(span.kind, made.locale, "found")
            else:
                wrong.append(("missed", made.locale, span.kind, made.text[span.start : span.end], made.text))
        for span in masks:
            count(span.kind, made.locale, "masks")
            if _covered(span, made.spans, made.text) >= 0.9:
                count(span.kind, made.locale, "right")
            else:
                wrong.append(("wrong", made.locale, span.kind, made.text[span.start : span.end], made.text))
    return Measured(counts, wrong)


def texts_of(file: Path, column: str) -> list[str]:
    """The lines of a text file, or a column of CSV or of JSON lines; gzipped or not."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    name, text = file.name.removesuffix(".gz"), data.decode()
    if name.endswith(".csv"):
        return [row[column] for row in csv.DictReader(io.StringIO(text))]
    if name.endswith(".jsonl"):
        return [str(json.loads(line)[column]) for line in text.splitlines() if line.strip()]
    return text.splitlines()


def false_masks(texts: Sequence[str], masker: Masker) -> tuple[int, list[str]]:
    """(number of words, what is masked) of texts."""
    masked = [text[span.start : span.end] for text in texts for span in masker.find(text)]
    return sum(len(re.findall(r"\w+", text)) for text in texts), masked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "write", "false_masks"])
    parser.add_argument("files", nargs="*", type=Path, help="of false_masks: texts, CSV or JSON lines")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--locales", nargs="+", default=LOCALES)
    parser.add_argument("--out", type=Path, default=Path("texts.jsonl"))
    parser.add_argument("--column", default="text")
    parser.add_argument("--show", type=int, default=0, help="number of wrong and missed values to print")
    arguments = parser.parse_args()
    if arguments.command == "write":
        rows = [
            {"locale": each.locale, "text": each.text, "spans": [[s.start, s.end, s.kind] for s in each.spans]}
            for each in make(arguments.count, arguments.seed, arguments.locales)
        ]
        write_jsonl(arguments.out, rows)
        return
    masker = Masker(MaskConfig(kinds=["all"]))
    if arguments.command == "false_masks":
        for file in arguments.files:
            words, masked = false_masks(texts_of(file, arguments.column), masker)
            print(
                f"{file.name}: {len(masked)} masks in {words:,} words, {1000 * len(masked) / words:.3f} in 1,000 words"
            )
            print("\n".join(f"  {value!r}" for value in masked[: arguments.show]), end="\n" if arguments.show else "")
        return
    found = measure(make(arguments.count, arguments.seed, arguments.locales), masker)
    print("| | values | recall | masks | precision |\n|---|---|---|---|---|")
    print("\n".join(found.row(name) for name in (*KINDS, *arguments.locales, "all") if name in found.counts))
    for each in found.wrong[: arguments.show]:
        print(*map(repr, each), sep="\t")


if __name__ == "__main__":
    main()
