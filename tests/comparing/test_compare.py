"""Variants over seeds, compared pair by pair: from runs whose numbers are planted, and once from
runs that are really trained.
"""

import json
import re
import shlex
import subprocess
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from scipy import stats

from hfscale import many_runs
from hfscale.api import leaving_nothing_behind, recipe_module
from hfscale.comparing.looks import after_looking
from hfscale.comparing.page import read_curves
from hfscale.comparing.statistics import anytime_interval, anytime_p_value, holm, seeds_to_detect
from hfscale.comparing.variants import plan_variants, run_name
from hfscale.process import InputError
from hfscale.report.page import render_page
from recipes import compare

VARY = ["--vary", "learning_rate=1e-3,2e-3"]


# ---- runs with planted numbers


def seed_of(words: list[str]) -> int:
    return int(words[words.index("--seed") + 1])


def record_of(words: list[str], metrics: dict, **parts) -> dict:
    """A run.json as the recipe writes it for these words."""
    seed = seed_of(words)
    data = {
        "fingerprint": {"train": f"train-{seed}", "validation": f"held-out-{seed}"},
        "tokens": {"train": 9000 + seed, "validation": 1000 + seed},
    }
    training = {
        "steps": 20,
        "tokens": 20480,
        "seconds": 30.0,
        "cpu_seconds": 10.0,
        "memory_peak_bytes": 6e8,
    }
    return {
        "recipe": "pretrain",
        "command": shlex.join(["hfscale", "pretrain", *words]),
        "config": {"seed": seed, "data_seed": seed},
        "data": data | parts.get("data", {}),
        "model": {"architecture": "GPT2LMHeadModel", "parameters": 1000} | parts.get("model", {}),
        "train": training | parts.get("train", {}),
        "metrics": metrics,
        "samples": [],
        "hardware": {"device": "cpu"},
    }


def processes(run) -> SimpleNamespace:
    """The module that starts processes, for runs alone: others start some too."""
    return SimpleNamespace(run=run, STDOUT=subprocess.STDOUT)


class Trainings:
    """In the place of processes: `planted(folder's name, seed)` gives the parts of a run's record,
    or the status with which it ends.
    """

    def __init__(self, planted):
        self.planted = planted
        self.trained: list[str] = []

    def __call__(self, command, stdout=None, **_):
        words = command[4:]
        folder = Path(words[words.index("--output_dir") + 1])
        self.trained.append(folder.name)
        found = self.planted(folder.name, seed_of(words))
        if isinstance(found, int):
            stdout.write(f"error: status {found}\n")
            return subprocess.CompletedProcess(command, found)
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record_of(words, **found)))
        log = [
            {"step": step, "eval_loss": 9.0 - step / 10, "loss": 9.0 - step / 10}
            for step in (10, 20)
        ]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        return subprocess.CompletedProcess(command, 0)


BASELINE = [3.00, 3.10, 2.95, 3.20, 3.05]
SHIFT = [-0.10, -0.12, -0.09, -0.11, -0.13]  # of learning_rate=2e-3


def losses(name: str, seed: int) -> float:
    if "2e-3" in name:
        return BASELINE[seed] + SHIFT[seed]
    if "4e-3" in name:
        return BASELINE[seed] + (0.01 if seed % 2 else -0.012)
    return BASELINE[seed]


def plain(name: str, seed: int) -> dict:
    loss = losses(name, seed)
    return {"metrics": {"eval_loss": loss, "eval_bits_per_byte": loss / 2, "eval_runtime": 1.0}}


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """A function that puts planted runs in the place of trained ones."""
    monkeypatch.chdir(tmp_path)

    def plant(planted=plain) -> Trainings:
        made = Trainings(planted)
        monkeypatch.setattr(many_runs, "subprocess", processes(made))
        return made

    return plant


def written() -> dict:
    return json.loads(Path("runs/compare/comparison.json").read_text())


