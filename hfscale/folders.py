"""Where recipes write: who may write there, what --overwrite deletes, files written whole."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hfscale.full_disk import NO_SPACE, is_disk_full
from hfscale.held_file import held_file
from hfscale.lock import LOCK, claim_folder
from hfscale.process import InputError, from_main_rank, hardware, typed_command, versions
from hfscale.stopping import note_when_stopped

UNFINISHED = ".*.part"  # of `write_atomically`, after a kill
TRIAL = ".hfscale-"  # how the name of a folder begins in which `check_writable` tries a place out
MODEL_CARD = "README.md"
CARD_MARK = (
    "<!-- Written by a run of hfscale, which replaces it unless it is edited: {digest} -->\n"
)
VERSIONS_HEADING = "### Framework versions"  # peft adds lines below it
# What peft sets in a card's head whenever it saves an adapter beside it.
SET_BY_PEFT = ("base_model", "library_name", "pipeline_tag", "tags")
# In the cards that peft, TRL and transformers write while a run goes on, and nobody edits.
DRAFTS = (
    "# Model Card for Model ID",
    "It has been trained using [TRL]",
    "This model card has been generated automatically",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
RUN_RECORD = "run.json"
IMAGE_PROCESSOR = "preprocessor_config.json"  # how pictures become numbers
REPLAY_RECORD = "replay.json"  # of a run that was done again, beside its own
SMALL_MODEL_FILES = (
    *TOKENIZER_FILES,
    RUN_RECORD,
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "task.json",
    IMAGE_PROCESSOR,
)
# What is read where a folder is loaded as a model.
LOADED_FILES = (
    *SMALL_MODEL_FILES,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
)
TRAINING_ARGUMENTS = "training_args.bin"  # a pickle, which nothing reads
MODEL_FILES = (
    *LOADED_FILES,
    TRAINING_ARGUMENTS,
    "trainer_state.json",
    MODEL_CARD,
    UNFINISHED,
)
AVERAGED_WEIGHTS = "averaged_weights.safetensors"
CHECKPOINT_FILES = (
    *MODEL_FILES,
    AVERAGED_WEIGHTS,
    "manifest.json",
    "checkpoint-is-incomplete.txt",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_*.pth",
    # DeepSpeed's
    "latest",
    "latest_universal",
    "zero_to_fp32.py",
    "zero_to_torch.py",
    "global_step*/**",
    # FSDP's
    "pytorch_model_fsdp*.bin",
    "pytorch_model_fsdp_*/**",
    "optimizer_*/**",
)
WORD_CHECKPOINT = "chck_"  # a model after so many words, as BabyLM calls it: chck_1M
CONVERTED = (
    "resuming"  # a checkpoint rewritten for another engine, until the first step after it is done
)
SAVING = ".saving"  # a checkpoint while it is written
GROUPS = "groups.jsonl"  # answers with rewards, that a model learned from
REWARDS_RECORD = "rewards.json"  # what was found in them
BY_POSITION = ("perplexity_by_position.json", "perplexity_by_position.png")
CAPTION_ATTENTION = "caption_attention.png"
RUN_FILES = (
    *MODEL_FILES,
    *BY_POSITION,
    CAPTION_ATTENTION,
    GROUPS,
    REWARDS_RECORD,
    REPLAY_RECORD,
    LOCK,
    f"{TRIAL}*",
    f"{TRIAL}*/**",
    "manifest.json",
    f"{SAVING}/**",
    "report.html",
    "runs/events.out.tfevents.*",
    "runs/*/events.out.tfevents.*",
    "runs/*/*/events.out.tfevents.*",
    "wandb/**",
    f"{CONVERTED}/**",
    "checkpoint-[0-9]*",
    *(f"checkpoint-[0-9]*/{name}" for name in CHECKPOINT_FILES),
    f"{WORD_CHECKPOINT}[0-9]*",
    *(f"{WORD_CHECKPOINT}[0-9]*/{name}" for name in (*MODEL_FILES, "manifest.json")),
)
DATA_CARD = "data_card.json"
PREPARED_FILES = (
    DATA_CARD,
    "data_card.md",
    "funnel.png",
    "dropped.jsonl",
    "contamination.json",
    "dataset_dict.json",
    *(
        f"{split}/{name}"
        for split in ("train", "validation", "test")
        # the last: what earlier versions kept beside a saved set that is read
        for name in ("data-*-of-*.arrow", "dataset_info.json", "state.json", "cache-*.arrow")
    ),
    "manifest.json",
    UNFINISHED,
)
TOKENIZER_REPORT = "tokenizer_report.json"
TRAINED_TOKENIZER_FILES = (*TOKENIZER_FILES, TOKENIZER_REPORT, "manifest.json", UNFINISHED)
ATTENTION_RECORD = "attention.json"
ATTENTION_FILES = (
    ATTENTION_RECORD,
    "attention.npz",
    "attention.txt",
    "attention.html",
    "attention_maps.png",
    "head_scores.png",
    "manifest.json",
    UNFINISHED,
)
EXPORT_RECORD = "export.json"
EXPORT_FILES = (
    *MODEL_FILES,
    EXPORT_RECORD,
    "model-*.gguf",
    "Modelfile",
    "model.html",
    "onnx/model*.onnx",
    "onnx/model*.onnx_data",
    "manifest.json",
)


def check_writable(place: str, folder: Path, name: str = "") -> None:
    """Raise InputError unless a folder, and in it a file or folder `name`, can be made or written.

    This is tried out in the lowest folder that is there: permissions do not tell that nothing can
    be made below /proc, or that a name is too long. Nothing is left.
    """
    lowest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if lowest.is_symlink() and not lowest.exists():
        raise InputError(
            f"{place}: {lowest} is a link to {os.readlink(lowest)}, which is not there; name "
            "another place"
        )
    if not lowest.is_dir() or not os.access(lowest, os.W_OK):
        raise InputError(f"{place}: {lowest} is not a folder that can be written to")
    try:
        with tempfile.TemporaryDirectory(prefix=TRIAL, dir=lowest) as trial:
            made = Path(trial, folder.absolute().relative_to(lowest.absolute()))
            made.mkdir(parents=True, exist_ok=True)
            (made / f".{name}.part").touch()  # the name that `write_atomically` gives first
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{place}: cannot be written ({reason}); name another place") from None


def check_output_folder(
    output_dir: str, *, overwrite: bool, last_file: str, written: Sequence[str]
) -> None:
    """`written` are the patterns of what this recipe writes, see `check_replaceable`.

    Raises InputError: the path is taken (with `overwrite`: by something else than a folder with
    `last_file` and nothing foreign in it), or cannot be written to.
    """
    folder, place = Path(output_dir).absolute(), f"output_dir {output_dir}"
    if os.path.islink(folder):
        check_writable(place, folder)
    if os.path.lexists(folder) and not (overwrite and (folder / last_file).is_file()):
        raise InputError(f"{place}: exists; name another, or --overwrite one of this recipe")
    check_writable(place, folder.parent, folder.name)
    if overwrite:
        check_replaceable(place, folder, written)


def check_output_dir(
    output_dir: str, *, resume: str | None, overwrite: bool, can_resume: bool = True
) -> None:
    """Refuse a folder that holds a run, unless it is to be continued or may be deleted. A run's
    folder belongs to this process then (`claim_folder`); nothing else is changed here. Rank 0 looks
    for all. `can_resume`: the recipe has --resume.

    Raises:
        InputError: as said, or another run is in the folder, or the path cannot become a folder, or
            --overwrite would delete what no run wrote.
    """
    from_main_rank(
        lambda: _check_output_dir(
            output_dir, resume=resume, overwrite=overwrite, can_resume=can_resume
        )
    )
    note_when_stopped("nothing was trained yet, the same command starts again")


def _check_output_dir(
    output_dir: str, *, resume: str | None, overwrite: bool, can_resume: bool
) -> None:
    path = Path(output_dir)
    place = f"output_dir {output_dir}"
    check_writable(place, path)
    if resume and overwrite:
        raise InputError(
            "--resume auto continues a run and --overwrite deletes it; give one of the two"
        )
    if _is_filled(path) and not holds_run(path):
        raise InputError(f"{place}: holds files that are no training run; name an empty folder")
    if overwrite:
        check_replaceable(place, path, RUN_FILES)
    has_run = _is_filled(path)
    if (path / LOCK).exists() or (has_run and (resume or overwrite)):
        claim_folder(place, path)
    if has_run and not resume and not overwrite:
        ways = (
            "--resume auto continues it, " * can_resume
            + "--overwrite deletes it, or name another folder"
        )
        raise InputError(f"{place}: holds a run; {ways}")


def _is_filled(path: Path) -> bool:
    """Whether a folder holds anything but a lock, or a trial that a kill has left."""
    return path.is_dir() and not all(
        child.name == LOCK or child.name.startswith(TRIAL) for child in path.iterdir()
    )


def holds_run(path: Path) -> bool:
    """Whether a training run wrote here: its last files, checkpoints, or only logs yet."""
    only_logs = {p.name for p in path.iterdir()} <= {"runs", "wandb", LOCK} and (
        any(path.glob("runs/*/events.out.tfevents.*")) or any(path.glob("wandb/*run-*"))
    )
    saved = (SAVING, "checkpoint-*", f"{WORD_CHECKPOINT}[0-9]*")
    has_checkpoints = any(any(path.glob(pattern)) for pattern in saved)
    last_files = (path / TRAINING_ARGUMENTS, path / REPLAY_RECORD)
    return only_logs or has_checkpoints or any(file.is_file() for file in last_files)


def clear_output_dir(output_dir: str, overwrite: bool) -> None:
    """Claim the folder, and delete the earlier run when asked to; called once everything else has
    been checked. Rank 0 does it for all.

    Raises:
        InputError: another run is in the folder, or was since `check_output_dir`, or something came
            into it that no run wrote; nothing is deleted.
    """
    from_main_rank(lambda: _clear_output_dir(output_dir, overwrite))


def _clear_output_dir(output_dir: str, overwrite: bool) -> None:
    path = Path(output_dir)
    place = f"output_dir {output_dir}"
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        check_replaceable(place, path, RUN_FILES)
    was_free = claim_folder(place, path)
    if was_free and _is_filled(path) and holds_run(path):  # there was none to be checked before
        raise InputError(
            f"{place}: another run came into it meanwhile; --resume auto continues it, or name "
            "another folder"
        )
    if overwrite:
        remove_written(place, path, RUN_FILES, kept=(LOCK,))


def mark_card(card: str) -> str:
    """A model card with the comment by which `is_edited_card` knows that a run wrote it."""
    front, text = _front_matter(card)
    mark = CARD_MARK.format(digest=_card_digest(card))
    return f"{front}{mark}{text}"


def is_edited_card(path: Path) -> bool:
    """Whether people wrote this model card, or something into it: then it is theirs."""
    if not path.is_file():
        return False
    card = path.read_text("utf-8", errors="replace")
    if any(draft in card for draft in DRAFTS):
        return False
    pattern = re.escape(CARD_MARK).replace(r"\{digest\}", "([0-9a-f]+)")
    mark = re.search(pattern, card)
    if mark is None:
        return True
    return mark[1] != _card_digest(card.replace(mark[0], ""))


def _card_digest(card: str) -> str:
    """Over what only people change: the text above the versions, the head but for peft's part."""
    import yaml

    front, text = _front_matter(card)
    try:
        head = yaml.safe_load(front.removeprefix("---\n").removesuffix("---\n")) or {}
        facts = {name: head[name] for name in sorted(head) if name not in SET_BY_PEFT}
    except (yaml.YAMLError, TypeError):
        return ""  # a run writes no head that cannot be read
    content = text.partition(VERSIONS_HEADING)[0].strip()
    described = f"{json.dumps(facts, default=str)}\n{content}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _front_matter(card: str) -> tuple[str, str]:
    """The YAML at the head of a card, between its lines of ---, and the text below it."""
    lines = re.match(r"---\n.*?\n---\n", card, re.DOTALL)
    end = lines.end() if lines else 0
    return card[:end], card[end:]


