# %% [markdown] lang="en"
# # 2. The tokenizer
#
# **Question: what are the pieces that a model reads, and who decides where a word is cut?**
#
# A model does not read letters or words but *tokens*: numbers of pieces of text. GPT-2's pieces come from byte-level BPE
# (byte pair encoding): begin with the 256 bytes, and again and again make the most frequent neighbouring pair a new token.

# %% [markdown] lang="zh"
# # 2. 分词器
#
# **本章的问题：模型读到的“最小单位”是什么？一个词从哪里切开，由谁说了算？**
#
# 模型读的既不是字母也不是单词，而是*词元*（token）：文本片段的编号。
# GPT-2 的片段来自字节级 BPE（byte pair encoding，字节对编码）：从 256 个字节出发，一次又一次地把出现次数最多的一对相邻片段合并成新词元。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# First by hand. Words keep the space before them, as GPT-2's do (it is written `Ġ`), and no pair reaches over the edge
# of a word. Counting pairs and merging the most frequent one is the whole algorithm:

# %% [markdown] lang="zh"
# 先手工做一遍。和 GPT-2 一样，单词连同前面的空格算作一个整体（空格写作 `Ġ`），合并不会跨越单词边界。
# 数一数所有相邻的片段对，把最常见的一对合并掉，整个算法就这么多：

# %%
from collections import Counter

from datasets import load_from_disk
from tokenizers import pre_tokenizers

import hfscale
from hfscale import course

course.needs(data=1)
data = load_from_disk(course.place("data"))

cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
words: Counter = Counter()
for text in data["train"]["text"][:]:
    words.update(word for word, _ in cut.pre_tokenize_str(text))
pieces = {word: list(word) for word in words}


def most_frequent_pair() -> tuple[str, str]:
    """Of two pieces that stand side by side within a word."""
    pairs: Counter = Counter()
    for word, count in words.items():
        for pair in zip(pieces[word], pieces[word][1:], strict=False):
            pairs[pair] += count
    return pairs.most_common(1)[0][0]


def merge(left: str, right: str) -> None:
    """Make one piece of the two wherever they stand side by side."""
    for word, old in pieces.items():
        if left not in old:
            continue
        new = []
        for piece in old:
            if new and new[-1] == left and piece == right:
                new[-1] = left + right
            else:
                new.append(piece)
        pieces[word] = new


by_hand = []
for _ in range(10):
    pair = most_frequent_pair()
    merge(*pair)
    by_hand.append(pair)
print(*("+".join(pair) for pair in by_hand))

# %% [markdown] lang="en"
# Now the whole vocabulary: 2,048 tokens, 256 bytes and four special tokens among them. `<|endoftext|>` ends a document
# and `<|pad|>` fills up rows: they are two tokens, since a model that never sees the end of a text, because it looks like
# padding, never learns to stop. `<|im_start|>` and `<|im_end|>` wait for the conversations of chapter 8.

# %% [markdown] lang="zh"
# 接下来训练完整的词表：共 2048 个词元，其中包括 256 个字节和四个特殊词元。
# `<|endoftext|>` 表示文档结束，`<|pad|>` 用来填充；二者必须是两个不同的词元：如果结束符和填充符混为一谈，损失会把它一并屏蔽掉，模型就永远学不会停下来。
# `<|im_start|>` 和 `<|im_end|>` 留给第 8 章的对话。

# %%
made = hfscale.train_tokenizer(
    source=[course.place("data")],
    validation_source=course.place("data"),
    vocab_size=2048,
    compare=["char"],
    output_dir=course.place("tokenizer"),
    overwrite=True,
)

# %% [markdown] lang="en"
# The library's first ten merges are the ten made by hand. And what is one token depends on what the tokenizer was trained
# on: words of Python's documentation are whole, others fall to pieces, and Chinese, which it never saw, to bytes.

# %% [markdown] lang="zh"
# 库里训练出来的前十次合并，和我们手工做的十次完全一样。
# 什么能成为一个词元，取决于分词器见过什么：Python 文档里的常用词是完整的，别的词会碎开，而它从没见过的中文只能退回到字节。

# %%
import json
from pathlib import Path

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(course.place("tokenizer"))
saved = json.loads(Path(course.place("tokenizer"), "tokenizer.json").read_text("utf-8"))
merges = [tuple(pair) for pair in saved["model"]["merges"][:10]]
assert merges == by_hand, (merges, by_hand)
for text in ["the module returns an iterator", "a nightingale sings", "语言模型"]:
    print(len(text.split()), "words:", tokenizer.tokenize(text))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

# %% [markdown] lang="en"
# How good is a tokenizer? One measure: how many bytes of unseen text a token carries. More bytes make shorter rows and
# less work, but each token more is a row of the embedding matrix, which a small model has to learn from little text.

# %% [markdown] lang="zh"
# 怎样衡量一个分词器？一个办法是看它在没见过的文本上，平均每个词元装了多少字节。
# 装得越多，序列越短，计算越省；但词表每多一个词元，嵌入矩阵就多一行，小模型要用很少的文本把它学会。

# %%
texts = data["validation"]["text"][:]
num_bytes = sum(len(text.encode()) for text in texts)
num_tokens = sum(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])
course.ends_with(
    2, "bytes per token of unseen text", num_bytes / num_tokens, at_least=3.2, at_most=4.2
)

# %% [markdown] lang="en"
# **What to take along.** Perplexities of two tokenizers cannot be compared: each predicts other pieces. Bits per byte can
# (chapter 5). Pad and end of text are two tokens.
#
# *Try:* `vocab_size=512`. How many bytes does a token carry then, and how long does the Chinese word become?

# %% [markdown] lang="zh"
# **记住这些。** 两个分词器下的困惑度不能直接比较，因为它们预测的不是同样的片段；换算成“每字节比特数”才可以（见第 5 章）。
# 填充符和结束符必须是两个词元。
#
# *动手试试：* 把 `vocab_size` 改成 512，每个词元能装多少字节？“语言模型”会变成多长？