def test_the_difference_is_that_of_students_paired_test(trainings, capsys):
    trained = trainings().trained
    record = compare.main(VARY)
    second = [first + shift for first, shift in zip(BASELINE, SHIFT, strict=True)]
    [found] = record["comparisons"]
    assert len(trained) == 10 and record == written()
    assert found["p_value"] == found["p_value_holm"]
    assert found["p_value"] == pytest.approx(stats.ttest_rel(second, BASELINE).pvalue)
    assert found["difference"] == pytest.approx(-0.11) and found["verdict"] == "better"
    assert found["pairing"] == dict.fromkeys(
        ("held_out_text", "held_out_tokens", "training_rows_in_order", "initial_weights"), True
    )
    [said] = record["sentences"]
    low, high = found["difference_ci95"]
    assert said == (
        f"Over 5 paired seeds, learning_rate=2e-3 lowers eval_loss by 0.1100 [{-high:.4f}, "
        f"{-low:.4f}] (p = {found['p_value']:.2g}) at 1.00 times the CPU seconds of "
        "learning_rate=1e-3."
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown and "-0.110" in shown and "better" in shown
    assert Path("runs/compare/comparison.png").stat().st_size > 10_000


def test_a_variant_that_changes_nothing_is_said_to_change_nothing(trainings):
    trainings()
    record = compare.main(["--vary", "optimizer=null,adamw", "--seeds", "3"])
    assert record["comparisons"][0]["difference_ci95"] == [0, 0]
    assert record["sentences"][0].startswith(
        "Over 3 paired seeds, optimizer=adamw gives the very same eval_loss as optimizer=null, "
        "seed by seed (p = 1) at 1.00 times"
    )


def test_each_run_gets_its_seed_and_what_is_shared(trainings):
    trainings()
    compare.main([*VARY, "--seeds", "2", "--recipe_args", "config=tiny_cpu", "report_to=wandb"])
    runs = {path.parent.name: json.loads(path.read_text()) for path in Path().rglob("run.json")}
    assert runs.keys() == {
        f"learning_rate={rate}-seed{seed}" for rate in ("1e-3", "2e-3") for seed in (0, 1)
    }
    words = shlex.split(runs["learning_rate=2e-3-seed1"]["command"])
    assert words == [
        *("hfscale", "pretrain", "--eval_on_start=false", "--save_strategy=no"),
        *("--config=tiny_cpu", "--report_to=wandb", "--learning_rate", "2e-3"),
        *("--seed", "1", "--data_seed", "1"),
        *("--output_dir", "runs/compare/runs/learning_rate=2e-3-seed1", "--overwrite", "true"),
    ]


def test_finished_runs_are_not_trained_again_and_a_cell_is_one_run(trainings):
    trained = trainings().trained
    assert compare.main([*VARY, "--seeds", "2", "--cell", "3"]) is True
    assert trained == ["learning_rate=2e-3-seed1"]
    assert not Path("runs/compare/comparison.json").exists()
    with pytest.raises(InputError, match="^cell: got 4, expected 0 to 3$"):
        compare.main([*VARY, "--seeds", "2", "--cell", "4"])
    compare.main([*VARY, "--seeds", "2"])
    assert len(trained) == 4 == len(set(trained))
    other = [*VARY, "--seeds", "2", "--overwrite", "--recipe_args", "config=tiny_cpu", "bf16=true"]
    with pytest.raises(InputError, match="was trained with other arguments; name another --out"):
        compare.main(other)
    with pytest.raises(InputError, match="holds comparison.json; name another folder, or --over"):
        compare.main(VARY)


# ---- what is decided after a look


def test_a_variant_that_is_added_after_looking_is_marked_and_counted(trainings, capsys):
    trained = trainings().trained
    first = compare.main(VARY)
    assert "after looking" not in capsys.readouterr().out.lower()
    record = compare.main(["--vary", "learning_rate=1e-3,4e-3", "--overwrite"])
    assert len(trained) == 15  # the baseline's are there
    old, new = record["comparisons"]
    assert old["variant"] == "learning_rate=2e-3" and old["after_looking"] is None
    assert new["variant"] == "learning_rate=4e-3" and new["after_looking"] == "variant added"
    assert [old["p_value_holm"], new["p_value_holm"]] == holm([old["p_value"], new["p_value"]])
    assert old["p_value"] == first["comparisons"][0]["p_value"]
    assert old["p_value_holm"] == 2 * old["p_value"] and new["verdict"] == "not shown"
    assert record["sentences"][1].startswith(
        "After looking (variant added), over 5 paired seeds, learning_rate=4e-3 is not shown to "
        "change eval_loss against learning_rate=1e-3: "
    )
    assert record["sentences"][0].count("Holm over 2") == 1
    assert "after looking" in capsys.readouterr().out
    with pytest.raises(InputError, match="its baseline is learning_rate=1e-3, not learning_rate=2"):
        compare.main(["--vary", "learning_rate=2e-3,4e-3", "--overwrite"])


def test_another_metric_or_more_seeds_are_after_looking_too(trainings):
    trainings()
    compare.main([*VARY, "--seeds", "3"])
    record = compare.main([*VARY, "--seeds", "3", "--overwrite", "--metric", "eval_bits_per_byte"])
    [found] = record["comparisons"]
    assert found["after_looking"] == "metric changed"
    assert found["holm_over"] == 2 and found["p_value_holm"] == 2 * found["p_value"]
    record = compare.main([*VARY, "--seeds", "4", "--overwrite"])
    assert record["comparisons"][0]["after_looking"] == "seeds added"
    fewer = compare.main([*VARY, "--seeds", "2", "--overwrite"])
    assert fewer["seeds"] == 4  # what was seen stays counted


def test_only_the_always_valid_test_may_be_looked_at_again():
    look = {"metric": "eval_loss", "variants": ["a", "b"], "seeds": 3, "stop_early": True}
    assert after_looking([look, look | {"seeds": 5}], "b") is None
    fixed = look | {"stop_early": False}
    assert after_looking([look, fixed], "b") == "stopped by a look"
    assert after_looking([fixed, look | {"seeds": 5}], "b") == "seeds added"


# ---- what cannot be compared


TINY = ["--recipe_args", "config=tiny_cpu"]
REFUSED = [
    ([*VARY, "--seeds", "1"], "command line: --seeds: got '1', expected 2 to 1000"),
    ([], "vary: names one variant; give a baseline and another"),
    (["--vary", "learning_rate"], "vary: got 'learning_rate', expected name=value,value"),
    (["--vary", "learning_rate=1e-3,"], "vary: got 'learning_rate=1e-3,', expected name=value,"),
    (["--vary", "source=[1"], "vary: source: not a JSON list"),
    (
        ["--vary", "learnin_rate=1e-3,2e-3"],
        "vary: learnin_rate=1e-3: command line: unknown name --learnin_rate; did you mean learn",
    ),
    (
        ["--vary", "learning_rate=1e-3,high"],
        "vary: learning_rate=high: command line: --learning_rate: got 'high', expected float",
    ),
    (
        ["--vary", "learning_rate=1e-3,0.001"],
        "vary: learning_rate=1e-3 and learning_rate=0.001 are the same training; keep one",
    ),
    (
        ["--vary", "hidden_size=256,128", *TINY, "hidden_size=64", "num_attention_head=2"],
        "recipe_args: command line: unknown name --num_attention_head; did you mean num_att",
    ),
    (["--vary", "seed=1,2"], "vary: seed is set for each run; leave it out"),
    ([*VARY, *TINY, "output_dir=x"], "recipe_args: output_dir is set for each run"),
    ([*VARY, *VARY], "vary: learning_rate is named twice"),
    ([*VARY, *TINY, "bf16"], "recipe_args: got 'bf16', expected name=value"),
    (
        ["--vary", "config=long.yaml,short.yaml"],
        "vary: config=short.yaml and config=long.yaml train different lengths (max_steps 30 and "
        "20); give both the same, or name it: --vary max_steps=...",
    ),
    (
        ["--vary", "source=a.txt,b.txt"],
        "vary: source=b.txt and source=a.txt would hold out other text (source differ); give "
        "both the same: --recipe_args validation_source=...",
    ),
    (
        ["--vary", "tokenizer=train:300,char", "--metric", "eval_perplexity"],
        "metric: eval_perplexity counts tokens, and tokenizer=char cuts the text into others than "
        "tokenizer=train:300; take eval_bits_per_byte, or leave it out",
    ),
    (
        ["--recipe", "finetune_preference", "--vary", "beta=0.1,0.3"],
        "metric: beta changes what eval_loss counts; name another, as --metric eval_pair_acc",
    ),
    ([*VARY, "--leave_one_out", "source"], "leave_one_out: not together with vary"),
    (["--leave_one_out", "source"], "leave_one_out: got the sources embedded:python-docs; exp"),
    (
        ["--leave_one_out", "source", "--recipe", "finetune"],
        "leave_one_out: finetune mixes no sources; expected recipe pretrain",
    ),
    (
        ["--leave_one_out", "source", *TINY, "source=a", "source=b", "source_weights=1"],
        "recipe_args: source_weights: 1 for 2 sources",
    ),
    (
        ["--leave_one_out", "source", *TINY, "source=a", "source=b", "source_temperature=2"],
        "leave_one_out: the shares by source_temperature are not known before",
    ),
    ([*VARY, "--output_dir", "/proc/x"], "output_dir /proc/x: cannot be written"),
    ([*VARY, "--detect", "0"], "command line: --detect: got '0', expected at least 1e-12"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(words, says, trainings):
    trained = trainings().trained
    Path("long.yaml").write_text("max_steps: 30\n")
    Path("short.yaml").write_text("max_steps: 20\n")
    with pytest.raises(InputError) as refused:
        compare.main(words)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)
    assert not trained and not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        (
            "data",
            {"fingerprint": {"train": "a", "validation": "other"}},
            "vary: learning_rate=2e-3 was judged on other held-out text than learning_rate=1e-3 "
            "(seed 0); give both the same, as --recipe_args validation_source=...",
        ),
        (
            "train",
            {"steps": 21},
            "vary: learning_rate=2e-3 trained 21 steps, learning_rate=1e-3 20 (seed 0); give both "
            "the same length, as --recipe_args max_steps=...",
        ),
    ],
)
def test_the_first_pair_that_is_none_ends_the_comparison(name, part, says, trainings):
    def planted(run, seed):
        return plain(run, seed) | ({name: part} if "2e-3" in run else {})

    trained = trainings(planted).trained
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        compare.main(VARY)
    assert len(trained) == 2 and not Path("runs/compare/comparison.json").exists()


