"""Text becomes tokens in one way: once what a tokenizer puts in front, never what it puts behind,
in every recipe.
"""

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.arguments import TaskArguments
from hfscale.data.packing import pack_documents
from hfscale.data.tokens import (
    decode_continuation,
    encode_continuations,
    encode_prompts,
    leading_ids,
    nothing_behind,
    start_ids,
)
from hfscale.generation.texts import fit_prompts, generate_texts
from hfscale.metrics.perplexity import score_documents
from hfscale.probes.attention import encode_sentence
from hfscale.tasks import choice_scores
from hfscale.tasks.answers import predict
from hfscale.tasks.chat_templates import set_chat_template
from hfscale.tasks.fitting import fit_examples
from hfscale.tasks.preferences import pair_ids
from hfscale.tasks.rows import supervised_rows
from tests.tokenizer_kinds import KINDS, make_tokenizer

PROMPT = "the cat sat"


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(kind):
    return make_tokenizer(kind)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_head=2, n_embd=32, n_positions=96)
    return GPT2LMHeadModel(config).eval()


def ids_of(tokenizer, tokens: list[str]) -> list[int]:
    return tokenizer.convert_tokens_to_ids(tokens)


def test_what_stands_in_front(kind, tokenizer):
    _, front, _, bos = KINDS[kind]
    assert leading_ids(tokenizer) == ids_of(tokenizer, front)
    assert start_ids(tokenizer) == ids_of(tokenizer, front or [bos or "</s>"])


def test_prompts_have_it_once_and_nothing_behind(kind, tokenizer):
    _, front, _, _ = KINDS[kind]
    plain = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    written = "".join(front) + PROMPT
    bare = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert encode_prompts([PROMPT, written, ""], tokenizer) == [
        ids_of(tokenizer, front) + plain,
        bare if front else plain,
        start_ids(tokenizer),
    ]
    assert encode_prompts([PROMPT, written], tokenizer, add_special_tokens=False) == [plain, bare]


def test_a_tool_that_encodes_prompts_itself_gets_the_same(kind, tokenizer):
    texts = [PROMPT, "the cat  sat\non"]
    bare = nothing_behind(tokenizer)
    assert bare(texts)["input_ids"] == encode_prompts(texts, tokenizer)
    assert tokenizer.num_special_tokens_to_add() == len(KINDS[kind][1]) + len(
        KINDS[kind][2]
    )  # left as it was


def test_bos_alone_written_in_front_of_a_prompt():
    tokenizer = make_tokenizer("a language and EOS (mBART)")
    [ids] = encode_prompts(["<s>the cat"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids)[:3] == ["en_XX", "<s>", "the"]


@pytest.mark.parametrize("text", ["yes", " yes", "    return x\n", "\nno", ", the cat", "."])
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "BERT" not in kind]
)  # which keeps no white space
def test_what_follows_a_prompt_reads_as_it_was_written(tokenizer, text):
    """So that prompt and answer together are the text, also with tokenizers that put a space in
    front of each.
    """
    [prompt] = encode_prompts([PROMPT], tokenizer)
    [ids] = encode_continuations([text], tokenizer)
    assert decode_continuation(ids, tokenizer, prompt[-1]) == text
    assert (
        tokenizer.decode([*prompt, *ids], skip_special_tokens=True).strip()
        == (PROMPT + text).strip()
    )


class Seen(Exception):
    """The rows that a model would have been given."""


@pytest.fixture
def asked(monkeypatch):
    """asked(work): the token ids that `model.generate` gets first."""

    def generate(self, input_ids, **settings):
        raise Seen(input_ids[0].tolist())

    def run(work) -> list[int]:
        monkeypatch.setattr(GPT2LMHeadModel, "generate", generate)
        with pytest.raises(Seen) as seen:
            work()
        return seen.value.args[0]

    return run


