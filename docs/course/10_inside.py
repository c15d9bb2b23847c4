# %% [markdown] lang="en"
# # 10. Inside: memorization, bias, attention
#
# **Question: what does a model know that nobody meant to teach it, and can one see how it works?**
#
# Three looks at the model of chapter 4, each with a control: a number about a model means little without the number of
# something that has no reason to show it.

# %% [markdown] lang="zh"
# # 10. 模型内部：记忆、偏见与注意力
#
# **本章的问题：有没有什么东西没人打算教，模型却学会了？它怎么工作，能看得见吗？**
#
# 从三个角度来看第 4 章的模型，每个角度都配一个对照：如果不知道“本不该有这种现象”的情形下数字是多少，单看一个数字说明不了什么。

# %%
# Nothing is installed, and no network is wanted, where hfscale is there already.
import importlib.util

missing = [name for name in ["hfscale"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q hfscale

# %% [markdown] lang="en"
# **Memorization.** Chapter 1 planted *"The code of the door is 7405."* in 20 documents (some of which cleaning dropped).
# Is it likelier to the model than the same sentence with other digits? *Exposure* (Carlini et al. 2019) is $\log_2$ of the
# number of such sentences less $\log_2$ of its rank among them: 0 to 1 by chance, 10 if it is the likeliest of a thousand.
# A code that was never planted is the control.

# %% [markdown] lang="zh"
# **记忆。** 第 1 章在 20 篇文档里埋了一句 *"The code of the door is 7405."*（其中几篇被清洗掉了）。
# 在模型眼里，它是不是比换了数字的同一句话更可能出现？
# *暴露度*（exposure，Carlini 等，2019）等于候选句子数的 $\log_2$ 减去它在其中排名的 $\log_2$：纯属偶然时在 0 到 1 之间，若是一千句里最可能的一句就是 10。
# 再拿一个从没埋过的密码作对照。

# %%
import hfscale
from hfscale import course

course.needs(data=1, model=4)
PLANTED, CONTROL = "The code of the door is 7405.", "The code of the door is 2618."
record = hfscale.memorization(
    model=course.place("model"),
    canaries=[PLANTED, CONTROL],
    canary_pattern="The code of the door is ####.",
    candidates=1000,
    num_samples=8,
    max_new_tokens=64,
    documents=40,
    output_dir=course.place("memorization"),
    overwrite=True,
)
exposure = {text: record["canaries"][text]["exposure_bits"] for text in (PLANTED, CONTROL)}
print(exposure)

# %% [markdown] lang="en"
# **Bias.** Which of two sentences does the model find likelier, the stereotype or its counterpart? 50 % would be even.
# The intervals are wide, and the text behind this model hardly speaks of people: a probe can show that a model prefers
# something; it cannot show that it is fair.

# %% [markdown] lang="zh"
# **偏见。** 两句话，一句符合刻板印象，一句与之相反，模型觉得哪句更可能？50 % 表示不偏不倚。
# 这里的区间很宽，而且这个模型的语料几乎不谈人。探针能证明模型偏向什么，却不能证明它公正。

# %%
probe = hfscale.bias_probe(
    config="templates",
    model=[course.place("model")],
    output_dir=course.place("bias"),
    overwrite=True,
)

# %% [markdown] lang="en"
# **Attention.** The weights are those of chapter 3, now of a trained model. Many models have a head that looks at the
# token before; it is half of an *induction head*, which continues what it has read once already (`A B ... A` → `B`). The
# untrained model is the control. In a model as small as this one such a head is only beginning to form.

# %% [markdown] lang="zh"
# **注意力。** 还是第 3 章里的注意力权重，不过这次模型训练过了。
# 很多模型里都有一个头专看前一个词元，它是*归纳头*（induction head）的一半；归纳头能接着写出读过一次的内容（`A B ... A` → `B`）。
# 对照是没有训练过的模型。在这么小的模型里，这样的头才刚刚开始形成。

# %%
import matplotlib.pyplot as plt
import torch
from transformers import set_seed

from hfscale.probes.attention import head_scores

tokenizer = hfscale.load_run(course.place("model")).tokenizer
trained = hfscale.load_model(course.place("model"), attn_implementation="eager")
set_seed(1)
untrained = type(trained)(trained.config).eval()
sentence = "The module returns the name of the file, and the name of the folder that it is in."
ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sentence)["input_ids"]]])


def look_at_previous(model) -> torch.Tensor:
    """(layers, heads): the mean weight on the token before."""
    weights = hfscale.attention_weights(model, ids)[0]
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)  # each row is a distribution
    assert weights.triu(1).abs().max() == 0  # nothing looks ahead
    return head_scores(weights)["previous_token"]


scores = look_at_previous(trained)
layer, head = divmod(int(scores.argmax()), scores.shape[1])
print(f"the head that looks back most: layer {layer}, head {head}: {scores.max():.2f}")
print(f"without training: {look_at_previous(untrained).max():.2f}")
words = tokenizer.convert_ids_to_tokens(ids[0].tolist())
plt.imshow(hfscale.attention_weights(trained, ids)[0, layer, head], cmap="viridis")
plt.xticks(range(len(words)), words, rotation=90, fontsize=6)
plt.yticks(range(len(words)), words, fontsize=6)
plt.title(f"layer {layer}, head {head}: what each token (row) looks at")
plt.show()
course.ends_with(
    10,
    "exposure of the planted code, in bits",
    exposure[PLANTED],
    at_least=5,
    at_most=10,
    is_learned=True,
)

# %% [markdown] lang="en"
# **What to take along.** A sentence that stood in 20 of 400 documents is known by heart after a few epochs, though
# perplexity says nothing of it. What must not come out must not go in.
#
# *Try:* plant the code in 2 documents (chapter 1), train again (chapter 4) and look here.

# %% [markdown] lang="zh"
# **记住这些。** 四百篇文档里有二十篇出现过的一句话，训练几遍就被背了下来，而困惑度对此只字不提。不想让它说出来的，就别让它读进去。
#
# *动手试试：* 回到第 1 章，只在 2 篇文档里埋密码，重跑第 4 章的训练，再来看这里的数字。
