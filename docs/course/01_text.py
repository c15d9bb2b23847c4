# %% [markdown] lang="en"
# # 1. Text and cleaning
#
# **Question: what is in a text that was collected, and what of it should a model never see?**
#
# A language model learns whatever stands in its text: menus of web pages, the same page fifty times, addresses of people.
# In this chapter you take clean English, spoil it in ways that you choose, and see whether cleaning finds all that you
# did. What is left is the text that the model of this course grows up with.

# %% [markdown] lang="zh"
# # 1. 文本与清洗
#
# **本章的问题：收集来的文本里到底有什么？哪些东西绝不该让模型看到？**
#
# 语料里有什么，语言模型就学什么：网页的导航栏、重复了五十遍的同一个页面、别人的邮箱地址，它都照单全收。
# 这一章先拿一份干净的英文，由你亲手把它“弄脏”，再看清洗流程能不能把你动过的手脚全部找出来。
# 清洗之后留下的文本，就是这门课里的模型从小读到大的语料。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# The text is the prose of Python's own documentation, which every Python brings along: about 1.2 million characters of
# edited English, in one document for each module or topic. No download is needed for any chapter.

# %% [markdown] lang="zh"
# 语料取自 Python 自带文档中的叙述文字，装了 Python 就有：约一百二十万个字符，都是编辑过的规范英文，每个模块或主题算一篇文档。
# 整门课任何一章都不需要下载数据。

# %%
import json
import random
from pathlib import Path

import hfscale
from hfscale import course

clean = hfscale.load_documents(["embedded:python-prose"])["text"][:]
print(f"{len(clean)} documents, {sum(map(len, clean)):,} characters")
print(clean[len(clean) // 2][:300])

# %% [markdown] lang="en"
# Now the dirt, of five kinds, 20 documents of each:
#
# - copies of a document, letter for letter;
# - near copies, in which some words are others;
# - menus and counters, as they stand around the text of web pages;
# - broken encoding: `It’s` read in the wrong code page looks like `Itâ€™s`;
# - e-mail addresses.
#
# One thing more goes in, and shall stay in: 20 documents get the sentence *"The code of the door is 7405."* It is a
# *canary*: a made secret. Chapter 10 asks whether the finished model knows it by heart.

# %% [markdown] lang="zh"
# 现在动手掺“脏东西”，一共五类，每类 20 篇：
#
# - 与原文一字不差的副本；
# - 改了几个词的近似副本；
# - 网页正文周围的导航栏和计数器；
# - 编码错乱：`It’s` 用错了代码页去读，就变成 `Itâ€™s`；
# - 电子邮箱地址。
#
# 另外还要埋进一样东西，而且要让它一直留着：在 20 篇文档里插入一句 *"The code of the door is 7405."*
# 这叫“金丝雀”（canary），是一条编造出来的秘密。到第 10 章，我们再问训练好的模型有没有把它背下来。

# %%
rng = random.Random(1)
long_enough = [number for number, text in enumerate(clean) if 1000 < len(text) < 20_000]
picked = rng.sample(long_enough, 100)
CANARY = "The code of the door is 7405."


def other_words(text: str) -> str:
    """The text with one word in a hundred replaced."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, len(words) // 100)):
        words[place] = "something"
    return " ".join(words)


raw = list(clean)
copies = [clean[number] for number in picked[:20]]
near_copies = [other_words(clean[number]) for number in picked[20:40]]
menus = [f"Home | Login | {page} | >>> | {page + 1} | 404 | ### | Top" for page in range(20)]
for number in picked[40:60]:
    raw[number] += " Itâ€™s all â€œbrokenâ€\x9d here."
for number in picked[60:80]:
    raw[number] += f" Questions go to reader{number}@mail.example.org as always."
for number in picked[80:]:
    raw[number] = f"{CANARY} {raw[number]}"
raw += copies + near_copies + menus

Path(course.place()).mkdir(parents=True, exist_ok=True)
with Path(course.place("raw.jsonl")).open("w", encoding="utf-8") as file:
    file.writelines(json.dumps({"text": text}) + "\n" for text in raw)

# %% [markdown] lang="en"
# `prepare_data` repairs, applies the rules, drops copies, masks what is personal, and splits off validation text. Each
# stage says how many documents went in and came out; nothing goes silently.

# %% [markdown] lang="zh"
# `prepare_data` 依次做修复、按规则过滤、去重、个人信息脱敏，最后切出验证集。
# 每个阶段都会报告进了多少篇、出了多少篇，没有一篇文档会不声不响地消失。

# %%
hfscale.prepare_data(
    source=[course.place("raw.jsonl")],
    min_words=10,  # many a docstring is one sentence
    validation_fraction=0.05,
    output_dir=course.place("data"),
    overwrite=True,
)

# %% [markdown] lang="en"
# Did it find all that you did? Look into the result, not at the counts: the text itself is the judge.

# %% [markdown] lang="zh"
# 你做的手脚它都找到了吗？别只看计数，直接去看结果：文本本身才是裁判。

# %%
from datasets import load_from_disk

data = load_from_disk(course.place("data"))
kept = data["train"]["text"][:] + data["validation"]["text"][:]
kept_set = set(kept)
original = [raw[number] for number in picked[:40]]
found = {
    "copies": sum(kept.count(text) <= 1 for text in original[:20]),
    "near copies": sum(text not in kept_set or text in original for text in near_copies),
    "menus": sum(text not in kept_set for text in menus),
    "broken encoding": 20 - sum("Itâ€" in text for text in kept),
    "addresses": 20 - sum("@mail.example.org" in text for text in kept),
}
print(found)
print("canaries kept:", sum(CANARY in text for text in kept))
course.ends_with(1, "planted faults found, of 100", sum(found.values()), at_least=98, at_most=100)

# %% [markdown] lang="en"
# **What to take along.** Cleaning is counted work: know what went in, and look at what came out. A rule that drops
# something drops good text too (`dropped.jsonl` in `runs/course/data` has each document with rule and value). And cleaning
# does not find a secret that looks like any other sentence.
#
# *Try:* set `near_duplicate_threshold=0.9` above. Which number changes?

# %% [markdown] lang="zh"
# **记住这些。** 清洗是要算账的活：先清楚放进去了什么，再看出来的是什么。
# 规则在扔垃圾的同时也会误伤好文本（`runs/course/data` 里的 `dropped.jsonl` 记下了每篇被丢弃的文档、触发的规则和测得的数值）。
# 至于一条看起来和普通句子没有两样的秘密，清洗是找不出来的。
#
# *动手试试：* 把上面的 `near_duplicate_threshold` 设成 0.9，哪个数字会变？
