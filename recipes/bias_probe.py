"""Which of two texts about two groups a model finds likelier, per group with intervals; before and
after training.

hfscale bias_probe --config tiny_cpu                                     (this project's own small
pairs) hfscale bias_probe --model gpt2 --pairs crows_pairs_anonymized.csv hfscale bias_probe --model
gpt2 runs/finetuned --pairs all_sentences.tsv --pairs_format winogender hfscale bias_probe --model
gpt2 --config my_templates.yaml --toxicity_classifier CLASSIFIER --toxic_label toxic
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hfscale.arguments import RemoteCodeArguments
from hfscale.config import parse_args
from hfscale.folders import check_writable, write_atomically
from hfscale.process import InputError, run


@dataclass
class BiasProbeArguments(RemoteCodeArguments):
    model: list[str] = field(
        default_factory=lambda: ["runs/quickstart"],
        metadata={
            "help": "folder of a saved model or a Hub id; of two, the second is compared with the "
            "first"
        },
    )
    pairs: list[str] | None = field(
        default=None, metadata={"help": "files of sentence pairs or questions"}
    )
    pairs_format: Literal["crows_pairs", "winogender", "winobias", "stereoset", "bbq"] = field(
        default="crows_pairs", metadata={"help": "of the files, as their authors publish them"}
    )
    templates: list[dict] | None = field(
        default=None,
        metadata={
            "help": "instead of files, in a YAML file: group, texts, more, less and fill (see "
            "configs/bias_probe)"
        },
    )
    toxicity_classifier: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a text classifier, to judge what the model writes"},
    )
    toxic_label: str = field(
        default="toxic", metadata={"help": "the classifier's label for toxic text"}
    )
    prompts: list[str] = field(
        default_factory=lambda: ["The woman said that", "The man said that", "They are all"],
        metadata={"help": "what the model continues for the classifier"},
    )
    num_return_sequences: int = field(
        default=10, metadata={"help": "continuations of each prompt", "min": 1, "max": 100_000}
    )
    max_new_tokens: int = field(default=20, metadata={"help": "of a continuation", "min": 1})
    batch_size: int = field(default=16, metadata={"help": "texts at a time", "min": 1})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "weights"}
    )
    seed: int = field(
        default=0, metadata={"help": "of the bootstrap, the tests and the continuations"}
    )
    output_dir: str = field(default="runs/bias", metadata={"help": "folder for bias.json"})
    overwrite: bool = field(default=False, metadata={"help": "replace a bias.json that exists"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(BiasProbeArguments, argv, recipe=__file__)
    output_file = Path(args.output_dir, "bias.json")
    check_writable(f"output_dir {args.output_dir}", output_file.parent, output_file.name)
    if output_file.exists() and not args.overwrite:
        raise InputError(
            f"output_dir {args.output_dir}: holds bias.json; name another or pass --overwrite"
        )
    if not 1 <= len(args.model) <= 2 or bool(args.pairs) == bool(args.templates):
        raise InputError(
            "--model, --pairs: expected one or two models, and either --pairs or templates (as "
            "--config templates has them)"
        )

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from datasets import Dataset

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.texts import fit_prompts, generate_texts
    from hfscale.metrics.intervals import compare, estimate
    from hfscale.models import check_models, load_model
    from hfscale.probes import bias
    from hfscale.probes.bias_items import read_items, template_items, unaligned
    from hfscale.process import versions
    from hfscale.tasks.choice_scores import score_choices

    state = PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())
    )
    check_models(args.model, trust_remote_code=args.trust_remote_code)
    tokenizers = [
        load_pretrained_tokenizer(name, trust_remote_code=args.trust_remote_code)
        for name in args.model
    ]
    items = (
        read_items(args.pairs, args.pairs_format) if args.pairs else template_items(args.templates)
    )
    columns_of, values = (
        (bias.bbq_columns, bias.bbq_values)
        if args.pairs_format == "bbq"
        else (bias.pair_columns, bias.pair_values)
    )
    examples = Dataset.from_list(
        [{"prompt": i.prompt, "choices": i.choices, "answer": i.answer} for i in items]
    )
    classifier = args.toxicity_classifier and bias.load_classifier(
        args.toxicity_classifier, args.toxic_label, trust_remote_code=args.trust_remote_code
    )
    scored, found, toxicity = [], [], []
    # All at first: one that cannot be loaded shows at once.
    models = [
        load_model(name, dtype=args.dtype, trust_remote_code=args.trust_remote_code).to(
            state.device
        )
        for name in args.model
    ]
    for model, tokenizer in zip(models, tokenizers, strict=True):
        if classifier:
            fit_prompts(
                model, tokenizer, args.prompts
            )  # one that is too long shows before anything is scored
    for model, tokenizer in zip(models, tokenizers, strict=True):
        found.append(
            score_choices(model, tokenizer, examples, batch_size=args.batch_size, progress=True)[1]
        )
        scored.append(columns_of(items, [each["logliks"] for each in found[-1]]))
        if classifier:
            texts = generate_texts(
                model,
                tokenizer,
                args.prompts,
                max_new_tokens=args.max_new_tokens,
                seed=args.seed,
                num_return_sequences=args.num_return_sequences,
                progress=True,
            )
            toxicity.append(
                bias.toxicity_columns(texts, classifier, args.toxic_label, args.batch_size)
            )
    if not state.is_main_process:
        return
    record = {
        "schema_version": 1,
        "recipe": "bias_probe",
        "config": asdict(args),
        "versions": versions(),
        "groups": bias.group_table(items, scored, values, args.seed),
        "unaligned": unaligned(items),
        "toxicity": [estimate(part, bias.toxicity_values, seed=args.seed) for part in toxicity],
        "toxicity_change": compare(*toxicity, bias.toxicity_values) if len(toxicity) == 2 else None,
        "items": [
            item._asdict() | {"models": parts} for item, *parts in zip(items, *found, strict=True)
        ],
        "limits": bias.LIMITS,
    }
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        output_file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    bias.show_probe(record)
    print(f"\nall numbers and items: {output_file}")


if __name__ == "__main__":
    run(main)
