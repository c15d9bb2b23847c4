"""The fingerprints that a run keeps of its batches and weights."""

import json
import shutil

import numpy as np
import pytest
import torch

from hfscale.training.checkpoints import newest_checkpoint
from hfscale.training.running import run_training
from hfscale.training.traces import parameters_fingerprint, rows_sum, trace_of
from tests.tiny_runs import finished_run, tiny_trainer

IDS = torch.tensor([[5, 6, 7, 0], [8, 9, 1, 2]])
LABELS = torch.tensor([[-100, 6, 7, -100], [8, 9, 1, 2]])
BATCH = {"input_ids": IDS, "labels": LABELS}


def rows(*numbers: int) -> dict:
    return {name: column[list(numbers)] for name, column in BATCH.items()}


def test_a_step_is_the_same_however_its_rows_are_dealt_out():
    whole = rows_sum(BATCH, 3)
    assert whole == rows_sum(rows(1, 0), 3) == rows_sum(rows(0), 3) + rows_sum(rows(1), 3)
    assert whole != rows_sum(BATCH, 4)  # at another step
    assert rows_sum(rows(0, 0), 3) != rows_sum(rows(1, 1), 3)


def test_padding_does_not_count_and_all_else_does():
    padded = {
        "input_ids": torch.nn.functional.pad(IDS, (0, 2), value=3),
        "labels": torch.nn.functional.pad(LABELS, (0, 2), value=-100),
    }
    empty = {
        name: torch.full((1, 6), value) for name, value in (("input_ids", 3), ("labels", -100))
    }
    padded = {name: torch.cat([padded[name], empty[name]]) for name in padded}
    assert rows_sum(padded, 1) == rows_sum(BATCH, 1)
    for name, row, place in (("input_ids", 0, 0), ("labels", 0, 0), ("input_ids", 1, 3)):
        other = {key: column.clone() for key, column in BATCH.items()}
        other[name][row, place] += 1
        assert rows_sum(other, 1) != rows_sum(BATCH, 1)
    apart = BATCH | {"position_ids": torch.arange(4).repeat(2, 1)}
    together = BATCH | {"position_ids": torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])}
    assert rows_sum(apart, 1) != rows_sum(together, 1)


def test_pairs_of_answers_count_up_to_the_end_of_an_answer():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    pairs = {"input_ids": IDS, "completion_mask": mask}
    other = {"input_ids": IDS + torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]), "completion_mask": mask}
    assert rows_sum(pairs, 1) == rows_sum(other, 1)
    assert rows_sum(pairs, 1) != rows_sum(pairs | {"input_ids": IDS + 1}, 1)


def test_one_bit_of_a_weight_is_seen():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)).to(torch.bfloat16)
    before = parameters_fingerprint(model)
    assert before == parameters_fingerprint(model) and len(before) == 32
    with torch.no_grad():
        model[1].weight[0, 1] += 2**-7 * model[1].weight[0, 1]
    assert parameters_fingerprint(model) != before
    model[0].weight.ds_id = 0  # as ZeRO-3 marks what it holds a part of
    assert parameters_fingerprint(model) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "whole", logging_steps=3)


def batches(trainer) -> dict[int, str]:
    logs = trainer.state.log_history
    return {log["step"]: log["batches"] for log in logs if "batches" in log}


def test_every_log_has_the_batches_up_to_it(whole):
    seen = batches(whole)
    assert [*seen] == [3, 6] and len({*seen.values()}) == 2
    assert trace_of(whole).fingerprint == seen[6]
    text = json.dumps(whole.state.log_history)
    assert np.all([log["loss"] for log in json.loads(text) if "loss" in log])  # plain JSON


@pytest.mark.parametrize("is_older", [False, True])
def test_a_run_that_goes_on_keeps_them(whole, tmp_path, is_older):
    """From a checkpoint between two logs; one of an older version has none, and none are made up."""
    folder = tmp_path / "run"
    shutil.copytree(f"{whole.args.output_dir}/checkpoint-4", folder / "checkpoint-4")
    if is_older:
        (folder / "checkpoint-4" / "manifest.json").unlink()
        path = folder / "checkpoint-4" / "trainer_state.json"
        state = json.loads(path.read_text())
        del state["stateful_callbacks"]["BatchTrace"], state["log_history"][0]["batches"]
        path.write_text(json.dumps(state))
    trainer = tiny_trainer(folder, logging_steps=3)
    checkpoint = str(folder / "checkpoint-4") if is_older else newest_checkpoint(trainer.args)
    run_training(trainer, checkpoint)
    expected = {6: None} if is_older else batches(whole)
    assert batches(trainer) == expected
    assert trace_of(trainer).start == trace_of(whole).start


def test_another_order_is_seen_at_the_next_log(whole, tmp_path):
    other = finished_run(tmp_path / "run", logging_steps=3, data_seed=5)
    assert not {*batches(other).values()} & {*batches(whole).values()}
    assert trace_of(other).start == trace_of(whole).start
