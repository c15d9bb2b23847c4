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
from hfscale.whole_folder import whole_folder


@dataclass
class AttentionMapsArguments(LoadArguments):
    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"}
    )
    sentence: str = field(
        default="The quick brown fox jumps over the lazy dog", metadata={"help": "what it reads"}
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
    from hfscale.probes import attention, attention_page, attention_steps

    # Model and sentence. Only eager attention returns its weights.
    model = load_model(args.model, dtype="float32", attn_implementation="eager", **loading(args))
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type]  # the stub takes the device for the model
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    attention.attention_layers(model)
    ids = attention.encode_sentence(model, tokenizer, args.sentence)

    # What the heads attend to, and what they do for the loss.
    explained = None
    if args.explain:
        layer, head = args.explain
        explained = attention_steps.explain_head(model, ids, layer, head, tokenizer)
    weights = attention.attention_weights(model, ids)[0]
    rollout = attention.rollout(weights)
    scores = attention.head_scores(weights)
    scores["induction"] = attention.induction_scores(model, tokenizer, seed=args.seed)
    loss, scores["ablation"] = attention.ablate_heads(model, ids, progress=True)
    lens = attention.logit_lens(model, ids, args.top_k)

    # The record.
    arrays = {name: values.cpu().numpy() for name, values in scores.items()}
    size = {"name": args.model, "architecture": type(model).__name__, **count_parameters(model)}
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "model": size,
        "sentence": args.sentence,
        "tokens": [tokenizer.decode([token]) for token in ids[0].tolist()],
        "loss": loss,
        "score_names": list(arrays),
        "heads": attention.head_records(arrays),
        "logit_lens": attention.lens_records(lens, tokenizer),
        "explain": explained and attention_page.with_conclusion(explained),
    }

    # Numbers, pictures, the page, and the record last: a folder with it is whole.
    maps = weights.cpu().numpy()
    rollout_maps = rollout.cpu().numpy()
    all_maps = np.hstack([maps, rollout_maps[:, None]])
    text = attention_page.as_text(record)
    with whole_folder(args.output_dir, **place) as folder:
        np.savez_compressed(folder / "attention.npz", weights=maps, rollout=rollout_maps)
        attention_page.draw_maps(maps, folder / "attention_maps.png")
        attention_page.draw_scores(arrays, folder / "head_scores.png")
        write_atomically(folder / "attention.txt", text)
        attention_page.write_page(folder / "attention.html", record, all_maps)
        write_json(folder / ATTENTION_RECORD, attention_page.without_values(record))
    print(text)
    print(f"page, pictures and numbers: {Path(args.output_dir, 'attention.html')} and beside it")
    return record


if __name__ == "__main__":
    run(main)
