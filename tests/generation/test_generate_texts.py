"""Generation against a plain token-by-token loop, and the traps of batched generation."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)

from hfscale.data.tokenizer import train_bpe, train_char
from hfscale.data.tokens import encode_continuations
from hfscale.generation.task_prompt import save_task_prompt
from hfscale.generation.texts import (
    beginning_of,
    complete_rows,
    cut_at_stop,
    end_ids,
    generate_texts,
)
from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.shown import printable
from hfscale.tasks.answers import predict
from recipes import generate
from tests.tiny_models import APART, TOGETHER, tiny_model, tiny_tokenizer
from tests.tokenizer_kinds import KINDS, make_tokenizer

PROMPTS = [
    "the cat",
    "",
    "the dog sat on the",
    "a",
    "the cat sat on the mat and the dog sat on the log the cat",
]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [PROMPTS[-1]] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|pad|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=24,
            initializer_range=0.5,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


def greedy_by_hand(model, tokenizer, prompt, max_new_tokens):
    return tokenizer.decode(
        greedy_ids(model, tokenizer, prompt, max_new_tokens), skip_special_tokens=True
    )


def greedy_ids(model, tokenizer, prompt, max_new_tokens):
    ids = tokenizer(prompt or tokenizer.eos_token)["input_ids"]
    new = []
    while len(new) < max_new_tokens and len(ids) + len(new) < model.config.n_positions:
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return new


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_equals_a_plain_loop_for_prompts_of_unequal_length(model, tokenizer, batch_size):
    expected = [[greedy_by_hand(model, tokenizer, prompt, 12)] for prompt in PROMPTS]
    got = generate_texts(
        model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12, batch_size=batch_size
    )
    assert got == expected
    assert len({text for [text] in got}) == len(PROMPTS)  # the model tells the prompts apart


def test_a_long_prompt_does_not_shorten_the_others(model, tokenizer):
    room = model.config.n_positions - len(tokenizer(PROMPTS[-1])["input_ids"])
    assert 0 < room < 12
    short, long = generate_texts(
        model, tokenizer, [PROMPTS[0], PROMPTS[-1]], do_sample=False, max_new_tokens=12
    )
    assert (
        short
        == generate_texts(model, tokenizer, PROMPTS[:1], do_sample=False, max_new_tokens=12)[0]
    )
    assert long == [greedy_by_hand(model, tokenizer, PROMPTS[-1], room)]


def test_more_new_tokens_than_the_context_holds(model, tokenizer):
    [[text]] = generate_texts(model, tokenizer, ["a"], do_sample=False, max_new_tokens=10_000)
    assert text == greedy_by_hand(model, tokenizer, "a", 10_000)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_stop_strings_end_a_completion_and_are_cut_off(model, tokenizer, batch_size):
    whole = generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12)
    stop = whole[0][0][3:5]
    got = generate_texts(
        model,
        tokenizer,
        PROMPTS,
        do_sample=False,
        max_new_tokens=12,
        stop_strings=[stop, "\0"],
        batch_size=batch_size,
    )
    assert got == [[text.split(stop)[0]] for [text] in whole]
    assert got[0][0] == whole[0][0][: whole[0][0].index(stop)] != whole[0][0]


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "opt", "bloom", "starcoder2"])
def test_rows_that_are_done_leave_the_batch(kind, monkeypatch):
    """What goes on is what each prompt alone gives, in the order of the prompts."""
    own = tiny_tokenizer()
    small = tiny_model(kind, (APART | TOGETHER)[kind], len(own))
    rows = [own(prompt)["input_ids"] for prompt in PROMPTS if prompt]
    settings = {"do_sample": False, "max_new_tokens": 14}
    whole = complete_rows(small, own, rows, **settings)
    # Each row ends two characters later than the one before.
    stops = [text[i : i + 4] for i, [(text, _)] in zip(range(2, 20, 2), whole, strict=False)]
    alone = [complete_rows(small, own, [ids], stop_strings=stops, **settings)[0] for ids in rows]
    sizes = []
    generate_whole = type(small).generate

    def counted(self, input_ids, **options):
        sizes.append(len(input_ids))
        return generate_whole(self, input_ids, **options)

    monkeypatch.setattr(type(small), "generate", counted)
    assert complete_rows(small, own, rows, stop_strings=stops, **settings) == alone
    assert sizes[0] == len(rows) and sizes[1] <= len(rows) / 2 and sizes == sorted(sizes)[::-1]


def test_draws_do_not_depend_on_which_rows_are_done(model, tokenizer):
    whole = generate_texts(model, tokenizer, PROMPTS, max_new_tokens=12, seed=3)
    stop = whole[0][0][2:4]
    cut = generate_texts(model, tokenizer, PROMPTS, max_new_tokens=12, seed=3, stop_strings=[stop])
    assert cut == [[cut_at_stop(text, [stop])] for [text] in whole] and cut != whole


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
    assert (
        generate_texts(
            model, tokenizer, ["a"], do_sample=False, max_new_tokens=20, repetition_penalty=9.0
        )
        != free
    )


def test_beams_return_several_sequences_and_do_not_depend_on_the_batch(model, tokenizer):
    settings = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    one = generate_texts(model, tokenizer, PROMPTS, batch_size=1, **settings)
    assert one == generate_texts(model, tokenizer, PROMPTS, batch_size=5, **settings)
    assert all(len(texts) == 2 for texts in one)


def test_tokenizer_and_model_are_left_as_found(model, tokenizer):
    unpadded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    )
    model.train()
    got = generate_texts(model, unpadded, PROMPTS, do_sample=False, max_new_tokens=12)
    assert model.training and unpadded.pad_token is None and unpadded.padding_side == "right"
    assert got == generate_texts(
        model.eval(), tokenizer, PROMPTS, do_sample=False, max_new_tokens=12
    )


def test_a_pad_token_outside_the_vocabulary_does_no_harm(model, tokenizer):
    grown = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|new|>"
    )
    assert grown.pad_token_id >= model.config.vocab_size
    assert generate_texts(
        model, grown, PROMPTS, do_sample=False, max_new_tokens=4
    ) == generate_texts(model, tokenizer, PROMPTS, do_sample=False, max_new_tokens=4)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_penalty_does_not_find_padding(model, tokenizer, batch_size):
    """The filler in front of a short prompt is none of the tokens that were said."""
    settings = {"do_sample": False, "max_new_tokens": 10, "repetition_penalty": 30.0}
    alone = [generate_texts(model, tokenizer, [prompt], **settings)[0] for prompt in PROMPTS]
    assert generate_texts(model, tokenizer, PROMPTS, batch_size=batch_size, **settings) == alone


def test_rows_do_not_reach_each_others_recurrent_state(tokenizer):
    """RWKV reads what its mask hides, and mixes rows of one length."""
    torch.manual_seed(0)
    recurrent = RwkvForCausalLM(
        RwkvConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2)
    ).eval()
    for parameter in recurrent.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    prompts = [*(prompt for prompt in PROMPTS if prompt), "t", "h"]
    settings = {"do_sample": False, "max_new_tokens": 8}
    alone = [generate_texts(recurrent, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    assert generate_texts(recurrent, tokenizer, prompts, **settings) == alone


def test_many_sequences_are_made_a_batch_at_a_time(model, tokenizer, monkeypatch):
    rows = []
    whole = type(model).generate

    def counted(self, input_ids, **settings):
        rows.append(len(input_ids))
        return whole(self, input_ids, **settings)

    monkeypatch.setattr(type(model), "generate", counted)
    for number, batch_size, expected in (
        (50, 1, [50, 50]),
        (50, 2, [64, 36]),
        (100, 80, [80, 80, 40]),
        (2, 9, [4]),
    ):
        settings = {"num_return_sequences": number, "max_new_tokens": 2, "batch_size": batch_size}
        [first, second] = generate_texts(model, tokenizer, ["a", "the"], **settings)
        assert (len(first), len(second)) == (number, number)
        assert rows == expected
        rows.clear()


# What a folder's generation_config.json can hold, all of which upstream's `generate` would follow.
BROUGHT_ALONG = {
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "min_length": 24,
    "min_new_tokens": 12,
    "max_length": 9,
    "max_time": 1e-9,
    "bad_words_ids": [[5], [6], [70], [80]],
    "suppress_tokens": list(range(2, 200)),
    "begin_suppress_tokens": list(range(2, 200)),
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 9.0],
    "sequence_bias": [[[9], 99.0]],
    "guidance_scale": 3.0,
    "renormalize_logits": True,
    "watermarking_config": {"watermarking_config": {"bias": 50.0}},
    "num_beams": 4,
    "length_penalty": -9.0,
    "early_stopping": True,
    "num_return_sequences": {"num_return_sequences": 3, "do_sample": True},
    "penalty_alpha": 0.9,
    "dola_layers": "high",
    "prompt_lookup_num_tokens": 3,
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 2,
    "typical_p": 0.1,
    "min_p": 0.9,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "stop_strings": ["a"],
    "use_cache": False,
    "cache_implementation": "static",
    "return_dict_in_generate": True,
    "output_scores": True,
    "remove_invalid_values": True,
    "token_healing": True,
}


@pytest.fixture
def with_settings(folder, tmp_path):
    """with_settings(**values): the model of a copy of the folder whose generation_config.json has
    these too.
    """

    def load(**values):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        file = copy / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return load_model(str(copy))

    return load


@pytest.mark.parametrize("name", BROUGHT_ALONG)
def test_what_a_folder_adds_is_left_out(model, tokenizer, with_settings, name):
    """Greedy is the likeliest token each time, in texts and in a task's answers; draws are those of
    our settings.
    """
    value = BROUGHT_ALONG[name]
    brought = with_settings(**(value if isinstance(value, dict) else {name: value}))
    expected = [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    got = generate_texts(brought, tokenizer, PROMPTS, do_sample=False, max_new_tokens=12)
    assert got == [[text] for text in expected]
    examples = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS[:2]])
    answers = predict(brought, tokenizer, examples, max_new_tokens=12)
    assert [answer["prediction"] for answer in answers] == expected[:2]
    drawn = {"num_return_sequences": 3, "max_new_tokens": 8, "seed": 4}
    assert generate_texts(brought, tokenizer, ["the"], **drawn) == generate_texts(
        model, tokenizer, ["the"], **drawn
    )
    assert brought.generation_config.to_dict().get(name) is not None  # and is left to others


def test_settings_in_config_json_are_left_out(model, tokenizer, folder, tmp_path):
    """Where older releases wrote them."""
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    file = tmp_path / "old" / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 1, "min_length": 20})
    )
    old = load_model(str(tmp_path / "old"))
    assert generate_texts(old, tokenizer, ["a"], do_sample=False, max_new_tokens=12) == [
        [greedy_by_hand(model, tokenizer, "a", 12)]
    ]


def test_a_text_also_ends_where_the_folder_says(model, tokenizer, with_settings):
    """As a chat model's turn does; the settings of the output name the tokens."""
    new = greedy_ids(model, tokenizer, "the cat", 12)
    brought = with_settings(eos_token_id=[0, new[2], 99_999])
    assert end_ids(brought, tokenizer) == sorted({0, new[2]})
    [[text]] = generate_texts(brought, tokenizer, ["the cat"], do_sample=False, max_new_tokens=12)
    assert text == tokenizer.decode(new[: new.index(new[2])])


