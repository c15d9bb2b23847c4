"""What each head of a model attends to in a sentence, what it does for the loss, and one head by
hand.

hfscale attention_maps --model gpt2 --explain 5 1
hfscale attention_maps --model runs/pretrain-tiny --sentence "Return the number of items."
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfscale.arguments import LoadArguments, loading
from hfscale.config import parse_args
from hfscale.folders import (
    ATTENTION_FILES,
    ATTENTION_RECORD,
    check_output_folder,
    describe_run,
    write_atomically,
    write_json,
)
from hfscale.process import InputError, is_main_rank, run
from hfscale.shown import show_text
from hfscale.whole_folder import whole_folder

MOST_TOKENS = 32  # of the second sentence: more are no picture


@dataclass
class AttentionMapsArguments(LoadArguments):
    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"}
    )
    sentence: str = field(
        default="The quick brown fox jumps over the lazy dog", metadata={"help": "what it reads"}
    )
    held_out_sentence: bool = field(
        default=True,
        metadata={
            "help": "read the first short sentence of the run's held-out text too, where the model "
            "is a run that names its text"
        },
    )
    explain: list[int] | None = field(
        default=None,
        metadata={
            "help": "LAYER HEAD, from 0: walk softmax(Q K^T / sqrt(d_k)) V through with this "
            "head's numbers"
        },
    )
    top_k: int = field(
        default=3,
        metadata={"help": "tokens that the logit lens names per layer and position", "min": 1},
    )
    seed: int = field(
        default=0, metadata={"help": "of the random sequences for the induction score"}
    )
    output_dir: str = field(
        default="runs/attention", metadata={"help": "folder for the page, pictures and numbers"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier result in output_dir"}
    )


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(AttentionMapsArguments, argv, recipe=__file__)
    started = time.perf_counter()
    if args.explain and len(args.explain) != 2:
        raise InputError(f"--explain {args.explain}: expected two numbers, a layer and a head")
    if not is_main_rank():  # one sentence: nothing to share out
        return None
    place = {"overwrite": args.overwrite, "last_file": ATTENTION_RECORD, "written": ATTENTION_FILES}
    check_output_folder(args.output_dir, **place)

    import numpy as np
    import torch
    from peft import PeftModel

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.models import count_parameters, load_model
    from hfscale.probes import attention, attention_page
    from hfscale.probes.held_out_sentence import held_out_sentence

    # Model and sentence. Only eager attention returns its weights.
    model = load_model(args.model, dtype="float32", attn_implementation="eager", **loading(args))
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type]  # the stub takes the device for the model
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    attention.attention_layers(model)
    attention.encode_sentence(model, tokenizer, args.sentence)

    # What the heads attend to in the sentence, and what they do for its loss.
    induction = attention.induction_scores(model, tokenizer, seed=args.seed)
    reading, maps, scores = read_sentence(model, tokenizer, args.sentence, args, induction)
    arrays = {"weights": maps[:, :-1], "rollout": maps[:, -1]}
    all_maps = [maps]

    # The same of a sentence of the run's own text.
    held_out = second = why_none = None
    if args.held_out_sentence:
        second, why_none = held_out_sentence(
            args.model,
            lambda text: can_be_read(model, tokenizer, text),
            trust_remote_code=args.trust_remote_code,
        )
    if second:
        held_out, maps, _ = read_sentence(model, tokenizer, second, args, induction)
        arrays |= {"held_out_weights": maps[:, :-1], "held_out_rollout": maps[:, -1]}
        all_maps.append(maps)

    # The record.
    size = {"name": args.model, "architecture": type(model).__name__, **count_parameters(model)}
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "model": size,
        "score_names": list(scores),
        **reading,
        attention_page.SECOND: held_out,
    }

    # Numbers, pictures, the page, and the record last: a folder with it is whole.
    text = attention_page.as_text(record)
    with whole_folder(args.output_dir, **place) as folder:
        np.savez_compressed(folder / "attention.npz", **arrays)
        attention_page.draw_maps(arrays["weights"], folder / "attention_maps.png")
        attention_page.draw_scores(scores, folder / "head_scores.png")
        write_atomically(folder / "attention.txt", text)
        attention_page.write_page(folder / "attention.html", record, all_maps)
        write_json(folder / ATTENTION_RECORD, attention_page.without_values(record))
    print(text)
    if why_none:
        show_text(f"no second sentence, of the run's own text: {why_none}")
    print(f"page, pictures and numbers: {Path(args.output_dir, 'attention.html')} and beside it")
    return record


def can_be_read(model, tokenizer, sentence: str) -> bool:
    """Whether a sentence has room in the model's context and on the page."""
    from hfscale.probes.attention import encode_sentence

    try:
        return encode_sentence(model, tokenizer, sentence).shape[1] <= MOST_TOKENS
    except InputError:
        return False


def read_sentence(model, tokenizer, sentence: str, args: AttentionMapsArguments, induction):
    """What the record holds of a sentence; its maps, (layers, heads and the rollout, tokens,
    tokens); and the scores of the heads by name.
    """
    import numpy as np

    from hfscale.probes import attention, attention_page, attention_steps

    ids = attention.encode_sentence(model, tokenizer, sentence)
    explained = None
    if args.explain:
        layer, head = args.explain
        explained = attention_steps.explain_head(model, ids, layer, head, tokenizer)
    weights = attention.attention_weights(model, ids)[0]
    rollout = attention.rollout(weights)
    of_heads = attention.head_scores(weights) | {"induction": induction}
    loss, of_heads["ablation"] = attention.ablate_heads(model, ids, progress=True)
    lens = attention.logit_lens(model, ids, args.top_k)
    scores = {name: values.cpu().numpy() for name, values in of_heads.items()}
    reading = {
        "sentence": sentence,
        "tokens": [tokenizer.decode([token]) for token in ids[0].tolist()],
        "loss": loss,
        "heads": attention.head_records(scores),
        "logit_lens": attention.lens_records(lens, tokenizer),
        "explain": explained and attention_page.with_conclusion(explained),
    }
    maps = np.hstack([weights.cpu().numpy(), rollout.cpu().numpy()[:, None]])
    return reading, maps, scores


if __name__ == "__main__":
    run(main)
