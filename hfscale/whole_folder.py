"""A folder that is written whole or not at all, by one run at a time, with its manifest.

Nothing heavy is imported.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hfscale.folders import apply_umask, check_output_folder, clear_disk_errors, remove_written
from hfscale.held_file import held_file
from hfscale.manifest import write_manifest
from hfscale.process import InputError


@contextmanager
def whole_folder(
    output_dir: str, *, overwrite: bool, last_file: str, written: Sequence[str]
) -> Iterator[Path]:
    """An empty folder to write into, which becomes `output_dir` at the end, with a manifest of all
    its files, or is gone after any error.

    Raises InputError: as `check_output_folder`, another run writes it or has written it meanwhile,
    or a disk is full.
    """
    check_output_folder(output_dir, overwrite=overwrite, last_file=last_file, written=written)
    place = f"output_dir {output_dir}"
    folder = Path(output_dir).absolute()
    part = folder.with_name(f".{folder.name}.part")
    with clear_disk_errors(place, "nothing of it is left"), only_writer(place, folder):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        try:
            part.mkdir()
            yield part
            apply_umask(part)
            write_manifest(part)
            _check_still_free(place, folder, overwrite)
            remove_written(place, folder, written)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def only_writer(place: str, folder: Path) -> Iterator[None]:
    """Raises InputError, beginning with `place`, while another process is in here for the same
    folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock.part")
    with ExitStack() as stack:
        try:
            stack.enter_context(held_file(lock, wait=False))
        except BlockingIOError:
            raise InputError(
                f"{place}: another run is writing it now; wait until it has ended, or name another"
            ) from None
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _check_still_free(place: str, folder: Path, overwrite: bool) -> None:
    if os.path.lexists(folder) and not overwrite:
        raise InputError(
            f"{place}: another run has written it meanwhile; name another, or --overwrite it"
        )