def test_an_adapters_base_brings_nothing_either(model, tokenizer, with_settings):
    from peft import LoraConfig, get_peft_model

    brought = get_peft_model(
        with_settings(no_repeat_ngram_size=1), LoraConfig(target_modules=["c_attn"])
    )
    got = generate_texts(brought, tokenizer, ["the cat"], do_sample=False, max_new_tokens=12)
    assert got == [[greedy_by_hand(model, tokenizer, "the cat", 12)]]


@pytest.mark.parametrize(
    "stop", ["\0", "é", "日本", "🙂", "\u200b", "the cat flew", "<|pad|>", "\ufffd" * 4]
)
@pytest.mark.parametrize("made", ["train_char", "word pieces", "byte level"])
def test_a_stop_string_that_cannot_come_does_no_harm(stop, made):
    """Its characters may be none that the tokenizer can write."""
    documents = Dataset.from_dict({"text": PROMPTS})
    own = {
        "train_char": lambda: train_char(documents),
        "word pieces": lambda: make_tokenizer("BOS and SEP (BERT)"),
        "byte level": lambda: train_bpe(documents, 280),
    }[made]()
    torch.manual_seed(0)
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(own) + 9, n_layer=1, n_head=1, n_embd=8, n_positions=24)
    )
    settings = {"max_new_tokens": 8, "num_return_sequences": 4}  # with ids beyond the tokenizer's
    free = generate_texts(small, own, ["the cat"], **settings)
    stopped = generate_texts(small, own, ["the cat"], stop_strings=[stop], **settings)
    assert stopped == [[cut_at_stop(text, [stop]) for text in free[0]]]
    assert generate_texts(small, own, ["the cat"], stop_strings=[stop, "t"], **settings) == [
        [cut_at_stop(text, [stop, "t"]) for text in free[0]]
    ]


