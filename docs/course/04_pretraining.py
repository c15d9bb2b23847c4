# %% [markdown] lang="en"
# # 4. Pretraining
#
# **Question: how much English does a model of two million parameters learn in a few minutes on a CPU?**
#
# Pretraining is one task over and over: predict the next token. This is the longest chapter, and the model that it makes
# goes through all others.

# %% [markdown] lang="zh"
# # 4. 预训练
#
# **本章的问题：一个两百万参数的模型，在 CPU 上训练几分钟，能学会多少英语？**
#
# 预训练就是把同一件事做上千遍：预测下一个词元。
# 这是全课耗时最长的一章，这里训练出来的模型会贯穿后面所有章节。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# Documents become rows of 256 tokens, one after the other with `<|endoftext|>` between them, and none attends to another.
# The small text is read about four times, and each epoch cuts it elsewhere (`repack_each_epoch`). Muon trains the matrices
# of the blocks and AdamW the rest; the learning rate rises for a tenth of the steps and then falls to 0.

# %% [markdown] lang="zh"
# 文档首尾相接，拼成每行 256 个词元的训练样本，中间用 `<|endoftext|>` 隔开，彼此看不见对方（注意力不跨文档）。
# 语料不大，大约要读四遍，每一遍都换个位置切分（`repack_each_epoch`）。
# 各层的矩阵用 Muon 优化，其余参数用 AdamW；学习率在前十分之一的步数里上升（预热），之后线性降到 0。

# %%
import hfscale
from hfscale import course

course.needs(data=1, tokenizer=2)
run = hfscale.pretrain(
    source=[course.place("data")],
    validation_source=course.place("data"),
    tokenizer=course.place("tokenizer"),
    num_hidden_layers=4,
    num_attention_heads=6,
    hidden_size=192,
    max_position_embeddings=256,
    repack_each_epoch=True,
    optimizer="muon",
    lr_scheduler_type="linear",
    warmup_steps=0.1,
    weight_decay=0.1,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=16,
    max_steps=course.steps(900),
    eval_on_start=True,
    eval_strategy="steps",
    eval_steps=course.steps(300),
    logging_steps=course.steps(50),
    save_strategy="no",
    output_dir=course.place("model"),
    overwrite=True,
)

# %% [markdown] lang="en"
# The loss of the held-out text must fall with that of the training text. Where the first rises again, the model learns
# by heart (overfitting), and more steps make it worse.

# %% [markdown] lang="zh"
# 验证集损失应当随训练损失一起下降。如果验证损失掉头上升，说明模型开始死记硬背（过拟合），再训练只会更差。

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

history = json.loads(Path(course.place("model"), "trainer_state.json").read_text())["log_history"]
for name, label in [("loss", "training"), ("eval_loss", "held out")]:
    logged = [entry for entry in history if name in entry]
    plt.plot([entry["step"] for entry in logged], [entry[name] for entry in logged], label=label)
plt.xlabel("step")
plt.ylabel("loss (nats per token)")
plt.legend()
plt.show()

# %% [markdown] lang="en"
# What does it write? It has the sound of a manual, and no idea. That is what two million parameters and four minutes buy:
# grammar comes first, sense much later.

# %% [markdown] lang="zh"
# 看看它写得怎么样：腔调像说明书，内容不知所云。两百万参数、几分钟训练，能买到的就是这些：先学会语法，过很久才轮得到意义。

# %%
prompts = ["This module", "If the argument is", "Return the"]
texts = run.generate(prompts, max_new_tokens=30, seed=1)
for prompt, text in zip(prompts, texts, strict=True):
    print(f"{prompt}{text}\n")

# %%
course.ends_with(
    4, "held-out perplexity", run.metrics["eval_perplexity"], at_most=75, is_learned=True
)

# %% [markdown] lang="en"
# **What to take along.** Perplexity is the number of tokens that the model wavers between: about 2,000 before training. The
# folder `runs/course/model` holds model, tokenizer and `run.json`, the record of what was done; any tool of Hugging Face
# loads it.
#
# *Try:* `learning_rate=3e-4`, or 100 steps only: does the loss already fall?

# %% [markdown] lang="zh"
# **记住这些。** 困惑度可以理解为模型在多少个词元之间拿不定主意：训练前大约是两千个。
# `runs/course/model` 文件夹里有模型、分词器和训练记录 `run.json`，任何 Hugging Face 工具都能直接加载。
#
# *动手试试：* 换成 `learning_rate=3e-4`，或者只训练 100 步，损失会降吗？
