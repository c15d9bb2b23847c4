"""recipes/serve.py and `chat --web`: what they print works, and what is wrong is one line."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.process import InputError
from recipes import chat, serve
from tests.serving.running import running, save_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def served(monkeypatch):
    """The servers that would run."""
    servers = []

    def keep(server, listener, *, seconds_to_stop):
        servers.append(server)
        listener.close()

    monkeypatch.setattr("hfscale.serving.server.serve", keep)
    monkeypatch.setattr("hfscale.serving.web.serve", keep)
    yield servers
    for server in servers:
        for model in server.models.values():
            model.turns.end()  # its process, too


def test_models_are_served_under_their_folders_names(folders, served, capsys, monkeypatch):
    monkeypatch.setenv("HFSCALE_API_KEY", "secret")
    serve.main(["--model", folders["adapter"] + "/", folders["chat"], "--port", "0"])
    [server] = served
    assert [*server.models] == [folders["adapter"], folders["chat"]]
    assert server.api_key == "secret" and "localhost" in server.hosts
    lines = capsys.readouterr().out.splitlines()
    assert "secret" not in "\n".join(lines)
    vllm = next(line for line in lines if line.startswith("vLLM: "))
    name = folders["adapter"]
    assert vllm.startswith(
        f"vLLM: vllm serve {folders['plain']} --enable-lora --lora-modules {name}={name} --host"
    )


def test_the_curl_line_works_as_it_stands(folders, served, capsys):
    for name in ("plain", "chat", "task"):
        serve.main(["--model", folders[name], "--port", "0"])
        line = next(line for line in capsys.readouterr().out.splitlines() if "curl" in line)
        url = line.split()[2].split("/v1")[0]
        with running([folders[name]]) as (_, running_at):
            command = line.removeprefix("try:  ").replace(url, running_at)
            words = [*shlex.split(command), "--silent", "--fail"]
            answer = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        assert answer["model"] == folders[name]


def test_an_open_server_without_a_key_is_said(folders, served, capsys, monkeypatch):
    monkeypatch.delenv("HFSCALE_API_KEY", raising=False)
    serve.main(["--model", folders["plain"], "--host", "0.0.0.0", "--port", "0"])
    assert "anyone who reaches" in capsys.readouterr().out
    assert served[0].hosts is None
    serve.main(["--model", folders["plain"], "--port", "0"])
    assert "anyone who reaches" not in capsys.readouterr().out


def test_a_template_for_a_model_that_has_none(folders, served):
    serve.main(["--model", folders["plain"], "--port", "0", "--chat_template", "chatml"])
    [server] = served
    assert server.models[folders["plain"]].can_chat


def test_chat_on_a_page(folders, served, capsys):
    words = ["--model", folders["chat"], "--web", "--port", "0", "--temperature", "0.5"]
    chat.main([*words, "--system", "be short", "--max_new_tokens", "9"])
    [server] = served
    assert [*server.models] == [folders["chat"]]
    shown = capsys.readouterr().out
    assert "temperature=0.5" in shown and "max_tokens=9" in shown and "system=be+short" in shown


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        (serve, "--model no/such/folder --port 0", "^model no/such/folder: cannot be loaded"),
        (serve, "--model PLAIN PLAIN --port 0", "name each model once"),
        (serve, "--model PLAIN --port 0 --chat_template nothing", "nothing: no such file; give"),
        (serve, "--model PLAIN --port 99999", "--port: got '99999', expected 0 to 65535"),
        (serve, "--model PLAIN --host 203.0.113.7", "^--host 203.0.113.7: no address of this"),
        (chat, "--model PLAIN --web --prompts a", "^--prompts: are not for a page"),
        (chat, "--model no/such/folder --web --port 0", "no/such/folder"),
    ],
)
def test_bad_input(folders, recipe, words, said):
    with pytest.raises(InputError, match=said) as error:
        recipe.main(words.replace("PLAIN", folders["plain"]).split())
    assert "\n" not in str(error.value)


def test_an_empty_key_is_no_key(folders, monkeypatch):
    monkeypatch.setenv("HFSCALE_API_KEY", " ")
    with pytest.raises(InputError, match="^HFSCALE_API_KEY: empty"):
        serve.main(["--model", folders["plain"]])


@pytest.mark.slow
def test_sigterm_ends_the_program(folders):
    command = [sys.executable, str(ROOT / "recipes/serve.py"), "--model", folders["plain"]]
    program = subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
    )
    line = program.stdout.readline()
    assert line.startswith(f"serving {folders['plain']} on http://127.0.0.1:")
    program.stdout.readline()
    assert "vllm serve" in program.stdout.readline()
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors and errors.splitlines()[-1] == "stopped by SIGTERM"