@pytest.mark.parametrize("stop_strings", [None, ["sat"], ["on the", "zzz"], ["\ufffd"]])
def test_streaming_prints_what_is_returned(model, tokenizer, capsys, stop_strings):
    settings = {"max_new_tokens": 16, "stream": True, "stop_strings": stop_strings}
    for seed in range(4):
        [[text]] = generate_texts(model, tokenizer, ["the cat"], seed=seed, **settings)
        assert capsys.readouterr().out == f"the cat{printable(text)}\n"
        assert not any(stop in text for stop in stop_strings or [])
        generate_texts(model, tokenizer, ["the cat"], seed=seed, skip_prompt=True, **settings)
        assert capsys.readouterr().out == f"{printable(text)}\n"


def test_streaming_shows_text_while_it_comes(model, tokenizer, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.print", lambda *words, **kwargs: shown.append("".join(words)))
    [[text]] = generate_texts(
        model, tokenizer, ["the cat"], max_new_tokens=12, stream=True, skip_prompt=True
    )
    assert "".join(shown) == printable(text) and len([part for part in shown if part]) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_completion_are_the_text(kind, monkeypatch, capsys):
    """Also with tokenizers that leave out the space where a text begins."""
    own = make_tokenizer(kind)
    [said] = encode_continuations([" cat sat"], own)

    def say(self, input_ids, streamer, **settings):
        for ids in (input_ids[0], *torch.tensor(said).split(1)):
            streamer.put(ids)
        streamer.end()
        return torch.cat([input_ids[0], torch.tensor(said)])[None]

    monkeypatch.setattr(GPT2LMHeadModel, "generate", say)
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(own), n_layer=1, n_head=1, n_embd=8, n_positions=48)
    )
    [[text]] = generate_texts(small, own, ["the"], max_new_tokens=4, stream=True)
    assert text == " cat sat" and capsys.readouterr().out == "the cat sat\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
    ],
)
def test_bad_settings_are_refused(model, tokenizer, settings, message):
    with pytest.raises(InputError, match=message):
        generate_texts(model, tokenizer, PROMPTS, **settings)


