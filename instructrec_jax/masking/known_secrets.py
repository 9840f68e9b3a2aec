"""Detectors of secrets of known forms: keys and tokens with a prefix, private keys, and what is named a password."""

from collections import deque
from collections.abc import Iterator
from unicodedata import category

import regex

Range = tuple[int, int]

# The forms are those that the providers document (and that secret scanners such as gitleaks look for).
_TOKENS = regex.compile(
    r"(?<![A-Za-z0-9_\-])(?:"
    + "|".join(
        (
            r"(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}",  # AWS
            r"gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}",
            r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat)-[A-Za-z0-9_\-]{16,255}",  # GitLab
            r"xox[abeoprs]-[A-Za-z0-9\-]{10,255}|xapp-[A-Za-z0-9\-]{10,255}",  # Slack
            r"sk-[A-Za-z0-9_\-]{20,255}",  # OpenAI, Anthropic
            r"AIza[A-Za-z0-9_\-]{35}|ya29\.[A-Za-z0-9_\-]{20,512}|GOCSPX-[A-Za-z0-9_\-]{20,64}",  # Google
            r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,255}|whsec_[A-Za-z0-9+/=]{16,255}",  # Stripe
            r"hf_[A-Za-z0-9]{30,255}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,512}|dop_v1_[a-f0-9]{64}",
            r"SG\.[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,64}|(?:SK|AC)[a-f0-9]{32}",  # SendGrid, Twilio
            r"\d{8,10}:AA[A-Za-z0-9_\-]{33}",  # Telegram
            r"eyJ[A-Za-z0-9_\-]{8,4096}\.eyJ[A-Za-z0-9_\-]{4,8192}(?:\.[A-Za-z0-9_\-]{0,2048})?",  # JWT
        )
    )
    + r")(?![A-Za-z0-9_])",
    regex.A,
)
_HOOK = regex.compile(r"hooks\.slack\.com/services/([A-Za-z0-9/]{20,128})", regex.A)
_BEGIN = regex.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_END = regex.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_BODY = regex.compile(r"(?:[A-Za-z0-9+/=:,\- ]{0,80}(?:\n|\r\n|\\n|\Z)){0,200}")  # of a key without its end

_NAMES = (
    r"pass(?:word|wd|phrase|code)|pwd|passwort|kennwort|mot de passe|contrase(?:ñ|n)a|senha|wachtwoord|hasło|parola|"
    r"lösenord|пароль|密码|密碼|口令|パスワード|暗証番号|비밀번호|كلمة المرور|"
    r"secret|client[_\- ]?secret|(?:api|access|auth|account|private|secret|encryption)[_\- ]?key|"
    r"(?:access|auth|refresh|session|bearer|api|id)[_\- ]?token|token|x-api-key|aws_secret_access_key"
)
_QUOTED = r'"(?P<q>(?:[^"\\\n]|\\.){1,512})"|\'(?P<s>(?:[^\'\\\n]|\\.){1,512})\''
# (?!...) a variable, a placeholder or a type in place of a value
_BARE = (
    r"(?P<v>(?!<|\{|\[|\$[{(]|(?-i:\$[A-Z_]{2,}|%[A-Z_]+%)(?![^\s\"'&;,)])|\*{3}|"
    r"(?:null|none|true|false|str|string|os|env|required|optional)\b)"
    r"[^\s\"'&;,<>\p{Han}\p{Hiragana}\p{Katakana}。、「」『』]{3,512})"
)
_CODE = regex.compile(r"[A-Za-z_][A-Za-z_.]*[\[(].*|[A-Z_]+")  # a call or a constant in place of a value
_ASSIGNED = regex.compile(
    rf"(?:{_NAMES})(?P<end>[\"'\]]?)(?:[ \t]{{0,3}}(?:=>|:=|=|:)[ \t]{{0,3}}|"
    rf"[ \t]{{1,2}}(?:is|ist|es|est|è|é|to)[ \t:]{{1,3}}|(?P<cjk>[是为為は][ \t:]{{0,2}}))(?:{_QUOTED}|{_BARE})",
    regex.I,
)
_AUTHORIZATION = regex.compile(
    r"(?:authorization[\"']?[ \t]{0,3}[:=][ \t]{0,3}[\"']?(?:bearer|basic|token|digest|apikey)?|"
    r"(?<![a-z])(?:bearer|basic)) ?[ \t]{0,3}(?P<v>[A-Za-z0-9._~+/\-]{8,4096}={0,2})",
    regex.I | regex.A,
)


def secrets(text: str) -> Iterator[Range]:
    """Keys and tokens of known forms, private keys (PEM), what is named password, token or key, authorization."""
    for found in _TOKENS.finditer(text):
        yield found.span()
    for found in _HOOK.finditer(text):
        yield found.span(1)
    yield from _private_keys(text)
    for found in _AUTHORIZATION.finditer(text):
        value = found["v"]
        if found[0][0] in "aA" or len(value) >= 16 and any(each.isdigit() for each in value):
            yield found.span("v")
    for found in _ASSIGNED.finditer(text):
        name = next(each for each in ("q", "s", "v") if found[each] is not None)
        start, end = found.span(name)
        if name == "v":
            end = start + len(found[name].rstrip(".)]}!?:。，、；）」』"))
            if _CODE.fullmatch(text, start, end):
                continue
        between = text[found.end("end") : start]
        if end > start and (name != "v" and "=" in between or "=" in between or _looks_secret(text[start:end])):
            yield start, end


def _looks_secret(value: str) -> bool:
    """Whether a value after a colon or a verb is rather a secret than the next word of the sentence."""
    if value.startswith("<") and value.endswith(">"):
        return False
    has_digit = any(each.isdigit() for each in value)
    has_letter = any(each.isalpha() for each in value)
    has_mark = any(category(each)[0] in "PS" for each in value[1:-1] if each not in "-'’._/ ")
    return len(value) >= 4 and (has_digit and (has_letter or len(value) <= 12) or has_letter and has_mark)


def _private_keys(text: str) -> Iterator[Range]:
    begins = list(_BEGIN.finditer(text))
    ends = deque(end.span() for end in _END.finditer(text))
    for number, begin in enumerate(begins):
        following = begins[number + 1].start() if number + 1 < len(begins) else len(text)
        while ends and ends[0][0] < begin.end():
            ends.popleft()
        if ends and ends[0][1] <= following:
            yield begin.start(), ends[0][1]
        else:  # cut off: what looks like its lines
            body = _BODY.match(text, begin.end(), following)
            yield begin.start(), max(begin.end(), body.end() if body is not None else 0)
