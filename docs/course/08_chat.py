# %% [markdown] lang="en"
# # 8. Chat and preferences
#
# **Question: how does a model that continues text become one that answers, and in the way that people like?**
#
# In two steps. *Supervised fine-tuning* shows it conversations; only the assistant's words count for the loss.
# *Preference optimization* (DPO) then shows it two answers to one question, of which people prefer one.
#
# A model of two million parameters cannot talk about the world. It can talk about something small: here, which module of
# Python does what. The conversations are made by a short grammar, so that we know what is right.

# %% [markdown] lang="zh"
# # 8. 对话与偏好
#
# **本章的问题：只会续写的模型，怎样学会回答问题，而且答得合人心意？**
#
# 分两步走。第一步是*监督微调*（SFT）：给它看对话，只有助手说的话计入损失。
# 第二步是*偏好优化*（DPO）：同一个问题给它看两种回答，其中一种更受人青睐。
#
# 两百万参数的模型谈不了天下大事，但可以聊一件小事：Python 的哪个模块是干什么的。
# 对话由一套简短的语法规则生成，因此什么是正确答案，我们一清二楚。

# %%
# Nothing is installed, and no network is wanted, where hfscale and its extra trl are there already.
import importlib.util

missing = [name for name in ["hfscale", "trl"] if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q "hfscale[trl]"

# %% [markdown] lang="en"
# The grammar: facts, ways to ask, ways to answer. Every fifth pair of fact and question is held out: the model never sees
# *this* module asked for in *this* way.

# %% [markdown] lang="zh"
# 语法由三部分组成：事实、问法、答法。每五个“事实 × 问法”的组合留出一个：模型从没见过有人用*这种*问法来问*这个*模块。

# %%
import json
import random
from pathlib import Path

import hfscale
from hfscale import course

course.needs(data=1, model=4)
FACTS = {
    "argparse": "reads the arguments of a command",
    "bisect": "searches sorted lists",
    "calendar": "prints calendars",
    "collections": "offers more kinds of containers",
    "copy": "copies objects",
    "csv": "reads and writes tables",
    "datetime": "works with dates and times",
    "decimal": "computes with decimal numbers",
    "difflib": "compares two texts",
    "email": "reads and writes mail",
    "fractions": "computes with exact fractions",
    "functools": "caches the results of functions",
    "glob": "finds files by their names",
    "gzip": "compresses files",
    "hashlib": "computes hashes of data",
    "heapq": "keeps the smallest item in front",
    "itertools": "combines iterators",
    "json": "reads and writes JSON",
    "logging": "writes messages to a log",
    "math": "computes roots and logarithms",
    "os": "talks to the operating system",
    "pathlib": "handles the paths of files",
    "pickle": "saves objects of Python",
    "queue": "hands items from thread to thread",
    "random": "draws random numbers",
    "re": "searches text with patterns",
    "shutil": "copies and moves files",
    "socket": "sends data over a network",
    "sqlite3": "stores data in a small database",
    "statistics": "computes means and medians",
    "subprocess": "starts other programs",
    "tempfile": "makes temporary files",
    "textwrap": "breaks text into lines",
    "threading": "runs threads side by side",
    "timeit": "measures how long code takes",
    "unittest": "tests your code",
    "zipfile": "reads and writes ZIP archives",
}
QUESTIONS = [
    "What does the {module} module do?",
    "What is {module} good for?",
    "Tell me about {module}.",
    "Which module {does}?",
    "I look for a module that {does}.",
    "Is there something in Python that {does}?",
]
SHORT = "The {module} module {does}."
LONG = "You may want to have a look at {module}: it {does}."
ANSWERS = [SHORT, "Use the {module} module. It {does}.", LONG]
AND_THEN = [
    ("How do I get it?", "Write import {module} at the top of your file."),
    ("Thank you.", "You are welcome. Ask me about another module."),
]


def is_held_out(fact: int, question: int) -> bool:
    """Every fifth pair of fact and question."""
    return (fact + question) % 5 == 0


def conversation(module: str, question: str, rng: random.Random) -> list[dict[str, str]]:
    """One question and its answer, and now and then what is said after it."""
    turns = [(question, rng.choice(ANSWERS)), *rng.sample(AND_THEN, rng.choice([0, 0, 1, 2]))]
    names = {"module": module, "does": FACTS[module]}
    return [
        {"role": role, "content": text.format(**names)}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def write_lines(name: str, rows: list[dict]) -> str:
    """A file of JSON lines among the course's results."""
    path = Path(course.place(name))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


rng = random.Random(1)
training, held_out = [], []
for fact, module in enumerate(FACTS):
    for number, question in enumerate(QUESTIONS):
        side = held_out if is_held_out(fact, number) else training
        side += [{"messages": conversation(module, question, rng)} for _ in range(10)]
print(f"{len(training)} conversations to learn from, {len(held_out)} held out")
for message in training[3]["messages"]:
    print(f"{message['role']}: {message['content']}")

# %% [markdown] lang="en"
# **Step 1.** The chat template writes a conversation as one text: `<|im_start|>user`, what the user said, `<|im_end|>`,
# then the assistant in the same way. The special tokens are in the vocabulary since chapter 2.

# %% [markdown] lang="zh"
# **第一步。** 对话模板把一段对话写成一整段文本：`<|im_start|>user`、用户说的话、`<|im_end|>`，然后是助手，格式相同。
# 这些特殊词元从第 2 章起就在词表里了。

# %%
sft = hfscale.finetune_task(
    model=course.place("model"),
    task_source=[write_lines("chat-train.jsonl", training)],
    task_validation_source=[write_lines("chat-held-out.jsonl", held_out[::10])],
    task_format="chat",
    chat_template="chatml",
    metrics=["chrf"],
    validation_examples=60,
    max_new_tokens=40,
    max_length=256,
    optimizer="muon",
    learning_rate=1e-2,
    lr_scheduler_type="linear",
    warmup_steps=0.05,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=50,
    max_steps=course.steps(200),
    logging_steps=course.steps(40),
    save_strategy="no",
    bf16=False,
    output_dir=course.place("chat-sft"),
    overwrite=True,
)

# %% [markdown] lang="en"
# **Step 2.** Three wordings were taught, and people like the short one. DPO raises the probability of the chosen answer
# against that of the rejected one, measured from the model at the start, so that it does not run away:
#
# $$L = -\log \sigma\!\left(\beta\left[\log\frac{\pi(y_{+}\mid x)}{\pi_0(y_{+}\mid x)}
#   - \log\frac{\pi(y_{-}\mid x)}{\pi_0(y_{-}\mid x)}\right]\right)$$

# %% [markdown] lang="zh"
# **第二步。** 刚才教了三种答法，而人们更喜欢简短的那一种。
# DPO 抬高被选中回答的概率、压低被拒绝回答的概率，两者都以训练起点的模型为基准，免得跑偏：
#
# $$L = -\log \sigma\!\left(\beta\left[\log\frac{\pi(y_{+}\mid x)}{\pi_0(y_{+}\mid x)}
#   - \log\frac{\pi(y_{-}\mid x)}{\pi_0(y_{-}\mid x)}\right]\right)$$


# %%
def asked(question: str, tokenizer) -> str:
    """A user's turn as the chat template writes it, up to where the answer begins."""
    turn = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


pairs = []
for fact, (module, does) in enumerate(FACTS.items()):
    for number, question in enumerate(QUESTIONS):
        if not is_held_out(fact, number):
            filled = [text.format(module=module, does=does) for text in (question, SHORT, LONG)]
            prompt = asked(filled[0], sft.tokenizer)
            pairs.append({"prompt": prompt, "chosen": filled[1], "rejected": filled[2]})
chat = hfscale.finetune_preference(
    model=course.place("chat-sft"),
    source=write_lines("pairs.jsonl", pairs),
    beta=0.1,
    learning_rate=1e-4,
    per_device_train_batch_size=8,
    bf16=False,
    max_steps=course.steps(30),
    logging_steps=course.steps(10),
    save_strategy="no",
    output_dir=course.place("chat"),
    overwrite=True,
)

# %% [markdown] lang="en"
# **Is what it says grammatical?** Ten held-out questions, one drawn answer each (temperature 0.8). An automatic proxy
# judges: an answer counts if *every run of four words in it, beginning and end counted as words, stands in held-out text*,
# which no training saw. It may refuse a good sentence; it hardly ever takes a bad one, and two controls show that: the
# same answers with their words shuffled, and the model of chapter 4, which has not learned to answer. The proxy knows
# nothing but this small domain, and neither does the model.

# %% [markdown] lang="zh"
# **它说的话合语法吗？** 拿十个留出的问题，每题随机采样一个回答（温度 0.8），由一个自动指标来判断：*如果回答中每个连续四词片段（句首和句尾也算词）都在留出文本中出现过*，就算合格；这些留出文本没有参加过任何训练。
# 这个指标可能冤枉好句子，但很少放过坏句子。下面有两个对照：把同样的回答打乱词序，以及还没学过对话的第 4 章模型。
# 当然，这个指标只懂这一小块领域，模型也一样。

# %%
import re


def runs_of_four(text: str) -> set[tuple[str, ...]]:
    """Of the words and signs of a text, its beginning and end being words too."""
    words = ["^", *re.findall(r"\w+|[^\w\s]", text), "$"]
    return {tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))}