def test_a_length_that_is_varied_on_purpose_is_said(trainings):
    def planted(run, seed):
        longer = {"train": {"steps": 40, "tokens": 40960, "cpu_seconds": 20.0}}
        return plain(run, seed) | (longer if "=40" in run else {})

    trainings(planted)
    record = compare.main(["--vary", "max_steps=20,40"])
    assert record["sentences"][0].endswith(
        "at 2.00 times the CPU seconds of max_steps=20, on 2.00 times its training tokens."
    )


def test_variants_with_other_tokens_are_judged_by_bits_per_byte(trainings, capsys):
    def planted(run, seed):
        char = {"data": {"tokens": {"train": 4, "validation": 5}}} if "char" in run else {}
        return plain(run, seed) | char

    trainings(planted)
    record = compare.main(["--vary", "tokenizer=train:300,char"])
    assert record["metric"] == "eval_bits_per_byte" and "lowers eval" not in record["sentences"][0]
    assert record["comparisons"][0]["pairing"]["held_out_tokens"] is False
    shown = " ".join(capsys.readouterr().out.split())
    reason = "tokenizer=char cuts the text into other tokens than tokenizer=train:300."
    assert f"Judged by eval_bits_per_byte: {reason}" in shown
    with pytest.raises(
        InputError, match="^metric: eval_rouge is not measured by .*; expected one "
    ):
        compare.main(
            [*("--vary", "tokenizer=train:300,char"), "--overwrite", "--metric", "eval_rouge"]
        )


