"""A finished run as an object: its record, its model and tokenizer, texts from it, and its page.

Nothing heavy is imported until a model, a text or the page is asked for.
"""

import contextlib
import html
import io
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from hfscale.run_record import read_record

# The number that a run is known by: the first of these that it measured.
FOREMOST = ("eval_loss", "eval_chrf", "eval_rougeL", "eval_f1", "eval_pass_at_1")
PAGE_HEIGHT = "42rem"  # of a page inside a notebook


class Page:
    """A page of HTML, whole in itself: a notebook shows it, `save` writes it as a file."""

    def __init__(self, html: str):
        self.html = html

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, over one that is there; the file's path."""
        from hfscale.folders import write_atomically

        written = Path(path)
        write_atomically(written, self.html)
        return written

    def __repr__(self) -> str:
        return f"Page({len(self.html.encode()) / 1e6:.2f} MB of HTML; .save(path) writes it)"

    def _repr_html_(self) -> str:
        # In a frame: the page's styles are for the page, not for the notebook around it.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="report" '
            f'style="width: 100%; height: {PAGE_HEIGHT}; border: 0"></iframe>'
        )


class Run:
    """What a recipe that trains left in its folder.

    `path` is the folder, `record` all of its run.json: `recipe`, `command`, `config` (every
    setting), `data`, `model`, `train`, `metrics`, `samples`, `hardware`, `versions`, `seconds`. A
    run can be given wherever a recipe takes a folder: `hfscale.score(model=[before, after])`.
    """

    def __init__(self, path: Path, record: dict[str, Any], *, trust_remote_code: bool = False):
        self.path = path
        self.record = record
        self.trust_remote_code = trust_remote_code

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured on held-out data, by name: losses in nats per token, intervals as
        [low, high].
        """
        return self.record["metrics"]

    @property
    def config(self) -> dict[str, Any]:
        """Every setting of the run, the recipe's and `TrainingArguments`'."""
        return self.record["config"]

    @property
    def samples(self) -> list[str]:
        """Texts that the model wrote when it was done."""
        return self.record["samples"]

    @cached_property
    def model(self) -> Any:
        """The model, a `PreTrainedModel` (of an adapter a `PeftModel`), in float32 on the CPU and
        in evaluation mode; loaded when it is first asked for. Raises InputError: as
        `hfscale.load_model`.
        """
        from hfscale.models import load_model

        return load_model(str(self.path), dtype="float32", trust_remote_code=self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, a `PreTrainedTokenizerFast`; loaded when it is first asked for. Raises
        InputError: it is damaged.
        """
        from hfscale.data.tokenizer import load_pretrained_tokenizer

        return load_pretrained_tokenizer(str(self.path), trust_remote_code=self.trust_remote_code)

    def generate(self, prompts: str | list[str], **options: Any) -> list[str]:
        """Completions of the prompts, as the recipe `generate` makes them: a model that learned a
        task is asked in its template. Nothing is printed.

        Args:
            prompts: texts to continue, one or several; "" starts a new text.
            options: of `hfscale.generate`, such as `max_new_tokens`, `do_sample`, `seed`.

        Returns:
            The texts in the order of the prompts, `num_return_sequences` of them for each.

        Raises InputError: as the recipe.
        """
        from hfscale.api import call_recipe

        asked = [prompts] if isinstance(prompts, str) else prompts
        if self.trust_remote_code:
            options.setdefault("trust_remote_code", True)
        with contextlib.redirect_stdout(io.StringIO()):
            return call_recipe("generate", model=self, prompts=asked, **options)

    def report(self, *, also: list[str] | None = None) -> Page:
        """The run's page, the one that the recipe `report` writes; a notebook shows it.

        Args:
            also: folders that score, compare, scale, prepare_data, attention_maps or bias_probe
                wrote.

        Raises InputError: one of them holds no record.
        """
        from hfscale.report.page import render_page

        return Page(render_page([str(self.path)], [os.fspath(folder) for folder in also or []]))

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        said = [self.record["recipe"], self._size(), self._foremost()]
        return f"Run({str(self.path)!r}: {', '.join(text for text in said if text)})"

    def _repr_html_(self) -> str:
        from hfscale.report.tables import number

        rows = {"recipe": self.record["recipe"], "model": self._size(), "folder": str(self.path)}
        rows |= {
            name: number(value)
            for name, value in self.metrics.items()
            if isinstance(value, int | float)
        }
        lines = [
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in rows.items()
        ]
        return f"<table>{''.join(lines)}</table>"

    def _size(self) -> str:
        model = self.record["model"]
        parameters = model.get("parameters")
        if not isinstance(parameters, int):
            return str(model.get("architecture", ""))
        return f"{model.get('architecture')} of {parameters:,} parameters"

    def _foremost(self) -> str:
        for name in (*FOREMOST, *self.metrics):
            value = self.metrics.get(name)
            if name.startswith("eval_") and isinstance(value, int | float):
                return f"{name} {value:.4g}"
        return ""


def load_run(folder: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Run:
    """The run that a recipe finished in this folder.

    Args:
        trust_remote_code: whether Python code that lies beside the model may run, once the model is
            loaded.

    Raises InputError: no folder, none of a finished run, or a record that is not as it was written.
    """
    path = Path(folder).expanduser()
    return Run(path, read_record(str(path), "load_run"), trust_remote_code=trust_remote_code)
