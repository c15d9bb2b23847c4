"""hfscale and lm-eval on the same checkpoint and text: two implementations, one number."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.evaluation.lm_eval import run_lm_eval
from hfscale.metrics.batches import Journal
from hfscale.metrics.perplexity import perplexity_metrics, score_documents
from hfscale.metrics.texts import choice_statistics
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.tasks.choice_scores import score_choices
from recipes import score

pytest.importorskip("lm_eval")
ROOT = Path(__file__).parents[2]


def read(path: Path, count: int) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines, strict=False)]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def items(real_data):
    """Questions with choices of very unequal length, some of them not ASCII."""
    rows = read(real_data / "arc_easy" / "arc_easy.jsonl.gz", 120) + read(
        real_data / "piqa" / "piqa.jsonl.gz", 80
    )
    rows += [{"query": "Größe?", "choices": ["klein", "größer als ø", "猫"], "gold": 1}]
    return [
        {"question": row["query"], "choices": row["choices"], "answer": row["gold"]} for row in rows
    ]


@pytest.fixture(scope="module")
def tokenizer(items):
    texts = [f"{row['question']} {' '.join(row['choices'])}" for row in items]
    return train_bpe(Dataset.from_dict({"text": texts}), 600)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=320,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


@pytest.fixture(params=["gpt2", "llama"])
def of_two_kinds(request, model, tokenizer):
    if request.param == "gpt2":
        return model
    torch.manual_seed(0)
    return new_model(
        tokenizer,
        request.param,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size=32,
        max_position_embeddings=320,
        initializer_range=0.3,
    ).eval()


def test_perplexities_are_those_of_lm_eval(of_two_kinds, tokenizer, items, tmp_path):
    model = of_two_kinds
    texts = [
        " ".join(
            f"{row['question']} {' '.join(row['choices'])}" for row in items[:60]
        ),  # many windows long
        "ö",
        *(row["question"] for row in items[60:]),
    ]
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    expected, facts = run_lm_eval(model, tokenizer, ["local_perplexity"], data=data)
    scores = score_documents(model, tokenizer, texts, stride=320)
    metrics, _ = perplexity_metrics(scores)
    assert scores.sums[:, 1].max() > 8 * 320 and scores.sums[:, 1].min() < 3
    assert metrics["bits_per_byte"] == pytest.approx(
        expected["local_perplexity_bits_per_byte"], rel=1e-6
    )
    assert metrics["word_perplexity"] == pytest.approx(
        expected["local_perplexity_word_perplexity"], rel=1e-5
    )
    assert facts["tasks"]["local_perplexity"] == {
        "version": 1.0,
        "num_fewshot": 0,
        "examples": len(texts),
    }
    # lm-eval has no perplexity per token; its log-likelihood over the tokens that both scored gives
    # it.
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    nll = (
        expected["local_perplexity_bits_per_byte"]
        * np.log(2)
        * sum(len(text.encode()) for text in texts)
    )
    assert metrics["perplexity"] == pytest.approx(np.exp(nll / tokens), rel=1e-4)


def test_multiple_choice_is_that_of_lm_eval(of_two_kinds, tokenizer, items, tmp_path):
    model = of_two_kinds
    expected, facts = run_lm_eval(
        model, tokenizer, ["local_multiple_choice"], data=write(tmp_path / "items.jsonl", items)
    )
    examples = Dataset.from_list(
        [row | {"prompt": f"Question: {row['question']}\nAnswer:"} for row in items]
    )
    inputs, records = score_choices(model, tokenizer, examples)
    columns = choice_statistics(**inputs)
    acc, _, acc_bytes, _ = columns.mean(axis=0)
    assert acc == expected["local_multiple_choice_acc"]
    assert acc_bytes == expected["local_multiple_choice_acc_bytes"]
    assert acc != acc_bytes  # the test would see one taken for the other
    ascii_only = [all(choice.isascii() for choice in row["choices"]) for row in items]
    same = columns[ascii_only, 2].mean()  # there lm-eval's acc_norm, by characters, is the same
    rows = [row for row, keep in zip(items, ascii_only, strict=True) if keep]
    expected, _ = run_lm_eval(
        model, tokenizer, ["local_multiple_choice"], data=write(tmp_path / "ascii.jsonl", rows)
    )
    assert same == expected["local_multiple_choice_acc_norm"]
    assert facts["tasks"]["local_multiple_choice"]["examples"] == len(items) == len(records)


def test_log_likelihoods_one_by_one(model, tokenizer, items):
    """Each choice against a forward pass of its own, also of a prompt that is longer than the
    context.
    """
    rows = [
        {
            "prompt": "Question: " + row["question"] * times + "\nAnswer:",
            "choices": row["choices"],
            "answer": 0,
        }
        for row, times in zip(items[:6], (1, 1, 1, 60, 1, 1), strict=True)
    ]
    _, records = score_choices(model, tokenizer, Dataset.from_list(rows), batch_size=5)
    assert [record["cut_tokens"] > 0 for record in records] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    for row, record in zip(rows, records, strict=True):
        for choice, found in zip(row["choices"], record["logliks"], strict=True):
            ids = tokenizer(f"{row['prompt']} {choice}")["input_ids"][-321:]
            size = len(tokenizer(f" {choice}")["input_ids"])
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            expected = sum(
                logits[i, ids[i + 1]].item() for i in range(len(ids) - 1 - size, len(ids) - 1)
            )
            assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow  # lm-eval's own bootstrap of BLEU and chrF
def test_generation_task_scores_the_generated_line(model, tokenizer, tmp_path, monkeypatch):
    """The likeliest one, whatever settings the model's folder brings along."""
    prompts = ["Question: one", "Which", "A plant is"]
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=0,
        )[0, ids.shape[1] :]
        outputs.append(tokenizer.decode(made, skip_special_tokens=True).split("\n")[0])
    rows = [
        {"prompt": prompt, "target": output}
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    rows[1]["target"] = "something else"
    monkeypatch.setattr(
        model, "generation_config", GenerationConfig(eos_token_id=0, no_repeat_ngram_size=1)
    )
    metrics, _ = run_lm_eval(
        model, tokenizer, ["local_generation"], data=write(tmp_path / "prompts.jsonl", rows)
    )
    assert metrics["local_generation_exact_match"] == pytest.approx(2 / 3)
    assert metrics["local_generation_chrf"] > 30


@pytest.fixture
def saved(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tmp_path


def test_recipe_writes_both_tasks_into_one_file(saved, items):
    """A task of the user's own folder beside a shipped one; answers that were kept are not asked
    for again.
    """
    write(saved / "items.jsonl", items[:20])
    own = (ROOT / "recipes" / "lm_eval_tasks" / "local_multiple_choice.yaml").read_text("utf-8")
    own = own.replace(
        "task: local_multiple_choice",
        "task: mine\ndataset_kwargs: {data_files: {test: items.jsonl}}",
    )
    (saved / "tasks").mkdir()
    (saved / "tasks" / "mine.yaml").write_text(own, "utf-8")
    score.main(
        [
            "--model",
            "model",
            "--lm_eval",
            "local_multiple_choice,mine",
            "--lm_eval_data",
            "items.jsonl",
            "--lm_eval_include",
            "tasks",
            "--limit",
            "15",
            "--output_dir",
            "out",
        ]
    )
    record = json.loads(Path("out/scores.json").read_text())
    [system] = record["systems"]
    metrics = system["metrics"]
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert metrics[f"eval_mine_{name}"] == metrics[f"eval_local_multiple_choice_{name}"]
    value, error = metrics["eval_mine_acc"], metrics["eval_mine_acc_stderr"]
    assert error == pytest.approx((value * (1 - value) / 14) ** 0.5)
    assert metrics["eval_mine_acc_ci95"] == pytest.approx(
        [value - 1.96 * error, value + 1.96 * error]
    )
    assert system["tasks"]["mine"] == {"version": 1.0, "num_fewshot": 0, "examples": 15}
    assert system["lm_eval"] and len(record["data"]["fingerprint"]) == 16
    assert sorted(path.name for path in Path("out").iterdir()) == ["scores.json"]


def test_kept_answers_are_used(model, tokenizer, items, tmp_path, monkeypatch):
    data = write(tmp_path / "items.jsonl", items[:10])
    journal = Journal(tmp_path / "kept", {"model": 1})
    first = run_lm_eval(model, tokenizer, ["local_multiple_choice"], data=data, journal=journal)
    monkeypatch.setattr(model, "forward", None)  # it would be asked in vain
    assert (
        run_lm_eval(model, tokenizer, ["local_multiple_choice"], data=data, journal=journal)
        == first
    )
    with pytest.raises(TypeError):
        run_lm_eval(
            model,
            tokenizer,
            ["local_multiple_choice"],
            data=data,
            journal=Journal(tmp_path / "kept", {}),
        )


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            "--lm_eval local_perplexity",
            "lm_eval_data: missing; expected a file of JSON lines with text for local_perplexity",
        ),
        ("--lm_eval local_perplexity --lm_eval_data missing.jsonl", "lm_eval_data missing.jsonl: "),
        (
            "--lm_eval local_perplexity --lm_eval_data bad.jsonl",
            "bad.jsonl:1: not JSON .*; mend or remove the line",
        ),
        (
            "--lm_eval local_perplexity --lm_eval_include missing",
            "lm_eval_include missing: no such folder",
        ),
        ("--lm_eval local_perplexity --source bad.jsonl", "give one of them"),
        (
            "--lm_eval local_perplexity --lm_eval_data column.jsonl",
            "lm_eval_data column.jsonl:2: expected JSON with text for local_perplexity; it has txt",
        ),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(saved, words, match):
    Path("bad.jsonl").write_text("{")
    Path("column.jsonl").write_text('{"text": "a"}\n{"txt": "a"}\n')
    with pytest.raises(InputError, match=match) as error:
        score.main(["--model", "model", "--output_dir", "out", *words.split()])
    assert "\n" not in str(error.value) and not Path("out").exists()


@pytest.mark.slow  # lm-eval reads its 14,000 tasks
def test_a_task_whose_data_cannot_be_had(model, tokenizer):
    with pytest.raises(InputError, match="hellaswag: .*cannot be loaded: .*Hub"):
        run_lm_eval(model, tokenizer, ["hellaswag"])


@pytest.mark.slow
def test_every_name_that_lm_eval_knows_is_known_here():
    """Found in the text of its files, as a wrong one has to be known in seconds."""
    from lm_eval.tasks import TaskManager

    from hfscale.evaluation.lm_tasks import NAMES, own_files

    found = set().union(*map(NAMES.findall, own_files()))
    assert not set(TaskManager().all_tasks) - found


@pytest.mark.parametrize(
    ("task", "row", "match"),
    [
        ("local_generation", {"prompt": "x", "target": "y"}, "requested max tokens to generate"),
        (
            "local_multiple_choice",
            {"question": "x", "choices": ["a " * 400, "b"], "answer": 0},
            "context of 40 tokens",
        ),
    ],
)
def test_a_context_that_is_too_short_is_said_in_one_line(tokenizer, tmp_path, task, row, match):
    small = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=1,
            n_head=1,
            n_embd=8,
            n_positions=40,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with pytest.raises(
        InputError, match=f"^lm_eval {task}: lm-eval cannot ask this model: .*{match}"
    ) as error:
        run_lm_eval(small, tokenizer, [task], data=write(tmp_path / "rows.jsonl", [row]))
    assert "\n" not in str(error.value)


def test_missing_extra_is_named(model, tokenizer, monkeypatch):
    monkeypatch.setattr("hfscale.evaluation.lm_tasks.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "hfscale\[lm-eval\]"'):
        run_lm_eval(model, tokenizer, ["local_perplexity"])
