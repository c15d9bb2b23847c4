"""The prompt of a task travels with its model: written once, read back, and filled with what a user
types.
"""

import pytest

from hfscale.generation.task_prompt import TaskPrompt, load_task_prompt, save_task_prompt
from hfscale.process import InputError


def saved(
    folder, prompt: str | None, columns: list[str], stop_strings: list[str] | None = None
) -> TaskPrompt:
    save_task_prompt(
        folder, prompt=prompt, columns=columns, stop_strings=stop_strings, max_new_tokens=7
    )
    return load_task_prompt(str(folder))


def test_comes_back_as_it_was_written(tmp_path):
    task = saved(tmp_path, "{en}\n", ["en"], ["\n", "ö"])
    assert task == TaskPrompt("{en}\n", ["en"], ["\n", "ö"], 7)
    (tmp_path / "checkpoint-5").mkdir()
    assert load_task_prompt(str(tmp_path / "checkpoint-5")) == task
    (tmp_path / "other").mkdir()
    assert load_task_prompt(str(tmp_path / "other")) is None
    assert load_task_prompt("no/such/folder") is None


def test_what_is_typed_fills_the_only_column(tmp_path):
    task = saved(tmp_path, "Say {en} {like this}\n", ["en"])
    assert task.fill("Friday") == "Say Friday {like this}\n"
    assert task.fill('{"en": "Friday"}') == "Say Friday {like this}\n"
    assert task.fill("Say Friday {like this}\n") == "Say Friday {like this}\n"  # it was written out


def test_several_columns_are_a_json_object(tmp_path):
    task = saved(tmp_path, "{q.text}\n{context}\nAnswer:\n", ["q.text", "context"])
    expected = "Who?\nA b.\nAnswer:\n"
    for text in (
        '{"q.text": "Who?", "context": ["A", "b."]}',
        '{"q": {"text": "Who?"}, "context": "A b."}',
        expected,
    ):
        assert task.fill(text) == expected
    with pytest.raises(
        InputError, match=r'\'Who\?\'.*{"q.text": "...", "context": "..."}; give a JSON object'
    ):
        task.fill("Who?")
    with pytest.raises(InputError, match="has no 'context', only q"):
        task.fill('{"q": {"text": "Who?"}}')
    with pytest.raises(InputError, match="'context' holds named values"):
        task.fill('{"q.text": "x", "context": {"a": 1}}')


def test_without_a_template_text_stays_as_it_is(tmp_path):
    assert saved(tmp_path, None, []).fill("Hello") == "Hello"
    assert saved(tmp_path, "{en}", ["en"]).fill("x\n") == "x\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"prompt": "x", "columns": "x", "stop_strings": [], "max_new_tokens": 3}',
        '{"prompt": 1}',
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(InputError, match="task.json: its .* is not what finetune_task writes"):
        load_task_prompt(str(tmp_path))