def check_replaceable(place: str, folder: Path, written: Sequence[str]) -> None:
    """Refuse to delete a folder that holds anything but files of the patterns `written`, or that
    people stand in.

    The patterns are those of `matches_any`.

    Raises:
        InputError: a link, the current folder or one above it, or files of other names, which are
            listed.
    """
    if folder.is_symlink():
        raise InputError(
            f"{place}: is a link; --overwrite deletes no folder through a link, name the folder "
            "itself"
        )
    if not folder.is_dir():
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(
            f"{place}: is the current folder or one above it, which --overwrite never deletes; "
            "name another folder"
        )
    names = _names_of_foreign(folder, written)
    if names:
        shown = ", ".join(names[:5])
        if len(names) > 5:
            shown += f" and {len(names) - 5} more"
        raise InputError(
            f"{place}: --overwrite deletes only what a run wrote, and no run wrote {shown}; move "
            "it away, or name another folder"
        )


def _names_of_foreign(folder: Path, written: Sequence[str]) -> list[str]:
    """What no run wrote below a folder: files of other names, and a model card edited by hand."""
    leaves = (path.relative_to(folder) for path in _leaves(folder))
    names = {str(path) for path in leaves if not matches_any(path, written)}
    if is_edited_card(folder / MODEL_CARD):
        names.add(MODEL_CARD)
    return sorted(names)


