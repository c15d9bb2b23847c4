"""The page that a server shows: one file, which loads nothing from anywhere else."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

PAGE = Path(__file__).with_name("page.html")
BLOCKS = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def page_response(request: Request) -> Response:
    """The page."""
    html = read_page()
    headers = {
        "Content-Security-Policy": content_security_policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


@functools.cache
def read_page() -> str:
    """The page's HTML."""
    return PAGE.read_text("utf-8")


@functools.cache
def content_security_policy(html: str) -> str:
    """What a browser lets the page do: run its own script and style, known by their hashes, and ask
    its own server. Nothing that a model writes can run, load or be sent anywhere.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in BLOCKS.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    rules = {
        "default-src": ["'none'"],
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
    }
    return "; ".join(f"{name} {' '.join(values)}" for name, values in rules.items())
