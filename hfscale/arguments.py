"""The arguments that recipes share: what is asked of text, tasks, models, adapters and runs."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hfscale.architectures import ARCHITECTURES
from hfscale.process import InputError


@dataclass
class RemoteCodeArguments:
    """Whether Python files that lie beside a model or tokenizer may run."""

    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "run the Python code that a model's or tokenizer's folder or Hub id brings "
            "along"
        },
    )


@dataclass
class LoadArguments(RemoteCodeArguments):
    """How a model's folder is trusted."""

    verify_digests: bool = field(
        default=False,
        metadata={
            "help": "before a model is loaded, compare the content of its weights with its "
            "manifest.json, which takes as long as to read them; sizes and small files are always "
            "compared"
        },
    )


def loading(args: LoadArguments) -> dict[str, bool]:
    """What `load_model` is told about trust."""
    return {item.name: getattr(args, item.name) for item in fields(LoadArguments)}


@dataclass
class SourceArguments:
    """Where text comes from."""

    source: list[str] = field(
        default_factory=lambda: ["embedded:python-docs"],
        metadata={
            "help": "embedded:python-docs, -prose or -code, a file, folder, glob, saved data set, "
            "Hub id, or my_file.py:function, a generator of documents"
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "configuration of a Hub data set"}
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text"})
    sample_by: Literal["document", "paragraph", "line"] = field(
        default="document", metadata={"help": "what one document of a .txt or .md file is"}
    )
    on_error: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "a row of .jsonl, .json, .csv or .tsv, or a document of a text file, that "
            "cannot be read: stop, or leave it out and count"
        },
    )


@dataclass
class SplitArguments(SourceArguments):
    """Where text comes from and what of it is held out."""

    split_by: Literal["document", "position"] = field(
        default="document",
        metadata={
            "help": "validation part: documents drawn at random, or the last part of the text"
        },
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "share of documents, or of characters"}
    )
    validation_source: list[str] | None = field(
        default=None, metadata={"help": "validation text of its own"}
    )


@dataclass
class DataArguments(SplitArguments, RemoteCodeArguments):
    """Where text comes from and how it becomes rows."""

    tokenizer: str = field(
        default="train:8192",
        metadata={"help": "train:<vocab size>, char, a folder or a Hub id"},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "tokens per row; default: the model's context", "min": 2}
    )
    cross_document_attention: bool = field(
        default=False,
        metadata={"help": "plain concatenation: let packed documents attend to each other"},
    )
    packing: Literal["wrapped", "bfd_split", "none"] | None = field(
        default=None,
        metadata={
            "help": "wrapped: cut one stream into rows; bfd_split: keep documents whole where they "
            "fit and leave some space unused; none: each document a row of its own, padded; "
            "default: wrapped, or none for a model that lets packed documents see each other",
            "renamed": {"stream": "wrapped", "best_fit": "bfd_split"},
        },
    )
    repack_each_epoch: bool = field(
        default=False,
        metadata={
            "help": "each epoch packs the documents anew, in another order (packing wrapped)"
        },
    )
    num_proc: int | None = field(
        default=None,
        metadata={
            "help": "processes that tokenize and pack (not of a stream); the rows are the same "
            "for any number",
            "min": 1,
        },
    )


@dataclass
class StreamArguments(DataArguments):
    """How training rows are drawn: from a stream, or from several sources in given shares."""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "read, tokenize and pack while training (needs max_steps); validation text is "
            "drawn by a hash of each document, and its first 2 million characters are scored"
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "of a stream: rows in memory from which the next is drawn (0: rows come in "
            "order)",
            "min": 0,
            "max": 100_000_000,
        },
    )
    source_weights: list[float] | None = field(
        default=None,
        metadata={"help": "share of training rows from each source, in the order of --source"},
    )
    source_temperature: float | None = field(
        default=None,
        metadata={
            "help": "shares proportional to size^(1/temperature): 1 as the sizes are, larger "
            "nearer to equal",
            "min": 1e-6,
        },
    )


@dataclass
class WordArguments:
    """Which models are kept while a text is read."""

    save_words: list[str] | None = field(
        default=None,
        metadata={
            "help": "keep the model after so many words of training text, such as 1M 2M 10M, in "
            "folders chck_1M, ... of output_dir, as BabyLM asks for"
        },
    )


