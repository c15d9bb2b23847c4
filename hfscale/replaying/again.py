"""A run's recipe, started again in this process."""

import json
import os
from typing import Any

from hfscale.api import command_words, recipe_module
from hfscale.process import EXPECTED_START, InputError, is_main_rank
from hfscale.replaying.comparison import start_in
from hfscale.replaying.original import Original, read_original
from hfscale.training.traces import StartDiffersError


def train_again(
    original: Original, options: dict[str, Any], *, expected: dict[str, Any] | None
) -> tuple[Original | None, dict[str, Any]]:
    """The run that came of it, and what it began with (see `start_in`). On rank 0; the others get
    None and nothing.

    Args:
        options: of `replay_options`, with a place.
        expected: what it has to begin with. Where it does not, it ends before its first step, and
            there is no run. None: it trains whatever it begins with.

    Raises InputError: as the recipe, such as for a file that its record names and that is gone.
    """
    recipe = recipe_module(original.record["recipe"])
    if expected is not None:
        os.environ[EXPECTED_START] = json.dumps(expected)
    try:
        recipe.main(command_words((), options))
    except StartDiffersError as error:
        return None, error.start._asdict()
    except InputError as error:
        raise InputError(f"run {original.folder}, as its run.json has it: {error}") from None
    finally:
        os.environ.pop(EXPECTED_START, None)
    if not is_main_rank():
        return None, {}
    replayed = read_original(options["output_dir"])
    return replayed, start_in(replayed.record)