def test_a_run_that_fails_is_named_and_the_others_are_kept(trainings, capsys):
    def planted(run, seed):
        return 1 if run == "learning_rate=2e-3-seed3" else plain(run, seed)

    trained = trainings(planted).trained
    assert compare.main([*VARY, "--retries", "2"]) is False
    assert trained.count("learning_rate=2e-3-seed3") == 3
    record = written()
    log = "runs/compare/runs/learning_rate=2e-3-seed3.log"
    assert record["failed"] == [
        {"run": "learning_rate=2e-3-seed3", "log": log, "reason": "failed 3 times"}
    ]
    assert record["comparisons"][0]["seeds"] == 4 and "Over 4 paired" in record["sentences"][0]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"failed: learning_rate=2e-3-seed3 (failed 3 times); see {log}" in shown


def test_no_run_at_all_is_no_comparison(trainings, capsys):
    trainings(lambda run, seed: 1)
    assert compare.main([*VARY, "--retries", "0"]) is False
    assert "no run is finished, nothing to compare; logs: runs" in capsys.readouterr().err
    assert not Path("runs/compare/comparison.json").exists()


def test_a_run_that_a_signal_stopped_is_not_tried_again(trainings):
    trained = trainings(lambda run, seed: 143).trained
    assert compare.main([*VARY, "--retries", "3", "--seeds", "2"]) is False
    assert sorted(trained) == sorted(set(trained)) and len(trained) == 4


