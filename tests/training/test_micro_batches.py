"""`--auto_batch`: what memory does not hold goes through in parts, and the loss curve stays what it
was.
"""

import pytest
import torch
from datasets import Dataset

from hfscale.data.packing import IGNORED, collate_rows
from hfscale.data.tokenizer import train_bpe
from hfscale.new_models import new_model
from hfscale.process import InputError
from hfscale.training.micro_batches import find_pieces, split_batch
from hfscale.training.trainer import LMTrainer
from hfscale.training.training_args import training_arguments

LENGTH = 12


@pytest.fixture(scope="module")
def rows():
    """23 rows with 2 to 11 scored targets each."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(23):
        ids = torch.randint(3, 270, (LENGTH,), generator=generator).tolist()
        scored = 3 + i % 9
        made.append(
            {
                "input_ids": ids,
                "labels": ids[:scored] + [IGNORED] * (LENGTH - scored),
                "position_ids": list(range(LENGTH)),
            }
        )
    return Dataset.from_list(made)


def train(rows, folder, *, holds: int, **how):
    """Losses of 6 steps and the last weights, on a machine whose memory holds `holds` rows at a
    time.
    """
    torch.manual_seed(0)
    model = new_model(
        train_bpe(Dataset.from_dict({"text": ["some words to train on"]}), 270),
        n_layer=1,
        n_head=2,
        n_embd=32,
        n_positions=LENGTH,
    )
    largest = []

    def limited(module, args, kwargs):
        if len(kwargs["input_ids"]) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        largest.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(limited, with_kwargs=True)
    auto = how.pop("auto_batch", True)
    args = training_arguments(
        {
            "output_dir": str(folder),
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": 6,
            "learning_rate": 1.0,
            "optim": "sgd",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            **how,
        },
        width=32,
    )
    trainer = LMTrainer(
        model=model, args=args, train_dataset=rows, data_collator=collate_rows, auto_batch=auto
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return losses, model.state_dict(), max(largest)


def test_same_curve_whatever_memory_holds(rows, tmp_path, capsys):
    plain, weights, _ = train(rows, tmp_path, holds=2, auto_batch=False)
    assert len(plain) == 6 and plain[-1] < plain[0]
    for holds, expected in ((8, 8), (7, 4), (3, 2), (1, 1)):
        losses, found, largest = train(rows, tmp_path, holds=holds)
        assert (
            f"8 rows per process and step, in {8 // expected} micro-batches"
            in capsys.readouterr().err
        )
        assert largest == expected
        assert losses == pytest.approx(plain, abs=1e-5)
        assert all(torch.allclose(found[name], weights[name], atol=1e-5) for name in weights)


def test_without_it_running_out_of_memory_stays_an_error(rows, tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        train(rows, tmp_path, holds=1, auto_batch=False)


def test_a_row_that_does_not_fit(rows, tmp_path):
    with pytest.raises(InputError, match="not even one row fits"):
        train(rows, tmp_path, holds=0)


def test_other_errors_are_not_taken_for_memory():
    def broken(piece):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        find_pieces(torch.nn.Linear(2, 2), {"input_ids": torch.zeros(4, 2)}, broken)


def test_trying_leaves_no_trace():
    layer, drawn = torch.nn.Linear(2, 2), []
    before = torch.random.get_rng_state()

    def try_piece(piece):
        drawn.append(torch.rand(1).item())
        layer(piece["input_ids"]).sum().backward()

    assert find_pieces(layer, {"input_ids": torch.ones(4, 2)}, try_piece) == 1
    assert len(drawn) == 2 and layer.weight.grad is None
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("rows", "pieces", "sizes"),
    [(8, 2, [4, 4]), (7, 4, [2, 2, 2, 1]), (5, 2, [3, 2]), (2, 4, [1, 1])],
)
def test_a_batch_is_split_without_loss(rows, pieces, sizes):
    ids = torch.arange(rows * 3).view(rows, 3)
    parts = split_batch({"input_ids": ids, "labels": ids + 1, "use_cache": False}, pieces)
    assert [len(part["input_ids"]) for part in parts] == sizes  # what is tried out is the first
    assert torch.equal(torch.cat([part["labels"] for part in parts]), ids + 1)
    assert {part["use_cache"] for part in parts} == {False}
