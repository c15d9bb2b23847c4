"""A longer context: what of a configuration changes, what is refused, and the whole recipe."""

import json
import math

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.training.context import check_reaches, longer_context
from recipes import finetune
from tests.tiny_runs import DOCUMENTS, tiny_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tiny_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("rope_scaling", "scaled"),
    [
        ("default", {}),
        ("linear", {"factor": 4.0}),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 8}),
    ],
)
def test_the_rotations_are_those_of_the_scaling(llama, rope_scaling, scaled):
    config = longer_context(llama, 32, rope_scaling)
    expected = {"rope_theta": 10000.0, "rope_type": rope_scaling} | scaled
    assert config.rope_parameters == expected and config.max_position_embeddings == 32
    frequencies = load_model(llama, config=config).model.rotary_emb.inv_freq
    plain = load_model(llama).model.rotary_emb.inv_freq
    slowed = (frequencies / plain).tolist()
    if rope_scaling == "yarn":  # of slow rotations, as far as this width has any
        assert slowed[0] == 1 and slowed == sorted(slowed, reverse=True)
        assert slowed[-1] == pytest.approx(0.25)
    else:
        assert slowed == pytest.approx([1 / scaled.get("factor", 1)] * len(slowed))


def test_what_cannot_be_stretched_is_one_line(llama, tmp_path):
    with pytest.raises(InputError, match="max_position_embeddings 8: model .* reads 8 tokens alr"):
        longer_context(llama, 8, "yarn")
    config = longer_context(llama, 32, "linear")
    config.save_pretrained(tmp_path / "scaled")
    with pytest.raises(InputError, match=r"scaled already \(linear\)"):
        longer_context(str(tmp_path / "scaled"), 64, "yarn")
    GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=8, vocab_size=9)
    ).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"\(gpt2\) has no rotary positions"):
        longer_context(str(tmp_path / "gpt2"), 64, "yarn")


def test_rows_have_to_reach_beyond_the_old_context(llama):
    long = Dataset.from_dict({"position_ids": [[0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]]})
    short = Dataset.from_dict({"position_ids": [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]]})
    alone = Dataset.from_dict({"input_ids": [[5] * 3, [5] * 9]})
    check_reaches({"train": long, "validation": alone}, llama)
    with pytest.raises(InputError, match="no validation document is longer than 8 tokens"):
        check_reaches({"train": long, "validation": short}, llama)


def test_a_run_shows_the_perplexity_along_the_context(llama, tmp_path, capsys):
    source = tmp_path / "text.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS["text"]))
    output_dir = tmp_path / "run"
    command = f"--model {llama} --source {source} --output_dir {output_dir} --max_steps 2"
    command += " --max_position_embeddings 32 --report_to none --use_cpu true --bf16 false"
    finetune.main(command.split())
    assert "perplexity before" in capsys.readouterr().out
    found = json.loads((output_dir / "perplexity_by_position.json").read_text())
    assert found["context"] == 8
    firsts = [one["first_position"] for one in found["before"]]
    assert firsts[:5] == [1, 2, 4, 6, 8] and firsts == [
        one["first_position"] for one in found["after"]
    ]
    record = json.loads((output_dir / "run.json").read_text())
    tokens = sum(one["tokens"] for one in found["after"])
    nll = sum(one["tokens"] * math.log(one["perplexity"]) for one in found["after"])
    assert tokens == record["metrics"]["eval_tokens"]
    assert nll / tokens == pytest.approx(record["metrics"]["eval_loss"], rel=1e-4)
    assert (output_dir / "perplexity_by_position.png").stat().st_size > 1000
    saved = AutoConfig.from_pretrained(output_dir)
    assert saved.rope_parameters["rope_type"] == "yarn" and saved.max_position_embeddings == 32
    with pytest.raises(InputError, match="an adapter keeps no configuration"):
        finetune.main([*command.split(), "--overwrite", "--lora_r", "2"])
