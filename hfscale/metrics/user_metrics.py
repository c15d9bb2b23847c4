"""Metrics of the user's own: a function in a file, or an evaluate metric from a folder or the Hub.

Both are a function of predictions and references that returns numbers: see `UserMetric`.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import evaluate
import numpy as np
from datasets import Features, List, Value

from hfscale.metrics.intervals import Statistics, means
from hfscale.process import InputError
from hfscale.user_code import describe_exception, load_function

# One format for all that compare texts, so that they combine; references are a string or a list of
# strings per item.
TEXT_FEATURES = [
    Features(predictions=Value("string"), references=Value("string")),
    Features(predictions=Value("string"), references=List(Value("string"))),
]
# What recipes report beside the metrics: a value of the same name would take its place.
RESERVED_NAMES = frozenset(
    "loss perplexity bits_per_byte word_perplexity items documents tokens bytes words "
    "unknown_tokens finished samples runtime samples_per_second steps_per_second".split()
)
RESERVED_ENDINGS = ("_ci95", "_stderr", "_ties")
TRIED_ITEMS = 20  # enough to see a wrong length; few enough for a metric that runs a model

# (predictions, references, **options) -> number, numbers of the items, or a dictionary of these
MetricFunction: TypeAlias = Callable[..., Any]


class UserMetric(evaluate.Metric):
    """A function `(predictions, references, **options)` as an `evaluate.Metric`.

    The function gets a list of texts and, for each, the list of its right answers. It returns a
    number, or a sequence with a number per item, whose mean is reported with an interval; or
    {name: number or such a sequence}. A value without a name has that of the function.

    Args:
        label: how the user named the metric; errors begin with it.
        name: the name of a value without one.
        identity: what the metric's signature says of where it is from.
        options: further arguments of the function.
    """

    statistics: Statistics | None = None  # of the values that are means over items
    whole_values: Sequence[str] = ()  # names of the values that are one number for all items

    def __init__(
        self,
        label: str,
        function: MetricFunction,
        *,
        name: str,
        identity: str,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.label = label
        self.function = function
        self.value_name = name
        self.identity = identity
        self.options = options or {}
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.signature(),
            citation="",
            inputs_description="",
            features=TEXT_FEATURES,
        )

    def signature(self, references: Sequence[Sequence[str]] = ()) -> str:
        """What a value depends on, as far as it can be seen from outside."""
        options = [f"{name}:{value}" for name, value in self.options.items()]
        return "|".join([self.identity, *options])

    def _compute(
        self, predictions: list[str], references: list[Any], **of_others: Any
    ) -> dict[str, float]:
        golds = [[texts] if isinstance(texts, str) else texts for texts in references]
        try:
            result = self.function(predictions, golds, **self.options)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"metrics: {self.label}: {describe_exception(error)}") from None
        numbers = self._numbers(result, len(predictions))
        per_item = {name: array for name, array in numbers.items() if array.ndim == 1}
        self.whole_values = [name for name in numbers if name not in per_item]
        self.statistics = None
        if per_item:
            rows = np.column_stack([*per_item.values(), np.ones(len(predictions))])
            self.statistics = Statistics(rows, partial(means, list(per_item)))
        return {name: float(array.mean()) for name, array in numbers.items()}

    def _numbers(self, result: Any, items: int) -> dict[str, np.ndarray]:
        """{name: float64, () or (items,)} from what the function returned, after a check."""
        values = result if isinstance(result, dict) else {self.value_name: result}
        if not values:
            raise InputError(f"metrics: {self.label}: returned no value")
        numbers = {}
        for name, value in values.items():
            self._check_name(name)
            array = as_numbers(value)
            if array is None or array.shape not in ((), (items,)):
                shown = f"{len(array)} numbers" if array is not None and array.ndim else repr(value)
                raise InputError(
                    f"metrics: {self.label}: returned {shown[:60]} as {name} for {items} items; "
                    "expected a number, one number per item, or a dictionary of these"
                )
            if not np.isfinite(array).all():
                first = np.flatnonzero(~np.isfinite(array))[0]
                place = f" for item {first}" if array.ndim else ""
                raise InputError(
                    f"metrics: {self.label}: returned {np.ravel(array)[first]} as {name}{place}; "
                    "expected finite numbers"
                )
            numbers[name] = array
        return numbers

    def _check_name(self, name: Any) -> None:
        if not isinstance(name, str) or not name or name != "".join(name.split()):
            raise InputError(
                f"metrics: {self.label}: names a value {name!r}; expected a name without spaces"
            )
        if name in RESERVED_NAMES or name.endswith(RESERVED_ENDINGS):
            raise InputError(
                f"metrics: {self.label}: names a value {name}, which is a name of the recipes' "
                "own; give it another"
            )


def as_numbers(value: Any) -> np.ndarray | None:
    """A number or a sequence of numbers as float64, () or (n,); None: it is something else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors that need gradients
        return None
    is_number = array.dtype.kind in "biuf" and array.ndim <= 1
    return array.astype(np.float64) if is_number else None


