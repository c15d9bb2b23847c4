"""Which of two texts about two groups a model finds likelier, per group with intervals; before and
after training.

This project's own small pairs, and those of others:
hfscale bias_probe --config tiny_cpu
hfscale bias_probe --model gpt2 --pairs crows_pairs_anonymized.csv
hfscale bias_probe --model gpt2 runs/finetuned --pairs all_sentences.tsv --pairs_format winogender
hfscale bias_probe --model gpt2 --config my_templates.yaml --toxicity_classifier CLASSIFIER
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from hfscale.arguments import LoadArguments, loading
from hfscale.config import parse_args
from hfscale.folders import check_output_file, describe_run, write_json
from hfscale.process import InputError, run


@dataclass
class BiasProbeArguments(LoadArguments):
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


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(BiasProbeArguments, argv, recipe=__file__)
    started = time.perf_counter()
    output_file = check_output_file(args.output_dir, "bias.json", overwrite=args.overwrite)
    check_args(args)

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from datasets import Dataset

    from hfscale.data.tokenizer import load_pretrained_tokenizer
    from hfscale.generation.texts import fit_prompts, generate_texts
    from hfscale.models import check_models, load_model
    from hfscale.probes import bias
    from hfscale.probes.bias_items import as_examples, read_items, template_items, unaligned
    from hfscale.tasks.choice_scores import score_choices

    # Items: pairs or questions, and what is computed from their scores.
    if args.pairs:
        items = read_items(args.pairs, args.pairs_format)
    else:
        items = template_items(args.templates)
    examples = Dataset.from_list(as_examples(items))
    columns_of, values = bias.pair_columns, bias.pair_values
    if args.pairs_format == "bbq":
        columns_of, values = bias.bbq_columns, bias.bbq_values

    # Models, all at first: one that cannot be loaded shows before anything is scored, as does a
    # prompt that is too long.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu)
    check_models(args.model, trust_remote_code=args.trust_remote_code)
    classifier = None
    if args.toxicity_classifier:
        classifier = bias.load_classifier(
            args.toxicity_classifier, args.toxic_label, trust_remote_code=args.trust_remote_code
        )
    models = []
    for name in args.model:
        tokenizer = load_pretrained_tokenizer(name, trust_remote_code=args.trust_remote_code)
        model = load_model(name, dtype=args.dtype, **loading(args))
        if classifier:
            fit_prompts(model, tokenizer, args.prompts)
        models.append((model.to(state.device), tokenizer))

    # Which text each model finds likelier, and how toxic what it writes is.
    answers, scored, toxicity = [], [], []
    for model, tokenizer in models:
        _, records = score_choices(
            model, tokenizer, examples, batch_size=args.batch_size, progress=True
        )
        answers.append(records)
        scored.append(columns_of(items, [record["logliks"] for record in records]))
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
        return None

    # The record.
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "groups": bias.group_table(items, scored, values, args.seed),
        "unaligned": unaligned(items),
        **bias.toxicity_records(toxicity, args.seed),
        "items": bias.item_records(items, answers),
        "limits": bias.LIMITS,
    }
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(output_file, record)
    bias.show_probe(record)
    print(f"\nall numbers and items: {output_file}")
    return record


def check_args(args: BiasProbeArguments) -> None:
    """Refuse what has nothing to compare."""
    if not 1 <= len(args.model) <= 2:
        raise InputError(f"--model: got {len(args.model)}, expected one or two models")
    if bool(args.pairs) == bool(args.templates):
        raise InputError(
            "--pairs: expected either --pairs or templates (as --config templates has them)"
        )


if __name__ == "__main__":
    run(main)
