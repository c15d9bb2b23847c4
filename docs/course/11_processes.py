# %% [markdown] lang="en"
# # 11. Many processes: DDP, ZeRO, FSDP
#
# **Question: is training on several devices the same training?**
#
# A large model is trained by many processes, one for each GPU. They share the work in different ways:
#
# | | each process holds | exchanged in a step |
# |---|---|---|
# | DDP | everything | gradients |
# | ZeRO-2 | all weights, a part of gradients and optimizer state | gradients, weights |
# | FSDP (ZeRO-3) | a part of everything | weights twice, gradients |
#
# Two processes on a CPU (they talk by gloo, GPUs would by NCCL) show that all of them compute the same.

# %% [markdown] lang="zh"
# # 11. 多进程训练：DDP、ZeRO 与 FSDP
#
# **本章的问题：在多个设备上训练，还是同一次训练吗？**
#
# 大模型由许多进程一起训练，每块 GPU 一个进程。分工的方式各不相同：
#
# | | 每个进程存放 | 每一步要通信的内容 |
# |---|---|---|
# | DDP | 全部 | 梯度 |
# | ZeRO-2 | 全部权重，一部分梯度和优化器状态 | 梯度、权重 |
# | FSDP（即 ZeRO-3） | 所有东西都只存一部分 | 权重两次、梯度 |
#
# 我们在 CPU 上开两个进程（用 gloo 通信，GPU 上则用 NCCL），看看它们算出来的是否都一样。

# %%
# Nothing is installed, and no network is wanted, where hfscale and its extra deepspeed are there already.
import importlib.util

missing = [name for name in ["hfscale", "deepspeed"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q "hfscale[deepspeed]"

# %% [markdown] lang="en"
# First one process, 6 steps of 8 rows. Then two processes with 4 rows each: a step has the same 8 rows. The commands are
# those of a cluster; `--accelerate` names the way, `hfscale` starts the processes. accelerate itself does not shard on a
# CPU: `fsdp2` runs through a small script that makes it, which no GPU needs.

# %% [markdown] lang="zh"
# 先用一个进程，每步 8 行，跑 6 步。再用两个进程，每个 4 行：每一步用到的还是那 8 行。
# 命令和集群上的完全一样，`--accelerate` 指定并行方式，`hfscale` 负责拉起进程。
# accelerate 本身在 CPU 上不做分片，所以 `fsdp2` 要借助一个小脚本；在 GPU 上用不着它。

# %%
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import hfscale
from hfscale import course

course.needs(data=1, tokenizer=2)
shared = {
    "source": course.place("data"),
    "validation_source": course.place("data"),
    "tokenizer": course.place("tokenizer"),
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 64,
    "max_steps": 6,
    "learning_rate": "3e-3",
    "lr_scheduler_type": "linear",
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "overwrite": "true",
    "use_cpu": "true",
}
with contextlib.redirect_stdout(io.StringIO()):  # chapter 4 has shown what a run says
    one = hfscale.pretrain(
        **shared, per_device_train_batch_size=8, output_dir=course.place("processes/one")
    )

FSDP_ON_A_CPU = '''"""recipes/pretrain.py, with accelerate made to shard by FSDP2 on a CPU."""

from dataclasses import dataclass

from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from hfscale.process import run
from hfscale.recipes.pretrain import PretrainArguments, main


@dataclass
class FsdpArguments(PretrainArguments):
    """The recipe's own."""


begin = AcceleratorState.__init__


def begin_sharded(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = begin_sharded
    run(main)
'''
fsdp_script = Path(course.place("pretrain_fsdp_on_cpu.py"))
fsdp_script.write_text(FSDP_ON_A_CPU, encoding="utf-8")

# %%
WAYS = {
    "cpu_2proc": "pretrain",
    "zero2": "pretrain",
    "fsdp2": str(fsdp_script),
}
if importlib.util.find_spec("deepspeed") is None:
    print('zero2 is left out: deepspeed is not there (pip install "hfscale[deepspeed]")')
    del WAYS["zero2"]


def losses_of(folder: str) -> list[float]:
    """Of each step."""
    state = json.loads(Path(folder, "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def launch(way: str, recipe: str) -> list[float]:
    """The losses of two processes that share the work in this way."""
    folder = course.place(f"processes/{way}")
    values = shared | {"per_device_train_batch_size": 4, "output_dir": folder}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = ["hfscale", recipe, "--accelerate", way, "--num_processes", "2", *words]
    print(shlex.join(command)[:120], "...")
    done = subprocess.run(
        [sys.executable, "-m", "hfscale.cli", *command[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return losses_of(folder)


losses = {"one process": losses_of(str(one.path))}
for way, recipe in WAYS.items():
    losses[way] = launch(way, recipe)
for name, values in losses.items():
    print(f"{name:12}", *(f"{value:.5f}" for value in values))
largest = max(
    abs(value - expected)
    for values in losses.values()
    for value, expected in zip(values, losses["one process"], strict=True)
)

# %% [markdown] lang="en"
# **The plan for a cluster.** GPT-2 XL (1.5 billion parameters) on eight H100: what each way needs in memory, how long it
# takes, and the command to type. It is computed from the config alone; nothing is trained.

# %% [markdown] lang="zh"
# **集群方案。** 用八块 H100 训练 GPT-2 XL（十五亿参数）：每种方式要多少显存、花多长时间、该敲什么命令，只看配置就能算出来，什么都不用训练。

# %%
plan = hfscale.plan(config="pretrain/gpt2_xl", gpu="h100-80gb", num_gpus=8, price_per_gpu_hour=2.5)
course.ends_with(11, "largest difference of a step's loss", largest, at_most=1e-4)

# %% [markdown] lang="en"
# **What to take along.** Processes share out work, they do not change it: same rows, same losses. Where yours differ,
# look first at the global batch (micro-batch × accumulation × processes), then at how the loss is averaged.
#
# *Try:* 8 rows for each of the two processes. Why are the losses others now?

# %% [markdown] lang="zh"
# **记住这些。** 多进程只是分担工作，并不改变训练本身：数据行一样，损失就一样。
# 如果你的损失对不上，先查全局批大小（微批 × 梯度累积 × 进程数），再查损失是怎么平均的。
#
# *动手试试：* 让两个进程各用 8 行。为什么损失变了？
