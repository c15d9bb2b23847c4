# %% [markdown] lang="en"
# # 6. Fine-tuning and LoRA
#
# **Question: the model knows a little English. What does it cost to teach it Python, and what does it forget?**
#
# Fine-tuning goes on training with other text. *All weights* move, or only a small addition to them: LoRA leaves a matrix
# $W$ as it is and learns two thin ones beside it,
#
# $$W' = W + \frac{\alpha}{r} BA, \qquad B \in \mathbb{R}^{d \times r},\; A \in \mathbb{R}^{r \times k}$$
#
# With rank $r = 8$ that is a few per cent of the numbers.

# %% [markdown] lang="zh"
# # 6. 微调与 LoRA
#
# **本章的问题：模型懂了一点英语，教它写 Python 要花多大代价？它又会忘掉什么？**
#
# 微调就是换一批文本接着训练。可以更新*全部参数*，也可以只学一个小小的增量：LoRA 保持矩阵 $W$ 不动，在旁边学两个细长的矩阵：
#
# $$W' = W + \frac{\alpha}{r} BA, \qquad B \in \mathbb{R}^{d \times r},\; A \in \mathbb{R}^{r \times k}$$
#
# 取秩 $r = 8$ 时，要学的参数只有原来的百分之几。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale", "peft"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# The new text is code: some modules of Python's standard library, about half a million characters.

# %% [markdown] lang="zh"
# 新语料是代码：Python 标准库里的一部分模块，大约五十万个字符。

# %%
import json
import random
from pathlib import Path

import hfscale
from hfscale import course

course.needs(data=1, model=4)
modules = hfscale.load_documents(["embedded:python-code"])["text"][:]
modules = [text for text in modules if 2000 < len(text) < 15_000]
code = random.Random(1).sample(modules, 80)
print(f"{len(code)} modules, {sum(map(len, code)):,} characters")
with Path(course.place("code.jsonl")).open("w", encoding="utf-8") as file:
    file.writelines(json.dumps({"text": text}) + "\n" for text in code)

# %% [markdown] lang="en"
# Twice the same training, with all weights and with LoRA. An adapter starts at zero and takes a larger learning rate.
# GPT-2's layers are `Conv1D`, whose weights lie transposed; the recipe knows which layers to adapt.

# %% [markdown] lang="zh"
# 同样的训练做两遍：一遍更新全部参数，一遍用 LoRA。适配器从零开始，学习率要大一些。
# GPT-2 的线性层是 `Conv1D`，权重转置存放；该给哪些层加适配器，配方自己知道。

# %%
shared = {
    "model": course.place("model"),
    "source": [course.place("code.jsonl")],
    "validation_fraction": 0.1,
    "max_length": 256,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "max_steps": course.steps(60),
    "logging_steps": course.steps(20),
    "save_strategy": "no",
    "bf16": False,  # also where a CPU has it, so that numbers are the same everywhere
    "overwrite": True,
}
full = hfscale.finetune(**shared, learning_rate=1e-3, output_dir=course.place("code-full"))
lora = hfscale.finetune(
    **shared, learning_rate=1e-2, lora_r=8, lora_alpha=16, output_dir=course.place("code-lora")
)

# %% [markdown] lang="en"
# What was learned, and what was forgotten? The English that chapter 4 held out is scored again by all three models, with
# intervals, since a difference that could be chance is none.

# %% [markdown] lang="zh"
# 学到了什么，又忘了什么？把第 4 章预留的英文验证集交给三个模型重新打分，并给出置信区间：可能只是偶然的差别，不算差别。

# %%
scores = hfscale.score(
    model=[course.place("model"), course.place("code-full"), course.place("code-lora")],
    source=None,
    output_dir=course.place("forgotten"),
    overwrite=True,
)
english = [system["metrics"]["eval_perplexity"] for system in scores["systems"]]


def size_of(folder: str) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


print("                 code perplexity   English perplexity   megabytes")
before = full.metrics["before_eval_perplexity"]
print(f"before           {before:15.1f}   {english[0]:18.1f}")
for name, run, text in [("all weights", full, english[1]), ("LoRA", lora, english[2])]:
    learned = run.metrics["eval_perplexity"]
    print(f"{name:16} {learned:15.1f}   {text:18.1f}   {size_of(str(run.path)) / 1e6:9.2f}")

# %% [markdown] lang="en"
# Merged, an adapter is a plain model again: $W + \frac{\alpha}{r}BA$ is one matrix. The logits must be the same.

# %% [markdown] lang="zh"
# 合并之后，适配器就变回普通模型：$W + \frac{\alpha}{r}BA$ 本来就是一个矩阵。合并前后的 logit 必须一致。

# %%
import torch

ids = lora.tokenizer("def read(path):\n    return", return_tensors="pt")["input_ids"]
with torch.no_grad():
    adapted = lora.model(ids).logits
    merged = lora.model.merge_and_unload()(ids).logits
assert (adapted - merged).abs().max() < 1e-3
course.ends_with(
    6,
    "perplexity of code after LoRA, as a share of before",
    lora.metrics["eval_perplexity"] / before,
    at_most=0.2,
    is_learned=True,
)

# %% [markdown] lang="en"
# **What to take along.** Measure both sides: what is learned, and what is forgotten. LoRA's file is small and its
# optimizer needs little memory; it is hardly faster, since every layer is still computed forward and backward.
#
# *Try:* `lora_r=1`, and `learning_rate=1e-3` for LoRA. Which of the two matters more?

# %% [markdown] lang="zh"
# **记住这些。** 两头都要量：学到多少，忘掉多少。LoRA 的文件小、优化器省内存，但速度快不了多少，因为每一层的前向和反向照样要算。
#
# *动手试试：* 先改成 `lora_r=1`，再把 LoRA 的 `learning_rate` 改成 1e-3，哪个影响更大？
