"""Every row of docs/old_examples.md: the old call does what the table says, and the cure works.

Tests are named test_<row>_...; `fails` and `says` also look the asserted words up in that row, so
that the page and the stack cannot drift apart unseen.
"""

import math
import os
import re
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from hfscale.training.trainer import LMTrainer

PAGE = Path(__file__).parents[1] / "docs" / "old_examples.md"
ROWS = {
    int(number): row
    for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text("utf-8"), re.M)
}
NEW_NAMES = PAGE.read_text("utf-8").partition("## Training arguments")[2]
CONTEXT = 128
TEXTS = [
    "The cat sat on the mat.",
    "A dog barked at the moon all night long.",
    "Rain fell.",
    "She opened the old wooden box and found a letter inside.",
] * 4


def says(row: int, words: str) -> None:
    assert words in ROWS[row], f"row {row} of {PAGE.name} does not say {words!r}"


@contextmanager
def fails(row: int, error: type[Exception], words: str):
    says(row, error.__name__)
    says(row, words)
    with pytest.raises(error, match=re.escape(words)) as caught:
        yield
    assert caught.type is error  # not a subclass


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No network and an empty cache, whatever the machine has; both constants are read at each
    call.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(
            huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub"))
        )
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for each other on models this small, many times longer when the cores are
    busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    GPT2Tokenizer().train_new_from_iterator(
        TEXTS, vocab_size=400, show_progress=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    """A GPT-2 tokenizer as the Hub's: end-of-text, no padding token."""
    return GPT2Tokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def padded(tokenizer):
    """The tokenizer as old examples leave it."""
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_embd=32,
            n_head=2,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ).eval()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def make_trainer(model, folder):
    def make(arguments=None, trainer=Trainer, **parts):
        settings = {
            "output_dir": str(folder),
            "use_cpu": True,
            "disable_tqdm": True,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 2,
        } | (arguments or {})
        return trainer(**({"model": model, "args": TrainingArguments(**settings)} | parts))

    return make


@pytest.fixture
def rows(padded):
    return Dataset.from_dict(dict(padded(TEXTS, padding=True)))


@pytest.fixture
def collator(padded):
    return DataCollatorForLanguageModeling(padded, mlm=False)


@pytest.fixture
def generator(model, padded):
    torch.manual_seed(0)
    return pipeline("text-generation", model=model, tokenizer=padded, device="cpu")


def prompt_of(tokenizer, num_tokens: int) -> str:
    text = tokenizer.decode(tokenizer("The cat sat on the mat. " * 20)["input_ids"][:num_tokens])
    assert len(tokenizer(text)["input_ids"]) == num_tokens
    return text


def exact_loss(model, sequences) -> float:
    """Mean over all predicted tokens, one sequence at a time."""
    total = count = 0
    for ids in map(torch.tensor, sequences):
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        count += len(ids) - 1
    return total / count


def test_every_row_has_a_test_and_every_test_a_row():
    tested = {int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)}
    assert tested == set(ROWS) == set(range(1, 19))


def test_01_tokenizer_class_is_empty_without_network(tmp_path):
    for source in ("gpt2", tmp_path):
        empty = GPT2Tokenizer.from_pretrained(source)
        assert empty.vocab_size == 0 and empty(TEXTS[:2])["input_ids"] == [[], []]
    says(1, "`vocab_size` is 0")
    says(1, "raises `OSError`")
    with pytest.raises(OSError, match="We couldn't connect to 'https://huggingface.co'"):
        AutoTokenizer.from_pretrained("gpt2")
    trained = GPT2Tokenizer().train_new_from_iterator(TEXTS, vocab_size=400, show_progress=False)
    ids = trained(TEXTS[0])["input_ids"]
    assert len(ids) == 7 and trained.decode(ids) == TEXTS[0] and trained.eos_token_id is not None


def test_02_hub_model_without_network(model, tmp_path):
    with fails(2, OSError, "We couldn't connect to 'https://huggingface.co' to load the files"):
        GPT2LMHeadModel.from_pretrained("gpt2")
    model.save_pretrained(tmp_path)
    assert GPT2LMHeadModel.from_pretrained(tmp_path).num_parameters() == model.num_parameters()


