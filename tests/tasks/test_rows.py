"""Which tokens carry loss, for every shipped task, packed and padded; and what is done with what
does not fit.
"""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional as F
from transformers import TrainingArguments

from hfscale.arguments import TaskArguments
from hfscale.config import parse_args
from hfscale.data.packing import IGNORED, collate_rows
from hfscale.data.tokenizer import train_bpe, train_char
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.tasks.chat_templates import CHATML, add_template_characters, set_chat_template
from hfscale.tasks.examples import load_task
from hfscale.tasks.fitting import fit_examples
from hfscale.tasks.rows import supervised_rows
from hfscale.training.trainer import LMTrainer
from recipes import finetune_task

EOS = "<|endoftext|>"
TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye?"},
    {"role": "assistant", "content": "Bye."},
]
# task: (a row of its source, [(text, whether it carries loss), ...])
TASKS = {
    "translation": (
        {"en": "May 3, 2020", "other": "3. Mai 2020"},
        [("May 3, 2020\n", False), ("3. Mai 2020" + EOS, True)],
    ),
    "summarization": (
        {"words": "f x", "text": "Long story.", "summary": "Short."},
        [("f x\nLong story.\nSummary:\n", False), ("Short." + EOS, True)],
    ),
    "question_answering": (
        {"context": "Ada owns a cat.", "question": "Does Ada own a dog?", "answer": "no"},
        [("Does Ada own a dog?\nAda owns a cat.\nAnswer:\n", False), ("no" + EOS, True)],
    ),
    "dialogue": (
        {"messages": TURNS},
        [
            ("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n", False),
            ("Hello!" + EOS, True),
            ("<|im_end|>\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n", False),
            ("Bye." + EOS, True),
            ("<|im_end|>\n", False),
        ],
    ),
    "code": (
        {"declaration": "def f(self):", "body": "return 1"},
        [("def f(self):\n", False), ("return 1" + EOS, True)],
    ),
}


def task_args(name: str, tmp_path, rows: list[dict], **changes) -> TaskArguments:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    args = parse_args(
        finetune_task.FinetuneTaskArguments, ["--config", name], recipe=finetune_task.__file__
    )
    args.task_source = args.task_validation_source = [str(path)]
    for key, value in changes.items():
        setattr(args, key, value)
    return args


def char_tokenizer(*texts: str):
    tokenizer = train_char(Dataset.from_dict({"text": ["\n".join(texts)]}))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    set_chat_template(tokenizer, "chatml")
    return tokenizer