@dataclass
class TaskArguments:
    """A task is data: its examples, how one is asked and answered, and how answers are judged."""

    task_source: list[str] | None = field(
        default=None,
        metadata={
            "help": "examples: embedded:<task>, files (.jsonl, .json, .csv, .tsv, .parquet, .txt, "
            "also .gz), or a Hub id"
        },
    )
    task_validation_source: list[str] | None = field(
        default=None, metadata={"help": "held-out examples of its own"}
    )
    task_format: Literal["columns", "parallel", "squad", "instructions", "chat"] = field(
        default="columns",
        metadata={
            "help": "rows with named columns, two text files line by line (columns source, "
            "target), SQuAD (context, question, answers), instructions (prompt, response), "
            "conversations (messages)"
        },
    )
    train_examples: int | None = field(
        default=None,
        metadata={
            "help": "at most this many examples to train on; of a generated set this many are made "
            "(default 20,000)",
            "min": 1,
        },
    )
    validation_examples: int = field(
        default=500,
        metadata={
            "help": "held-out examples: at most this many, and of a source without some of its own "
            "at most a tenth",
            "min": 1,
        },
    )
    drop_empty: bool = field(
        default=False,
        metadata={
            "help": "leave out (and count) examples with an empty prompt or target, which else are "
            "an error"
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "template of the question; {name} is a column"}
    )
    target: str | None = field(
        default=None,
        metadata={
            "help": "template of the answer; {name} is a column, which may list several right "
            "answers"
        },
    )
    baseline_input: str | None = field(
        default=None, metadata={"help": "template of what a baseline copies; default: prompt"}
    )
    choices: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "column that lists the answers to choose from, or several columns that hold "
            "one each"
        },
    )
    label: str | None = field(
        default=None,
        metadata={
            "help": "column with the index of the right choice, from 0; of several columns of "
            "choices also the name of the right one (default: the first)"
        },
    )
    test_code: str | None = field(
        default=None, metadata={"help": "template of code that checks the program"}
    )
    test_program: str = field(
        default="{prompt}{prediction}\n{test}",
        metadata={
            "help": "what pass_at_k runs: {prediction} is the answer, other names are columns, "
            "else the filled templates"
        },
    )
    tests_apart: bool = field(
        default=True,
        metadata={
            "help": "what follows {prediction} runs in a process of its own, so that no program "
            "can fake that it passed; false: for tests that need more of a program than calls, in "
            "one process with it"
        },
    )
    user_role: str = field(
        default="user", metadata={"help": "role that asks, as the conversations name it"}
    )
    assistant_role: str = field(
        default="assistant", metadata={"help": "role that answers, as the conversations name it"}
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "of conversations, and to make conversations of prompts and targets: chatml, "
            "or a Jinja file with {% generation %}; default: conversations are written in the "
            "tokenizer's own"
        },
    )
    long_targets: Literal["stop", "drop", "truncate"] = field(
        default="stop",
        metadata={
            "help": "targets that do not fit into max_length beside a prompt: stop and count them, "
            "leave such examples out, or learn only their beginning, without EOS"
        },
    )
    truncation_side: Literal["left", "right"] = field(
        default="right",
        metadata={
            "help": "side from which a prompt that is too long loses tokens; what the template has "
            "after its last column stays; a conversation loses its oldest turns"
        },
    )
    baseline: Literal["copy_source", "lead_sentence", "most_frequent"] = field(
        default="most_frequent",
        metadata={"help": "what a simple program would answer, shown beside the model"},
    )
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "an answer ends before any of these"}
    )
    max_new_tokens: int = field(
        default=128, metadata={"help": "longest answer in tokens", "min": 1}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "how answers are judged: bleu, chrf, rouge, exact_match, f1, accuracy, "
            "pass_at_k, my_file.py:function, the folder of an evaluate metric, or (with "
            "trust_remote_code) a Hub id of one"
        },
    )
    metric_options: dict = field(
        default_factory=dict,
        metadata={
            "help": "metric: its options, such as {rouge: {tokenizer: character}} or {bleu: "
            "{tokenize: zh}}"
        },
    )