def test_a_prompt_that_fills_the_context_is_named(model, tokenizer):
    with pytest.raises(
        InputError, match=r"prompt 1: 30 tokens leave no room in the model's context of 24"
    ):
        generate_texts(model, tokenizer, ["a", "z" * 30])
    with pytest.raises(InputError, match="prompt 0: 24 tokens"):
        generate_texts(model, tokenizer, ["z" * 24])
    assert len(generate_texts(model, tokenizer, ["z" * 23], max_new_tokens=5)) == 1


def test_a_tokenizer_that_does_not_fit_is_named(tokenizer):
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_layer=1, n_head=1, n_embd=8, n_positions=16)
    )
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
    recipe(
        "--prompts",
        "a",
        "the cat",
        "",
        "--do_sample",
        "false",
        "--output_file",
        str(file),
        "--seed",
        "3",
    )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    expected = {
        prompt: [greedy_by_hand(model, tokenizer, prompt, 6)] for prompt in ("a", "the cat", "")
    }
    assert [(line["prompt"], line["completions"]) for line in lines] == list(expected.items())
    assert lines[0]["model"] == folder
    assert lines[0]["settings"]["max_new_tokens"] == 6 and lines[0]["settings"]["seed"] == 3
    with pytest.raises(InputError, match="exists"):
        recipe("--prompts", "a", "--output_file", str(file))
    recipe("--prompts", "b", "--output_file", str(file), "--overwrite")
    assert json.loads(file.read_text())["prompt"] == "b"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "the cat\n\n a dog \n"),
        ("p.jsonl", '{"prompt": "the cat", "id": 1}\n{"prompt": " a dog ", "id": 2}\n'),
    ],
)
def test_recipe_reads_prompt_files(recipe, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    recipe("--prompt_file", str(tmp_path / name), "--num_return_sequences", "2", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat", " a dog "]
    assert [len(line["completions"]) for line in lines] == [2, 2]


@pytest.mark.parametrize(
    ("term", "no_color", "prompt"),
    [
        ("xterm-256color", "", "\x1b[1mthe cat\x1b[0m"),
        ("xterm", "1", "prompt: the cat\n"),
        ("dumb", "", "prompt: the cat\n"),
    ],
)
def test_recipe_streams_to_a_terminal(
    recipe, model, tokenizer, capsys, monkeypatch, term, no_color, prompt
):
    """The prompt stands off from the text, by the means that the terminal has and its user
    takes.
    """
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    recipe("--prompts", "the cat", "--do_sample", "false")
    text = printable(greedy_by_hand(model, tokenizer, "the cat", 6))
    assert capsys.readouterr().out == f"{prompt}{text}\n"


def test_recipe_shows_texts_where_no_terminal_is(recipe, model, tokenizer, capsys):
    recipe("--prompts", "the cat", "", "--do_sample", "false")
    texts = (greedy_by_hand(model, tokenizer, prompt, 6) for prompt in ("the cat", ""))
    cat, new = map(printable, texts)
    assert (
        capsys.readouterr().out
        == f"prompt: the cat\n{cat}\n\nprompt: (none: a new text)\n{new}\n\n"
    )


def test_recipe_numbers_several_texts(recipe, model, tokenizer, capsys, monkeypatch):
    words = ["--prompts", "the cat", "--num_return_sequences", "2", "--seed", "5"]
    one, other = generate_texts(
        model, tokenizer, ["the cat"], num_return_sequences=2, max_new_tokens=6, seed=5
    )[0]
    one, other = printable(one), printable(other)
    recipe(*words)
    assert capsys.readouterr().out == f"prompt: the cat\n--- 1 of 2\n{one}\n--- 2 of 2\n{other}\n\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    recipe(*words)
    bold = "\x1b[1mthe cat\x1b[0m"
    assert capsys.readouterr().out == f"--- 1 of 2\n{bold}{one}\n--- 2 of 2\n{bold}{other}\n\n"


def test_recipe_continues_what_is_typed(recipe, model, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"the cat\n\na\n{'z' * 40}\n/exit\nthe\n"))
    recipe("--interactive", "--do_sample", "false")
    shown = capsys.readouterr()
    assert (
        shown.out
        == "".join(
            f"prompt: {prompt}\n{printable(greedy_by_hand(model, tokenizer, prompt, 6))}\n"
            for prompt in ("the cat", "a")
        )
        + f"prompt: {'z' * 40}\n"
    )
    assert "error: prompt 0: 40 tokens leave no room" in shown.err  # and the talk goes on


@pytest.mark.parametrize("when", ["asking", "generating"])
def test_ctrl_c_ends_the_talk(recipe, monkeypatch, when):
    def interrupt(*words, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n" * 3))
    monkeypatch.setattr(
        *(
            ("builtins.input", interrupt)
            if when == "asking"
            else (GPT2LMHeadModel, "generate", interrupt)
        )
    )
    recipe("--interactive")


# ---- a model that learned a task


@pytest.fixture
def task_folder(folder, tmp_path):
    """task_folder(prompt, columns): a copy of the folder that learned to be asked so."""

    def make(prompt, columns, stop_strings=()):
        shutil.copytree(folder, tmp_path / "task")
        save_task_prompt(
            tmp_path / "task",
            prompt=prompt,
            columns=columns,
            stop_strings=stop_strings,
            max_new_tokens=5,
        )
        return str(tmp_path / "task")

    return make


def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_task_model_is_asked_as_it_learned(task_folder, model, tokenizer, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    free = greedy_by_hand(model, tokenizer, "Say the cat\n", 5)
    stop = free[-2:]
    task = task_folder("Say {text}\n", ["text"], [stop])
    generate.main(
        ["--model", task, "--prompts", "the cat", '{"text": "the cat"}', "Say the cat\n", "--json"]
    )
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["Say the cat\n"] * 3
    assert [line["completions"] for line in lines] == [[free.split(stop)[0]]] * 3
    assert (
        lines[0]["settings"] | {"do_sample": False, "max_new_tokens": 5, "stop_strings": [stop]}
        == (lines[0]["settings"])
    )
    assert r"learned a task: a prompt becomes 'Say {text}\n' (--raw_prompts leaves it)" in shown.err


def test_what_is_given_goes_before_what_was_learned(task_folder, model, tokenizer, capsys):
    task = task_folder("Say {text}\n", ["text"], ["the"])
    words = ["--model", task, "--prompts", "the cat", "--json"]
    generate.main([*words, "--max_new_tokens", "7", "--stop_strings", "never", "--do_sample"])
    [line] = lines_of(capsys)
    assert (line["settings"]["do_sample"], line["settings"]["max_new_tokens"]) == (True, 7)
    assert line["settings"]["stop_strings"] == ["never"]
    for drawn in ("--temperature 0.5", "--num_return_sequences 2"):
        generate.main([*words, *drawn.split()])
        assert lines_of(capsys)[0]["settings"]["do_sample"]
    generate.main([*words, "--raw_prompts", "--do_sample", "false"])
    shown = capsys.readouterr()
    line = json.loads(shown.out)
    assert line["prompt"] == "the cat" and line["settings"]["max_new_tokens"] == 128
    assert line["completions"] == [greedy_by_hand(model, tokenizer, "the cat", 128)]
    assert "learned a task" not in shown.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '{"q": "the cat", "c": "a log", "id": 7}\n{"q": "a", "c": "the", "id": 8}\n'),
        ("p.csv", "q,c\nthe cat,a log\na,the\n"),
        ("p.txt", '{"q": "the cat", "c": "a log"}\n{"q": "a", "c": "the"}\n'),
    ],
)
def test_columns_of_a_prompt_file_fill_the_template(task_folder, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    task = task_folder("{c}: {q}?", ["c", "q"])
    generate.main(["--model", task, "--prompt_file", str(tmp_path / name), "--json"])
    assert [line["prompt"] for line in lines_of(capsys)] == ["a log: the cat?", "the: a?"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"text": "a"}\n', r"p\.jsonl:1: no column 'prompt'; it has text$"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', r"p\.jsonl:2: the prompt is 3, not text$"),
        ("p.json", "[]", r"prompt_file .*p\.json: no rows in it$"),
        ("p.csv", "x,y\n1,2\n", r"p\.csv:2: no column 'prompt'; it has x, y$"),
        ("p.txt", b"caf\xe9\n", r"p\.txt:1: not UTF-8 .byte 0xe9 at offset 3.; convert it first"),
    ],
)
def test_a_prompt_file_that_is_none(recipe, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        recipe("--prompt_file", str(tmp_path / name))


def test_an_empty_prompt_in_a_file_starts_a_new_text(recipe, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n{"prompt": "the cat"}\n')
    recipe("--prompt_file", str(tmp_path / "p.jsonl"), "--json")
    assert [line["prompt"] for line in lines_of(capsys)] == ["", "the cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q": "the cat"}\n', r"p\.jsonl:1: the prompt has no 'c', only q"),
        (
            '{"q": "a", "c": "b"}\n{"prompt": "the cat"}\n',
            r"p\.jsonl:2: the prompt 'the cat': .*give a JSON object",
        ),
    ],
)
def test_a_row_without_the_tasks_columns_is_named(task_folder, tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    task = task_folder("{c}: {q}?", ["c", "q"])
    with pytest.raises(InputError, match=message):
        generate.main(["--model", task, "--prompt_file", str(tmp_path / "p.jsonl")])


def test_a_model_that_learned_to_talk_gets_its_chat_template(task_folder, model, capsys):
    task = task_folder(None, [])
    own = AutoTokenizer.from_pretrained(task)
    own.chat_template = (
        "{% for message in messages %}{{ eos_token + message.content + '.' }}{% endfor %}"
    )
    own.save_pretrained(task)
    generate.main(["--model", task, "--prompts", "the cat", "--json"])
    [line] = lines_of(capsys)
    assert line["prompt"] == "<|endoftext|>the cat."
    assert line["completions"] == [greedy_by_hand(model, own, "<|endoftext|>the cat.", 5)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of the three"),
        (["--prompts", "a", "--prompt_file", "x.txt"], "give one of the three"),
        (["--prompts", "a", "--interactive"], "give one of the three"),
        (["--interactive", "--json"], "--interactive, --json, --output_file: give one"),
        (
            ["--prompts", "a", "--json", "--output_file", "x.jsonl"],
            "--interactive, --json, --output_file: give one",
        ),
        (["--prompts", "a", "b", "--stream"], "--stream: works for one prompt"),
        (["--prompts"], "command line: --prompts: got '', expected list of str"),
        (
            ["--prompts", "a", "--temperature", "inf"],
            "--temperature: got 'inf', expected 1e-06 to 1000000",
        ),
        (
            ["--prompts", "a", "--num_return_sequences", "100000000"],
            "'100000000', expected 1 to 100000",
        ),
        (
            ["--prompts", "a", "--output_file", "/proc/x/y.jsonl"],
            "--output_file /proc/x/y.jsonl: cannot be written",
        ),
        (
            ["--prompts", "a", "--output_file", "x" * 300],
            "--output_file x+: cannot be written .File name too long",
        ),
        (
            ["--prompts", "a", "--output_file", "x" * 252],
            "--output_file x+: cannot be written .File name too long",
        ),
        (
            ["--prompts", "a", "--output_file", f"{'x' * 300}/y"],
            "--output_file x+/y: cannot be written .File name",
        ),
        (["--prompt_file", "missing.txt"], "no such file"),
        (["--prompts", "a", "--output_file", "."], "is a folder"),
        (["--prompts", "a", "--output_file", ""], "is a folder"),
        (["--prompts", "a", "z" * 40, "--output_file", "out.jsonl"], "prompt 1: 40 tokens"),
        (
            ["--prompts", "a", "--do_sample", "false", "--num_return_sequences", "2"],
            "num_return_sequences",
        ),
        (["--prompts", "a", "--model", "./missing"], "model ./missing: "),
    ],
)
def test_recipe_refuses_bad_input_and_leaves_nothing(recipe, tmp_path, monkeypatch, words, message):
    """Before anything is generated; all but what the model's context decides before it is
    loaded.
    """

    def never(*words, **settings):
        raise AssertionError("the model was used")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GPT2LMHeadModel, "generate", never)
    with pytest.raises(InputError, match=message):
        recipe(*words)
    assert list(tmp_path.iterdir()) == []


