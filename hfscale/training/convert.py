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
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainingArguments

from hfscale.folders import CONVERTED
from hfscale.process import InputError, is_main_rank


def parameter_names(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """For the manifest: names in the optimizer's order (none in DeepSpeed's, whose files have
    them), and tied ones.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [
        names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names
    ]
    every = ((name, names[id(p)]) for name, p in model.named_parameters(remove_duplicate=False))
    return {"order": order, "tied": {name: first for name, first in every if name != first}}


def convert_checkpoint(
    folder: Path, record: dict[str, Any], now: str, args: TrainingArguments
) -> Path:
    """Rewrite the checkpoint with the manifest `record` as the engine `now` loads it; called on all
    ranks together. DeepSpeed's files are pickles, which can run code: only for checkpoints of one's
    own.

    Raises:
        InputError: the optimizer's state, or something beside it, cannot go on there.
    """
    before, shards = record["config"]["optimizer_state"], next(folder.glob("global_step*"), None)
    to_shards, adapter = now.startswith("ZeRO"), (folder / "adapter_model.safetensors").exists()
    obstacles = {
        "AdamW's state alone can": args.optim not in ("adamw_torch", "adamw_torch_fused"),
        "the loss scale of fp16 cannot": args.fp16,
        "load_best_model_at_end's choice cannot": args.load_best_model_at_end,
        "an adapter can only between ZeRO's stages": adapter and not (shards and to_shards),
        "its manifest does not name the parameters": "parameters" not in record,
    }
    for obstacle in (obstacle for obstacle, there in obstacles.items() if there):
        raise InputError(
            f"--resume auto: {folder} is of {before} and cannot go on under {now}: {obstacle}; "
            f"launch as before, or start from its weights: hfscale finetune --model {folder}"
        )
    into = Path(str(args.output_dir), CONVERTED)
    if is_main_rank():
        print(f"--resume auto: rewriting {folder} of {before} for {now}", file=sys.stderr)
        into.mkdir()
        for path in folder.iterdir():
            if path.name.startswith(("trainer_state", "scheduler", "rng_state")):
                shutil.copy(path, into)
        tied, file = record["parameters"]["tied"], folder / "model.safetensors"
        weights = {
            name: w
            for name, w in (load_file(file) if file.exists() else {}).items()
            if name not in tied
        }
        if shards:  # with the trained weights in float32
            optimizer = _join_shards(shards, into / "joined", record["step"], weights)
        elif (folder / "optimizer.bin").exists():
            optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
        else:
            numbered = torch.load(folder / "optimizer.pt", weights_only=True)
            optimizer = _renamed(numbered, dict(enumerate(record["parameters"]["order"])))
        if to_shards:
            _write_universal(into, record["step"], weights, optimizer)
        elif now == "FSDP":
            weights |= {name: weights[first] for name, first in tied.items()}
            torch.save(weights, into / "pytorch_model_fsdp.bin")
            torch.save(optimizer, into / "optimizer.bin")
        else:
            save_file(weights, into / "model.safetensors")
            order = [name for group in optimizer["param_groups"] for name in group["params"]]
            torch.save(
                _renamed(optimizer, {name: i for i, name in enumerate(order)}),
                into / "optimizer.pt",
            )
    PartialState().wait_for_everyone()
    if to_shards:
        args.deepspeed_plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
    return into


def restore_zero3_groups(args: TrainingArguments, optimizer) -> None:
    """Set right what ZeRO-3 just loaded wrong from a rewritten checkpoint: all groups of parameters
    got the first one's weight decay, and count their steps in one tensor, each adding its own.
    Otherwise without effect.
    """
    for file in Path(str(args.output_dir), CONVERTED).glob("global_step*/zero/optimizer_state.pt"):
        saved, inner = (
            torch.load(file, weights_only=True)["param_groups"],
            optimizer.optimizer.optimizer,
        )
        for group, before in zip(inner.param_groups, saved, strict=True):
            group.update((name, value) for name, value in before.items() if name != "params")
        for state in inner.state.values():
            state["step"] = state["step"].clone()


def forget_converted(args: TrainingArguments) -> None:
    """Delete the rewritten checkpoint, if there is one."""
    if is_main_rank():
        shutil.rmtree(Path(str(args.output_dir), CONVERTED), ignore_errors=True)


def _renamed(optimizer: dict, names: dict) -> dict:
    groups = [
        group | {"params": [names[p] for p in group["params"]]}
        for group in optimizer["param_groups"]
    ]
    return {
        "state": {names[p]: state for p, state in optimizer["state"].items()},
        "param_groups": groups,
    }


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
    parts, state = (
        model["param_shapes"],
        {},
    )  # a group has several of them in ZeRO-3 beyond a billion weights
    for name, shape in (item for part in parts for item in part.items()):
        state[name] = {"step": torch.tensor(float(step))}
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            value = torch.load(into / "zero" / name / f"{key}.pt", weights_only=False, mmap=True)
            state[name][key] = (value["param"] if isinstance(value, dict) else value).view(shape)
        weights[name] = state[name].pop("fp32")
    for group in groups:
        group["params"] = [name for i in group["params"] for name in parts[i]]
    return {"state": state, "param_groups": groups}


def _write_universal(
    into: Path, step: int, weights: dict[str, torch.Tensor], optimizer: dict
) -> None:
    import deepspeed

    place = into / f"global_step{step}"
    for name, state in optimizer["state"].items():
        (place / "zero" / name).mkdir(parents=True)
        for key, value in ({"fp32": weights[name]} | state).items():
            torch.save(
                value if key == "step" else {"param": value}, place / "zero" / name / f"{key}.pt"
            )
    groups = [group | {"params": []} for group in optimizer["param_groups"]]
    inner = {
        "state": [{"step": torch.tensor(float(step))}],
        "param_groups": groups,
    }  # where ZeRO-3 looks
    torch.save(
        {
            "ds_version": deepspeed.__version__,
            "param_groups": groups,
            "optimizer_state_dict": inner,
        },
        place / "zero" / "optimizer_state.pt",
    )
    for prefix in ("", "zero_pp_rank_0_"):  # of ZeRO-1 and 2, and of ZeRO-3
        torch.save(
            {"dp_world_size": 1, "mp_world_size": 1, "global_steps": step, "skipped_steps": 0},
            place / f"{prefix}mp_rank_00_model_states.pt",
        )
    (into / "latest_universal").write_text(place.name)
