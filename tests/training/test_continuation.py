"""What a continuation must have in common with its run: every argument counts, or says why not."""

import copy
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import TrainingArguments, set_seed
from trl import DPOConfig

from hfscale import process
from hfscale.data.fingerprints import rows_fingerprint, tokenizer_fingerprint
from hfscale.data.packing import collate_rows, pack_documents
from hfscale.data.stream_content import stream_fingerprint
from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.training import continuation
from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.continuation import (
    BY_EVALUATIONS,
    COMPARED_AS,
    RECIPES_MAY_CHANGE,
    UPSTREAM_MAY_CHANGE,
    check_same_settings,
    reasons,
    settings_of_run,
    training_settings,
)
from hfscale.training.running import run_training
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments
from recipes import (
    distill,
    finetune,
    finetune_picture,
    finetune_preference,
    finetune_reward,
    finetune_task,
    pretrain,
)

ROOT = Path(__file__).parents[2]
RECIPES = {
    "pretrain": pretrain.PretrainArguments,
    "distill": distill.DistillArguments,
    "finetune": finetune.FinetuneArguments,
    "finetune_task": finetune_task.FinetuneTaskArguments,
    "finetune_preference": finetune_preference.FinetunePreferenceArguments,
    "finetune_picture": finetune_picture.FinetunePictureArguments,
    "finetune_reward": finetune_reward.FinetuneRewardArguments,
}
DOCUMENTS = Dataset.from_dict(
    {"text": [f"document {i} says {i * i} and little else" * (1 + i % 5) for i in range(24)]}
)
SIZES = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 64,
}
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Of like length, and of lengths of their own."""
    return {
        packing: pack_documents(DOCUMENTS, tokenizer, 64, packing=packing)
        for packing in ("wrapped", "none")
    }


@pytest.fixture(scope="module")
def model(tokenizer):
    return drawn_model(tokenizer, seed=0)


def drawn_model(tokenizer, *, seed: int):
    """Another one for each seed, whatever was drawn before."""
    torch.manual_seed(seed)
    return new_model(tokenizer, **SIZES)


@pytest.fixture(scope="module")
def base(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def upstream(folder="run", cls=TrainingArguments, **values):
    values = {"output_dir": str(folder), "bf16": False, "report_to": "none", **values}
    return training_arguments(values, width=32, cls=cls)


def refusal(before, now, *, step=3, files=("optimizer.pt",)):
    """What is said where a run of the settings `before` is to go on with `now`; None: it does."""
    record = {"config": before, "step": step, "files": dict.fromkeys(files)}
    try:
        check_same_settings(record, now, Path("run/checkpoint-3"))
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


# ---- no argument is forgotten


def test_each_argument_has_one_place():
    of_upstream = {item.name for cls in (TrainingArguments, DPOConfig) for item in fields(cls)}
    of_recipes = {item.name for cls in RECIPES.values() for item in fields(cls)}
    upstream_may, recipes_may = reasons(UPSTREAM_MAY_CHANGE), reasons(RECIPES_MAY_CHANGE)
    assert upstream_may.keys() <= of_upstream and recipes_may.keys() <= of_recipes
    elsewhere = [*reasons(COMPARED_AS), *BY_EVALUATIONS]
    assert {*elsewhere} <= of_upstream | of_recipes and len({*elsewhere}) == len(elsewhere)
    assert not {*elsewhere} & (upstream_may.keys() | recipes_may.keys())
    for table in (UPSTREAM_MAY_CHANGE, RECIPES_MAY_CHANGE, COMPARED_AS):
        names = [name for group in table.values() for name in group]
        assert len({*names}) == len(names)


@pytest.mark.parametrize("cls", [TrainingArguments, DPOConfig], ids=lambda cls: cls.__name__)
def test_upstreams_arguments_count_or_say_why_not(cls):
    args = upstream(cls=cls, load_best_model_at_end=False)
    before = training_settings(args, 10)
    for item in fields(cls):
        if not item.init or item.name in reasons(COMPARED_AS):
            continue
        changed = copy.copy(args)
        # One that has the method of the only argument that has to be written by one.
        other = "another" if item.name != "parallelism_config" else SimpleNamespace(to_json=str)
        setattr(changed, item.name, other)
        said = refusal(before, training_settings(changed, 10))
        may_change = item.name in {*reasons(UPSTREAM_MAY_CHANGE), *BY_EVALUATIONS}
        assert (said is None) == may_change, item.name
        assert may_change or f"{item.name} was " in said or f"{item.name}." in said


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_arguments_count_or_say_why_not(recipe, model, tokenizer, rows, base):
    known = {item.name for item in fields(RECIPES[recipe])}
    args = RECIPES[recipe](
        **{name: base for name in ("model", "teacher_model_name_or_path") if name in known}
    )
    parts = {"train": rows["none"], "validation": rows["none"]}

    def settings(args, **values):
        return settings_of_run(args, upstream(**values), model, tokenizer, parts)

    before = settings(args)
    plateau = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "steps",
        "metric_for_best_model": "loss",
    }
    for name in known:
        if name in (places := reasons(COMPARED_AS)):
            assert places[name] in {*before, "upstream's arguments"}, name
            continue
        changed = replace(args, **{name: "another"})
        said = refusal(before, settings(changed))
        may_change = name in {*reasons(RECIPES_MAY_CHANGE), *BY_EVALUATIONS}
        assert (said is None) == may_change, name
        assert may_change or f"{name} was " in said
        if name in BY_EVALUATIONS:
            said = refusal(settings(args, **plateau), settings(changed, **plateau))
            assert f"{name} was " in said


def test_the_documentation_lists_what_may_change():
    text = (ROOT / "docs" / "resuming.md").read_text("utf-8")
    for table in (UPSTREAM_MAY_CHANGE, RECIPES_MAY_CHANGE):
        for reason, names in table.items():
            assert f"| {', '.join(f'`{name}`' for name in names)} | {reason} |" in text, reason


# ---- what is compared by its effect


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        # Cut in another way, a step's rows are the same.
        (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            None,
        ),
        (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 4},
            "global_batch_size was 8, is 4",
        ),
        # ... but for what is computed of each piece.
        *(
            (
                {"per_device_train_batch_size": 8, **more},
                {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **more},
                "micro_batch_size was 8, is 4",
            )
            for more in ({"dataloader_drop_last": True}, {"label_smoothing_factor": 0.1})
        ),
        ({}, {"dataloader_num_workers": 3, "dataloader_prefetch_factor": 4}, None),
        ({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 7}, None),
        ({"save_steps": 5}, {"save_steps": 9, "save_total_limit": 1}, None),
        (
            {"eval_strategy": "steps", "eval_steps": 5, "lr_scheduler_type": "greedy"},
            {"eval_strategy": "steps", "eval_steps": 7, "lr_scheduler_type": "greedy"},
            "eval_steps was 5, is 7",
        ),
        (
            {"train_sampling_strategy": "random"},
            {"train_sampling_strategy": "sequential"},
            "train_sampling_strategy was random, is sequential",
        ),
        # Names that only begin like those that may change.
        ({}, {"dataloader_drop_last": True}, "dataloader_drop_last was False, is True"),
        (
            {},
            {"accelerator_config": {"dispatch_batches": False, "use_seedable_sampler": False}},
            "accelerator_config.use_seedable_sampler was True, is False",
        ),
    ],
)
def test_batches_and_order(model, tokenizer, rows, before, now, said):
    found = refusal(
        *(
            settings_of_run(
                pretrain.PretrainArguments(),
                upstream(**values),
                model,
                tokenizer,
                {"train": rows["none"]},
            )
            for values in (before, now)
        )
    )
    assert found is None if said is None else f"other settings ({said}" in found or said in found


def test_pairs_are_averaged_over_each_micro_batch(model, tokenizer, base):
    pairs = {"train": Dataset.from_dict({"prompt_ids": [[1]], "chosen_ids": [[2]]})}
    args = finetune_preference.FinetunePreferenceArguments(model=base)
    before, now = (
        settings_of_run(args, upstream(cls=DPOConfig, **values), model, tokenizer, pairs)
        for values in (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        )
    )
    assert "micro_batch_size was 8, is 4" in refusal(before, now)


CONTENTS = ("train rows", "validation rows", "model", "tokenizer", "model_config", "template")


@pytest.mark.parametrize("what", CONTENTS)
def test_content_is_compared_where_names_are_equal(what, model, tokenizer, rows, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    args = finetune.FinetuneArguments(model=str(folder), source=["a.txt"])
    parts = {"train": rows["wrapped"], "validation": rows["none"]}
    before = settings_of_run(args, upstream(), model, tokenizer, parts)
    if what.endswith("rows"):
        name = what.split()[0]
        parts[name] = parts[name].select(range(len(parts[name]) - 1))
    elif what == "model":
        drawn_model(tokenizer, seed=1).save_pretrained(folder)
    elif what == "tokenizer":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(["elsewhere"])
    elif what == "template":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = "{% for message in messages %}{% endfor %}"
    else:
        model = new_model(tokenizer, **SIZES, attn_pdrop=0.2)
    said = refusal(before, settings_of_run(args, upstream(), model, tokenizer, parts))
    expected = {
        "train rows": "the content of the train rows (a.txt) changed",
        "validation rows": "the content of the validation rows (a.txt) changed",
        "model": f"the content of the model ({folder}) changed",
        "tokenizer": "the content of the tokenizer changed",
        "template": "the content of the tokenizer changed",
        "model_config": "model_config.attn_pdrop was 0.0, is 0.2",
    }[what]
    assert f"belongs to a run with other settings ({expected}); put them back, or" in said


def test_equal_content_under_other_names_goes_on(model, tokenizer, rows, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "moved")
    parts = {"train": rows["wrapped"]}
    settings = [
        settings_of_run(
            finetune.FinetuneArguments(model=str(place), source=[source]),
            upstream(place),
            model,
            tokenizer,
            parts,
        )
        for place, source in ((base, "a.txt"), (folder, "b.txt"))
    ]
    assert refusal(*settings) is None


@pytest.mark.parametrize("how", ["pieces", "indices", "order", "cell", "column", "null"])
def test_a_hash_of_rows_tells_what_they_hold_alone(how):
    rows = Dataset.from_dict({"ids": [[i, i + 1] for i in range(3000)], "text": ["a"] * 3000})
    other = {
        "pieces": lambda: concatenate_datasets(
            [rows.select(range(7)), rows.select(range(7, 3000))]
        ),
        "indices": lambda: rows.select([*range(3000)][::-1]).select([*range(3000)][::-1]),
        "order": lambda: rows.select([1, 0, *range(2, 3000)]),
        "cell": lambda: Dataset.from_dict({**rows[:], "ids": [*rows["ids"][:2999], [2999, 0]]}),
        "column": lambda: rows.rename_column("text", "texts"),
        "null": lambda: Dataset.from_dict({**rows[:], "text": ["a"] * 2999 + [None]}),
    }[how]()
    is_equal = rows_fingerprint(rows) == rows_fingerprint(other)
    assert is_equal == (how in ("pieces", "indices"))


def test_a_tokenizer_stays_itself_in_use(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    used = copy.deepcopy(tokenizer)
    used(["one", "and another"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(used) == before


def make_source(folder: Path, kind: str) -> str:
    if kind == "files":
        (folder / "a.txt").write_text("one\n")
        (folder / "b.jsonl").write_text('{"text": "two"}\n')
        return str(folder)
    if kind == "function":
        (folder / "texts.py").write_text("def documents():\n    yield 'one'\n")
        return f"{folder / 'texts.py'}:documents"
    Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(folder / "saved")
    return str(folder / "saved")


@pytest.mark.parametrize("kind", ["files", "function", "saved"])
def test_a_streams_text_is_known_by_its_bytes(tmp_path, kind):
    source = make_source(tmp_path, kind)
    moved = shutil.copytree(tmp_path, tmp_path.with_name(f"moved-{kind}"))
    before = stream_fingerprint([source])
    assert stream_fingerprint([source.replace(str(tmp_path), str(moved))]) == before
    file = next(
        path for path in sorted(tmp_path.rglob("*")) if path.suffix in {".txt", ".py", ".arrow"}
    )
    file.write_bytes(file.read_bytes().replace(b"one", b"two"))
    assert stream_fingerprint([source]) != before


def test_a_stream_counts_with_all_that_reads_it(model, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    args = pretrain.PretrainArguments(source=[str(tmp_path / "a.txt")], streaming=True)
    stream = IterableDataset.from_generator(lambda: iter([]))

    def settings(**values):
        values = {"max_steps": 9, "per_device_train_batch_size": 8, **values}
        return settings_of_run(args, upstream(**values), model, tokenizer, {"train": stream})

    before = settings()
    assert "dataloader_num_workers was 0, is 1" in refusal(
        before, settings(dataloader_num_workers=1)
    )
    cut = settings(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert "micro_batch_size was 8, is 4" in refusal(before, cut)
    (tmp_path / "a.txt").write_text("two\n")
    assert "the content of the train rows" in refusal(before, settings())


def test_the_first_rank_alone_reads_files(model, tokenizer, rows, base, monkeypatch):
    """... and tells the others."""
    args = finetune.FinetuneArguments(model=base)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(continuation, "weights_fingerprint", pytest.fail)
    told = {"model_weights": "told"}
    ranks = SimpleNamespace(broadcast_object_list=lambda outcome: outcome.__setitem__(0, told))
    monkeypatch.setattr(process, "_connected_ranks", lambda: ranks)
    settings = settings_of_run(args, upstream(), model, tokenizer, {"train": rows["wrapped"]})
    assert settings["model_weights"] == "told"


# ---- the number of steps


@pytest.mark.parametrize(
    ("values", "old", "new", "step", "is_same"),
    [
        ({"lr_scheduler_type": "cosine"}, 100, 200, 50, False),
        ({"lr_scheduler_type": "cosine"}, 100, 90, 50, False),
        ({"lr_scheduler_type": "linear"}, 100, 101, 1, False),
        ({"lr_scheduler_type": "linear", "warmup_steps": 10}, 100, 200, 10, True),
        ({"lr_scheduler_type": "linear", "warmup_steps": 10}, 100, 200, 11, False),
        ({"lr_scheduler_type": "constant"}, 100, 200, 100, True),
        ({"lr_scheduler_type": "constant"}, 100, 60, 50, True),
        ({"lr_scheduler_type": "constant"}, 100, 40, 50, False),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9}, 100, 200, 50, True),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, 100, 200, 50, False),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 9}, 100, 200, 50, True),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 10},
            },
            100,
            200,
            90,
            True,
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 10},
            },
            100,
            200,
            91,
            False,
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-3},
                "learning_rate": 1e-2,
            },
            100,
            200,
            50,
            False,
        ),
        (
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "eval_strategy": "steps",
                "eval_steps": 5,
            },
            100,
            200,
            50,
            True,
        ),
    ],
)
def test_more_or_fewer_steps(capsys, values, old, new, step, is_same):
    """Allowed where the steps that are done would have had the same learning rates."""
    before, now = (training_settings(upstream(max_steps=steps, **values)) for steps in (old, new))
    said = refusal(before, now, step=step)
    if is_same:
        assert said is None
        line = f"{new} steps in place of {old}; up to step {step} the {values['lr_scheduler_type']}"
        assert line in capsys.readouterr().err
    elif new < step:
        assert f"is of step {step}, beyond the {new} steps that are asked for" in said
    else:
        assert f"belongs to a run of {old} steps, and in one of {new} the" in said
        assert "put max_steps and num_train_epochs back" in said


@pytest.mark.parametrize(
    ("num_rows", "values"),
    [
        (10, {"num_train_epochs": 2}),
        (10, {"num_train_epochs": 1.3, "gradient_accumulation_steps": 2}),
        (11, {"num_train_epochs": 3, "dataloader_drop_last": True}),
        (2, {"num_train_epochs": 5, "gradient_accumulation_steps": 4}),
        (10, {"max_steps": 7}),
    ],
)
def test_steps_are_counted_as_upstream_does(model, rows, num_rows, values):
    args = upstream(per_device_train_batch_size=3, **values)
    trainer = LMTrainer(model=model, args=args, train_dataset=rows["none"].select(range(num_rows)))
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert training_settings(args, num_rows)["total_steps"] == steps


# ---- messages


def test_an_older_manifest_is_compared_as_far_as_it_goes(capsys):
    now = training_settings(upstream(max_steps=5))
    older = {name: value for name, value in now.items() if name.startswith(("adam", "seed", "opt"))}
    assert refusal(older, now) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("--resume auto: run/checkpoint-3 is of another version and does not")
    assert "accelerator_config" in line and line.endswith("more, which are not compared")
    assert "seed was 1, is 42" in refusal({**older, "seed": 1}, now)
    assert refusal({**now, "no_longer_known": 3}, now) is None


def test_long_values_stay_in_one_line():
    now = training_settings(upstream())
    said = refusal({**now, "prompt": "{a}\n" * 100}, {**now, "prompt": "{b}"})
    assert "prompt was {a} {a}" in said and "..., is {b}" in said and len(said) < 300


# ---- runs that go on


def train(folder, tokenizer, rows, packing="wrapped", *, resume=None, callbacks=(), **values):
    set_seed(0)
    trainer = LMTrainer(
        model=new_model(tokenizer, **SIZES, **DROPOUT),
        args=upstream(
            folder,
            **{
                "max_steps": 12,
                "save_steps": 4,
                "logging_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "disable_tqdm": True,
                **values,
            },
        ),
        train_dataset=rows[packing],
        eval_dataset=rows["wrapped"].select(range(4)),
        data_collator=collate_rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    run_training(trainer, resume)
    return trainer


def equal_weights(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def by_length(tokenizer, rows, tmp_path_factory):
    """Two epochs of rows whose order depends on their lengths, under dropout."""
    folder = tmp_path_factory.mktemp("by_length")
    return train(folder, tokenizer, rows, "none", train_sampling_strategy="group_by_length")


@pytest.mark.parametrize(
    "values",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
        {"eval_strategy": "epoch", "per_device_eval_batch_size": 1, "logging_steps": 5},
        {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3},
        {"activation_checkpointing": True, "torch_empty_cache_steps": 2, "save_strategy": "no"},
    ],
    ids=str,
)
def test_what_may_change_changes_no_weight(tokenizer, rows, tmp_path, by_length, values):
    other = train(
        tmp_path, tokenizer, rows, "none", train_sampling_strategy="group_by_length", **values
    )
    assert equal_weights(other, by_length)


def test_rows_of_like_length_go_on_within_a_later_epoch(tokenizer, rows, tmp_path, by_length):
    folder = shutil.copytree(by_length.args.output_dir, tmp_path / "run")
    assert len(rows["none"]) / 4 == 6  # steps of an epoch: step 8 is in the second
    again = train(
        folder,
        tokenizer,
        rows,
        "none",
        train_sampling_strategy="group_by_length",
        resume=str(folder / "checkpoint-8"),
    )
    assert equal_weights(again, by_length)


@pytest.mark.parametrize("dataloader_num_workers", [0, 1])
def test_repacked_rows_go_on_within_a_later_epoch(
    tokenizer, rows, tmp_path, dataloader_num_workers
):
    def repacked_rows():
        return pack_documents(DOCUMENTS, tokenizer, 64, repack_seed=42)

    def run(folder, resume=None):
        parts = {**rows, "repacked": repacked_rows()}
        values = {"resume": resume, "dataloader_num_workers": dataloader_num_workers}
        return train(folder, tokenizer, parts, "repacked", **values)

    whole = run(tmp_path / "whole")
    assert len(whole.train_dataset) == 9  # three steps an epoch: step 4 is in the second
    checkpoint = tmp_path / "run" / "checkpoint-4"
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", checkpoint)
    again = run(tmp_path / "run", str(checkpoint))
    assert equal_weights(again, whole)
    of_last_epoch = repacked_rows()
    of_last_epoch.set_epoch(3)
    expected = collate_rows([*of_last_epoch])["input_ids"]
    assert torch.equal(collate_rows([*whole.train_dataset])["input_ids"], expected)


def test_a_continuation_logs_evaluates_and_saves_as_it_is_told_now(
    tokenizer, rows, tmp_path, caplog
):
    first = {"max_steps": 9, "eval_strategy": "no", "lr_scheduler_type": "constant"}
    train(tmp_path, tokenizer, rows, **first, save_steps=4, logging_steps=4)
    shutil.rmtree(tmp_path / "checkpoint-9")
    shutil.rmtree(tmp_path / "checkpoint-8")
    now = {
        "max_steps": 11,
        "lr_scheduler_type": "constant",
        "save_steps": 3,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    checkpoint = newest_checkpoint(
        upstream(tmp_path, **now, per_device_train_batch_size=4, learning_rate=1e-2)
    )
    assert checkpoint.endswith("checkpoint-4")
    trainer = train(tmp_path, tokenizer, rows, resume=checkpoint, **now)
    saved = sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*"))
    logs = trainer.state.log_history
    assert saved == [4, 6, 9, 11]
    assert [log["step"] for log in logs if "loss" in log] == [4, 5, 10]
    assert [log["step"] for log in logs if "eval_loss" in log] == [6, 8, 10, 11]
    assert "do not match" not in caplog.text


def test_without_the_optimizers_state_nothing_goes_on(tokenizer, rows, tmp_path, capsys):
    values = {"max_steps": 3, "save_steps": 3, "per_device_train_batch_size": 4}
    train(tmp_path, tokenizer, rows, **values, save_only_model=True)
    assert "save_only_model: checkpoints without the optimizer's state" in capsys.readouterr().err
    args = upstream(tmp_path, **values, learning_rate=1e-2, save_only_model=False)
    with pytest.raises(InputError, match=r"checkpoint-3 holds no optimizer state \(save_only_mo"):
        newest_checkpoint(args)


QUICK = [
    *("--use_cpu", "--disable_tqdm", "--bf16", "false", "--report_to", "none"),
    *("--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "4"),
]


def refused(recipe, words, match):
    with pytest.raises(InputError, match=match) as error:
        recipe.main([*words, "--resume", "auto"])
    assert "\n" not in str(error.value)


def test_pretrain_refuses_a_model_that_never_was(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} counts" for i in range(80)))
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    words = [
        *(
            "--source",
            str(tmp_path / "text.txt"),
            "--sample_by",
            "line",
            "--tokenizer",
            "train:300",
        ),
        *("--output_dir", str(tmp_path / "run"), *QUICK, *sizes, "--lr_scheduler_type", "cosine"),
        *("--learning_rate", "1e-3"),  # else another architecture has another
    ]
    pretrain.main(words)
    for change, match in {
        "--num_attention_heads 4": "model_config.n_head was 2, is 4",
        "--architecture llama": r"\(model_config.model_type was gpt2, is llama\)",
        "--model_config resid_pdrop=0.1": "model_config.resid_pdrop was 0.0, is 0.1",
        "--train_sampling_strategy sequential": "train_sampling_strategy was random, is seq",
        "--max_steps 4": "belongs to a run of 2 steps, and in one of 4 the cosine schedule",
        "--tokenizer char": "the content of the tokenizer .char. changed",
    }.items():
        refused(pretrain, [*words, *change.split()], match)
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} counted" for i in range(80)))
    refused(pretrain, words, r"the content of the train rows \(.*\) changed")


def test_finetune_task_refuses_another_task_and_another_base(base, model, tokenizer, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    task = tmp_path / "rows.jsonl"
    pairs = [{"a": f"letter {'abcd'[i % 4]}", "b": "bcda"[i % 4]} for i in range(40)]
    task.write_text("\n".join(map(json.dumps, pairs)))
    words = [
        *("--task_source", str(task), "--prompt", "{a} -> ", "--target", "{b}"),
        *("--model", str(folder), "--lora_r", "2", "--max_new_tokens", "4", "--metrics"),
        *("exact_match", "--output_dir", str(tmp_path / "run"), *QUICK),
    ]
    finetune_task.main(words)
    for change, match in {
        "--prompt {a}=": "prompt was {a} ->, is {a}=; the content of the train rows",
        "--lora_alpha 8": "lora_alpha was 32(.0)?, is 8",
        "--lora_dropout 0.1": "lora_dropout was 0.0, is 0.1",
        "--max_length 40": "max_length was None, is 40",
    }.items():
        refused(finetune_task, [*words, *change.split()], match)
    task.write_text("\n".join(map(json.dumps, pairs[::-1])))
    refused(finetune_task, words, r"the content of the train rows \(.*\) changed")
    task.write_text("\n".join(map(json.dumps, pairs)))
    drawn_model(tokenizer, seed=1).save_pretrained(folder)
    refused(finetune_task, words, rf"the content of the model \({folder}\) changed")
    model.save_pretrained(folder)
    (tmp_path / "run" / "run.json").unlink()
    finetune_task.main([*words, "--resume", "auto"])
    assert (tmp_path / "run" / "run.json").is_file()


def test_finetune_preference_refuses_other_pairs_and_another_reference(base, tokenizer, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f" {i}.", "rejected": " No idea."} for i in range(12)
    ]
    file.write_text("\n".join(map(json.dumps, pairs)))
    words = [
        *("--source", str(file), "--model", str(folder), "--max_length", "60"),
        *("--output_dir", str(tmp_path / "run"), *QUICK),
    ]
    finetune_preference.main(words)
    drawn_model(tokenizer, seed=1).save_pretrained(folder)
    refused(finetune_preference, words, rf"the content of the model \({folder}\) changed")
    pairs[3]["chosen"] = " three."
    file.write_text("\n".join(map(json.dumps, pairs)))
    refused(finetune_preference, words, r"the content of the (train|validation) rows \(.*pairs")
