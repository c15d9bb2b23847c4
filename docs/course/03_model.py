# %% [markdown] lang="en"
# # 3. The model and attention, by hand
#
# **Question: what does a GPT-2 compute between the tokens and the probability of the next one?**
#
# Nothing in it is more than a dozen lines. You write each of them here, with the weights of a real model, and compare the
# result with transformers'. The model is the one that chapter 4 trains: four blocks, width 192, six heads.

# %% [markdown] lang="zh"
# # 3. 手写模型与注意力
#
# **本章的问题：从输入词元到下一个词元的概率，GPT-2 中间究竟算了什么？**
#
# 其中没有哪一部分超过十几行代码。这一章你会用一个真实模型的权重把它们逐一写出来，再和 transformers 的结果对照。
# 用的正是第 4 章要训练的那个模型：4 层、宽度 192、6 个注意力头。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# Random weights, and one sentence. A token's vector is the sum of what it is (`wte`) and where it stands (`wpe`).

# %% [markdown] lang="zh"
# 先准备随机初始化的权重和一个句子。每个词元的向量由两部分相加：它是什么（`wte`，词嵌入），以及它在哪儿（`wpe`，位置嵌入）。

# %%
import math

import torch
from transformers import AutoTokenizer, set_seed

import hfscale
from hfscale import course

course.needs(tokenizer=2)
tokenizer = AutoTokenizer.from_pretrained(course.place("tokenizer"))
set_seed(1)
model = hfscale.new_model(
    tokenizer,
    architecture="gpt2",
    num_hidden_layers=4,
    num_attention_heads=6,
    hidden_size=192,
    max_position_embeddings=256,
).eval()
gpt2 = model.transformer
print(f"{model.num_parameters():,} parameters")

ids = tokenizer("This module returns the name of the file.", return_tensors="pt")["input_ids"]
x = gpt2.wte.weight[ids[0]] + gpt2.wpe.weight[: ids.shape[1]]
print("tokens x width:", tuple(x.shape))

# %% [markdown] lang="en"
# **Layer norm** gives each vector mean 0 and variance 1, and then a learned scale and shift:
#
# $$\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot \gamma + \beta$$
#
# **Attention**: each token asks with a query $q$, offers a key $k$ and hands over a value $v$:
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^T}{\sqrt{d_k}}\right)V$$
#
# The root of $d_k$ (here 32) keeps the scores' spread near 1, else softmax would choose one token and stop learning. What
# comes later is hidden with $-\infty$: the model must not see what it is to predict.

# %% [markdown] lang="zh"
# **层归一化**（layer norm）把每个向量变成均值 0、方差 1，再乘上可学习的缩放、加上可学习的平移：
#
# $$\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot \gamma + \beta$$
#
# **注意力**：每个词元用查询 $q$ 去问，用键 $k$ 供别人匹配，用值 $v$ 交出自己的内容：
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^T}{\sqrt{d_k}}\right)V$$
#
# 除以 $\sqrt{d_k}$（这里 $d_k=32$）是为了让分数的离散程度保持在 1 左右，否则 softmax 会几乎只选中一个词元，梯度消失，学不动。
# 后面的位置用 $-\infty$ 遮住（因果掩码）：要预测的东西，不能先让模型看到。


# %%
def layer_norm(x, layer):
    """Mean 0 and variance 1 of each vector, then the learned scale and shift."""
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.pow(2).mean(-1, keepdim=True)
    return centered / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def attention(x, layer, num_heads):
    """What each token takes over from those before it and itself; also the weights, by head."""
    length, width = x.shape
    d_k = width // num_heads
    q, k, v = (x @ layer.c_attn.weight + layer.c_attn.bias).split(width, dim=-1)
    q, k, v = (part.view(length, num_heads, d_k).transpose(0, 1) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(d_k)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(later, -math.inf), dim=-1)
    heads = (weights @ v).transpose(0, 1).reshape(length, width)
    return heads @ layer.c_proj.weight + layer.c_proj.bias, weights


block = gpt2.h[0]
with torch.no_grad():
    _, weights = attention(layer_norm(x, block.ln_1), block.attn, 6)
