"""Generation against a plain token-by-token loop, and the traps of batched generation."""


import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfscale.config import InputError
from hfscale.generation import cut_at_stop, generate_texts
from recipes import generate

PROMPTS = ["the cat", "", "the dog sat on the", "a", "the cat sat on the mat and the dog sat on the log the cat"]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([PROMPTS[-1]] * 3, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|pad|>")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=2, n_head=2, n_embd=32, n_positions=24,
                                      initializer_range=0.5, bos_token_id=0, eos_token_id=0)).eval()


def greedy_by_hand(model, tokenizer, prompt, max_new_tokens):
    ids = tokenizer(prompt or tokenizer.eos_token)["input_ids"]
    new = []
    while len(new) < max_new_tokens and len(ids) + len(new) < model.config.n_positions:
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_equals_a_plain_loop_for_prompts_of_unequal_length(model, tokenizer, batch_size):
    expected = [[greedy_by_hand(model, tokenizer, prompt, 12)] for prompt in PROMPTS]
    got = generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12, batch_size=batch_size)
    assert got == expected
    assert len({text for [text] in got}) == len(PROMPTS)  # the model tells the prompts apart


def test_a_long_prompt_does_not_shorten_the_others(model, tokenizer):
    room = model.config.n_positions - len(tokenizer(PROMPTS[-1])["input_ids"])
    assert 0 < room < 12
    short, long = generate_texts(model, tokenizer, [PROMPTS[0], PROMPTS[-1]], do_sample=False, max_new_tokens=12)
    assert short == generate_texts(model, tokenizer, PROMPTS[:1], do_sample=False, max_new_tokens=12)[0]
    assert long == [greedy_by_hand(model, tokenizer, PROMPTS[-1], room)]


def test_more_new_tokens_than_the_context_holds(model, tokenizer):
    [[text]] = generate_texts(model, tokenizer, ["a"], do_sample=False, max_new_tokens=10_000)
    assert text == greedy_by_hand(model, tokenizer, "a", 10_000)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_stop_strings_end_a_completion_and_are_cut_off(model, tokenizer, batch_size):
    whole = generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12)
    stop = whole[0][0][3:5]
    got = generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12, stop_strings=[stop, "\0"],
                         batch_size=batch_size)
    assert got == [[text.split(stop)[0]] for [text] in whole]
    assert got[0][0] == whole[0][0][: whole[0][0].index(stop)] != whole[0][0]


def test_cut_at_the_first_of_several_stops():
    assert cut_at_stop("one\ntwo. three", [". ", "\n"]) == "one"
    assert cut_at_stop("one", ["\n"]) == cut_at_stop("one", None) == "one"


def test_samples_repeat_with_the_seed_and_leave_the_random_state(model, tokenizer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    settings = {"num_return_sequences": 3, "max_new_tokens": 8}
    first = generate_texts(model, tokenizer, PROMPTS[:2], seed=1, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(texts) for texts in first] == [3, 3] and len(set(first[0])) == 3
    assert generate_texts(model, tokenizer, PROMPTS[:2], seed=1, **settings) == first
    assert generate_texts(model, tokenizer, PROMPTS[:2], seed=2, **settings) != first


def test_sampling_settings_arrive(model, tokenizer):
    greedy = generate_texts(model, tokenizer, PROMPTS[:1], do_sample=False, max_new_tokens=8)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert generate_texts(model, tokenizer, PROMPTS[:1], max_new_tokens=8, **settings) == greedy
    assert generate_texts(model, tokenizer, PROMPTS[:1], max_new_tokens=8) != greedy
    free = generate_texts(model, tokenizer, ["a"], do_sample=False, max_new_tokens=20)
    assert generate_texts(model, tokenizer, ["a"], do_sample=False, max_new_tokens=20, repetition_penalty=9.0) != free


def test_beams_return_several_sequences_and_do_not_depend_on_the_batch(model, tokenizer):
    settings = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    one = generate_texts(model, tokenizer, PROMPTS, batch_size=1, **settings)
    assert one == generate_texts(model, tokenizer, PROMPTS, batch_size=5, **settings)
    assert all(len(texts) == 2 for texts in one)


def test_tokenizer_and_model_are_left_as_found(model, tokenizer):
    unpadded = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    model.train()
    got = generate_texts(model, unpadded, PROMPTS, do_sample=False, max_new_tokens=12)
    assert model.training and unpadded.pad_token is None and unpadded.padding_side == "right"
    assert got == generate_texts(model.eval(), tokenizer, PROMPTS, do_sample=False, max_new_tokens=12)


def test_a_pad_token_outside_the_vocabulary_does_no_harm(model, tokenizer):
    grown = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>",
                                    pad_token="<|new|>")
    assert grown.pad_token_id >= model.config.vocab_size
    assert (generate_texts(model, grown, PROMPTS, do_sample=False, max_new_tokens=4)
            == generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=4))