def test_a_diverged_run_is_a_failed_one(trainings):
    def planted(run, seed):
        lost = {"metrics": {"eval_loss": None}}
        return lost if seed == 0 and "2e-3" in run else plain(run, seed)

    trainings(planted)
    assert compare.main(VARY) is False
    [failed] = written()["failed"]
    assert failed["reason"] == "eval_loss is not a finite number"
    assert written()["comparisons"][0]["seeds"] == 4


def test_a_value_that_the_recipe_refuses_ends_the_comparison(trainings):
    trained = trainings(lambda run, seed: 2 if "2e-3" in run else plain(run, seed)).trained
    with pytest.raises(InputError, match="^recipe_args, vary: learning_rate=2e-3-seed0: status 2$"):
        compare.main(VARY)
    assert len(trained) == 2


# ---- how many seeds


def test_so_many_seeds_are_needed_by_the_scatter_of_the_pairs(trainings, capsys):
    trainings()
    record = compare.main([*VARY, "--detect", "0.02"])
    [needed] = record["power"]
    deviation = record["comparisons"][0]["standard_deviation"]
    assert needed["paired"] and needed["seeds_needed"] == seeds_to_detect(deviation, 0.02)
    low, high = needed["seeds_needed_ci95"]
    assert low <= needed["seeds_needed"] <= high
    assert "To see a difference of 0.02 in eval_loss with 80 % power takes" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_baseline_alone_tells_how_its_runs_scatter(trainings, capsys):
    trainings()
    record = compare.main(["--detect", "0.2"])
    [needed] = record["power"]
    assert record["comparisons"] == [] and not needed["paired"]
    assert needed["standard_deviation"] == pytest.approx(stats.tstd(BASELINE) * 2**0.5)
    assert "5 runs of baseline at different seeds, unpaired" in " ".join(
        capsys.readouterr().out.split()
    )