@dataclass
class SamplingArguments:
    """How a text is drawn from a model, in the names of transformers.GenerationConfig."""

    max_new_tokens: int = field(
        default=128,
        metadata={"help": "most tokens per completion; the context may end it", "min": 1},
    )
    do_sample: bool = field(
        default=True, metadata={"help": "draw tokens; false: the likeliest each time"}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "below 1: likelier tokens more often", "min": 1e-6, "max": 1e6},
    )
    top_k: int = field(
        default=50, metadata={"help": "draw among this many likeliest tokens; 0: all", "min": 0}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "draw among the likeliest tokens up to this probability",
            "min": 1e-6,
            "max": 1,
        },
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "above 1: repeat less", "min": 1e-3, "max": 1e3}
    )
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "each ends a completion and is cut off; EOS always does"}
    )
    seed: int = field(default=0, metadata={"help": "of the draws"})


@dataclass
class DecodingArguments(SamplingArguments):
    """How many texts are made, and which: drawn, the likeliest, or found by a search."""

    num_beams: int = field(
        default=1,
        metadata={"help": "beam search with this many beams; 1: none", "min": 1, "max": 1000},
    )
    num_return_sequences: int = field(
        default=1, metadata={"help": "completions per prompt", "min": 1, "max": 100_000}
    )
    batch_size: int = field(default=32, metadata={"help": "prompts that go on at a time", "min": 1})


@dataclass
class AdapterArguments(LoadArguments):
    """A checkpoint to start from, and which weights are trained: all, the upper layers, or a small
    adapter's.
    """

    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a saved model, or a Hub id"}
    )
    lora_r: int | None = field(
        default=None,
        metadata={
            "help": "rank of LoRA adapters, such as 16; default: none, all weights are trained",
            "min": 1,
        },
    )
    lora_alpha: float = field(
        default=32,
        metadata={
            "help": "adapters count alpha / rank (rsLoRA: / sqrt(rank))",
            "min": 1e-6,
            "max": 1e6,
        },
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "dropout before the adapters", "min": 0, "max": 0.99}
    )
    use_dora: bool = field(
        default=False, metadata={"help": "DoRA: the size of each output is trained on its own"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "rsLoRA: rank-stabilised scale"})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "layers with adapters, by the end of their names, such as attn.c_attn; "
            "default: all linear ones"
        },
    )
    peft_type: (
        Literal["GRALORA", "HIRA", "RANDLORA", "VERA", "FOURIERFT", "IA3", "LN_TUNING"] | None
    ) = field(default=None, metadata={"help": "another adapter method of peft, in place of LoRA"})
    peft_kwargs: dict | None = field(
        default=None, metadata={"help": "more arguments of its peft configuration"}
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: 4-bit weights below the adapters (tried on CPUs, not on GPUs)"},
    )
    freeze_layers: int = field(
        default=0,
        metadata={
            "help": "neither the embeddings nor this many first blocks are trained; with adapters: "
            "they get none",
            "min": 0,
        },
    )
    add_tokens: list[str] = field(
        default_factory=list,
        metadata={
            "help": "new tokens; those written <|like this|> are special: never split, left out of "
            "shown text"
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "write a plain model: the adapter added to the weights"}
    )


@dataclass
class ShapeArguments(RemoteCodeArguments):
    """A new model, in the names that all of transformers' configurations share."""

    architecture: str = field(
        default="gpt2",
        metadata={
            "help": f"of a new model: {', '.join(ARCHITECTURES)}, or a config.json of another kind"
        },
    )
    # Far beyond what the largest models in use have; deeper ones take minutes to be made at all.
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "transformer blocks; default: 12", "min": 1, "max": 1000}
    )
    num_attention_heads: int | None = field(
        default=None,
        metadata={"help": "attention heads per block; default: 12", "min": 1, "max": 10_000},
    )
    num_key_value_heads: int | None = field(
        default=None,
        metadata={
            "help": "heads of keys and values, each shared by as many attention heads; default: "
            "the architecture's share",
            "min": 1,
            "max": 10_000,
        },
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "width; default: 768", "min": 1, "max": 1_000_000}
    )
    intermediate_size: int | None = field(
        default=None,
        metadata={
            "help": "width inside the MLP; default: the architecture's multiple of hidden_size",
            "min": 1,
            "max": 10_000_000,
        },
    )
    max_position_embeddings: int | None = field(
        default=None,
        metadata={"help": "context in tokens; default: 1024", "min": 1, "max": 10_000_000},
    )
    tie_word_embeddings: bool | None = field(
        default=None,
        metadata={
            "help": "the output embedding is the input's; default: as the architecture has it"
        },
    )
    model_config: dict = field(
        default_factory=dict,
        metadata={
            "help": "more fields of the architecture's configuration class, such as "
            "num_experts=16 or attention_dropout=0.1"
        },
    )


