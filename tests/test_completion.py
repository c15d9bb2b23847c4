"""The completion scripts, in a real shell."""

import subprocess

import pytest

from hfscale.cli import main
from hfscale.completion import completion_script, known_words


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "hfscale.bash"
    path.write_text(completion_script("bash", ["copy", "env"]))
    return path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["pret"], ["pretrain"]),
        (["cop"], ["copy"]),
        (["pretrain", "--config", "gpt2_s"], ["gpt2_small", "gpt2_small_streaming"]),
        (["pretrain", "--optimizer", ""], ["adamw", "muon"]),
        (["pretrain", "--source", "a.txt", "--max_st"], ["--max_steps"]),
        (["pretrain", "--accelerate", "zero2"], ["zero2"]),
        (["plan", "--lora_r"], ["--lora_r"]),
        (["pretrain", "--source", ""], []),  # the shell's own: files
        (["schema", "quick"], ["quickstart"]),
        (["completion", "f"], ["fish"]),
    ],
)
def test_bash_completes(script, typed, expected):
    words = " ".join(f"'{word}'" for word in ["hfscale", *typed])
    program = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _hfscale; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == expected


def test_every_shell_knows_the_same_words():
    fish = completion_script("fish", ["copy"])
    zsh = completion_script("zsh", ["copy"])
    for place, known in known_words(["copy"]):
        flag = place.partition(" --")[2]
        assert f" -l {flag} " in fish if flag else known[-1].removeprefix("--") in fish
        assert f"'{place}')" in zsh


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    expected = "error: hfscale completion tcsh: expected one of bash, zsh, fish\n"
    assert capsys.readouterr().err == expected