seen: set[tuple[str, ...]] = set()
for row in held_out:
    for message in row["messages"]:
        seen |= runs_of_four(message["content"])


def share_in_grammar(texts: list[str]) -> int:
    """How many of the texts are made of runs that stand in held-out text."""
    return sum(runs_of_four(text.strip()) <= seen for text in texts)


chosen = [row["messages"][0] for row in held_out[::10]]
questions = [message["content"] for message in random.Random(2).sample(chosen, 10)]


def answers_of(run) -> list[str]:
    """One drawn answer to each question."""
    prompts = [asked(question, sft.tokenizer) for question in questions]
    texts = hfscale.generate_texts(
        run.model,
        run.tokenizer,
        prompts,
        add_special_tokens=False,
        temperature=0.8,
        max_new_tokens=40,
        seed=1,
    )
    return [text[0] for text in texts]


answers = answers_of(chat)
for question, answer in zip(questions, answers, strict=True):
    print(f"user:      {question}\nassistant: {answer}\n")
shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in answers]
base = answers_of(hfscale.load_run(course.place("model")))
right = sum(
    any(form.format(module=name, does=does) == answer.strip() for form in ANSWERS)
    for question, answer in zip(questions, answers, strict=True)
    for name, does in FACTS.items()
    if name in question.replace(".", " ").split() or does in question
)
print(f"grammatical: {share_in_grammar(answers)} of 10, and about the right module: {right}")
print(f"controls: shuffled {share_in_grammar(shuffled)}, not taught {share_in_grammar(base)}")
short_ones = [
    sum(text.strip().startswith("The ") for text in answers_of(run)) for run in (sft, chat)
]
print(f"short answers before and after DPO: {short_ones[0]} and {short_ones[1]} of 10")
assert share_in_grammar(shuffled) <= 1
assert share_in_grammar(base) <= 1
course.ends_with(
    8,
    "grammatical answers, of 10",
    share_in_grammar(answers),
    at_least=8,
    at_most=10,
    is_learned=True,
)

# %% [markdown] lang="en"
# **What to take along.** Fine-tuning teaches form quickly and facts slowly. A preference moves what the model says among
# what it can say already; it teaches no facts. And a proxy is worth what its controls show.
#
# *Try:* swap `chosen` and `rejected`. Or ask about a module that is not in the list: it does not know that it does not
# know.

# %% [markdown] lang="zh"
# **记住这些。** 微调教形式很快，教知识很慢。偏好优化只是在模型本来就会说的话里调整倾向，并不教新知识。
# 一个自动指标值多少，要看它的对照实验。
#
# *动手试试：* 把 `chosen` 和 `rejected` 对调。或者问一个列表里没有的模块：它并不知道自己不知道。
