"""What the processes of one launch must have in common, compared before they train together."""

import hashlib
import socket
import sys
from pathlib import Path

from accelerate.utils import gather_object

import hfscale
from hfscale.process import InputError, versions


def check_same_software() -> None:
    """Raise InputError on every rank if one runs other versions, code or arguments than rank 0:
    such ranks train different models, or wait for each other forever. Collective.
    """
    everyone = gather_object([(socket.gethostname(), software())])
    first_host, first = everyone[0]
    for rank, (host, theirs) in enumerate(everyone):
        differing = [
            f"{name} is {theirs.get(name)} there and {first.get(name)} on rank 0 ({first_host})"
            for name in first
            if theirs.get(name) != first[name]
        ]
        if differing:
            raise InputError(
                f"rank {rank} ({host}) differs from rank 0: {'; '.join(differing)}; make the "
                "machines alike and start again on all of them"
            )


def software() -> dict[str, str | None]:
    """Versions of the libraries, and short hashes of hfscale's code, of the script and of its
    arguments.
    """
    package, script = Path(hfscale.__file__).parent, Path(sys.argv[0])
    code = b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
    own = {
        "hfscale's code": code,
        "the script": script.read_bytes() if script.is_file() else b"",
        "the command line": "\0".join(sys.argv[1:]).encode(),
    }
    return versions() | {
        name: hashlib.sha256(content).hexdigest()[:12] for name, content in own.items()
    }
