"""What finished runs say about their variants: whether they can be compared, by which metric, how
large each difference is and what it costs.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from hfscale.comparing.looks import add_look, after_looking
from hfscale.comparing.statistics import (
    SIGNIFICANCE,
    anytime_interval,
    anytime_p_value,
    deviation_interval,
    holm,
    paired_difference,
    seeds_to_detect,
)
from hfscale.comparing.variants import Plan, Variant, other_tokens
from hfscale.metrics.intervals import LOWER_IS_BETTER
from hfscale.process import InputError
from hfscale.report.comparison import (
    HELD_OUT,
    TRAINING_TEXT,
    is_per_token,
    is_quality,
    of_part,
)

PER_TOKEN_METRIC = "eval_loss"  # where nothing is said
OTHER_TOKENS_METRIC = "eval_bits_per_byte"  # and variants cut the text into other tokens
# Settings that decide which rows a run trains on, in which order.
OF_ROWS = (
    "source_weights",
    "source_temperature",
    "packing",
    "max_length",
    "max_position_embeddings",
    "cross_document_attention",
    "repack_each_epoch",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "shuffle_buffer_size",
    "train_sampling_strategy",
    "data_seed",
)

Runs: TypeAlias = dict[tuple[str, int], dict[str, Any]]  # run.json by variant and seed


# ---- whether they can be compared


def check_runs(plan: Plan, runs: Runs, metric: str | None) -> None:
    """Raise InputError for runs that cannot be compared with the baseline's of the same seed: other
    held-out text, or other lengths that nobody asked for; or by this metric (see `choose_metric`).
    """
    for baseline, other, name, seed in _pairs(plan.variants, runs):
        texts = (
            of_part(baseline, "fingerprint", HELD_OUT),
            of_part(other, "fingerprint", HELD_OUT),
        )
        if None not in texts and texts[0] != texts[1]:
            raise InputError(
                f"vary: {name} was judged on other held-out text than {plan.variants[0].name} "
                f"(seed {seed}); give both the same, as --recipe_args validation_source=..."
            )
        steps = baseline["train"].get("steps"), other["train"].get("steps")
        if steps[0] != steps[1] and not plan.named_length():
            raise InputError(
                f"vary: {name} trained {steps[1]} steps, {plan.variants[0].name} {steps[0]} (seed "
                f"{seed}); give both the same length, as --recipe_args max_steps=..."
            )
    if runs:
        choose_metric(metric, plan.variants, runs)


def choose_metric(
    asked: str | None, variants: Sequence[Variant], runs: Runs
) -> tuple[str, str | None]:
    """The metric that the variants are judged by, and why it is not the usual one; None: it is.

    Raises InputError: a metric per token of variants that cut the text into other tokens, or one
        that was not measured.
    """
    reason = None
    metric = asked or PER_TOKEN_METRIC
    for baseline, other, name, _ in _pairs(variants, runs):
        if of_part(baseline, "tokens", HELD_OUT) == of_part(other, "tokens", HELD_OUT):
            continue
        if asked and is_per_token(asked):
            raise other_tokens(asked, name, variants[0].name)
        if not asked:
            metric = OTHER_TOKENS_METRIC
            reason = f"{name} cuts the text into other tokens than {variants[0].name}"
    for (name, seed), record in runs.items():
        if metric not in record["metrics"]:
            raise InputError(
                f"metric: {metric} is not measured by {name} (seed {seed}); expected one of "
                f"{', '.join(filter(is_quality, record['metrics']))}"
            )
    return metric, reason


def _pairs(
    variants: Sequence[Variant], runs: Runs
) -> list[tuple[dict[str, Any], dict[str, Any], str, int]]:
    """The baseline's run, another's of the same seed, and whose it is."""
    baseline, *others = (variant.name for variant in variants)
    return [
        (runs[baseline, seed], record, name, seed)
        for (name, seed), record in runs.items()
        if name in others and (baseline, seed) in runs
    ]


def has_same_tokens(runs: Runs) -> bool:
    """Whether the runs of each seed cut the held-out text into as many tokens."""
    counts = {(seed, of_part(record, "tokens", HELD_OUT)) for (_, seed), record in runs.items()}
    return len(counts) == len({seed for _, seed in runs})


def pairing(variants: Sequence[Variant], runs: Runs, name: str) -> dict[str, bool | None]:
    """What a variant's runs have in common with the baseline's of the same seed; None: not known,
    as of a stream.
    """
    pairs = [pair for pair in _pairs(variants, runs) if pair[2] == name]
    facts = [_shared(baseline, other) for baseline, other, *_ in pairs]
    return {fact: _all([of_pair[fact] for of_pair in facts]) for fact in facts[0]} if facts else {}


def _all(values: Sequence[bool | None]) -> bool | None:
    if False in values:
        return False
    return None if None in values else True


def _shared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, bool | None]:
    def same(fact: str, part: str) -> bool | None:
        values = of_part(first, fact, part), of_part(second, fact, part)
        return None if None in values else values[0] == values[1]

    rows = _all([same("fingerprint", TRAINING_TEXT), same("tokens", TRAINING_TEXT)])
    settings = first["config"], second["config"]
    in_order = all(settings[0].get(name) == settings[1].get(name) for name in OF_ROWS)
    models = [
        [record["model"].get(name) for name in ("architecture", "parameters", "base_fingerprint")]
        for record in (first, second)
    ]
    seeds = [values.get("seed") for values in settings]
    return {
        "held_out_text": same("fingerprint", HELD_OUT),
        "held_out_tokens": same("tokens", HELD_OUT),
        "training_rows_in_order": rows if in_order else False,
        "initial_weights": models[0] == models[1] and seeds[0] == seeds[1],
    }


# ---- what is found


def summarize(
    variants: Sequence[Variant],
    metric: str | None,
    looks: Sequence[dict[str, Any]],
    runs: Runs,
    *,
    stop_early: bool = False,
) -> dict[str, Any]:
    """What the runs say: the metric, every variant, and every comparison with the first.

    Args:
        metric: that was asked for; None: see `choose_metric`.
        looks: those before this one.
        stop_early: see `compare_runs`.

    Raises InputError: as `choose_metric`.
    """
    chosen, reason = choose_metric(metric, variants, runs)
    seeds = len({seed for _, seed in runs})
    now = add_look(looks, chosen, variants, seeds, stop_early)
    return {
        "metric": chosen,
        "metric_reason": reason,
        "lower_is_better": lower_is_better(chosen),
        "baseline": variants[0].name,
        "seeds": seeds,
        "cost": cost_that_counts(runs),
        "comparisons": compare_runs(variants, runs, chosen, now, stop_early=stop_early),
        "variants": describe_variants(variants, runs, chosen),
        "looks": now,
    }


def with_earlier(earlier: Runs, runs: Runs) -> Runs:
    """The runs, and the earlier ones of the same seeds."""
    seeds = {seed for _, seed in runs}
    return {key: record for key, record in earlier.items() if key[1] in seeds} | runs


def is_shown(
    variants: Sequence[Variant],
    metric: str | None,
    looks: Sequence[dict[str, Any]],
    earlier: Runs,
    runs: Runs,
) -> bool:
    """Whether each variant that is trained now is shown to be better or worse, by the always-valid
    test among all that was looked at.
    """
    every = with_earlier(earlier, runs)
    found = summarize(variants, metric, looks, every, stop_early=True)
    trained = {name for name, _ in runs}
    return all(
        one.get("verdict") in ("better", "worse")
        for one in found["comparisons"]
        if one["variant"] in trained
    )


def compare_runs(
    variants: Sequence[Variant],
    runs: Runs,
    metric: str,
    looks: Sequence[dict[str, Any]],
    *,
    stop_early: bool = False,
) -> list[dict[str, Any]]:
    """Each variant against the first: the mean difference over paired seeds with its interval and
    p-value, the p-value among all that was looked at (Holm), a verdict, and what it costs.

    Args:
        looks: so far, this one the last; see `add_look`.
        stop_early: whether the seeds were stopped at a look: interval and p-value are the
            always-valid ones then.
    """
    tests = {
        (looked_by, variant.name): found
        for looked_by in dict.fromkeys([*(look["metric"] for look in looks), metric])
        for variant in variants[1:]
        if (found := _test(variants[0].name, variant.name, runs, looked_by, stop_early))
    }
    tested = [key for key, found in tests.items() if found["p_value"] is not None]
    adjusted = dict(zip(tested, holm([tests[key]["p_value"] for key in tested]), strict=True))
    comparisons: list[dict[str, Any]] = []
    for variant in variants[1:]:
        found = tests.get((metric, variant.name))
        if found is None:
            note = "fewer than two pairs of finished runs: nothing to test"
            comparisons.append({"variant": variant.name, "note": note})
            continue
        among_all = adjusted.get((metric, variant.name))
        comparisons.append(
            {
                "variant": variant.name,
                **found,
                "p_value_holm": among_all,
                "holm_over": len(tested),
                "verdict": _verdict(metric, found["difference"], among_all),
                "after_looking": after_looking(looks, variant.name),
                "cost_ratios": _cost_ratios(variants[0].name, variant.name, runs),
                "pairing": pairing(variants, runs, variant.name),
            }
        )
    return comparisons


def _test(
    baseline: str, name: str, runs: Runs, metric: str, stop_early: bool
) -> dict[str, Any] | None:
    """The test of one variant; None: fewer than two pairs have the metric."""
    seeds = paired_seeds(baseline, name, runs, metric)
    if len(seeds) < 2:
        return None
    first, second = (
        [runs[variant, seed]["metrics"][metric] for seed in seeds] for variant in (baseline, name)
    )
    found = paired_difference(first, second)
    if stop_early:
        differences = np.subtract(second, first).tolist()
        found["difference_ci95"] = anytime_interval(differences)
        found["p_value"] = anytime_p_value(differences)
    return found | {"test": "always-valid t" if stop_early else "paired t"}


def paired_seeds(baseline: str, name: str, runs: Runs, metric: str) -> list[int]:
    """The seeds of which both have a finished run that measured the metric as a finite number."""
    return sorted(
        seed
        for variant, seed in runs
        if variant == name and _is_measured(runs, (baseline, seed), metric)
        if _is_measured(runs, (name, seed), metric)
    )


def _is_measured(runs: Runs, key: tuple[str, int], metric: str) -> bool:
    return key in runs and runs[key]["metrics"].get(metric) is not None


def lower_is_better(metric: str) -> bool:
    """Whether a metric of held-out data says how badly it went."""
    return metric.removeprefix("eval_").endswith(LOWER_IS_BETTER)


def _verdict(metric: str, difference: float, p_value: float | None) -> str:
    if p_value is None or p_value >= SIGNIFICANCE:
        return "not shown"
    return "better" if (difference < 0) == lower_is_better(metric) else "worse"


def describe_variants(variants: Sequence[Variant], runs: Runs, metric: str) -> list[dict[str, Any]]:
    """Of each variant the metric, its mean and what was measured at each seed, and what a run
    costs: means over its runs, of the memory the largest.
    """
    described = []
    for variant in variants:
        own = {
            seed: record for (name, seed), record in sorted(runs.items()) if name == variant.name
        }
        values = {str(seed): record["metrics"].get(metric) for seed, record in own.items()}
        measured = [value for value in values.values() if value is not None]
        training = [record["train"] for record in own.values()]
        described.append(
            {
                "variant": variant.name,
                "flags": variant.flags,
                "mean": float(np.mean(measured)) if measured else None,
                "by_seed": values,
                "cpu_seconds": _mean(training, "cpu_seconds"),
                "seconds": _mean(training, "seconds"),
                "tokens": _mean(training, "tokens"),
                "steps": _mean(training, "steps"),
                "memory_peak_bytes": _largest(training, "memory_peak_bytes"),
            }
        )
    return described


def _known(training: Sequence[dict[str, Any]], name: str) -> list[float]:
    values = [one.get(name) for one in training]
    return [value for value in values if isinstance(value, int | float)]


def _mean(training: Sequence[dict[str, Any]], name: str) -> float | None:
    values = _known(training, name)
    return float(np.mean(values)) if values else None


def _largest(training: Sequence[dict[str, Any]], name: str) -> float | None:
    return max(_known(training, name), default=None)


def cost_that_counts(runs: Runs) -> str:
    """What a run costs, by its name in `train` of run.json: on a GPU the CPU only waits."""
    devices = {record["hardware"].get("device") for record in runs.values()}
    return "cpu_seconds" if devices <= {"cpu"} else "seconds"


def _cost_ratios(baseline: str, name: str, runs: Runs) -> dict[str, float | None]:
    """What the variant's runs took, as a multiple of the baseline's of the same seeds; None: not
    measured.
    """
    seeds = [seed for variant, seed in runs if variant == name and (baseline, seed) in runs]
    both = [[runs[variant, seed]["train"] for seed in seeds] for variant in (baseline, name)]
    ratios = {}
    for cost in ("cpu_seconds", "seconds", "tokens", "memory_peak_bytes"):
        first, second = (_known(training, cost) for training in both)
        is_known = len(first) == len(second) == len(seeds) and sum(first) > 0
        ratios[cost] = sum(second) / sum(first) if is_known else None
    return ratios


# ---- how many seeds it takes


def seeds_needed(
    detect: float | None, comparisons: Sequence[dict[str, Any]], variants: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """For each variant how many seeds a difference of `detect` takes, to be seen four times in
    five, by the scatter of its paired differences so far; where one variant is there alone, by the
    scatter of its runs over seeds, of which two unpaired ones differ by the root of 2 as much.
    Nothing where `detect` is None.
    """
    if detect is None:
        return []
    paired = [one for one in comparisons if "standard_deviation" in one]
    if paired:
        found = [(one["variant"], one["standard_deviation"], one["seeds"], True) for one in paired]
    else:
        values = [value for value in variants[0]["by_seed"].values() if value is not None]
        deviation = float(np.std(values, ddof=1) * np.sqrt(2)) if len(values) > 1 else 0.0
        found = [(variants[0]["variant"], deviation, len(values), False)]
    return [
        {
            "variant": name,
            "detect": detect,
            "standard_deviation": deviation,
            "paired": is_paired,
            "pilot_seeds": pilot,
            **_needed(deviation, pilot, detect),
        }
        for name, deviation, pilot, is_paired in found
    ]


def _needed(deviation: float, pilot: int, detect: float) -> dict[str, Any]:
    """The number, and its interval by that of the standard deviation; None: the pilot has no
    scatter, or it takes too many.
    """
    needed: list[int | None] = []
    ends = [deviation, *deviation_interval(deviation, pilot)] if deviation > 0 else []
    for end in ends:
        try:
            needed.append(seeds_to_detect(end, detect))
        except ValueError:
            needed.append(None)
    if not needed or None in needed:
        return {"seeds_needed": needed[0] if needed else None, "seeds_needed_ci95": None}
    return {"seeds_needed": needed[0], "seeds_needed_ci95": needed[1:]}