@pytest.mark.parametrize("packing", ["bfd", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_which_tokens_carry_loss(task, packing, tmp_path):
    """One token is one character (or one special token), so every place of the row is told."""
    row, expected = TASKS[task]
    args = task_args(task, tmp_path, [row, row], max_new_tokens=16)
    tokenizer = char_tokenizer("user assistant", *(text for text, _ in expected))
    examples, cut = fit_examples(load_task(args, seed=0), tokenizer, args, 200)
    rows = supervised_rows(examples, tokenizer, 200, packing)["train"]

    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in expected]
    one = [
        (i, i if loss else IGNORED)
        for part, (_, loss) in zip(ids, expected, strict=True)
        for i in part
    ]
    made = [pair for row in rows for pair in zip(row["input_ids"], row["labels"], strict=True)]
    unused = [(tokenizer.eos_token_id, IGNORED)] * (len(made) - 2 * len(one))
    assert made == one + one + unused
    assert len(unused) == (200 - 2 * len(one) if packing == "bfd" else 0)
    positions = [p for row in rows for p in row.get("position_ids", range(len(row["input_ids"])))]
    assert (
        positions[: 2 * len(one)] == list(range(len(one))) * 2
    )  # each begins anew: neither sees the other
    loss_text = "".join(text for text, loss in expected if loss)
    assert sum(rows["num_tokens"]) == 2 * sum(label != IGNORED for _, label in one)
    assert sum(rows["num_bytes"]) == 2 * len(loss_text.replace(EOS, "").encode())
    assert cut == {"train": {"prompts": 0, "tokens": 0}, "validation": {"prompts": 0, "tokens": 0}}
    # what generation starts from is what training put before the last answer
    first = examples["validation"][0]
    whole = "".join(text for text, _ in expected)
    assert whole.startswith(first["prompt"] + first["target"] + EOS)


@pytest.fixture(scope="module")
def made():
    """30 examples of very different length, a tokenizer, and a model without dropout."""
    texts = [(f"Count to {i}:\n", " ".join(map(str, range(i % 9 + 1)))) for i in range(30)]
    tokenizer = train_bpe(Dataset.from_dict({"text": [a + b for a, b in texts]}), 280)
    torch.manual_seed(0)
    model = new_model(tokenizer, n_layer=2, n_head=2, n_embd=32, n_positions=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # attention that matters
    examples = Dataset.from_dict({"prompt": [a for a, _ in texts], "target": [b for _, b in texts]})
    return DatasetDict(train=examples), tokenizer, model.eval()


def losses(model, batch) -> tuple[float, int]:
    with torch.no_grad():
        logits = model(
            batch["input_ids"], position_ids=batch.get("position_ids"), use_cache=False
        ).logits
    targets = batch["labels"][:, 1:]
    nll = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nll.item(), int((targets != IGNORED).sum())


def test_packed_and_padded_losses_equal_each_examples_own(made):
    examples, tokenizer, model = made
    alone, tokens = 0.0, 0
    for example in examples["train"]:
        prompt, target = (tokenizer(example[name])["input_ids"] for name in ("prompt", "target"))
        ids = torch.tensor([prompt + target + [tokenizer.eos_token_id]])
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)
        for at in range(len(prompt), ids.shape[1]):
            alone, tokens = alone - logp[0, at - 1, ids[0, at]].item(), tokens + 1
    for packing in ("bfd", "none"):
        rows = supervised_rows(examples, tokenizer, 64, packing)["train"]
        nll, count = losses(model, collate_rows(list(rows)))
        assert (count, sum(rows["num_tokens"])) == (tokens, tokens)
        assert nll / count == pytest.approx(alone / tokens, abs=1e-5)
    assert len(supervised_rows(examples, tokenizer, 64, "bfd")["train"]) < 15  # it does pack


def test_accumulation_changes_no_update(made, tmp_path):
    """Six padded rows with different numbers of targets: at once, or in three parts that are
    summed.
    """
    examples, tokenizer, model = made
    rows = supervised_rows(examples, tokenizer, 64, "none")["train"].select(range(3, 9))
    weights = []
    for size, parts in ((6, 1), (2, 3)):
        torch.manual_seed(1)
        copy = new_model(tokenizer, n_layer=2, n_head=2, n_embd=32, n_positions=64)
        args = TrainingArguments(
            str(tmp_path / str(size)),
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            use_cpu=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            report_to="none",
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = LMTrainer(model=copy, args=args, train_dataset=rows, data_collator=collate_rows)
        trainer.train()
        weights.append(
            (
                trainer.state.log_history[0]["loss"],
                torch.cat([p.flatten() for p in copy.parameters()]),
            )
        )
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)
    torch.testing.assert_close(weights[0][1], weights[1][1], atol=1e-5, rtol=0)


def test_the_last_label_of_every_answer_is_eos(made):
    examples, tokenizer, _ = made
    rows = list(supervised_rows(examples, tokenizer, 64, "none")["train"])
    batch = collate_rows(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert labels[len(row["labels"]) - 1] == tokenizer.eos_token_id
        assert (labels[len(row["labels"]) :] == IGNORED).all()


# ---- what does not fit


def fitted(prompt: str, target: str, max_length: int, template: str = "{a}?\n", **settings):
    args = TaskArguments(prompt=template, target="{b}", **{"max_new_tokens": 4, **settings})
    row = {"prompt": prompt, "target": target, "references": [target], "source": prompt}
    examples, cut = fit_examples(
        DatasetDict(train=Dataset.from_list([row])), char_tokenizer("abcdefgh?\n"), args, max_length
    )
    return examples["train"][0]["prompt"], cut["train"]


@pytest.mark.parametrize("truncation_side, kept", [("right", "abc?\n"), ("left", "efg?\n")])
def test_a_long_prompt_is_shortened_by_rule_and_counted(truncation_side, kept):
    prompt, cut = fitted(
        "abcdefg?\n", "ab", 9, truncation_side=truncation_side
    )  # 9 - 4 new tokens leave 5
    assert (prompt, cut) == (kept, {"prompts": 1, "tokens": 4})


@pytest.mark.parametrize("length, kept", [(13, "abcdefg?"), (9, "abcd?")])
def test_a_prompt_without_the_templates_last_space_keeps_its_end_once(length, kept):
    """So a prompt stands before choices (see `load_task`)."""
    assert fitted("abcdefg?", "ab", length, "{a}? ")[0] == kept


def test_a_long_target_takes_room_from_the_prompt_but_is_never_cut():
    assert fitted("abcdefg?\n", "abcdef", 12) == (
        "abc?\n",
        {"prompts": 1, "tokens": 4},
    )  # 12 - 6 - EOS
    for target in (
        "abcdefgh",
        "abcdef",
    ):  # nothing is left of nine tokens, or too little for "a?\n"
        with pytest.raises(
            InputError,
            match=rf"train example 0: its target has {len(target)} tokens, which with EOS "
            "and a prompt do not fit into 9; so it is with 1 of 1 examples; raise max_length, or "
            "take --long_targets drop or truncate",
        ):
            fitted("abcdefg?\n", target, 9)
    with pytest.raises(
        InputError, match="train example 0: the 2 tokens that max_new_tokens leaves do not hold the"
    ):
        fitted("abcdefg?\n", "a", 9, max_new_tokens=7)
    with pytest.raises(InputError, match="max_new_tokens: got 9; expected at least 1 and"):
        fitted("a?\n", "a", 9, max_new_tokens=9)


def test_a_long_conversation_loses_its_oldest_turns(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    args = task_args("dialogue", tmp_path, [{"messages": [system, *TURNS]}], max_new_tokens=8)
    tokenizer = char_tokenizer("user assistant system Be kind. Hi. Hello! Bye?")
    examples, cut = fit_examples(load_task(args, seed=0), tokenizer, args, 60)
    assert examples["train"][0]["messages"] == [system, *TURNS[2:]]
    whole = tokenizer.apply_chat_template(
        [system, *TURNS[:3]], tokenize=False, add_generation_prompt=True
    )
    short = tokenizer.apply_chat_template(
        [system, TURNS[2]], tokenize=False, add_generation_prompt=True
    )
    assert examples["train"][0]["prompt"] == short
    lost = len(tokenizer(whole)["input_ids"]) - len(tokenizer(short)["input_ids"])
    assert cut["train"] == {"prompts": 1, "tokens": lost}


def sweep(tmp_path, **settings) -> tuple[TaskArguments, DatasetDict]:
    """Conversations of one, two and three questions, each a character longer than the one
    before.
    """
    path = tmp_path / "sweep.jsonl"
    rows = [
        {
            "messages": [
                turn
                for i in range(1 + size % 3)
                for turn in (
                    {"role": "user", "content": "ask " + "u" * (size // 2)},
                    {"role": "assistant", "content": "b" * (9 * i + 9)},
                )
            ]
        }
        for size in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    args = TaskArguments(
        task_source=[str(path)],
        task_validation_source=[str(path)],
        task_format="chat",
        max_new_tokens=8,
        **settings,
    )
    return args, load_task(args, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("long_targets", ["drop", "truncate"])
def test_conversations_fit_by_construction(tmp_path, special, long_targets):
    """Whatever the template writes after an answer counts: no row is longer than `max_length`,
    whatever that is.
    """
    args, examples = sweep(tmp_path, long_targets=long_targets)
    tokenizer = train_char(Dataset.from_dict({"text": ["ask ub"]}))
    if special:
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    set_chat_template(tokenizer, "chatml")
    add_template_characters(tokenizer)
    for max_length in range(100, 260, 19):
        counts = {}
        fitted, _ = fit_examples(examples, tokenizer, args, max_length, counts=counts)
        rows = supervised_rows(fitted, tokenizer, max_length, "none")["train"]
        assert max(map(len, rows["input_ids"])) <= max_length
        assert counts["train"]["used"] + counts["train"]["long_target"] == 60
        for example, row in zip(fitted["train"], rows, strict=True):
            assert (
                len(tokenizer(example["prompt"])["input_ids"]) + args.max_new_tokens <= max_length
            )
            assert tokenizer.unk_token_id not in row["input_ids"]
            ends = row["labels"][
                len(row["labels"])
                - row["labels"][::-1].index(
                    next(label for label in reversed(row["labels"]) if label != IGNORED)
                )
                - 1
            ]
            assert (ends == tokenizer.eos_token_id) == (not example.get("truncated"))
            if not example.get("truncated"):
                assert example["messages"][-1]["content"] == example["references"][0]


def test_a_long_answer_takes_old_turns_but_nothing_of_the_last_question(tmp_path):
    args, examples = sweep(tmp_path)
    tokenizer = char_tokenizer("ask ub", "user assistant")
    with pytest.raises(
        InputError,
        match=r"sweep.jsonl:\d+: its target has 27 tokens, .* do not fit into 60; so it is "
        r"with (\d+) of 120 examples \(also .*sweep.jsonl:\d+.*\); raise max_length",
    ):
        fit_examples(examples, tokenizer, args, 60)
    fitted, cut = fit_examples(examples, tokenizer, args, 200)
    asked = {row["place"]: row["messages"][-2] for row in examples["train"]}
    assert (
        all(row["messages"][-2] == asked[row["place"]] for row in fitted["train"])
        and cut["train"]["prompts"] > 0
    )


def test_a_last_question_that_is_too_long_itself_is_shortened(tmp_path):
    row = {
        "messages": [
            {"role": "user", "content": "abcdefghij" * 5},
            {"role": "assistant", "content": "ok"},
        ]
    }
    tokenizer = char_tokenizer("abcdefghijok", "user assistant")
    for truncation_side, kept in (
        ("right", "abcdefghij" * 3 + "abcd"),
        ("left", "ghij" + "abcdefghij" * 3),
    ):
        args = task_args(
            "dialogue", tmp_path, [row], max_new_tokens=8, truncation_side=truncation_side
        )
        fitted, cut = fit_examples(load_task(args, seed=0), tokenizer, args, 61)
        assert fitted["train"][0]["messages"][0]["content"] == kept
        assert cut["train"] == {
            "prompts": 1,
            "tokens": 16,
        }  # 61 - 8 new tokens - 19 of the template leave 34


@pytest.mark.parametrize(
    ("max_length", "prompt", "target"),
    [
        (12, "abcdef?\n", "abcd"),
        (20, "abcdefg?\n", "abcdefghija"),
        (23, "abcdefg?\n", "abcdefghijabcd"),
    ],
)
def test_a_truncated_target_is_what_fits_beside_its_prompt_without_eos(max_length, prompt, target):
    """The prompt leaves room for four new tokens, as it does to be answered."""
    whole = "abcdefghij" * 2
    row = {
        "prompt": "abcdefg?\n",
        "target": whole,
        "references": [whole],
        "source": "",
        "place": "a.jsonl:3",
    }
    args = TaskArguments(prompt="{a}?\n", target="{b}", max_new_tokens=4, long_targets="truncate")
    tokenizer, counts = char_tokenizer("abcdefghij?\n"), {}
    fitted, _ = fit_examples(
        DatasetDict(train=Dataset.from_list([row])), tokenizer, args, max_length, counts=counts
    )
    [example] = fitted["train"]
    assert (example["prompt"], example["target"], example["references"]) == (
        prompt,
        target,
        [whole],
    )
    assert counts["train"]["truncated"] == 1
    [made] = supervised_rows(fitted, tokenizer, max_length, "none")["train"]
    assert made["labels"] == [IGNORED] * len(prompt) + tokenizer(target)["input_ids"]
    assert made["num_bytes"] == len(target)


def test_targets_that_fit_are_left_alone_by_every_choice():
    for choice in ("stop", "drop", "truncate"):
        assert fitted("abcdefg?\n", "abcdef", 12, long_targets=choice) == (
            "abc?\n",
            {"prompts": 1, "tokens": 4},
        )


def test_dropped_targets_are_counted_and_not_all_may_be(tmp_path):
    rows = [
        {
            "prompt": "a?\n",
            "target": "ab" * (1 + 9 * (i % 3 == 0)),
            "references": ["x"],
            "source": "",
        }
        for i in range(9)
    ]
    args = TaskArguments(prompt="{a}?\n", target="{b}", max_new_tokens=4, long_targets="drop")
    tokenizer, counts = char_tokenizer("abcdef?\n"), {}
    examples = DatasetDict(train=Dataset.from_list(rows), validation=Dataset.from_list(rows[:2]))
    fitted, _ = fit_examples(examples, tokenizer, args, 16, counts=counts)
    assert (len(fitted["train"]), counts["train"]["long_target"], counts["train"]["used"]) == (
        6,
        3,
        6,
    )
    assert (len(fitted["validation"]), counts["validation"]["long_target"]) == (1, 1)
    with pytest.raises(
        InputError, match="validation: none of 1 examples is left, for all targets are too long"
    ):
        fit_examples(DatasetDict(validation=examples["validation"].take(1)), tokenizer, args, 16)
    answered, _ = fit_examples(
        examples, tokenizer, args, 16, for_training=False
    )  # its length does not matter there
    assert len(answered["train"]) == 9


def test_an_empty_prompt_is_the_token_that_starts_a_text():
    """As it is when choices are scored, or a text is begun."""
    tokenizer = char_tokenizer("ab")
    row = {"prompt": "", "target": "ab", "references": ["ab"], "source": ""}
    [made] = supervised_rows(DatasetDict(train=Dataset.from_list([row])), tokenizer, 9, "none")[
        "train"
    ]
    eos, (a, b) = tokenizer.eos_token_id, tokenizer("ab")["input_ids"]
    assert (made["input_ids"], made["labels"]) == ([eos, a, b, eos], [IGNORED, a, b, eos])


# ---- chat templates


def test_a_tokenizer_of_characters_learns_those_of_the_template():
    tokenizer = train_char(Dataset.from_dict({"text": ["abc"]}))
    set_chat_template(tokenizer, "chatml")
    add_template_characters(tokenizer)
    frame = tokenizer.apply_chat_template(
        [{"role": "user", "content": "abc"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(frame)["input_ids"]
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == frame
    bpe = train_bpe(Dataset.from_dict({"text": ["abc"]}), 260)
    set_chat_template(bpe, "chatml")
    add_template_characters(bpe)
    assert len(bpe) == 260  # it writes all bytes anyway


def test_a_chat_template_must_be_there_and_mark_the_answers(tmp_path):
    tokenizer = train_char(Dataset.from_dict({"text": ["abc"]}))
    with pytest.raises(
        InputError, match="the tokenizer has no chat template.*--chat_template chatml"
    ):
        set_chat_template(tokenizer, None)
    with pytest.raises(InputError, match="chat_template nowhere.jinja: no such file"):
        set_chat_template(tokenizer, "nowhere.jinja")
    (tmp_path / "bare.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="does not mark the answers"):
        set_chat_template(tokenizer, str(tmp_path / "bare.jinja"))
    set_chat_template(tokenizer, "chatml")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert type(tokenizer).from_pretrained(tmp_path / "saved").chat_template == CHATML
