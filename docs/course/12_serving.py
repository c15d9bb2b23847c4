# %% [markdown] lang="en"
# # 12. Serve and export
#
# **Question: the model is finished. How do others use it, and how do you know that it is still the same model?**
#
# Two ways out: a server that speaks the protocol of OpenAI's API, and a file for other programs (here GGUF, which
# llama.cpp and Ollama read). Both are compared with the original.

# %% [markdown] lang="zh"
# # 12. 部署与导出
#
# **本章的问题：模型训练好了，别人怎么用？你又怎么知道，他们用到的还是同一个模型？**
#
# 有两条路：一是起一个服务，接口与 OpenAI 的 API 兼容；二是导出成文件给别的程序用（这里是 llama.cpp 和 Ollama 能读的 GGUF）。
# 两条路都要和原模型对照。

# %%
# Nothing is installed, and no network is wanted, where hfscale and its extras serve and export are there already.
import importlib.util

wanted = ["hfscale", "starlette", "uvicorn", "gguf"]
missing = [name for name in wanted if importlib.util.find_spec(name) is None]
if missing:
    print("missing:", *missing)
    # %pip install -q "hfscale[serve,export]"

# %% [markdown] lang="en"
# The server is a process of its own; `--port 0` takes any free port, which its first line names. Any client of the API
# works; here the standard library's is enough.

# %% [markdown] lang="zh"
# 服务是一个独立的进程；`--port 0` 表示随便选一个空闲端口，启动后打印的第一行会告诉你是哪个。
# 任何兼容该 API 的客户端都能用，这里用标准库就够了。

# %%
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import hfscale
from hfscale import course

course.needs(chat=8)
folder = course.place("chat")
server = subprocess.Popen(
    [sys.executable, "-m", "hfscale.cli", "serve", "--model", folder, "--port", "0"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
)
url = None
lines = []
for line in server.stdout:
    lines.append(line)
    found = re.search(r"on (http://\S+)/v1", line)
    if found:
        url = found[1]
        break
assert url, "".join(lines[-5:])  # what is missing stands in the last line
print(lines[-1])
for _ in range(100):  # it says where it will listen a moment before it does
    try:
        urllib.request.urlopen(f"{url}/v1/models", timeout=10).close()
        break
    except urllib.error.URLError:
        time.sleep(0.1)


def ask(question: str) -> str:
    """The server's likeliest answer."""
    body = {
        "model": folder,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 40,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["message"]["content"]


QUESTIONS = [
    "What does the json module do?",
    "Which module draws random numbers?",
    "Tell me about socket.",
    "I look for a module that compares two texts.",
    "What is glob good for?",
    "Is there something in Python that runs threads side by side?",
    "What does the math module do?",
    "Which module compresses files?",
    "Tell me about calendar.",
    "What is timeit good for?",
]
try:
    served = [ask(question) for question in QUESTIONS]
finally:
    server.terminate()
    server.communicate(timeout=60)
for question, answer in zip(QUESTIONS, served, strict=True):
    print(f"user:      {question}\nassistant: {answer}\n")

# %% [markdown] lang="en"
# The same ten questions without a server. Texts that are asked for together go on in one batch there, so that this is
# not a matter of course.

# %% [markdown] lang="zh"
# 同样十个问题，不经过服务，直接问模型。服务端会把同时到来的请求并成一批，所以结果一致并非理所当然。

# %%
chat = hfscale.load_run(folder)
prompts = [
    chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    for question in QUESTIONS
]
local = hfscale.generate_texts(
    chat.model,
    chat.tokenizer,
    prompts,
    add_special_tokens=False,
    do_sample=False,
    max_new_tokens=40,
)
equal = sum(texts[0] == answer for texts, answer in zip(local, served, strict=True))

# %% [markdown] lang="en"
# The export. The recipe reads its own file back and compares tokens, logits, perplexity and continuations; another model
# is not kept.

# %% [markdown] lang="zh"
# 最后是导出。配方会把自己写的文件重新读回来，对比词元、logit、困惑度和续写结果；只要不是同一个模型，就不会留下文件。

# %%
certificate = hfscale.export(
    model=folder,
    to="gguf",
    documents=20,
    scored_documents=5,
    output_dir=course.place("chat-gguf"),
    overwrite=True,
)
course.ends_with(
    12, "served answers that equal the model's own, of 10", equal, at_least=10, at_most=10
)

# %% [markdown] lang="en"
# **What to take along.** From text to a served model in an afternoon. Each chapter's step is a recipe with a
# page of its own in the documentation, and the same commands train larger models on GPUs: only the config changes.
#
# *Try:* `hfscale serve --model runs/course/chat` in a terminal, and open the page that it names.

# %% [markdown] lang="zh"
# **记住这些。** 一个下午，从原始文本走到一个可以对外服务的模型。
# 每一章的步骤都对应一个配方，文档里有专门的页面；同样的命令换一份配置，就能在 GPU 上训练更大的模型。
#
# *动手试试：* 在终端里运行 `hfscale serve --model runs/course/chat`，打开它提示的网页聊一聊。
