"""A checkpoint rewritten for another engine or number of processes, so that AdamW's state goes on
there.

Between them stands that state by the parameters' names, as torch.distributed.checkpoint.state_dict
has it and FSDP saves it: {"state": {name: {"step", "exp_avg", "exp_avg_sq"}}, "param_groups":
[{"lr", ..., "params": [name]}]}. DeepSpeed's converter joins its shards, and its universal format
is read on any number of processes.
"""

import contextlib
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainingArguments

from hfscale.folders import CONVERTED
from hfscale.new_models import meta_model
from hfscale.process import InputError, from_main_rank, is_main_rank
from hfscale.training.weight_names import in_model_names

TRAINER_GROUPS = 2  # of parameters: with weight decay and without
# What schedulers save for each group.
GROUP_LISTS = {"base_lrs", "_last_lr", "lr_lambdas", "min_lrs"}


def parameter_names(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """For the manifest: names in the optimizer's order (none in DeepSpeed's, whose files have
    them), and tied ones.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [
        names[id(parameter)]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    ]
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_name = names[id(parameter)]
        if name != first_name:
            tied[name] = first_name
    return {"order": order, "tied": tied}


def convert_checkpoint(
    folder: Path, record: dict[str, Any], now: str, args: TrainingArguments
) -> Path:
    """Rewrite the checkpoint with the manifest `record` as the engine `now` loads it; called on all
    ranks together. DeepSpeed's files are pickles, which can run code: only for checkpoints of one's
    own.

    Raises:
        InputError: the optimizer's state, or something beside it, cannot go on there.
    """
    shards = next(folder.glob("global_step*"), None)
    to_shards = now.startswith("ZeRO")
    _check_convertible(folder, record, now, args)
    into = Path(str(args.output_dir), CONVERTED)

    def rewrite() -> None:
        before = record["config"]["optimizer_state"]
        print(f"--resume auto: rewriting {folder} of {before} for {now}", file=sys.stderr)
        into.mkdir()
        for path in folder.iterdir():
            if path.name.startswith(("trainer_state", "scheduler", "rng_state")):
                shutil.copy(path, into)
        weights, optimizer = _read_state(folder, shards, into, record)
        _settle_groups(into, optimizer, keep_empty=not to_shards)
        _write_state(into, now, record, weights, optimizer)

    from_main_rank(rewrite)
    if to_shards:
        plugin: Any = args.deepspeed_plugin
        plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
    return into


def _check_convertible(
    folder: Path, record: dict[str, Any], now: str, args: TrainingArguments
) -> None:
    """Raise InputError for what cannot go on under another engine."""
    before = record["config"]["optimizer_state"]
    is_adapter = (folder / "adapter_model.safetensors").exists()
    is_in_shards = any(folder.glob("global_step*"))
    between_shards = is_in_shards and now.startswith("ZeRO")
    config = record["config"]
    is_own = config.get("optimizer") == "muon" or config.get("cautious_weight_decay", False)
    obstacles = {
        "AdamW's state alone can": is_own or args.optim not in ("adamw_torch", "adamw_torch_fused"),
        "the loss scale of fp16 cannot": args.fp16,
        "load_best_model_at_end's choice cannot": args.load_best_model_at_end,
        "an adapter can only between ZeRO's stages": is_adapter and not between_shards,
        "its manifest does not name the parameters": "parameters" not in record,
    }
    for obstacle, is_there in obstacles.items():
        if is_there:
            raise InputError(
                f"--resume auto: {folder} is of {before} and cannot go on under {now}: {obstacle}; "
                f"launch as before, or start from its weights: hfscale finetune --model {folder}"
            )


def _read_state(
    folder: Path, shards: Path | None, into: Path, record: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint's weights, tied ones once, and its optimizer's state by names."""
    tied = record["parameters"]["tied"]
    weights = {name: weight for name, weight in _weights_of(folder).items() if name not in tied}
    if shards:  # with the trained weights in float32, which go before those that were read
        return weights, _join_shards(shards, into / "joined", record["step"], weights)
    if (folder / "optimizer.bin").exists():
        return weights, torch.load(folder / "optimizer.bin", weights_only=True)
    numbered = torch.load(folder / "optimizer.pt", weights_only=True)
    return weights, _renamed(numbered, dict(enumerate(record["parameters"]["order"])))


def _settle_groups(into: Path, optimizer: dict[str, Any], *, keep_empty: bool) -> None:
    """Give the optimizer's state, and that of the scheduler in `into`, as many groups as there are
    where they are read. Trainer makes one of the weights that decay and one of the others, which
    a model without biases and norms' weights leaves empty; DeepSpeed drops it.
    """
    groups = [group for group in optimizer["param_groups"] if group["params"]]
    if keep_empty and len(groups) < TRAINER_GROUPS:
        groups.append(groups[0] | {"params": [], "weight_decay": 0.0})
    optimizer["param_groups"] = groups
    file = into / "scheduler.pt"
    scheduler = torch.load(file, weights_only=True)
    for name in GROUP_LISTS & scheduler.keys():
        values = scheduler[name]
        scheduler[name] = (values + values[-1:])[: len(groups)]
    torch.save(scheduler, file)


def _weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those in a checkpoint's file, under the names that its model has for them; of an adapter
    none.
    """
    file = folder / "model.safetensors"
    if not file.exists():
        return {}
    weights = load_file(file)
    if "auto_map" in PreTrainedConfig.get_config_dict(folder)[0]:
        return weights  # of code of its own, whose files have its names
    return in_model_names(meta_model(AutoConfig.from_pretrained(folder)), weights)


def _write_state(
    into: Path,
    now: str,
    record: dict[str, Any],
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
) -> None:
    """The same in the form that the engine `now` loads."""
    if now.startswith("ZeRO"):
        _write_universal(into, record["step"], weights, optimizer)
    elif now == "FSDP":
        tied = record["parameters"]["tied"]
        weights |= {name: weights[first] for name, first in tied.items()}
        torch.save(weights, into / "pytorch_model_fsdp.bin")
        torch.save(optimizer, into / "optimizer.bin")
    else:
        save_file(weights, into / "model.safetensors")
        order = [name for group in optimizer["param_groups"] for name in group["params"]]
        numbers = {name: number for number, name in enumerate(order)}
        torch.save(_renamed(optimizer, numbers), into / "optimizer.pt")


def restore_zero3_groups(args: TrainingArguments, optimizer) -> None:
    """Set right what ZeRO-3 just loaded wrong from a rewritten checkpoint: all groups of parameters
    got the first one's weight decay, and count their steps in one tensor, each adding its own.
    Otherwise without effect.
    """
    for file in Path(str(args.output_dir), CONVERTED).glob("global_step*/zero/optimizer_state.pt"):
        saved = torch.load(file, weights_only=True)["param_groups"]
        inner = optimizer.optimizer.optimizer  # below accelerate's and DeepSpeed's
        for group, before in zip(inner.param_groups, saved, strict=True):
            settings = {name: value for name, value in before.items() if name != "params"}
            group.update(settings)
        for state in inner.state.values():
            state["step"] = state["step"].clone()


def forget_converted(args: TrainingArguments) -> None:
    """Delete the rewritten checkpoint, if there is one."""
    if is_main_rank():
        shutil.rmtree(Path(str(args.output_dir), CONVERTED), ignore_errors=True)


def _renamed(optimizer: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names (or numbers) for its parameters."""
    groups = []
    for group in optimizer["param_groups"]:
        renamed = [names[parameter] for parameter in group["params"]]
        groups.append(group | {"params": renamed})
    state = {names[parameter]: state for parameter, state in optimizer["state"].items()}
    return {"state": state, "param_groups": groups}


def _join_shards(shards: Path, into: Path, step: int, weights: dict[str, torch.Tensor]) -> dict:
    """The whole state from DeepSpeed's files; what the optimizer holds as weights is put into
    `weights`.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    with contextlib.redirect_stdout(sys.stderr):
        main(
            Namespace(
                input_folder=str(shards),
                output_folder=str(into),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    groups = torch.load(into / "zero" / "optimizer_state.pt", weights_only=False)["param_groups"]
    model = torch.load(next(shards.glob("*model_states.pt")), weights_only=False, mmap=True)
    # Shapes by name; a group has several such parts in ZeRO-3 beyond a billion weights.
    parts = model["param_shapes"]
    state = {}
    for part in parts:
        for name, shape in part.items():
            weights[name] = _joined_tensor(into / "zero" / name / "fp32.pt", shape)
            state[name] = {
                "step": torch.tensor(float(step)),
                "exp_avg": _joined_tensor(into / "zero" / name / "exp_avg.pt", shape),
                "exp_avg_sq": _joined_tensor(into / "zero" / name / "exp_avg_sq.pt", shape),
            }
    for group in groups:
        group["params"] = [name for number in group["params"] for name in parts[number]]
    return {"state": state, "param_groups": groups}


def _joined_tensor(path: Path, shape: torch.Size) -> torch.Tensor:
    """A file of DeepSpeed's universal format; some wrap the tensor."""
    value = torch.load(path, weights_only=False, mmap=True)
    if isinstance(value, dict):
        value = value["param"]
    return value.view(shape)


def _write_universal(
    into: Path, step: int, weights: dict[str, torch.Tensor], optimizer: dict
) -> None:
    """A checkpoint in DeepSpeed's universal format, which any number of processes reads."""
    import deepspeed

    place = into / f"global_step{step}"
    for name, state in optimizer["state"].items():
        (place / "zero" / name).mkdir(parents=True)
        torch.save({"param": weights[name]}, place / "zero" / name / "fp32.pt")
        for key, value in state.items():
            content = value if key == "step" else {"param": value}
            torch.save(content, place / "zero" / name / f"{key}.pt")
    groups = [group | {"params": []} for group in optimizer["param_groups"]]
    # ZeRO-3 looks for the groups one level further down than ZeRO-1 and 2.
    inner = {"state": [{"step": torch.tensor(float(step))}], "param_groups": groups}
    optimizer_state = {
        "ds_version": deepspeed.__version__,
        "param_groups": groups,
        "optimizer_state_dict": inner,
    }
    torch.save(optimizer_state, place / "zero" / "optimizer_state.pt")
    model_state = {"dp_world_size": 1, "mp_world_size": 1, "global_steps": step, "skipped_steps": 0}
    for prefix in ("", "zero_pp_rank_0_"):  # of ZeRO-1 and 2, and of ZeRO-3
        torch.save(model_state, place / f"{prefix}mp_rank_00_model_states.pt")
    (into / "latest_universal").write_text(place.name)