# Of ShapeArguments, those that are fields of a configuration.
SHAPE_NAMES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)
# Fields that `new_model` sets itself.
OF_THE_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def shape_of(args: ShapeArguments) -> dict[str, Any]:
    """What `new_config` is told about the model among a recipe's arguments.

    Raises InputError: a field is in `model_config` that has an argument of its own, or follows from
        the tokenizer.
    """
    for name in args.model_config:
        if name in ("architecture", "trust_remote_code", *SHAPE_NAMES):
            raise InputError(f"model_config: {name} has an argument of its own: --{name}")
        if name in OF_THE_TOKENIZER:
            raise InputError(f"model_config: {name} follows from the tokenizer; leave it out")
    given = {name: getattr(args, name) for name in SHAPE_NAMES}
    return {
        "architecture": args.architecture,
        "trust_remote_code": args.trust_remote_code,
        **{name: value for name, value in given.items() if value is not None},
        **args.model_config,
    }


def check_no_shape(args: Any) -> None:
    """Raise InputError where `args` name an architecture beside a checkpoint, which has one.

    Args:
        args: ShapeArguments, with the `model` to start from.
    """
    if args.architecture != ShapeArguments.architecture or args.model_config:
        raise InputError(
            f"architecture, model_config: say what a new model is, and {args.model} is one that is "
            "there; leave them out, or take --model new"
        )


@dataclass
class CardArguments:
    """What the model card says that a run cannot know."""

    license: str | None = field(
        default=None,
        metadata={"help": "of the model, for its card: an identifier of the Hub, such as mit"},
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "of the text, for the model card: codes such as en de"}
    )


@dataclass
class OptimizerArguments:
    """What makes steps of gradients, beside upstream's `optim`."""

    optimizer: Literal["adamw", "muon"] | None = field(
        default=None,
        metadata={
            "help": "muon: orthogonal steps for the hidden matrices, AdamW for all else; default: "
            "AdamW, or what optim names"
        },
    )
    muon_learning_rate: float = field(
        default=0.03,
        metadata={
            "help": "of the hidden matrices with optimizer muon; learning_rate is that of all else",
            "min": 1e-9,
            "max": 1e3,
        },
    )
    muon_momentum: float = field(
        default=0.95,
        metadata={
            "help": "what the hidden matrices' averaged gradient keeps of itself at each step",
            "min": 0,
            "max": 0.999_999,
        },
    )
    cautious_weight_decay: bool = field(
        default=False,
        metadata={
            "help": "weight_decay only where it draws a weight the way that its step goes; for "
            "optimizer muon and AdamW"
        },
    )


@dataclass
class AveragingArguments(OptimizerArguments):
    """And an average of the weights beside them."""

    weight_averaging: Literal["ema", "tail"] | None = field(
        default=None,
        metadata={
            "help": "evaluate and save an average of the weights, which are trained as without: "
            "ema, the exponential moving average, or tail, the mean of the last part of the run"
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "what an ema keeps of itself at each step; default: 0.999",
            "min": 0,
            "max": 0.999_999_999,
        },
    )
    averaging_start_step: float | None = field(
        default=None,
        metadata={
            "help": "first step whose weights count; below 1 a share of all steps; default: the "
            "first with ema, 0.75 with tail",
            "min": 0,
            "max": 1e12,
        },
    )


@dataclass
class RunArguments(CardArguments, AveragingArguments):
    """What every training recipe also offers; `training` holds the checked values for
    TrainingArguments.
    """

    resume: Literal["auto"] | None = field(
        default=None,
        metadata={
            "help": "auto: go on from the newest whole checkpoint, or start anew if there is none"
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier run in output_dir first"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "show one row, the counts and the memory, then stop"}
    )
    auto_batch: bool = field(
        default=False,
        metadata={
            "help": "find the largest micro-batch that memory holds; per_device_train_batch_size x "
            "gradient_accumulation_steps stays what a process reads per step"
        },
    )
    training: dict = field(default_factory=dict)
