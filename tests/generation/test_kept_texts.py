"""generate keeps its texts while it makes them."""

import json

import pytest

from hfscale.process import InputError
from recipes.generate import GenerateArguments, check_file, kept_as_made


def test_texts_that_were_made_are_kept_when_the_rest_is_not(tmp_path):
    output_file = str(tmp_path / "out.jsonl")
    with pytest.raises(KeyboardInterrupt), kept_as_made(output_file, ["a", "b"], rank=0) as keep:
        keep(1, ["beginning"])
        raise KeyboardInterrupt
    unfinished = tmp_path / "out.jsonl.unfinished"
    assert json.loads(unfinished.read_text()) == {"prompt": "b", "completions": ["beginning"]}
    args = GenerateArguments(output_file=output_file)
    with pytest.raises(InputError, match="unfinished holds the texts of a run that was stopped"):
        check_file(args)
    args.overwrite = True
    check_file(args)
    with kept_as_made(output_file, ["a", "b"], rank=0) as keep:
        keep(0, ["end"])
    assert not unfinished.exists()
