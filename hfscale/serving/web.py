"""The page for one person on this machine."""

import os
import sys
import webbrowser
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import torch

from hfscale.serving.app import Limits, Server
from hfscale.serving.extra import api_key
from hfscale.serving.served_model import load_served
from hfscale.serving.server import LOOPBACK_NAMES, bind, serve, url_of
from hfscale.shown import show_text

TEXTS_AT_ONCE = 8
MOST_REQUEST_BYTES = 2_000_000


def serve_page(name: str, *, port: int, settings: Mapping[str, Any], **loading: Any) -> None:
    """Serve a model's page on loopback until a signal comes, and open it where there is a screen.

    `settings` are those that the page begins with, by the names of its fields; `loading` goes to
    `load_model`.

    Raises InputError: as `bind` and `load_served`.
    """
    listener = bind("127.0.0.1", port)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    served = load_served(
        name, device=device, batch_size=TEXTS_AT_ONCE, chat_template=None, **loading
    )
    fragment = urlencode(settings)
    url = f"{url_of(listener)}/{'#' * bool(fragment)}{fragment}"
    show_text(f"{name} is on {url} (Ctrl-C ends)", flush=True)
    if _has_screen():
        webbrowser.open(url)
    limits = Limits(MOST_REQUEST_BYTES, max_tokens=None, queue_size=TEXTS_AT_ONCE)
    server = Server({name: served}, limits, api_key=api_key(), hosts=LOOPBACK_NAMES)
    serve(server, listener, seconds_to_stop=1)


def _has_screen() -> bool:
    """Whether a browser opens a window, and does not take the terminal."""
    has_window = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return has_window and sys.stdout.isatty()
