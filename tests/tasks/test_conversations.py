"""Conversations of any form and with any two names for who speaks; what the user says last has no
answer.
"""

import json

import pytest

from hfscale.arguments import TaskArguments
from hfscale.process import InputError
from hfscale.tasks.conversations import opening_text, read_messages
from hfscale.tasks.examples import load_task

IN_TURN = ["user", "assistant", "user", "assistant"]


def talk(*roles: str, key: str = "role", text: str = "content") -> dict:
    return {"messages": [{key: role, text: f"t{i}"} for i, role in enumerate(roles)]}


def read(row: dict, **settings) -> list[str]:
    messages = read_messages("a.jsonl:1", row, TaskArguments(**settings))
    assert [message["content"] for message in messages] == [f"t{i}" for i in range(len(messages))]
    return [message["role"] for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        talk(*IN_TURN),
        talk("USER", "Assistant", " user ", "ASSISTANT"),
        talk("human", "gpt", "human", "gpt", key="from", text="value"),
        talk("prompter", "assistant", "prompter", "assistant"),
        talk("user", "helper", "user", "helper"),  # of two names one is known
        talk("guest", "gpt", "guest", "gpt", key="speaker", text="utterance"),
        {"turns": [["USER", "t0"], ["ASSISTANT", "t1"], ["USER", "t2"], ["ASSISTANT", "t3"]]},
        {"turns": ["t0", "t1", "t2", "t3"]},
        {
            "conversations": [
                {"from": "human", "value": f"t{i}"} if i % 2 == 0 else ["gpt", f"t{i}"]
                for i in range(4)
            ]
        },
        {
            "messages": [
                {
                    "role": role,
                    "content": [{"type": "text", "text": "t"}, {"type": "text", "text": f"{i}"}],
                }
                for i, role in enumerate(IN_TURN)
            ]
        },
    ],
)
def test_usual_forms_and_names(row):
    assert read(row) == IN_TURN


@pytest.mark.parametrize(
    ("first", "second", "settings"),
    [
        ("customer", "agent", {"user_role": "customer", "assistant_role": "agent"}),
        ("customer", "agent", {"user_role": "Customer"}),
        ("customer", "agent", {"assistant_role": "AGENT"}),
        ("Speaker 1", "Speaker 2", {"user_role": "speaker 1", "assistant_role": "speaker 2"}),
        ("USER", "SYSTEM", {"assistant_role": "SYSTEM"}),
        (
            "gpt",
            "human",
            {"user_role": "gpt", "assistant_role": "human"},
        ),  # what is said goes before what is usual
        ("利用者", "助手", {"user_role": "利用者", "assistant_role": "助手"}),
    ],
)
def test_roles_of_any_two_names(first, second, settings):
    assert read(talk(first, second, first, second), **settings) == IN_TURN


def test_a_system_turn_may_come_first():
    assert read(talk("system", "user", "assistant")) == ["system", "user", "assistant"]
    assert read(talk("system", "customer", "agent"), user_role="customer") == [
        "system",
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            talk("customer", "agent"),
            {},
            "the roles are customer, agent; .*--user_role and --assistant_role",
        ),
        (talk("user", "assistant", "tool"), {}, "the roles are user, assistant, tool"),
        (talk("assistant", "user"), {}, "the roles are assistant, user"),
        (talk("user", "assistant", "assistant"), {}, "the roles are user, assistant, assistant"),
        (talk("user", "system", "user"), {}, "the roles are user, system, user"),
        ({"messages": []}, {}, "the roles are none"),
        ({"messages": None}, {}, "column 'messages' holds 'None'; expected a list of turns"),
        ({"messages": "hello"}, {}, "column 'messages' holds 'hello'; expected a list of turns"),
        ({"messages": [{"role": "user"}]}, {}, "turn 0 is .*; expected a role and a text"),
        ({"messages": [{"content": "x"}]}, {}, "turn 0 is .*; expected a role and a text"),
        ({"messages": [["user", "x", "y"]]}, {}, "turn 0 is .*; expected a role and a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            {},
            "turn 0 is .*; expected a role and",
        ),
        ({"messages": [3]}, {}, "turn 0 is '3'; expected a role and a text"),
        (
            talk("user", "assistant") | {"messages": [["user", "x"], ["gpt", " "]]},
            {},
            r"turn 1 is .*; expected a role and a text that is not empty \(--drop_empty leaves "
            r"such conversations out",
        ),
        ({"text": "x"}, {}, "no column messages, conversations, turns; it has text"),
    ],
)
def test_what_is_no_conversation_is_named_with_its_place(row, settings, message):
    with pytest.raises(InputError, match=rf"^a.jsonl:1: {message}[^\n]*$"):
        read_messages("a.jsonl:1", row, TaskArguments(**settings))


def test_the_users_last_turn_is_left_out_and_counted(tmp_path):
    rows = [
        talk(*IN_TURN),
        talk(*IN_TURN, "user"),
        talk("user"),
        talk("system", "user"),
        talk("user", "assistant"),
        {"messages": [["user", "x"], ["gpt", " "]]},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    counts = {}
    args = TaskArguments(
        task_source=[str(path)],
        task_validation_source=[str(path)],
        task_format="chat",
        drop_empty=True,
    )
    parts = load_task(args, seed=0, counts=counts)
    assert {
        name: counts["train"][name] for name in ("read", "lost_turn", "unanswered", "empty")
    } == {"read": 6, "lost_turn": 1, "unanswered": 2, "empty": 1}
    assert sorted(len(row["messages"]) for row in parts["train"]) == [2, 4, 4]
    assert all(
        row["messages"][-1] == {"role": "assistant", "content": row["target"]}
        for row in parts["train"]
    )


def test_how_a_conversation_begins():
    assert opening_text(talk("system", "user", "assistant", "user")["messages"]) == "t1\nt2"
    assert opening_text(talk(*IN_TURN)["messages"]) == "t0\nt1"
    assert opening_text("hello") == opening_text([3]) == opening_text([]) == ""