def test_02_environment_variable_is_read_at_import(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not huggingface_hub.is_offline_mode()
    says(2, 'os.environ["HF_HUB_OFFLINE"] = "1"')


def test_03_no_padding_token(tokenizer):
    with fails(3, ValueError, "Asking to pad but the tokenizer does not have a padding token"):
        tokenizer(TEXTS, padding=True, truncation=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert len({len(ids) for ids in tokenizer(TEXTS, padding=True)["input_ids"]}) == 1


def test_04_pad_as_eos_hides_eos(tokenizer, model, make_trainer):
    eos = tokenizer.eos_token_id
    assert eos not in tokenizer(TEXTS[0])["input_ids"]
    texts = [text + tokenizer.eos_token for text in TEXTS]

    def collate():
        batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(
            [tokenizer(text) for text in texts]
        )
        return int((batch["labels"] == eos).sum())

    tokenizer.pad_token = tokenizer.eos_token
    assert collate() == 0
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert collate() == len(texts) == 16
    says(4, "0 of 16")
    says(4, "16 of 16")

    rows = Dataset.from_dict(dict(tokenizer(texts, padding=True)))
    trainer = make_trainer(
        train_dataset=rows, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False)
    )
    with fails(4, IndexError, "index out of range in self"):
        trainer.train()
    model.resize_token_embeddings(len(tokenizer))
    assert trainer.train().global_step == 8


OLD_ARGUMENTS = {
    "overwrite_output_dir": True,
    "evaluation_strategy": "epoch",
    "no_cuda": True,
    "warmup_ratio": 0.1,
    "logging_dir": "./logs",
    "group_by_length": True,
}


@pytest.mark.parametrize("name", OLD_ARGUMENTS)
def test_05_removed_training_arguments(name, folder):
    says(5, f"`{name}`")
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
        TrainingArguments(output_dir=str(folder), **{name: OLD_ARGUMENTS[name]})


def test_05_new_training_arguments(make_trainer, rows, collator):
    new = {
        "eval_strategy": "epoch",
        "use_cpu": True,
        "warmup_steps": 0.1,
        "train_sampling_strategy": "group_by_length",
    }
    for words in (
        '`eval_strategy="epoch"`',
        "`use_cpu=True`",
        "`warmup_steps=0.1`",
        '`train_sampling_strategy="group_by_length"`',
    ):
        assert words in NEW_NAMES
    with pytest.raises(ValueError, match="you didn't pass an `eval_dataset`"):
        make_trainer(new, train_dataset=rows, data_collator=collator)
    trainer = make_trainer(new, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    trainer.train()
    assert "eval_loss" in trainer.state.log_history[0]
    assert trainer.args.device.type == "cpu"
    assert trainer.args.get_warmup_steps(200) == 20
    assert isinstance(trainer.get_train_dataloader().batch_sampler.sampler, LengthGroupedSampler)


def test_05_used_output_folder_is_mixed(make_trainer, rows, collator, folder):
    for epochs in (2, 1):
        make_trainer(
            {"num_train_epochs": epochs}, train_dataset=rows, data_collator=collator
        ).train()
    assert sorted(os.listdir(folder)) == ["checkpoint-16", "checkpoint-8"]
    assert get_last_checkpoint(folder).endswith("checkpoint-16")
    resumed = make_trainer({"num_train_epochs": 1}, train_dataset=rows, data_collator=collator)
    assert (
        resumed.train(resume_from_checkpoint=True).global_step == 16
    )  # the earlier run's end, not this run's 8
    says(5, "resume_from_checkpoint=True")


def test_05_nothing_is_reported_unless_asked(folder):
    assert TrainingArguments(output_dir=str(folder)).report_to == []
    says(5, '`report_to` is now "none"')


def test_05_tensorboard_folder(make_trainer, rows, collator, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    assert "TENSORBOARD_LOGGING_DIR" in NEW_NAMES
    make_trainer({"report_to": "tensorboard"}, train_dataset=rows, data_collator=collator).train()
    assert "tfevents" in os.listdir(tmp_path / "logs")[0]


def test_06_old_adamw(folder):
    with fails(6, ValueError, "adamw_hf is not a valid OptimizerNames"):
        TrainingArguments(output_dir=str(folder), optim="adamw_hf")
    with fails(6, ImportError, "cannot import name 'AdamW' from 'transformers'"):
        from transformers import AdamW  # noqa: F401
    assert TrainingArguments(output_dir=str(folder), optim="adamw_torch").optim == "adamw_torch"
    assert TrainingArguments(output_dir=str(folder)).optim == "adamw_torch_fused"
    says(6, "adamw_torch_fused")


def test_07_encodings_are_no_data_set(padded, make_trainer, collator):
    for tensors in (None, "pt"):
        encodings = padded(TEXTS, padding=True, truncation=True, return_tensors=tensors)
        assert len(encodings) == 2
        with fails(
            7, ValueError, "The batch received was empty, your model won't be able to train on it"
        ):
            make_trainer(train_dataset=encodings).train()
    encodings = dict(padded(TEXTS, padding=True))
    with fails(7, KeyError, "0"):
        make_trainer(train_dataset=encodings).train()
    trainer = make_trainer(train_dataset=Dataset.from_dict(encodings), data_collator=collator)
    assert trainer.train().global_step == len(TEXTS) / 2


def test_08_no_labels(make_trainer, rows, collator):
    with fails(
        8,
        ValueError,
        "The model did not return a loss from the inputs, only the following keys: logits",
    ):
        make_trainer(train_dataset=rows).train()
    result = make_trainer(train_dataset=rows, data_collator=collator).train()
    assert 0 < result.training_loss < 2 * math.log(400)


def test_09_labels_on_padding(padded, collator, model):
    encodings = padded(TEXTS, padding=True, return_tensors="pt")
    is_padding = encodings["attention_mask"][:, 1:] == 0  # the first label is never predicted
    assert (int(is_padding.sum()), is_padding.numel()) == (64, 176)
    says(9, "64 of 176 targets (36 %)")
    copied = encodings["input_ids"]
    kept = collator([padded(text) for text in TEXTS])["labels"]
    assert bool((kept[:, 1:][is_padding] == -100).all())
    with torch.no_grad():
        logits = model(**encodings).logits[:, :-1].transpose(1, 2)
        everything = torch.nn.functional.cross_entropy(logits, copied[:, 1:])
        loss = model(**encodings, labels=copied).loss
        cured = model(**encodings, labels=kept).loss
    assert loss.item() == pytest.approx(
        everything.item(), rel=1e-5
    )  # padding counts as a target like any other
    assert cured.item() == pytest.approx(
        exact_loss(model, [padded(text)["input_ids"] for text in TEXTS]), rel=1e-5
    )


def test_10_trainer_tokenizer(make_trainer, rows, padded):
    with fails(10, TypeError, "got an unexpected keyword argument 'tokenizer'"):
        make_trainer(train_dataset=rows, tokenizer=padded)
    assert make_trainer(train_dataset=rows, processing_class=padded).processing_class is padded


@pytest.mark.parametrize(
    "length, ratio, shortfall", [(16, "0.9375", "30 %"), (64, "0.984375", "8.7 %")]
)
def test_11_loss_is_scaled(length, ratio, shortfall, model, make_trainer, folder):
    torch.manual_seed(1)
    sequences = torch.randint(1, model.config.vocab_size, (8, length)).tolist()
    rows = [{"input_ids": ids, "labels": ids} for ids in sequences]
    exact = exact_loss(model, sequences)

    def measure():
        arguments = {
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "logging_steps": 1,
            "learning_rate": 0.0,
        }
        trainer = make_trainer(
            arguments, train_dataset=rows, eval_dataset=rows, data_collator=default_data_collator
        )
        eval_loss = trainer.evaluate()["eval_loss"]
        trainer.train()
        step = next(log for log in trainer.state.log_history if "grad_norm" in log)
        return eval_loss, step["loss"], step["grad_norm"]

    eval_loss, train_loss, grad_norm = measure()
    assert eval_loss / exact == pytest.approx(float(ratio), rel=1e-5)
    assert train_loss / exact == pytest.approx(float(ratio), rel=1e-5)
    assert float(ratio) == (length - 1) / length
    assert 1 - math.exp(eval_loss - exact) == pytest.approx(float(shortfall[:-2]) / 100, rel=0.1)
    says(11, ratio)
    says(11, shortfall)

    model.config.loss_type = "ForCausalLM"
    assert measure()[0] == eval_loss  # in the config it does nothing
    model.loss_type = "ForCausalLM"
    cured_eval, cured_train, cured_norm = measure()
    assert cured_eval == pytest.approx(exact, rel=1e-5)
    assert cured_train == pytest.approx(exact, rel=1e-5)
    assert grad_norm / cured_norm == pytest.approx(float(ratio), rel=1e-4)
    model.save_pretrained(folder)
    assert GPT2LMHeadModel.from_pretrained(folder).loss_type is None  # so set it after every load


@pytest.fixture
def memorizer(model):
    """A model that knows one long sequence and no short one."""
    ids = torch.tensor([[5] * 60])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.loss_type = "ForCausalLM"
    return model.eval()


def eval_losses(make_trainer, sequences, collator, batch_sizes):
    rows = [{"input_ids": list(ids), "labels": list(ids)} for ids in sequences]
    return [
        make_trainer(
            {"per_device_eval_batch_size": size}, eval_dataset=rows, data_collator=collator
        ).evaluate()["eval_loss"]
        for size in batch_sizes
    ]


def test_12_eval_loss_depends_on_batch_size(memorizer, make_trainer, padded):
    sequences = [[5] * 60] + [padded(text)["input_ids"] for text in TEXTS[:7]]
    exact = exact_loss(memorizer, sequences)
    collator = DataCollatorForSeq2Seq(padded)
    by_one, by_four, by_eight = eval_losses(make_trainer, sequences, collator, (1, 4, 8))
    assert by_eight == pytest.approx(exact, rel=1e-5)
    assert (by_one, by_four, exact) == pytest.approx((5.0, 3.5, 2.5), rel=0.1)
    says(12, "about 5.0 at batch size 1, 3.5 at 4, and the exact 2.5")
    says(12, "`hfscale.training.trainer.LMTrainer`")
    cured = eval_losses(partial(make_trainer, trainer=LMTrainer), sequences, collator, (1, 4, 8))
    assert cured == pytest.approx([exact] * 3, rel=1e-5)


def test_12_rows_of_one_length_agree(memorizer, make_trainer, padded):
    stream = [token for text in TEXTS for token in padded(text)["input_ids"]]
    sequences = [[5] * 16] + [stream[start : start + 16] for start in range(0, 7 * 16, 16)]
    assert {len(ids) for ids in sequences} == {16}
    exact = exact_loss(memorizer, sequences)
    losses = eval_losses(
        make_trainer, sequences, default_data_collator, (1, 3, 8)
    )  # 3: a partial last batch
    assert losses == pytest.approx([exact] * 3, rel=1e-5)


def test_13_checkpoint_that_was_never_saved(
    make_trainer, rows, collator, padded, folder, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    trainer = make_trainer(
        {"output_dir": "./results", "save_steps": 10_000, "save_total_limit": 2},
        train_dataset=rows,
        data_collator=collator,
        processing_class=padded,
    )
    trainer.train()
    assert os.listdir("results") == ["checkpoint-8"]
    says(13, "checkpoint-8")
    with fails(13, OSError, "Repo id must be in the form 'repo_name' or 'namespace/repo_name'"):
        pipeline("text-generation", model="./results/checkpoint-10000")
    with fails(13, OSError, "We couldn't connect to 'https://huggingface.co'"):
        pipeline("text-generation", model="results/checkpoint-10000")
    trainer.save_model("./results")
    generator = pipeline("text-generation", model="./results", device="cpu")
    assert len(generator("The cat", max_new_tokens=5, num_return_sequences=3)) == 3
    assert generator.tokenizer("The cat")["input_ids"] == padded("The cat")["input_ids"]


def test_14_checkpoint_without_tokenizer(make_trainer, rows, padded, folder):
    labelled = rows.map(lambda row: {"labels": row["input_ids"]})
    make_trainer(train_dataset=labelled).train()
    checkpoint = str(folder / "checkpoint-8")
    assert not [name for name in os.listdir(checkpoint) if "token" in name]
    assert AutoTokenizer.from_pretrained(checkpoint).vocab_size == 0
    bare = pipeline("text-generation", model=checkpoint, device="cpu")
    assert (
        bare("The cat", max_length=50, num_return_sequences=3)
        == [{"generated_text": "The cat"}] * 3
    )
    says(14, "You get your prompt back three times")

    given = pipeline("text-generation", model=checkpoint, tokenizer=padded, device="cpu")
    assert len(given("The cat", max_new_tokens=5, min_new_tokens=5)[0]["generated_text"]) > len(
        "The cat"
    )
    shutil.rmtree(folder)
    make_trainer(train_dataset=labelled, processing_class=padded).train()
    assert AutoTokenizer.from_pretrained(checkpoint).vocab_size == padded.vocab_size


def test_15_max_length_counts_the_prompt(generator, padded):
    def new_tokens(num_prompt_tokens, **limits):
        results = generator(
            prompt_of(padded, num_prompt_tokens),
            num_return_sequences=3,
            return_tensors=True,
            **limits,
        )
        return [len(result["generated_token_ids"]) - num_prompt_tokens for result in results]

    with fails(15, ValueError, "Input length of input_ids is 50, but `max_length` is set to 50"):
        new_tokens(50, max_length=50)
    assert new_tokens(49, max_length=50) == [1, 1, 1]
    assert new_tokens(50, max_new_tokens=50, min_new_tokens=50) == [50, 50, 50]
    with fails(15, IndexError, "index out of range in self"):
        new_tokens(50, max_new_tokens=CONTEXT - 48, min_new_tokens=CONTEXT - 48)


def test_16_greedy_returns_one(generator, model, padded):
    ids = padded("The cat", return_tensors="pt")["input_ids"]
    words = "Greedy methods (do_sample != True) without beam search do not support `num_return_sequences`"
    with fails(16, ValueError, words):
        model.generate(ids, max_length=50, num_return_sequences=3)
    with fails(16, ValueError, words):
        generator("The cat", max_length=50, num_return_sequences=3, do_sample=False)
    sampled = generator("The cat", max_length=50, num_return_sequences=3)
    assert len({result["generated_text"] for result in sampled}) == 3
    for cure in ({"do_sample": True}, {"num_beams": 3}):
        assert (
            len(
                model.generate(
                    ids, max_new_tokens=5, num_return_sequences=3, pad_token_id=0, **cure
                )
            )
            == 3
        )


def test_17_no_attentions_under_sdpa(model, tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids, output_attentions=True).attentions == ()
    says(17, "`()`")
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    for eager in (model, GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager")):
        attentions = eager(ids, output_attentions=True).attentions
        assert [tuple(layer.shape) for layer in attentions] == [(1, 2, 3, 3)] * 2
        torch.testing.assert_close(attentions[0].sum(-1), torch.ones(1, 2, 3))


@pytest.mark.parametrize(
    "name", ["TextDataset", "LineByLineTextDataset", "AutoModelWithLMHead", "TFGPT2LMHeadModel"]
)
def test_18_removed_names(name):
    says(18, f"`{name}`")
    says(18, "cannot import name 'TextDataset' from 'transformers'")
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'transformers'"):
        exec(f"from transformers import {name}", {})
    assert not hasattr(transformers, name)


def test_18_removed_calls_and_cures(tokenizer, model, tmp_path):
    with fails(18, AttributeError, "has no attribute encode_plus"):
        tokenizer.encode_plus(TEXTS[0])
    model.save_pretrained(tmp_path / "model")
    with fails(18, KeyError, "The task text2text-generation has been removed from transformers"):
        pipeline("text2text-generation", model=str(tmp_path / "model"))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is GPT2LMHeadModel
    (tmp_path / "train.txt").write_text("\n".join(TEXTS), "utf-8")
    lines = load_dataset(
        "text",
        data_files=str(tmp_path / "train.txt"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert lines["text"][:] == TEXTS
