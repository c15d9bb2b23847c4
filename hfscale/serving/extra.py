"""What a server needs beside hfscale itself, and the key that it may ask for."""

import os
from importlib.util import find_spec

from hfscale.process import InputError

KEY = "HFSCALE_API_KEY"


def check_installed() -> None:
    """Raise InputError where the extra `serve` is not installed."""
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise InputError(f'{name}: not installed; pip install "hfscale[serve]"')


def api_key() -> str | None:
    """The key that clients have to show; None: nobody is asked.

    Raises InputError: it is set and empty.
    """
    key = os.environ.get(KEY)
    if key is not None and not key.strip():
        raise InputError(f"{KEY}: empty; give a key, or unset it")
    return key