def test_the_same_prompt_is_the_same_tokens_in_every_recipe(tokenizer, model, asked):
    """generate, chat and samples; score and the measures of finetune_task; its rows;
    finetune_preference; the page of attention and scored documents, which start as a new text does.
    """
    [expected] = encode_prompts([PROMPT], tokenizer)
    examples = Dataset.from_list([{"prompt": PROMPT, "target": "yes", "references": ["yes"]}])
    assert fit_prompts(model, tokenizer, [PROMPT])[0] == [expected]
    assert asked(lambda: generate_texts(model, tokenizer, [PROMPT])) == expected
    assert asked(lambda: predict(model, tokenizer, examples, max_new_tokens=4)) == expected
    args = TaskArguments(max_new_tokens=4)
    fitted, cut = fit_examples(DatasetDict(train=examples), tokenizer, args, max_length=96)
    [row] = supervised_rows(fitted, tokenizer, 96, "none")["train"]
    answer = [label for label in row["labels"] if label != -100]
    assert row["input_ids"] == expected + answer and answer[-1] == tokenizer.eos_token_id
    assert cut["train"] == {"prompts": 0, "tokens": 0}
    pair = pair_ids({"prompt": PROMPT, "chosen": "yes", "rejected": "no"}, tokenizer)
    assert pair["prompt_ids"] == expected and pair["chosen_ids"] == answer

    document = start_ids(tokenizer) + expected[len(leading_ids(tokenizer)) :]
    assert encode_sentence(model, tokenizer, PROMPT).tolist() == [document]
    [row] = pack_documents(Dataset.from_dict({"text": [PROMPT]}), tokenizer, len(document) + 1)
    assert row["input_ids"] == [*document, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([document])).logits[0]
    first = len(start_ids(tokenizer)) - 1
    nll = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(document[1:]), reduction="none"
    )
    assert score_documents(model, tokenizer, [PROMPT]).sums[0, 0] == pytest.approx(
        nll[first:].sum().item(), rel=1e-5
    )


def test_choices_stand_after_the_same_prompt(kind, tokenizer, model, monkeypatch):
    """And where there is no prompt, after what begins a document. Only the choice is scored."""
    seen = []

    def score(model, windows, batch_size, **more):
        seen.extend(windows)
        return [0.0] * len(windows)

    monkeypatch.setattr(choice_scores, "score_windows", score)
    examples = Dataset.from_list(
        [{"prompt": prompt, "choices": ["yes"], "answer": 0} for prompt in (PROMPT, "")]
    )
    choice_scores.score_choices(model, tokenizer, examples)
    [[asked], [bare]] = ([ids] for ids in encode_prompts([f"{PROMPT} yes", "yes"], tokenizer))
    assert seen[0].ids.tolist() == asked
    assert seen[0].first == len(encode_prompts([PROMPT], tokenizer)[0])
    front = start_ids(tokenizer)
    assert seen[1].ids.tolist() == front + bare[len(leading_ids(tokenizer)) :] and seen[
        1
    ].first == len(front)


def test_a_cut_prompt_keeps_what_stands_in_front(tokenizer, model, asked):
    long = " ".join(["the cat sat on the mat"] * 30)
    examples = Dataset.from_list([{"prompt": long, "target": "yes", "references": ["yes"]}])
    [whole] = encode_prompts([long], tokenizer)
    front = leading_ids(tokenizer)
    ids = asked(lambda: predict(model, tokenizer, examples, max_new_tokens=4))
    assert ids == front + whole[len(whole) - (92 - len(front)) :]


CHATS = {
    "writes BOS": "{{ bos_token or '' }}",
    "writes none": "",
}


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_has_the_special_tokens_of_its_template_alone(kind, tokenizer, model, asked, chat):
    """In chat, in training rows and in scoring, equal to what upstream makes of the turns."""
    tokenizer.chat_template = CHATS[chat] + (
        "{%- for message in messages %}{{ message.role + ':\\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% "
        "endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}"
        "{%- endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "yes"}]
    expected = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    example = {"prompt": "", "target": "yes", "references": ["yes"], "messages": turns}
    fitted, _ = fit_examples(
        DatasetDict(train=Dataset.from_list([example])),
        tokenizer,
        TaskArguments(max_new_tokens=4),
        max_length=96,
    )
    rendered = fitted["train"]["prompt"][0]
    assert (
        asked(lambda: generate_texts(model, tokenizer, [rendered], add_special_tokens=False))
        == expected
    )
    assert asked(lambda: predict(model, tokenizer, fitted["train"], max_new_tokens=4)) == expected
    [row] = supervised_rows(fitted, tokenizer, 96, "none")["train"]
    assert row["input_ids"][: len(expected)] == expected


def test_our_chat_template_writes_what_the_tokenizer_puts_in_front(kind, tokenizer):
    _, front, _, _ = KINDS[kind]
    set_chat_template(tokenizer, "chatml")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "yes"}], tokenize=False)
    assert chat == "".join(front) + "<|im_start|>user\nyes<|im_end|>\n"
