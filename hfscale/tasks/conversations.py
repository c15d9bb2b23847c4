"""Conversations of any form -> turns of role and content, as chat templates read them."""

from typing import Any, TypeAlias

from hfscale.arguments import TaskArguments
from hfscale.process import InputError

# Names of the column that lists the turns, and of what a turn holds, as public data sets have them.
CONVERSATIONS = ("messages", "conversations", "turns")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text", "utterance")
ALIASES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant"}
IN_TURN = ("user", "assistant")

Message: TypeAlias = dict[str, str]  # role and content


def read_messages(place: str, row: dict[str, Any], args: TaskArguments) -> list[Message]:
    """The turns of a conversation: perhaps a system's first, then user and assistant in turn.

    Roles are `args.user_role` and `args.assistant_role` in any case, or usual names for them; of
    two names of which one is known the other is the other. Turns without names are the user's and
    the assistant's in turn.

    No turns come back where one is empty and `args.drop_empty` allows that.

    Raises InputError: no such column, a turn without role or text, roles that are unknown or out of
    order.
    """
    name = next((name for name in CONVERSATIONS if name in row), None)
    if name is None:
        raise InputError(f"{place}: no column {', '.join(CONVERSATIONS)}; it has {', '.join(row)}")
    if not isinstance(row[name], list):
        raise InputError(
            f"{place}: column '{name}' holds {str(row[name])[:60]!r}; expected a list of turns"
        )
    turns = [_read_turn(place, i, turn) for i, turn in enumerate(row[name])]
    for number, (_, content) in enumerate(turns):
        if content.strip():
            continue
        if args.drop_empty:
            return []
        shown = str(row[name][number])[:60]
        raise InputError(
            f"{place}: turn {number} is {shown!r}; expected a role and a text that is not empty "
            "(--drop_empty leaves such conversations out)"
        )
    roles = _known_roles([role for role, _ in turns], args)
    messages = [{"role": roles[role], "content": content} for role, content in turns]
    _check_roles(place, [message["role"] for message in messages])
    return messages


def opening_text(turns: Any) -> str:
    """What is said in the first two turns after a system's; nothing: this is no conversation."""
    if not isinstance(turns, list):
        return ""
    try:
        first_turns = [_read_turn("", i, turn) for i, turn in enumerate(turns[:3])]
    except InputError:
        return ""
    has_system = bool(first_turns) and first_turns[0][0] == "system"
    opening = first_turns[1:] if has_system else first_turns[:2]
    return "\n".join(content for _, content in opening)


def _read_turn(place: str, number: int, turn: Any) -> tuple[str, str]:
    """Role, in lower case, and content of a turn: named values, a pair, or a text alone."""
    role: Any = None
    content: Any = None
    if isinstance(turn, dict):
        role = next((turn[key] for key in ROLE_KEYS if key in turn), None)
        content = next((turn[key] for key in CONTENT_KEYS if key in turn), None)
    elif isinstance(turn, list) and len(turn) == 2:
        role, content = turn
    elif isinstance(turn, str):
        role = IN_TURN[number % 2]
        content = turn
    if isinstance(content, list):
        content = _join_pieces(content)
    if role is None or not isinstance(content, str):
        raise InputError(
            f"{place}: turn {number} is {str(turn)[:60]!r}; expected a role and a text"
        )
    return str(role).strip().lower(), content


def _join_pieces(pieces: list[Any]) -> str | None:
    """A content of several pieces, as some files have it, if all are text."""
    texts = []
    for piece in pieces:
        text = piece.get("text") if isinstance(piece, dict) else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _known_roles(names: list[str], args: TaskArguments) -> dict[str, str]:
    """What each name of a conversation means; a name that nothing is known of means itself."""
    known_names = ALIASES | {
        args.user_role.strip().lower(): "user",
        args.assistant_role.strip().lower(): "assistant",
    }
    meanings = {name: known_names.get(name, name) for name in names}
    unknown = [name for name, role in meanings.items() if role not in (*IN_TURN, "system")]
    missing = [role for role in IN_TURN if role not in meanings.values()]
    if len(unknown) == len(missing) == 1:
        meanings[unknown[0]] = missing[0]
    return meanings


def _check_roles(place: str, roles: list[str]) -> None:
    talking = roles[1:] if roles[:1] == ["system"] else roles
    in_turn = all(role == IN_TURN[i % 2] for i, role in enumerate(talking))
    if not roles or not in_turn:
        raise InputError(
            f"{place}: the roles are {', '.join(roles) or 'none'}; expected system or nothing, "
            "then user and assistant in turn (--user_role and --assistant_role name them)"
        )
