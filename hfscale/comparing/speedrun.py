"""The two-core speedrun: how few CPU seconds a training takes until its model predicts a fixed
held-out text well enough. The rules, and the check that a submission keeps them; docs/speedrun.md.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from hfscale.config import check_recipe_args, shipped
from hfscale.folders import write_json
from hfscale.process import InputError, versions
from hfscale.replaying.original import read_logs
from hfscale.run_record import read_json, read_record
from hfscale.shown import show_text

TEXT: dict[str, Any] = {
    "source": ["embedded:python-prose"],
    "split_by": "position",
    "validation_fraction": 0.05,
    "validation_source": None,
}
# Of Python 3.11.7, whose documentation the text is; of another one the numbers are others.
FINGERPRINTS = {"train": "e52999d0fa724de0", "validation": "51720b15c0f78405"}
TARGET = 2.1  # bits per byte of the held-out text
SEEDS = (0, 1, 2, 3, 4)
SIGNIFICANCE = 0.01  # of the test that the mean over the seeds is below the target
MOST_THREADS = 2
CALIBRATION = "calibration.json"
CALIBRATION_STEPS = 30
REFERENCE_SECONDS = 10.0  # of the calibration: times are as on a machine that takes so long
# What a run measured of itself, perhaps in bf16, and what its saved weights give in float32.
MEASURED_WITHIN = 0.005
OF_A_SEED = ("seed", "data_seed")


def check_record(folder: str) -> dict[str, Any]:
    """The entry of a submission, once everything in it agrees with the rules and with itself.

    The folder holds one config (`*.yaml`) of pretrain, `calibration.json` (see `calibrate`) and, in
    `seed-0` to `seed-4`, the runs that `hfscale pretrain --config` left.

    Returns:
        `config`, `model_parameters`, `steps`; `bits_per_byte` of each seed, measured here from the
        saved weights, with `bits_per_byte_mean` and the `p_value` of a one-sided t-test against
        `target`; `cpu_seconds` of each training as recorded, `calibration_seconds`, and
        `scaled_seconds`, the mean of the former for a machine that takes 10 s for the latter.

    Raises InputError: a file is missing or damaged, a rule is broken, numbers do not agree, or the
        target is not shown to be reached.
    """
    place = Path(folder)
    config = _config_in(place)
    calibration_seconds = _calibration_in(place)
    runs = [place / f"seed-{seed}" for seed in SEEDS]
    records = [_record_in(run, seed) for run, seed in zip(runs, SEEDS, strict=True)]
    _check_config(config, runs, records)
    for run, record in zip(runs, records, strict=True):
        _check_rules(run, record)
        _check_times(run, record)
    bits_per_byte = [_measured(run, record) for run, record in zip(runs, records, strict=True)]
    cpu_seconds = [record["train"]["cpu_seconds"] for record in records]
    mean_seconds = sum(cpu_seconds) / len(cpu_seconds)
    return {
        "config": config.name,
        "model_parameters": records[0]["model"]["parameters"],
        "steps": records[0]["train"]["steps"],
        "bits_per_byte": bits_per_byte,
        "bits_per_byte_mean": sum(bits_per_byte) / len(bits_per_byte),
        "target": TARGET,
        "p_value": _tested(place, bits_per_byte),
        "cpu_seconds": cpu_seconds,
        "calibration_seconds": calibration_seconds,
        "scaled_seconds": mean_seconds * REFERENCE_SECONDS / calibration_seconds,
    }


def entry_row(entry: dict[str, Any]) -> str:
    """What `check_record` found, as a line of the table in docs/speedrun.md."""
    each = ", ".join(f"{value:.3f}" for value in entry["bits_per_byte"])
    seconds = sum(entry["cpu_seconds"]) / len(entry["cpu_seconds"])
    cells = [
        entry["config"],
        f"{entry['steps']:,}",
        f"{entry['bits_per_byte_mean']:.3f} [{each}]",
        f"{entry['p_value']:.2g}",
        f"{seconds:.1f}",
        f"{entry['calibration_seconds']:.1f}",
        f"{entry['scaled_seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


# ---- what lies in the folder


def _config_in(place: Path) -> Path:
    configs = sorted(place.glob("*.yaml"))
    if len(configs) != 1:
        raise InputError(
            f"record {place}: holds {len(configs)} files *.yaml; expected one, the config of its "
            "runs"
        )
    return configs[0]


def _calibration_in(place: Path) -> float:
    path = place / CALIBRATION
    made_by = f"make it on the machine of the runs: hfscale compare --calibrate {place}"
    seconds = read_json(path, f"record {place}", made_by).get("cpu_seconds")
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise InputError(f"record {place}: {path} has no cpu_seconds above 0; {made_by}")
    return seconds


def _record_in(run: Path, seed: int) -> dict[str, Any]:
    record = read_record(str(run), "record")
    found = record["config"].get("seed")
    if record["recipe"] != "pretrain" or found != seed:
        raise InputError(
            f"record {run}: is of {record['recipe']} with seed {found}; expected pretrain with "
            f"seed {seed}"
        )
    return record


# ---- the rules


def _check_config(config: Path, runs: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Raise InputError unless all runs have the settings of the config, and are alike: in all but
    the seed, and what trains nothing.
    """
    from hfscale.training.continuation import UPSTREAM_MAY_CHANGE, reasons

    free = {*OF_A_SEED, *reasons(UPSTREAM_MAY_CHANGE)}
    recipe = shipped("recipes", "pretrain.py")["pretrain"]
    asked = check_recipe_args(recipe, ["--config", str(config)])
    first = records[0]["config"]
    compared = [name for name in {**asked, **first} if name not in free]
    for run, record in zip(runs, records, strict=True):
        found = record["config"]
        for name in compared:
            expected = asked.get(name, first.get(name))
            if found.get(name) != expected:
                raise InputError(
                    f"record {run}: was trained with {name} {found.get(name)!r}, not "
                    f"{expected!r} as {config if name in asked else runs[0]} says; train it again"
                )