def test_output_through_a_link_to_nowhere(recipe, tmp_path):
    link = tmp_path / "gone"
    link.symlink_to(tmp_path / "not there")
    with pytest.raises(
        InputError,
        match=f"--output_file {link}/x.jsonl: {link} is a link to .*, which is not there",
    ):
        recipe("--prompts", "a", "--output_file", str(link / "x.jsonl"))
    with pytest.raises(InputError, match=f"--output_file {link}: exists"):
        recipe("--prompts", "a", "--output_file", str(link))


def test_texts_are_not_lost_with_the_disk(recipe, tmp_path, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "write_atomically", full)
    with pytest.raises(
        InputError, match="No space left on device; the lines are on standard output"
    ):
        recipe("--prompts", "a", "b", "--output_file", str(tmp_path / "x.jsonl"))
    assert [line["prompt"] for line in lines_of(capsys)] == ["a", "b"]


def test_a_prompt_to_begin_with_leaves_half_of_the_context(model, tokenizer):
    assert beginning_of("the cat  sat\non", model, tokenizer) == "the cat sat"
    assert beginning_of("the " + "z" * 20, model, tokenizer) == "the"
    assert (
        beginning_of("z" * 20 + " the", model, tokenizer)
        == beginning_of(" ", model, tokenizer)
        == ""
    )


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [["a", "the cat", "the dog sat"], ["a"]])
def test_two_ranks_share_the_prompts(folder, model, tokenizer, tmp_path, prompts, run_warm):
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(root / "accelerate_configs" / "cpu_2proc.yaml"),
        str(root / "recipes" / "generate.py"),
        "--model",
        folder,
        "--max_new_tokens",
        "6",
        "--do_sample",
        "false",
        "--output_file",
        str(tmp_path / "out.jsonl"),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = run_warm([*command, "--prompts", *prompts], env=env, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert [line["completions"] for line in lines] == [
        [greedy_by_hand(model, tokenizer, p, 6)] for p in prompts
    ]