def load_function_metric(word: str, options: dict[str, Any]) -> UserMetric:
    """The metric that `my_file.py:function` names.

    Raises InputError: see `load_function`, or options that the function does not take.
    """
    function = load_function(f"metrics: {word}", word)
    try:
        inspect.signature(function).bind([], [], **options)
    except TypeError as error:
        raise InputError(
            f"metrics: {word}: is called with predictions, references and its metric_options "
            f"({', '.join(options) or 'none'}): {error}"
        ) from None
    file, _, name = word.rpartition(":")
    identity = f"function:{name}|sha256:{_digest(Path(file))}"
    return UserMetric(
        word, function, name=name, identity=identity, options=options, keep_in_memory=True
    )


def load_folder_metric(word: str, options: dict[str, Any]) -> UserMetric:
    """The evaluate metric in a folder: a class in the file that is named as the folder is.

    Raises InputError: a folder without one, or a metric that is not of texts.
    """
    # Not a relative path: evaluate would take one without a metric for a Hub id.
    folder = Path(word).absolute()
    script = folder / f"{folder.name}.py"
    if not script.is_file():
        raise InputError(
            f"metrics: {word}: holds no evaluate metric; expected a file {folder.name}.py in it, "
            "with a subclass of evaluate.Metric"
        )
    identity = f"module:{folder.name}|sha256:{_digest(script)}"
    return _load_module(word, str(folder), identity, options)


def load_hub_metric(word: str, options: dict[str, Any]) -> UserMetric:
    """The evaluate metric with this id on the Hub, or in its cache; its code is run.

    Raises InputError: there is none, or it is not of texts.
    """
    return _load_module(word, word, f"module:{word}", options)


def _load_module(word: str, path: str, identity: str, options: dict[str, Any]) -> UserMetric:
    try:
        module = evaluate.load(path, keep_in_memory=True)
    except FileNotFoundError as error:
        raise InputError(f"metrics: {word}: {' '.join(str(error).split())}") from None
    except (Exception, SystemExit) as error:
        raise InputError(
            f"metrics: {word}: cannot be loaded as an evaluate metric: {describe_exception(error)}"
        ) from None
    function = _module_function(word, module)
    identity = f"{identity}|evaluate:{version('evaluate')}"
    return UserMetric(
        word, function, name=module.name, identity=identity, options=options, keep_in_memory=True
    )


def _module_function(word: str, module: evaluate.EvaluationModule) -> MetricFunction:
    """What calls a metric of evaluate as a function of texts.

    Of its results those are left out that are no numbers, and lists that do not have one number per
    item, such as the precisions of a BLEU.
    """
    formats = module.features if isinstance(module.features, list) else [module.features]
    kinds = [features.get("references") for features in formats if _takes_texts(features)]
    if not kinds:
        raise InputError(
            f"metrics: {word}: takes {formats[0]}; expected predictions and references that are "
            "texts"
        )
    takes_one = all(isinstance(kind, Value) for kind in kinds)

    def compute(predictions: list[str], references: list[list[str]], **options: Any) -> dict:
        golds: Sequence[Any] = references
        if takes_one:
            golds = [_only(word, place, texts) for place, texts in enumerate(references)]
        results = module.compute(predictions=predictions, references=golds, **options)
        shapes = ((), (len(predictions),))
        arrays = {name: as_numbers(value) for name, value in results.items()}
        return {
            name: array
            for name, array in arrays.items()
            if array is not None and array.shape in shapes
        }

    return compute


def _takes_texts(features: Features) -> bool:
    """Whether this is a format of predictions and, for each, one reference or a list of them."""
    if set(features) != {"predictions", "references"}:
        return False
    references = features["references"]
    kinds = (features["predictions"], getattr(references, "feature", references))
    return all(getattr(kind, "dtype", None) == "string" for kind in kinds)


def _only(word: str, item: int, texts: list[str]) -> str:
    if len(texts) != 1:
        raise InputError(
            f"metrics: {word}: takes one reference per item, and item {item} has {len(texts)}"
        )
    return texts[0]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def try_user_metrics(
    metrics: evaluate.CombinedEvaluations, references: Sequence[Sequence[str]]
) -> None:
    """Call each metric of the user's own on the first right answers, so that one that does not work
    shows before anything is generated. Raises InputError as `UserMetric`."""
    first = [list(texts) for texts in references[:TRIED_ITEMS]]
    answers = [texts[0] for texts in first]
    for metric in metrics.evaluation_modules:
        if isinstance(metric, UserMetric):
            metric.compute(predictions=answers, references=first)
