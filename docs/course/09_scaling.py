# %% [markdown] lang="en"
# # 9. A scaling law, and a forecast
#
# **Question: can you know the loss of a large model before you pay for it?**
#
# The loss falls with size $N$ and data $D$ so regularly that a formula of five numbers describes it (Hoffmann et al. 2022):
#
# $$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$
#
# $E$ is what no model can take away: language is not wholly predictable.

# %% [markdown] lang="zh"
# # 9. 规模定律与预测
#
# **本章的问题：大模型还没花钱训练，能不能先知道它的损失？**
#
# 损失随参数量 $N$ 和数据量 $D$ 下降得很有规律，五个数的公式就能描述（Hoffmann 等，2022）：
#
# $$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$
#
# $E$ 是任何模型都消除不了的部分：语言本来就无法完全预测。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# Nine small runs: three sizes, each with three amounts of text. Each is a whole run whose learning rate ends at 0: a
# checkpoint in the middle of a longer run is not a run of its length. (`hfscale scale` does all of this chapter in one
# command, with more cells.)

# %% [markdown] lang="zh"
# 先做九次小训练：三种规模，每种用三种数据量。每次都是完整的训练，学习率最后降到 0；长训练中途的检查点不能当作短训练的结果。
# （`hfscale scale` 一条命令就能完成这一章的全部内容，网格还可以更大。）

# %%
import contextlib
import io

import numpy as np

import hfscale
from hfscale import course

course.needs(data=1, tokenizer=2)
TOKENS_PER_STEP = 8 * 128


def train(layers: int, width: int, steps: int) -> tuple[int, int, float]:
    """Parameters, tokens and held-out loss of a run."""
    with contextlib.redirect_stdout(io.StringIO()):  # chapter 4 has shown what a run says
        run = hfscale.pretrain(
            source=[course.place("data")],
            validation_source=course.place("data"),
            tokenizer=course.place("tokenizer"),
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            hidden_size=width,
            max_position_embeddings=128,
            optimizer="muon",
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            max_steps=course.steps(steps),
            logging_strategy="no",
            eval_strategy="no",
            save_strategy="no",
            output_dir=course.place(f"scaling/{layers}x{width}-{steps}"),
            overwrite=True,
        )
    parameters = run.record["model"]["parameters"]
    tokens, loss = course.steps(steps) * TOKENS_PER_STEP, run.metrics["eval_loss"]
    print(f"{parameters:9,} parameters  {tokens:8,} tokens  loss {loss:.3f}")
    return parameters, tokens, loss


SIZES = [(2, 32), (2, 64), (2, 96)]
STEPS = [60, 120, 240]
cells = [train(*size, steps) for size in SIZES for steps in STEPS]

# %% [markdown] lang="en"
# The law is fitted, and the forecast written down *before* the run that it is about: with more parameters and twice the
# text of any of the nine.

# %% [markdown] lang="zh"
# 拟合公式，并在训练*之前*把预测写下来：目标模型的参数量比这九次都多，数据量是其中最多者的两倍。

# %%
from hfscale.scaling.law import fit_law

LARGE = (2, 128)
LARGE_STEPS = 480
n, d, losses = (np.array(column, dtype=float) for column in zip(*cells, strict=True))
if course.is_short():  # runs that were cut short all have one length, which determines no law
    d = np.tile([1.0, 2.0, 4.0], 3) * TOKENS_PER_STEP
fit = fit_law(n, d, losses, equal_exponents=True, resamples=100)
law = fit.law
print(f"E {law.E:.2f}, alpha = beta = {law.alpha:.2f}")
large_parameters = 2048 * 128 + 128 * 128 + 2 * (12 * 128**2 + 13 * 128) + 2 * 128
forecast = fit.forecast(large_parameters, LARGE_STEPS * TOKENS_PER_STEP)
low, high = forecast["loss_ci90"]
print(f"forecast: {forecast['loss']:.3f}, 90 % of such runs between {low:.3f} and {high:.3f}")

# %%
parameters, tokens, measured = train(*LARGE, LARGE_STEPS)
assert parameters == large_parameters
print(f"measured: {measured:.3f}, {'inside' if low <= measured <= high else 'outside'}")

# %% [markdown] lang="en"
# Each line below is one size. Where a line bends away from the law, a run went wrong, or the law does not hold there.

# %% [markdown] lang="zh"
# 图中每条线是一种规模。哪里偏离了公式，要么是训练出了问题，要么是定律在那里不成立。

# %%
import matplotlib.pyplot as plt

for size in sorted(set(n)):
    here = n == size
    grid = np.geomspace(d[here].min(), tokens, 50)
    [line] = plt.plot(grid, law.loss(size, grid), label=f"{size:,.0f} parameters")
    plt.scatter(d[here], losses[here], color=line.get_color())
plt.errorbar(
    [tokens],
    [forecast["loss"]],
    [[forecast["loss"] - low], [high - forecast["loss"]]],
    label="forecast",
)
plt.scatter([tokens], [measured], marker="*", label="measured", zorder=3)
plt.xscale("log")
plt.xlabel("training tokens")
plt.ylabel("held-out loss (nats per token)")
plt.legend()
plt.show()
course.ends_with(
    9,
    "forecast over measured loss",
    forecast["loss"] / measured,
    at_least=0.95,
    at_most=1.05,
    is_learned=True,
)

# %% [markdown] lang="en"
# **What to take along.** A law is fitted to whole runs, the forecast comes first, and it has an interval. These runs are
# so small that $E$ is hardly determined: the law forecasts a step ahead, not a thousand.
#
# *Try:* leave out the largest of the nine runs. How much wider does the interval become?

# %% [markdown] lang="zh"
# **记住这些。** 定律要用完整的训练来拟合，先预测后训练，预测要带区间。
# 这里的训练都太小，$E$ 几乎定不下来：这条定律能往前看一步，看不了一千步。
#
# *动手试试：* 去掉九次训练中最大的一次，区间会变宽多少？