def test_seeds_are_trained_until_the_difference_is_shown(trainings):
    trained = trainings().trained
    record = compare.main([*VARY, "--stop_early"])
    stopped = next(n for n in range(2, 6) if anytime_p_value(SHIFT[:n]) < 0.05)
    [found] = record["comparisons"]
    assert stopped < 5 and found["seeds"] == record["seeds"] == stopped
    assert len(trained) == 2 * stopped
    seen = [losses("2e-3", seed) - BASELINE[seed] for seed in range(stopped)]
    assert found["p_value"] == anytime_p_value(seen)
    assert found["difference_ci95"] == anytime_interval(seen)
    assert f"(always-valid p = {found['p_value']:.2g})" in record["sentences"][0]


def test_what_was_compared_before_counts_where_seeds_are_stopped(trainings):
    trainings()
    compare.main(["--vary", "learning_rate=1e-3,4e-3", "--seeds", "2"])
    record = compare.main([*VARY, "--stop_early", "--overwrite"])
    earlier, found = record["comparisons"]
    assert found["verdict"] == "better" and found["holm_over"] == 2 and record["seeds"] < 5
    assert found["p_value_holm"] == 2 * found["p_value"] < 0.05
    assert (earlier["variant"], earlier["seeds"]) == ("learning_rate=4e-3", 2)
    assert found["after_looking"] == "variant added, seeds added"


# ---- what is varied


def test_variants_are_each_combination_with_the_first_as_baseline():
    plan = plan_variants(
        "pretrain",
        ["config=tiny_cpu", "learning_rate=5"],
        ["learning_rate=1e-3,2e-3", 'source=[["a.txt", "b,c.txt"]]'],
        None,
        metric=None,
        alone=False,
    )
    names = [variant.name for variant in plan.variants]
    assert names == [f"learning_rate={rate},source=a.txt+b,c.txt" for rate in ("1e-3", "2e-3")]
    words = plan.command(plan.variants[1], 3, Path("out"))
    assert words[:6] == [
        *("pretrain", "--eval_on_start=false", "--save_strategy=no", "--report_to=none"),
        *("--config=tiny_cpu", "--learning_rate"),
    ]
    assert words[6:10] == ["2e-3", "--source", "a.txt", "b,c.txt"]
    folders = {run_name(one, seed) for one, seed in product(plan.variants, range(2))}
    assert len(folders) == 4 and all(re.fullmatch(r"[\w.=,+-]+", name) for name in folders)


