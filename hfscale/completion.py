"""Scripts by which shells complete the words of `hfscale`."""

from pathlib import Path
from typing import Any

from hfscale.config import REFUSED, arguments_class, kinds_of, planned_kinds, shipped
from hfscale.launch import FLAGS
from hfscale.options import choices_of
from hfscale.process import InputError

# Words are looked up in `_hfscale_words`, by what was typed before: a line for the command, one for
# each recipe, and one for each argument whose values are known.
BASH = """\
# bash completion of hfscale: eval "$(hfscale completion bash)" in ~/.bashrc
_hfscale_words() {{
    case "$1" in
{cases}
    esac
}}
_hfscale() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" flag="" words="" i
    if (( COMP_CWORD == 1 )); then
        words="$(_hfscale_words hfscale)"
    else
        for (( i = COMP_CWORD - 1; i > 1; i-- )); do
            if [[ "${{COMP_WORDS[i]}}" == --* ]]; then flag="${{COMP_WORDS[i]}}"; break; fi
        done
        if [[ "$word" != -* ]]; then words="$(_hfscale_words "${{COMP_WORDS[1]}} $flag")"; fi
        if [[ -z "$words" && ( "$word" == -* || -z "$flag" ) ]]; then
            words="$(_hfscale_words "${{COMP_WORDS[1]}}")"
        fi
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o bashdefault -o default -F _hfscale hfscale
"""
# zsh reads bash's.
ZSH = """\
# zsh completion of hfscale: eval "$(hfscale completion zsh)" in ~/.zshrc
autoload -Uz compinit bashcompinit && compinit -u && bashcompinit
{bash}"""
FISH = """\
# fish completion of hfscale: hfscale completion fish | source, in ~/.config/fish/config.fish
{lines}
"""
SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str, verbs: list[str]) -> str:
    """For one of `SHELLS`. The words of today are in it: an update is completed once the script is
    made anew.

    Raises InputError: another shell.
    """
    if shell not in SHELLS:
        raise InputError(f"hfscale completion {shell}: expected one of {', '.join(SHELLS)}")
    words = known_words(verbs)
    if shell == "fish":
        return FISH.format(lines="\n".join(_fish_lines(words)))
    cases = "\n".join(f"    '{place}') echo '{' '.join(known)}' ;;" for place, known in words)
    bash = BASH.format(cases=cases)
    return bash if shell == "bash" else ZSH.format(bash=bash)


def known_words(verbs: list[str]) -> list[tuple[str, list[str]]]:
    """What may follow, by what was typed: `hfscale`, a recipe, or a recipe and its argument."""
    recipes = shipped("recipes", "[!_]*.py")
    words = [("hfscale", [*recipes, *verbs])]
    words += [(verb, list(recipes)) for verb in ("copy", "schema")]
    words.append(("completion", list(SHELLS)))
    for name, path in recipes.items():
        words += _words_of(name, path)
    return words


def _words_of(name: str, recipe: Path) -> list[tuple[str, list[str]]]:
    cls = arguments_class(recipe)
    kinds: dict[str, Any] = kinds_of(cls) | planned_kinds(cls, recipe)
    kinds = {argument: kind for argument, kind in kinds.items() if argument not in REFUSED}
    flags = [f"--{argument}" for argument in ("config", *FLAGS, *kinds)]
    configs = list(shipped(f"recipes/configs/{name}", "*.yaml"))
    launch_configs = list(shipped("accelerate_configs", "*.yaml"))
    values = {"config": configs, "accelerate": launch_configs}
    values |= {argument: choices_of(kind) for argument, kind in kinds.items()}
    lines = [(name, list(dict.fromkeys(flags)))]
    return lines + [(f"{name} --{argument}", known) for argument, known in values.items() if known]


def _fish_lines(words: list[tuple[str, list[str]]]) -> list[str]:
    (_, first), *others = words
    lines = [f"complete -c hfscale -n __fish_use_subcommand -f -a '{' '.join(first)}'"]
    for place, known in others:
        subcommand, _, flag = place.partition(" --")
        seen = f"complete -c hfscale -n '__fish_seen_subcommand_from {subcommand}'"
        if flag:
            lines.append(f"{seen} -l {flag} -x -a '{' '.join(known)}'")
        elif known[0].startswith("--"):
            lines += [f"{seen} -l {word.removeprefix('--')}" for word in known]
        else:
            lines.append(f"{seen} -f -a '{' '.join(known)}'")
    return lines