def _check_rules(run: Path, record: dict[str, Any]) -> None:
    """Raise InputError for another text, for what was learned elsewhere, or for more than two
    cores.
    """
    config = record["config"]
    for name, value in TEXT.items():
        if config.get(name) != value:
            raise InputError(
                f"record {run}: {name} is {config.get(name)!r}; the rules say {value!r}"
            )
    found = record["data"].get("fingerprint")
    if found != FINGERPRINTS:
        raise InputError(
            f"record {run}: its text has the fingerprints {found}, that of the rules "
            f"{FINGERPRINTS}; take Python 3.11.7, whose documentation it is"
        )
    tokenizer = str(config.get("tokenizer"))
    if not tokenizer.startswith("train:") and tokenizer != "char":
        raise InputError(
            f"record {run}: tokenizer {tokenizer} comes from elsewhere; the rules want one trained "
            "on the text (train:4096), or char"
        )
    if config.get("resume"):
        raise InputError(f"record {run}: went on from a checkpoint; train it in one go")
    hardware = record["hardware"]
    threads = hardware.get("cpu_threads", 1) * hardware.get("world_size", 1)
    if hardware.get("device") != "cpu" or hardware.get("world_size") != 1 or threads > MOST_THREADS:
        raise InputError(
            f"record {run}: trained on {hardware.get('device')}, {threads} threads in all; the "
            f"rules want one process on a CPU with {MOST_THREADS} at most (OMP_NUM_THREADS)"
        )


def _check_times(run: Path, record: dict[str, Any]) -> None:
    """Raise InputError for CPU seconds that the run's own files do not bear out."""
    train = record["train"]
    cpu_seconds, seconds = train.get("cpu_seconds"), train.get("seconds")
    logged = [log["train_runtime"] for log in read_logs(run) if "train_runtime" in log]
    if not isinstance(cpu_seconds, int | float) or logged[-1:] != [seconds]:
        raise InputError(
            f"record {run}: run.json says {cpu_seconds} CPU seconds in {seconds} s, its last log "
            f"{logged[-1:]} s; train it again"
        )
    if not 0 < cpu_seconds <= seconds * MOST_THREADS + 1:
        raise InputError(
            f"record {run}: {cpu_seconds} CPU seconds do not fit into {seconds} s on "
            f"{MOST_THREADS} cores; train it again"
        )