def test_a_source_is_left_out_and_the_held_out_text_stays(tmp_path, monkeypatch):
    from hfscale.data.fingerprints import text_fingerprint
    from hfscale.data.splits import join_parts, load_parts
    from hfscale.options import convert
    from recipes.pretrain import PretrainArguments, prepare_data

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        texts = [{"text": f"{name} {i} {name} and {i * i} of {name}"} for i in range(40)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    given = [f"source={name}.jsonl" for name in ("a", "b", "c")]
    weights = ["source_weights=2", "source_weights=1", "source_weights=1"]
    plan = plan_variants("pretrain", [*given, *weights], [], "source", metric=None, alone=False)
    assert [variant.name for variant in plan.variants] == [
        "all sources",
        *(f"leaving out {name}.jsonl" for name in ("a", "b", "c")),
    ]
    held_out, trained_on = set(), []
    for variant in plan.variants:
        shares = convert([float(word) for word in variant.flags[1:]], list[float])
        args = PretrainArguments(
            source=["a.jsonl", "b.jsonl", "c.jsonl"],
            source_weights=shares,
            tokenizer="char",
            training={},
        )
        documents = join_parts(load_parts(args, seed=0), args)
        held_out.add(text_fingerprint(documents["validation"]))

        class Seed:
            seed, world_size = 0, 1

        _, tokenizer, rows, _, _ = prepare_data(args, Seed, 8, {})
        text = tokenizer.decode([token for row in rows["train"]["input_ids"] for token in row])
        trained_on.append({name for name in "abc" if f"{name} and" in text})
    assert len(held_out) == 1
    assert trained_on == [{"a", "b", "c"}, {"b", "c"}, {"a", "c"}, {"a", "b"}]
    assert plan.variants[2].flags == ["--source_weights", "2.0", "0.0", "1.0"]


# ---- where it is shown


def test_the_page_shows_a_comparison(trainings, tmp_path):
    trainings()
    record = compare.main([*VARY, "--seeds", "3"])
    html = render_page(["runs/compare/runs/learning_rate=1e-3-seed0"], ["runs/compare"])
    assert f'<data value="{record["comparisons"][0]["difference"]}">' in html
    assert "learning_rate=2e-3 lowers eval_loss by" in html and html.count("<img") == 1


def test_curves_are_of_the_metric_and_never_of_other_tokens(trainings):
    trainings()
    compare.main([*VARY, "--seeds", "2"])
    folders = {
        (f"learning_rate={rate}", seed): Path(f"runs/compare/runs/learning_rate={rate}-seed{seed}")
        for rate in ("1e-3", "2e-3")
        for seed in (0, 1)
    }
    runs = {key: json.loads((path / "run.json").read_text()) for key, path in folders.items()}
    curves = read_curves(folders, runs, "eval_loss")
    assert (curves.value, curves.over) == ("eval_loss", "steps")
    assert curves.lines == dict.fromkeys(
        ("learning_rate=1e-3", "learning_rate=2e-3"), [{10: 8.0, 20: 7.0}] * 2
    )
    assert read_curves(folders, runs, "eval_bits_per_byte").value == "loss"  # that was not logged
    runs["learning_rate=2e-3", 1]["data"]["tokens"]["validation"] = 5
    assert read_curves(folders, runs, "eval_bits_per_byte") is None


def test_two_variants_are_really_trained_and_compared(tmp_path, tiny_corpus, monkeypatch):
    """In this process, one after the other; that they start as processes is tested with scale."""
    import hfscale

    def in_process(command, **_):
        with leaving_nothing_behind():
            recipe_module(command[3]).main(command[4:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(many_runs, "subprocess", processes(in_process))
    monkeypatch.chdir(tmp_path)
    asked = {
        "vary": "learning_rate=1e-4,1e-2",
        "seeds": 2,
        "output_dir": tmp_path / "out",
        "recipe_args": [
            f"source={tiny_corpus}",
            *("tokenizer=char", "max_position_embeddings=32", "validation_fraction=0.2"),
            *("num_hidden_layers=1", "num_attention_heads=2", "hidden_size=32", "use_cpu=true"),
            *("per_device_train_batch_size=4", "max_steps=8", "eval_strategy=steps"),
            *("eval_steps=4", "disable_tqdm=true", "bf16=false"),
        ],
    }
    record = hfscale.compare(**asked)
    [found] = record["comparisons"]
    assert set(found["pairing"].values()) == {True}
    assert found["difference"] < 0 and found["seeds"] == 2
    runs = {
        (rate, seed): hfscale.load_run(tmp_path / f"out/runs/learning_rate={rate}-seed{seed}")
        for rate in ("1e-4", "1e-2")
        for seed in (0, 1)
    }
    differences = [
        runs["1e-2", seed].metrics["eval_loss"] - runs["1e-4", seed].metrics["eval_loss"]
        for seed in (0, 1)
    ]
    assert found["difference"] == pytest.approx(sum(differences) / 2)
    costs = [run.record["train"]["cpu_seconds"] for run in runs.values()]
    assert min(costs) > 0
    assert found["cost_ratios"]["cpu_seconds"] == pytest.approx(sum(costs[2:]) / sum(costs[:2]))
    assert {run.config["data_seed"] for run in runs.values()} == {0, 1}
    again = hfscale.compare(**asked, overwrite=True)  # which trains nothing
    assert again["comparisons"] == record["comparisons"]
