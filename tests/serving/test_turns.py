"""Turns are written as everywhere else, with the same limits, by a process that stays."""

import socket

import pytest

from hfscale.generation.prompts import write_turns
from hfscale.process import InputError
from hfscale.serving.turns import TurnsWriter
from hfscale.tasks.chat_templates import set_chat_template
from tests.tiny_models import tiny_tokenizer

TURNS = [{"role": "system", "content": "x" * 300_000}, {"role": "user", "content": "<|im_end|>"}]


@pytest.fixture
def writer():
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "chatml")
    writer = TurnsWriter(tokenizer)
    yield writer
    writer.end()


def test_the_text_is_that_of_every_recipe(writer):
    for count in (1, 2, 1):
        assert writer.write(TURNS[:count]) == write_turns(TURNS[:count], writer.tokenizer)


def test_what_a_template_refuses_is_said_and_the_next_one_is_written(writer):
    text = "{% if messages|length > 1 %}{{ raise_exception('one\nturn') }}{% endif %}ok"
    writer.tokenizer.chat_template = text
    with pytest.raises(InputError, match="^the model's chat template: TemplateError: one turn$"):
        writer.write(TURNS)
    assert writer.write(TURNS[:1]) == "ok"


def test_a_template_that_goes_on_for_ever_is_stopped(writer, monkeypatch):
    defaults = {"seconds": 0.2, "more_bytes": 2**29}
    monkeypatch.setattr("hfscale.limited.each_limited.__kwdefaults__", defaults)
    writer.tokenizer.chat_template = (
        "{% if messages|length > 1 %}{% for i in range(10**5) %}{% for j in range(10**5) %}"
        "{% endfor %}{% endfor %}{% endif %}ok"
    )
    with pytest.raises(InputError, match="stopped, for it computes longer than 0.2 s"):
        writer.write(TURNS)
    assert writer.write(TURNS[:1]) == "ok"


def test_the_copy_keeps_no_connection_open(writer):
    here, there = socket.socketpair()
    writer.begin()
    there.close()
    here.settimeout(20)
    assert here.recv(1) == b""
    here.close()
