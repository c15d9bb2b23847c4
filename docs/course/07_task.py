# %% [markdown] lang="en"
# # 7. A task: translation, judged by BLEU
#
# **Question: how does a model that continues text become one that does what it is asked, and how is that measured?**
#
# A task is a prompt and a target: `March 3, 2021` and `3. März 2021`. The model reads both as one text, and only the
# target's tokens count for the loss. Dates, numbers, amounts and names into German are a task that a small model can
# learn; that of a novel is not.

# %% [markdown] lang="zh"
# # 7. 一个任务：翻译与 BLEU
#
# **本章的问题：只会续写的模型，怎样变成能按要求办事的模型？又该如何衡量？**
#
# 任务由提示和目标两部分组成，例如 `March 3, 2021` 和 `3. März 2021`。
# 模型把两者当成一段连续的文本来读，但只有目标部分的词元计入损失。
# 把英语的日期、数字、金额和人名列表译成德语，是小模型学得会的任务；翻译小说就不是了。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale", "sacrebleu"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# First the measure. BLEU counts which runs of one to four words of a translation stand in the reference. $p_n$ is the
# share of $n$-grams that do (none counted more often than it stands there), and a translation that is too short is
# punished by $\mathrm{BP}$:
#
# $$\mathrm{BLEU} = \mathrm{BP}\cdot\exp\left(\tfrac14\sum_{n=1}^{4}\log p_n\right),\qquad
#   \mathrm{BP} = \min\left(1,\; e^{1 - r/c}\right)$$

# %% [markdown] lang="zh"
# 先看怎么衡量。BLEU 统计译文里连续一到四个词的片段有多少出现在参考译文中。
# $p_n$ 是命中的 $n$ 元组所占比例（同一个片段的计数不超过它在参考译文里出现的次数），译文太短则由 $\mathrm{BP}$ 惩罚：
#
# $$\mathrm{BLEU} = \mathrm{BP}\cdot\exp\left(\tfrac14\sum_{n=1}^{4}\log p_n\right),\qquad
#   \mathrm{BP} = \min\left(1,\; e^{1 - r/c}\right)$$

# %%
import math
from collections import Counter

import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

import hfscale
from hfscale import course

course.needs(model=4)


def ngrams(words: list[str], n: int) -> Counter:
    """Each run of n words, with how often it occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu_by_hand(translations: list[str], references: list[str]) -> float:
    """Over all sentences together, from 0 to 100."""
    cut = Tokenizer13a()
    pairs = [
        (cut(a).split(), cut(b).split()) for a, b in zip(translations, references, strict=True)
    ]
    log_precisions = []
    for n in range(1, 5):
        hits = sum((ngrams(a, n) & ngrams(b, n)).total() for a, b in pairs)
        total = sum(ngrams(a, n).total() for a, _ in pairs)
        log_precisions.append(math.log(hits / total))
    length = sum(len(a) for a, _ in pairs)
    reference_length = sum(len(b) for _, b in pairs)
    brevity = min(1.0, math.exp(1 - reference_length / length))
    return 100 * brevity * math.exp(sum(log_precisions) / 4)


said = ["Der Zug fährt am Montag um 9 Uhr .", "Wir treffen uns am 3. Mai 2021"]
meant = ["Der Zug fährt am Montag um 10 Uhr .", "Wir treffen uns am 3. Mai 2021 wieder"]
by_hand = bleu_by_hand(said, meant)
print(f"by hand {by_hand:.4f}, sacrebleu {sacrebleu.corpus_bleu(said, [meant]).score:.4f}")
assert abs(by_hand - sacrebleu.corpus_bleu(said, [meant]).score) < 1e-6

# %% [markdown] lang="en"
# Now the task, on the model of chapter 4. Its answers to examples that it never saw are judged before and after, beside a
# baseline that copies the English: since numbers and names stay, that is not nothing.

# %% [markdown] lang="zh"
# 下面在第 4 章的模型上训练这个任务。训练前后都用它没见过的例子来打分，旁边再放一个“照抄英语原文”的基线：数字和人名本来就不变，所以照抄也能得到一些分。

# %%
run = hfscale.finetune_task(
    model=course.place("model"),
    task_source=["embedded:translation-en-de"],
    prompt="{en}\n",
    target="{other}",
    baseline="copy_source",
    baseline_input="{en}",
    metrics=["bleu", "chrf", "exact_match"],
    train_examples=4_000,
    validation_examples=100,
    max_new_tokens=48,
    max_length=128,
    optimizer="muon",
    learning_rate=1e-2,
    lr_scheduler_type="linear",
    warmup_steps=0.05,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=50,
    max_steps=course.steps(250),
    logging_steps=course.steps(50),
    save_strategy="no",
    bf16=False,
    output_dir=course.place("translation"),
    overwrite=True,
)

# %% [markdown] lang="en"
# BLEU hides what kind of errors there are, so read some answers:

# %% [markdown] lang="zh"
# BLEU 不会告诉你错在哪里，所以要亲眼读几条译文：

# %%
for sample in run.samples[:4]:
    print(sample, end="\n\n")
course.ends_with(7, "BLEU", run.metrics["eval_bleu"], at_least=60, at_most=100, is_learned=True)

# %% [markdown] lang="en"
# **What to take along.** Beside each BLEU stand three things: what a trivial program reaches, what the model reached
# before training, and the interval. Sums over all sentences, then one division: the mean of sentence BLEUs is another
# number (as in chapter 5).
#
# *Try:* `model="new"` with `tokenizer`, `num_hidden_layers=4`, `hidden_size=192` and `num_attention_heads=6`: what was the
# pretraining worth?

# %% [markdown] lang="zh"
# **记住这些。** 每个 BLEU 旁边都要摆三样东西：最笨的程序能得几分、训练前得几分、置信区间有多宽。
# 先对所有句子求和再相除；逐句算 BLEU 再取平均，得到的是另一个数（和第 5 章同理）。
#
# *动手试试：* 换成 `model="new"`，并给出 `tokenizer`、`num_hidden_layers=4`、`hidden_size=192`、`num_attention_heads=6`，看看预训练值多少分。