def test_streaming_prints_what_is_returned(model, tokenizer, capsys):
    [[text]] = generate_texts(model, tokenizer, ["the cat"], do_sample=False, max_new_tokens=12, stream=True)
    assert capsys.readouterr().out == f"the cat{text}\n"


@pytest.mark.parametrize(("settings", "message"), [
    ({"do_sample": False, "num_return_sequences": 2}, "num_return_sequences: got 2"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: got 3"),
    ({"temperature": 0.0}, "temperature: got 0.0, expected 1e-06 to 1000000"),
    ({"top_p": 1.5}, "top_p: got 1.5, expected 1e-06 to 1"),
    ({"top_k": -1}, "top_k: got -1, expected at least 0"),
    ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
    ({"batch_size": 0}, "batch_size: got 0"),
    ({"num_beams": 0}, "num_beams: got 0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
    ({"stop_strings": ["x", ""]}, "stop_strings: an empty string"),
    ({"stream": True}, "stream: works for one prompt"),
])
def test_bad_settings_are_refused(model, tokenizer, settings, message):
    with pytest.raises(InputError, match=message):
        generate_texts(model, tokenizer, PROMPTS, **settings)


def test_a_prompt_that_fills_the_context_is_named(model, tokenizer):
    with pytest.raises(InputError, match=r"prompt 1: 30 tokens leave no room in the model's context of 24"):
        generate_texts(model, tokenizer, ["a", "z" * 30])
    with pytest.raises(InputError, match="prompt 0: 24 tokens"):
        generate_texts(model, tokenizer, ["z" * 24])
    assert len(generate_texts(model, tokenizer, ["z" * 23], max_new_tokens=5)) == 1


def test_a_tokenizer_that_does_not_fit_is_named(tokenizer):
    small = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_layer=1, n_head=1, n_embd=8, n_positions=16))
    with pytest.raises(InputError, match="prompt 0: token id .* vocabulary of 100"):
        generate_texts(small, tokenizer, ["the cat"])


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def recipe(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *words: generate.main(["--model", folder, "--max_new_tokens", "6", *words])


def test_recipe_writes_one_line_per_prompt(recipe, folder, model, tokenizer, tmp_path):
    file = tmp_path / "new" / "completions.jsonl"
    recipe("--prompts", "a", "the cat", "", "--do_sample", "false", "--output_file", str(file), "--seed", "3")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    expected = {prompt: [greedy_by_hand(model, tokenizer, prompt, 6)] for prompt in ("a", "the cat", "")}
    assert [(line["prompt"], line["completions"]) for line in lines] == list(expected.items())
    assert lines[0]["model"] == folder
    assert lines[0]["settings"]["max_new_tokens"] == 6 and lines[0]["settings"]["seed"] == 3
    with pytest.raises(InputError, match="exists"):
        recipe("--prompts", "a", "--output_file", str(file))
    recipe("--prompts", "b", "--output_file", str(file), "--overwrite")
    assert json.loads(file.read_text())["prompt"] == "b"


@pytest.mark.parametrize(("name", "content"), [
    ("p.txt", "the cat\n\n a dog \n"),
    ("p.jsonl", '{"prompt": "the cat", "id": 1}\n{"prompt": " a dog ", "id": 2}\n'),
])
def test_recipe_reads_prompt_files(recipe, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    recipe("--prompt_file", str(tmp_path / name), "--num_return_sequences", "2")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat", " a dog "]
    assert [len(line["completions"]) for line in lines] == [2, 2]


def test_recipe_streams_to_a_terminal(recipe, model, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    recipe("--prompts", "the cat", "--do_sample", "false")
    assert capsys.readouterr().out == f"the cat{greedy_by_hand(model, tokenizer, 'the cat', 6)}\n"


@pytest.mark.parametrize(("words", "message"), [
    ([], "give one of the two"),
    (["--prompts", "a", "--prompt_file", "x.txt"], "give one of the two"),
    (["--prompt_file", "missing.txt"], "no such file"),
    (["--prompts", "a", "--output_file", "."], "is a folder"),
    (["--prompts", "a", "z" * 40, "--output_file", "out.jsonl"], "prompt 1: 40 tokens"),
    (["--prompts", "a", "--do_sample", "false", "--num_return_sequences", "2"], "num_return_sequences"),
    (["--prompts", "a", "--model", "./missing"], "model ./missing: "),
])
def test_recipe_refuses_bad_input_and_leaves_nothing(recipe, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        recipe(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [["a", "the cat", "the dog sat"], ["a"]])
def test_two_ranks_share_the_prompts(folder, model, tokenizer, tmp_path, prompts):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(root / "accelerate_configs" / "cpu_2proc.yaml"), str(root / "recipes" / "generate.py"), "--model",
               folder, "--max_new_tokens", "6", "--do_sample", "false", "--output_file", str(tmp_path / "out.jsonl")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, "--prompts", *prompts], env=env, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert [line["completions"] for line in lines] == [[greedy_by_hand(model, tokenizer, p, 6)] for p in prompts]
