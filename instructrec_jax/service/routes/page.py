"""The page at `/`: one file without foreign scripts, under a strict policy."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(tags=["page"], include_in_schema=False)


@cache
def _page() -> tuple[str, dict[str, str]]:
    """The page, and its headers: only its own script and style run, and it talks to this service alone."""
    text = (files("instructrec_jax.service") / "page" / "index.html").read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(text: str, tag: str) -> str:
    """The CSP source of the only element of this kind (W3C, Content Security Policy Level 3, 2.3.1)."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@router.get("/")
async def page() -> HTMLResponse:
    """Recommend, chat, classify, draw and a status view, in a browser."""
    text, headers = _page()
    return HTMLResponse(text, headers=headers)