def _tested(place: Path, bits_per_byte: Sequence[float]) -> float:
    """The p-value of Student's one-sided t-test that their mean is below the target."""
    p_value = float(stats.ttest_1samp(bits_per_byte, TARGET, alternative="less").pvalue)
    if not p_value < SIGNIFICANCE:
        mean = sum(bits_per_byte) / len(bits_per_byte)
        raise InputError(
            f"record {place}: a mean of {mean:.4f} bits per byte over {len(bits_per_byte)} seeds "
            f"is not shown to be below {TARGET} (p = {p_value:.2g}, wanted below {SIGNIFICANCE}); "
            "train longer"
        )
    return p_value


# ---- what is measured again


def _measured(run: Path, record: dict[str, Any]) -> float:
    """Bits per byte of the saved model, which its record has to agree with."""
    from hfscale.models import weights_fingerprint

    recorded = record["metrics"].get("eval_bits_per_byte")
    if weights_fingerprint(str(run)) != record["model"].get("fingerprint"):
        raise InputError(f"record {run}: its weights are not those that its run.json is about")
    found = measure_bits_per_byte(run, record)
    if not isinstance(recorded, int | float) or abs(found / recorded - 1) > MEASURED_WITHIN:
        raise InputError(
            f"record {run}: run.json says {recorded} bits per byte, and its model has {found:.4f}"
        )
    show_text(f"{run}: {found:.4f} bits per byte, as its run.json says")
    return found


def measure_bits_per_byte(run: Path, record: dict[str, Any]) -> float:
    """Of a saved model, in float32, over the rows that its run evaluated on."""
    from transformers import PrinterCallback

    from hfscale.arguments import SplitArguments
    from hfscale.data.packing import collate_rows, pack_documents
    from hfscale.data.splits import load_splits
    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.models import load_model
    from hfscale.training.trainer import LMTrainer
    from hfscale.training.training_args import training_arguments

    config = record["config"]
    documents = load_splits(SplitArguments(**TEXT), seed=0)
    rows = pack_documents(
        documents["validation"],
        load_pretrained_tokenizer(str(run)),
        config["max_length"],
        config["cross_document_attention"],
        packing=config["packing"],
    )
    with tempfile.TemporaryDirectory() as place:
        values = {"output_dir": place, "use_cpu": True, "bf16": False, "report_to": "none"}
        trainer = LMTrainer(
            model=load_model(run, dtype="float32"),
            args=training_arguments(values | {"disable_tqdm": True}, width=1),
            data_collator=collate_rows,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer.evaluate(rows)["eval_bits_per_byte"]


# ---- the machine


def calibrate(folder: str) -> float:
    """Write how many CPU seconds this machine takes for 30 steps of a small GPT-2 into
    calibration.json, over one that is there, and return them.

    Raises InputError: no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"record {folder}: is no folder; name the one with the config")
    seconds = calibration_seconds()
    write_json(
        Path(folder, CALIBRATION),
        {"cpu_seconds": seconds, "steps": CALIBRATION_STEPS, "versions": versions()},
    )
    return seconds


def calibration_seconds() -> float:
    """CPU seconds of AdamW steps in float32 on random tokens, 4 rows of 256, 4 layers x 256; 3 go
    before them unmeasured.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4,
        n_head=8,
        n_embd=256,
        n_positions=256,
        vocab_size=4096,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(config.vocab_size, (4, config.n_positions))
    started = 0.0
    for step in range(-3, CALIBRATION_STEPS):
        if step == 0:
            started = time.process_time()
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    return time.process_time() - started
