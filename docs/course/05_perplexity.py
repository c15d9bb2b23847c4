# %% [markdown] lang="en"
# # 5. Perplexity, right and wrong
#
# **Question: five programs give five perplexities for one model and one text. Which is right?**
#
# Perplexity is $\exp$ of the mean negative log-likelihood of a token,
#
# $$\mathrm{PPL} = \exp\left(-\frac{1}{N}\sum_{i=1}^{N} \log p(x_i \mid x_{<i})\right)$$
#
# Sum over all tokens of all documents, divide once by their number. Simple, and often done in another way.

# %% [markdown] lang="zh"
# # 5. 困惑度：算对与算错
#
# **本章的问题：同一个模型、同一份文本，五个程序算出五个困惑度，哪个才对？**
#
# 困惑度是平均每个词元的负对数似然再取 $\exp$：
#
# $$\mathrm{PPL} = \exp\left(-\frac{1}{N}\sum_{i=1}^{N} \log p(x_i \mid x_{<i})\right)$$
#
# 把所有文档、所有词元的负对数似然加起来，最后只除一次总词元数。道理很简单，可实际中常常不是这么算的。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# By hand. Each document begins after `<|endoftext|>`, as in training. A document longer than the context of 256 tokens is
# read in windows: after the first, each window scores 128 new tokens and has 128 before them to look at.

# %% [markdown] lang="zh"
# 先手工算一遍。和训练时一样，每篇文档前面都有一个 `<|endoftext|>`。
# 文档超过 256 个词元的上下文长度时，用滑动窗口来读：从第二个窗口起，每个窗口只给 128 个新词元打分，前面另有 128 个词元作为上下文。

# %%
import math

import torch
from datasets import load_from_disk
from torch.nn.functional import cross_entropy

import hfscale
from hfscale import course

course.needs(data=1, model=4)
run = hfscale.load_run(course.place("model"))
model, tokenizer = run.model, run.tokenizer
texts = load_from_disk(course.place("data"))["validation"]["text"][:]
CONTEXT = model.config.n_positions


@torch.no_grad()
def nll_by_hand(text: str, stride: int) -> tuple[float, int]:
    """Sum of the negative log-likelihoods of a document's tokens, in nats, and their number."""
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text, verbose=False)["input_ids"]])
    total = 0.0
    scored = 1  # the first is only there to be looked at
    while scored < len(ids):
        stop = min(len(ids), CONTEXT + 1 if scored == 1 else scored + stride)
        window = ids[max(0, stop - 1 - CONTEXT) : stop]
        logits = model(window[None, :-1]).logits[0]
        new = stop - scored
        total += cross_entropy(logits[-new:], window[-new:], reduction="sum").item()
        scored = stop
    return total, len(ids) - 1


counted = [nll_by_hand(text, stride=CONTEXT // 2) for text in texts]
nll = sum(total for total, _ in counted)
num_tokens = sum(number for _, number in counted)
right = math.exp(nll / num_tokens)
print(f"{num_tokens:,} tokens, perplexity {right:.3f}")

# %% [markdown] lang="en"
# The same by the recipe `score`, which takes what the run held out:

# %% [markdown] lang="zh"
# 再用 `score` 这个配方算同样的东西，它会自动取这次训练预留的验证集：

# %%
scores = hfscale.score(
    model=[course.place("model")], output_dir=course.place("score"), overwrite=True
)
by_recipe = scores["systems"][0]["metrics"]["eval_perplexity"]
print(f"by the recipe {by_recipe:.3f}")

# %% [markdown] lang="en"
# Now four wrong ways, each of which stands in a program that many people use:
#
# 1. **The mean of the documents' perplexities.** A short odd document counts as much as a long one, and $\exp$ blows it
#    up.
# 2. **The mean of the batches' mean losses.** `Trainer` does so. With padded rows a batch of short texts weighs as much
#    as one of long texts, so the number changes with the batch size.
# 3. **Padding counted.** Where labels are a copy of the padded ids, the model is also judged on predicting padding.
# 4. **Windows without context.** Cut into pieces of 64 tokens, each piece begins with nothing to look at.

# %% [markdown] lang="zh"
# 下面是四种错误的算法，每一种都能在很多人用的程序里找到：
#
# 1. **对各文档的困惑度取平均。** 一篇又短又怪的文档和长文档权重一样，而 $\exp$ 还会把它放大。
# 2. **对各批次的平均损失再取平均。** `Trainer` 就是这么做的。补齐（padding）之后，短文本组成的批次和长文本组成的批次权重相同，于是结果会随批大小而变。
# 3. **把填充符也算进去。** 如果标签直接复制了补齐后的输入，模型还要为“预测填充符”负责。
# 4. **窗口没有上下文。** 切成 64 个词元一段，每一段开头都无从参考。

# %%
documents = [tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"] for text in texts]


@torch.no_grad()
def batch_means(batch_size: int, ignored: int) -> float:
    """The mean over batches of their mean loss; label `ignored` does not count."""
    means = []
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        longest = max(map(len, batch))
        padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in batch]
        rows = torch.tensor(padded)
        logits = model(rows[:, :-1]).logits
        losses = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=ignored)
        means.append(losses.item())
    return math.exp(sum(means) / len(means))


def in_pieces(size: int) -> float:
    """Each piece of `size` tokens for itself."""
    ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
    rows = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    with torch.no_grad():
        logits = model(rows[:, :-1]).logits
    return math.exp(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item())


pad = tokenizer.pad_token_id
wrong = {
    "mean of documents": sum(math.exp(total / number) for total, number in counted) / len(counted),
    "mean of batches of 2": batch_means(2, ignored=pad),
    "mean of batches of 10": batch_means(10, ignored=pad),
    "padding counted": batch_means(10, ignored=-100),
    "pieces of 64": in_pieces(64),
}
for name, value in wrong.items():
    print(f"{name:22} {value:9.2f}   {value / right - 1:+.0%}")

# %% [markdown] lang="en"
# Perplexities of models with different tokenizers cannot be compared, since they count other tokens. Bits per byte can:
# the same sum, divided by the bytes of the text.

# %% [markdown] lang="zh"
# 分词器不同，数的词元就不同，困惑度也就无法比较。每字节比特数可以比：分子还是同一个和，分母换成文本的字节数。

# %%
num_bytes = sum(len(text.encode()) for text in texts)
print(f"{nll / math.log(2) / num_bytes:.3f} bits per byte")
course.ends_with(
    5,
    "perplexity by hand over the recipe's",
    right / by_recipe,
    at_least=0.9999,
    at_most=1.0001,
)

# %% [markdown] lang="en"
# **What to take along.** Sum, then divide. Say what the context was, how windows overlapped, and over which tokens. A
# number without that cannot be compared with anything.
#
# *Try:* stride 32 instead of 128: the perplexity falls. Did the model become better?

# %% [markdown] lang="zh"
# **记住这些。** 先求和，再相除。报告困惑度时要说明上下文多长、窗口怎样重叠、统计了哪些词元；少了这些，数字就没法拿来比较。
#
# *动手试试：* 把步幅从 128 改成 32，困惑度会降低。模型变好了吗？