def remove_written(
    place: str, folder: Path, written: Sequence[str], *, kept: Container[str] = ()
) -> None:
    """Delete a folder file by file, after `check_replaceable`, which see for what is raised; with
    files of the names `kept` in it, the folder stays.
    """
    check_replaceable(place, folder, written)
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if name not in kept:
                Path(parent, name).unlink()
        for name in folders:
            path = Path(parent, name)
            path.unlink() if path.is_symlink() else path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _leaves(folder: Path) -> Iterator[Path]:
    """Files, links and empty folders below a folder; no link is followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in (*files, *links))
        if not folders and not files and Path(parent) != folder:
            yield Path(parent)


def matches_any(path: str | Path, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits a path below a folder. Each name in a pattern is one of
    `fnmatch`; a last `**` stands for all that lies there.
    """
    names = Path(path).parts
    return any(_matches(names, tuple(pattern.split("/"))) for pattern in patterns)


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        names = names[: len(pattern)]
    return len(names) == len(pattern) and all(map(fnmatchcase, names, pattern))


def write_atomically(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; of two that write it at once the later one stays."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    with held_file(part, wait=True) as file:
        try:
            file.truncate(0)  # left over by a process that was killed
            file.write(text)
            file.flush()
            os.replace(part, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)  # a full disk does not say which file
            raise


def check_output_file(output_dir: str, name: str, *, overwrite: bool, place: str = "") -> Path:
    """The path of the file that a recipe leaves in `output_dir`, once it may be written there.

    `place` is what the errors begin with: the argument that names the file, where it is not
    `output_dir`.

    Raises:
        InputError: the file is there and `overwrite` is not given, a folder is in its place, or it
            cannot be written.
    """
    place = place or f"output_dir {output_dir}"
    path = Path(output_dir, name)
    check_writable(place, path.parent, name)
    if path.is_dir():
        raise InputError(f"{place}: {path} is a folder; name another place for the file")
    if path.exists() and not overwrite:
        raise InputError(f"{place}: holds {name}; name another folder, or --overwrite replaces it")
    return path


def describe_run(
    recipe: str, args: Any, argv: list[str] | None, seconds: float | None
) -> dict[str, Any]:
    """What every recipe's record begins with: recipe, command, config, versions, hardware, seconds.

    Args:
        recipe: the script's `__file__`.
        args: the recipe's checked arguments, a dataclass.
        argv: what `main` was given; None: the command line.
        seconds: how long the work took.
    """
    return {
        "schema_version": 1,
        "recipe": Path(recipe).stem,
        "command": typed_command(recipe, argv),
        "config": asdict(args),
        "versions": versions(),
        "hardware": hardware(),
        "seconds": seconds,
    }


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all, as JSON that any reader takes.

    Raises:
        ValueError: a number in it is NaN or infinite.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def apply_umask(folder: Path) -> None:
    """Let others read the files of a folder as far as the user's umask says.

    Weights are written through temporary files, which nobody else may read.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o666 & ~umask))


@contextlib.contextmanager
def clear_disk_errors(place: str, what_is_left: str) -> Iterator[None]:
    """Raises InputError instead of an error that means a full disk (or a quota, or a limit on a
    file's size), whichever library it comes from.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # safetensors' own is no OSError
        if not is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or NO_SPACE
        raise InputError(
            f"{place}: {reason} (there, or in the cache of datasets, HF_HOME); "
            f"{what_is_left}; free some space or name another disk"
        ) from None