print("the first head's weights; each row sums to 1, and nothing stands above the diagonal:")
print(weights[0].numpy().round(2))

# %% [markdown] lang="en"
# **GELU** bends the middle of the feed-forward layer: $x\,\Phi(x)$, which GPT-2 takes in the tanh form
#
# $$\mathrm{GELU}(x) \approx \tfrac{x}{2}\left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)$$
#
# A block adds what attention and feed-forward layer computed to what came in (the residual stream). At the end the
# embedding matrix is used once more: a logit for each token of the vocabulary. **Cross-entropy** is what training lowers:
# the mean surprise at the tokens that really followed,
#
# $$L = -\frac{1}{T}\sum_t \log p(x_{t+1} \mid x_{\le t})$$

# %% [markdown] lang="zh"
# **GELU** 是前馈层中间的激活函数，定义为 $x\,\Phi(x)$，GPT-2 采用它的 tanh 近似：
#
# $$\mathrm{GELU}(x) \approx \tfrac{x}{2}\left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)$$
#
# 每一层都把注意力和前馈层算出来的结果加回输入（残差连接）。
# 最后再用一次词嵌入矩阵，给词表里的每个词元算出一个 logit。
# 训练要降低的就是**交叉熵**，即模型对真正出现的下一个词元的平均“意外程度”：
#
# $$L = -\frac{1}{T}\sum_t \log p(x_{t+1} \mid x_{\le t})$$


# %%
def gelu(x):
    """In the tanh form, as GPT-2 was trained."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(x, layer):
    """Four times the width, bent, and back."""
    inner = gelu(x @ layer.c_fc.weight + layer.c_fc.bias)
    return inner @ layer.c_proj.weight + layer.c_proj.bias


def logits_by_hand(ids):
    """Of each next token, after each token: tokens x vocabulary."""
    x = gpt2.wte.weight[ids] + gpt2.wpe.weight[: len(ids)]
    for block in gpt2.h:
        x = x + attention(layer_norm(x, block.ln_1), block.attn, 6)[0]
        x = x + feed_forward(layer_norm(x, block.ln_2), block.mlp)
    return layer_norm(x, gpt2.ln_f) @ gpt2.wte.weight.T


def cross_entropy(logits, ids):
    """Mean over the tokens that have one before them, in nats."""
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    return -log_p[:-1].gather(1, ids[1:, None]).mean()


with torch.no_grad():
    by_hand = logits_by_hand(ids[0])
    loss = cross_entropy(by_hand, ids[0]).item()
    upstream = model(ids, labels=ids)
print(f"loss by hand {loss:.6f}, transformers {upstream.loss.item():.6f}")
print(f"before any training it is near ln({len(tokenizer)}) = {math.log(len(tokenizer)):.2f}")
assert abs(loss - upstream.loss.item()) < 1e-5
assert abs(loss - math.log(len(tokenizer))) < 0.5

# %% [markdown] lang="en"
# The number of this chapter: the largest difference between a logit by hand and the same one of transformers.

# %% [markdown] lang="zh"
# 本章的数字：手写结果与 transformers 的 logit 之间的最大差值。

# %%
difference = (by_hand - upstream.logits[0]).abs().max().item()
course.ends_with(3, "largest difference of a logit", difference, at_most=1e-4)

# %% [markdown] lang="en"
# **What to take along.** The loss of an untrained model is the logarithm of the vocabulary's size: it guesses. If yours
# begins elsewhere, labels or weights are wrong. GPT-2's linear layers are `Conv1D`: their weights lie transposed, which
# adapters have to know (chapter 6).
#
# *Try:* leave the division by $\sqrt{d_k}$ out. How large is the number then?

# %% [markdown] lang="zh"
# **记住这些。** 未训练模型的损失约等于词表大小的对数，因为它只会瞎猜；如果你的训练一开始不在这个值附近，不是标签错了就是权重有问题。
# GPT-2 的线性层是 `Conv1D`，权重是转置存放的，加适配器时必须知道这一点（见第 6 章）。
#
# *动手试试：* 去掉除以 $\sqrt{d_k}$ 这一步，上面的数字会变成多大？
