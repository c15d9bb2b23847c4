"""What the processes of one launch must have in common, compared before they train together."""

import hashlib
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

import hfscale
from hfscale.process import InputError, versions
from hfscale.shown import describe_differences


def check_same_software() -> None:
    """Raise InputError on every rank if one runs other versions, code or arguments than rank 0:
    such ranks train different models, or wait for each other forever. Collective.
    """
    check_same(software(), "make the machines alike and start again on all of them")


def check_same(values: Mapping[str, Any], advice: str) -> None:
    """Raise InputError on every rank, ending with the advice, if one has other values than rank 0.
    Collective.
    """
    everyone = gather_object([(socket.gethostname(), dict(values))])
    first_host, first = everyone[0]
    wording = f"{{name}} is {{now}} there and {{before}} on rank 0 ({first_host})"
    for rank, (host, theirs) in enumerate(everyone):
        if differences := describe_differences(first, theirs, wording=wording):
            raise InputError(f"rank {rank} ({host}) differs from rank 0: {differences}; {advice}")


def software() -> dict[str, str | None]:
    """Versions of the libraries, and short hashes of hfscale's code, of the script and of its
    arguments.
    """
    package = Path(hfscale.__file__).parent
    script = Path(sys.argv[0])
    contents = {
        "hfscale's code": b"".join(path.read_bytes() for path in sorted(package.rglob("*.py"))),
        "the script": script.read_bytes() if script.is_file() else b"",
        "the command line": "\0".join(sys.argv[1:]).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in contents.items()}
    return versions() | hashes
