"""recipes/chat.py: what the model is given turn by turn, and what the terminal shows."""

import io
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfscale.data.tokenizer import train_bpe
from hfscale.generation.task_prompt import save_task_prompt
from hfscale.process import InputError
from hfscale.tasks.chat_templates import set_chat_template
from recipes import chat
from tests.tokenizer_kinds import make_tokenizer

SHORT = ["--do_sample", "false", "--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("talker")
    documents = Dataset.from_dict({"text": ["user assistant system answer word number"] * 9})
    tokenizer = train_bpe(documents, 290, ["<|im_start|>", "<|im_end|>"])
    set_chat_template(tokenizer, "chatml")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=1,
        n_head=2,
        n_embd=32,
        n_positions=128,
        eos_token_id=0,
        bos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The prompts that generation was given; every answer is `<answer n>`."""
    prompts = []

    def answer(model, tokenizer, texts, **settings):
        prompts.extend(texts)
        return [[f"<answer {len(prompts)}>"]]

    monkeypatch.setattr("hfscale.generation.texts.generate_texts", answer)
    return prompts


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def assistant(text: str) -> str:
    return f"<|im_start|>assistant\n{text}<|endoftext|><|im_end|>\n"


CUE = "<|im_start|>assistant\n"


def test_each_turn_holds_the_ones_before(folder, asked):
    chat.main(["--model", folder, "--prompts", "one", "two"])
    assert asked == [user("one") + CUE, user("one") + assistant("<answer 1>") + user("two") + CUE]


def test_reset_keeps_only_the_system_message(folder, asked):
    chat.main(
        [
            "--model",
            folder,
            "--system",
            "Be brief.",
            "--prompts",
            "one",
            "/reset",
            "two",
            "/exit",
            "three",
        ]
    )
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert asked == [system + user("one") + CUE, system + user("two") + CUE]


def test_oldest_turns_go_when_the_context_is_full(folder, asked, capsys):
    """As many turns as fit, with room for the answer, in order."""
    said = [f"word number {i}" for i in range(6)]
    chat.main(["--model", folder, "--max_new_tokens", "10", "--prompts", *said])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [user(text) + assistant(f"<answer {i + 1}>") for i, text in enumerate(said)]
    for i, prompt in enumerate(asked):
        fits = next(
            first
            for first in range(i + 1)
            if len(tokenizer("".join(turns[first:i]) + user(said[i]) + CUE)["input_ids"])
            <= 128 - 10
        )
        assert prompt == "".join(turns[fits:i]) + user(said[i]) + CUE
    assert fits > 0 and "the oldest turn was dropped" in capsys.readouterr().err


def test_lines_of_a_pipe_are_turns(folder, asked, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/exit\nthree\n"))
    chat.main(["--model", folder])
    assert [prompt.count("<|im_start|>user") for prompt in asked] == [1, 2]
    assert "you: one\nmodel: " in capsys.readouterr().out


def test_answers_come_without_the_prompt(folder, capsys):
    chat.main(["--model", folder, "--prompts", "hello", *SHORT])
    first, second = capsys.readouterr().out.rstrip("\n").split("\n", 1)
    assert first == "you: hello"
    assert second.startswith("model: ") and "im_start" not in second


@pytest.mark.parametrize("writes_bos", [True, False])
def test_one_bos_at_most(folder, tmp_path, monkeypatch, writes_bos):
    """The template alone decides, also with a tokenizer that puts BOS in front of every text."""
    tokenizer = make_tokenizer("BOS and EOS")
    turns = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}"
    tokenizer.chat_template = "{{ bos_token }}" * writes_bos + turns
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_head=1, n_embd=8)
    ).save_pretrained(tmp_path)
    seen = []

    def generate(self, input_ids, **settings):
        seen.append(input_ids[0].tolist())
        return input_ids

    monkeypatch.setattr(GPT2LMHeadModel, "generate", generate)
    monkeypatch.setattr("hfscale.generation.texts.TextPrinter.end", lambda self: None)
    chat.main(["--model", str(tmp_path), "--prompts", "the cat", *SHORT])
    plain = tokenizer("[the cat]", add_special_tokens=False)["input_ids"]
    assert seen == [[tokenizer.bos_token_id] * writes_bos + plain]


def test_answers_end_as_the_model_learned(folder, tmp_path, monkeypatch):
    given = []
    shutil.copytree(folder, tmp_path / "taught")
    save_task_prompt(
        tmp_path / "taught", prompt=None, columns=[], stop_strings=["!"], max_new_tokens=7
    )

    def answer(*words, **settings):
        given.append(settings)
        return [["an answer"]]

    monkeypatch.setattr("hfscale.generation.texts.generate_texts", answer)
    words = ["--model", str(tmp_path / "taught"), "--prompts", "one"]
    chat.main(words)
    chat.main([*words, "--stop_strings", "?", "--max_new_tokens", "3"])
    chat.main(["--model", folder, "--prompts", "one"])
    assert [(settings["stop_strings"], settings["max_new_tokens"]) for settings in given] == [
        (["!"], 7),
        (["?"], 3),
        (None, 128),
    ]


@pytest.mark.parametrize("when", ["asking", "answering"])
def test_ctrl_c_ends_the_talk(folder, monkeypatch, when):
    def interrupt(*words, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    monkeypatch.setattr(
        *(
            ("builtins.input", interrupt)
            if when == "asking"
            else (GPT2LMHeadModel, "generate", interrupt)
        )
    )
    chat.main(["--model", folder])


def test_lines_that_are_not_utf_8(folder, asked, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\xfe\n"), "utf-8"))
    with pytest.raises(InputError, match="^standard input: not UTF-8 .*; convert it first$"):
        chat.main(["--model", folder])


def test_a_template_that_refuses_a_role(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "strict")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "strict")
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    tokenizer.save_pretrained(tmp_path / "strict")
    with pytest.raises(
        InputError, match="for turns of system, user: TemplateError: System role not supported$"
    ):
        chat.main(
            ["--model", str(tmp_path / "strict"), "--system", "Be brief.", "--prompts", "one"]
        )


def test_a_message_longer_than_the_context(folder):
    with pytest.raises(InputError, match="leave no room in the model's context of 128"):
        chat.main(["--model", folder, "--prompts", "word " * 200, *SHORT])


def test_a_tokenizer_without_a_chat_template(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="has no chat template, so it was not taught to talk; take one made by"
    ) as e:
        chat.main(["--model", str(tmp_path), "--prompts", "hello"])
    assert "\n" not in str(e.value)
    # One that learned a task is asked in other places.
    save_task_prompt(
        tmp_path, prompt="Say: {en}\n", columns=["en"], stop_strings=["\n"], max_new_tokens=7
    )
    with pytest.raises(InputError, match="learned a task .* generate --interactive, .* --web"):
        chat.main(["--model", str(tmp_path), "--prompts", "hello"])
