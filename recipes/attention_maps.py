"""What each head of a GPT-2-style model attends to in a sentence, what it does for the loss, and
one head by hand.

hfscale attention_maps --model gpt2 --explain 5 1 hfscale attention_maps --model runs/pretrain-tiny
--sentence "Return the number of items." --output_dir runs/maps
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hfscale.arguments import RemoteCodeArguments
from hfscale.config import parse_args
from hfscale.folders import ATTENTION_FILES, ATTENTION_RECORD, whole_folder, write_atomically
from hfscale.process import InputError, is_main_rank, run


@dataclass
class AttentionMapsArguments(RemoteCodeArguments):
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
        default=3, metadata={"help": "tokens that the logit lens names per layer and position"}
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(AttentionMapsArguments, argv, recipe=__file__)
    if args.explain and len(args.explain) != 2 or args.top_k < 1:
        raise InputError(
            f"--explain {args.explain}, --top_k {args.top_k}: expected two numbers, and at least 1"
        )
    if is_main_rank():  # one sentence: nothing to share out
        with whole_folder(
            args.output_dir,
            overwrite=args.overwrite,
            last_file=ATTENTION_RECORD,
            written=ATTENTION_FILES,
        ) as folder:
            text = write_maps(args, folder)
        print(
            f"{text}\npage, pictures and numbers: {Path(args.output_dir, 'attention.html')} and "
            "beside it"
        )


def write_maps(args: AttentionMapsArguments, folder: Path) -> str:
    import numpy as np
    import torch

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.models import count_parameters, load_model
    from hfscale.probes import attention, attention_page
    from hfscale.process import versions

    model = load_model(
        args.model,
        dtype="float32",
        attn_implementation="eager",
        trust_remote_code=args.trust_remote_code,
    )
    model = getattr(model, "merge_and_unload", lambda: model)()  # an adapter's
    model.to(torch.accelerator.current_accelerator() or "cpu")
    tokenizer = load_pretrained_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    attention.attention_layers(model)
    ids = attention.encode_sentence(model, tokenizer, args.sentence)
    explained = attention.explain_head(model, ids, *args.explain) if args.explain else None
    weights = attention.attention_weights(model, ids)[0]
    rollout = attention.rollout(weights)
    loss, ablation = attention.ablate_heads(model, ids, progress=True)
    induction = attention.induction_scores(model, tokenizer, seed=args.seed)
    scores = attention.head_scores(weights) | {"induction": induction, "ablation": ablation}
    scores = {name: values.cpu().numpy() for name, values in scores.items()}
    lens = {
        name: values.tolist()
        for name, values in attention.logit_lens(model, ids, args.top_k).items()
    }
    tokens = [tokenizer.decode([token]) for token in ids[0].tolist()]

    heads = [
        {"layer": layer, "head": head}
        | {name: float(values[layer, head]) for name, values in scores.items()}
        for layer, head in np.ndindex(*weights.shape[:2])
    ]
    layers = [
        {
            "loss": value,
            "top": [
                [[tokenizer.decode([token]), p] for token, p in zip(*pair, strict=True)]
                for pair in zip(*top, strict=True)
            ],
        }
        for value, *top in zip(
            lens["loss"], lens["top_ids"], lens["top_probabilities"], strict=True
        )
    ]
    record = {
        "schema_version": 1,
        "recipe": "attention_maps",
        "config": asdict(args),
        "versions": versions(),
        "model": {
            "name": args.model,
            "architecture": type(model).__name__,
            **count_parameters(model),
        },
        "sentence": args.sentence,
        "tokens": tokens,
        "loss": loss,
        "score_names": list(scores),
        "heads": heads,
        "logit_lens": layers,
        "explain": explained and explained | {"conclusion": attention_page.conclusion(explained)},
    }
    weights, rollout = weights.cpu().numpy(), rollout.cpu().numpy()
    np.savez_compressed(folder / "attention.npz", weights=weights, rollout=rollout)
    attention_page.draw_maps(weights, folder / "attention_maps.png")
    attention_page.draw_scores(scores, folder / "head_scores.png")
    text = attention_page.as_text(record)
    write_atomically(folder / "attention.txt", text)
    attention_page.write_page(
        folder / "attention.html", record, np.hstack([weights, rollout[:, None]])
    )
    for step in explained["steps"] if explained else []:
        step["values"] = None  # they are on the page
    write_atomically(
        folder / ATTENTION_RECORD,
        json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    return text


if __name__ == "__main__":
    run(main)
