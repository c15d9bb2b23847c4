"""The sizes of a model from what its configuration says, or one line about what of it cannot be
counted.
"""

import json
from pathlib import Path
from typing import Any

from hfscale.architectures import ARCHITECTURES, SIZES, has_memory_formulas
from hfscale.planning.flops import PUBLISHED, Shape
from hfscale.process import InputError

# GPT2Config.attribute_map, and what new models call the width inside the MLP.
ALIASES = {
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}
# What GPT2Config has where a file says nothing.
DEFAULTS = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_positions": 1024,
    "vocab_size": 50257,
    "n_inner": None,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
}
# Those of which it is known what the backward pass needs: what they read (gelu_new: as hfscale runs
# it, in one kernel), or what they gave.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "silu", "swish", "relu", "tanh")
MOST_BLOCKS = 1000  # more are a slip, and each is counted
# Fields that change nothing that is counted: names, tokens, generation, heads of other tasks,
# scales, old versions'.
NOT_COUNTED = frozenset(
    """
    _name_or_path architectures bos_token_id decoder_start_token_id dtype eos_token_id
    finetuning_task id2label initializer_range keys_to_ignore_at_inference label2id
    layer_norm_epsilon model_type n_ctx n_special name_or_path num_labels _num_labels
    output_past pad_token_id predict_special_tokens prefix problem_type reorder_and_upcast_attn
    return_dict scale_attn_by_inverse_layer_idx scale_attn_weights sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj task_specific_params tf_legacy_loss tokenizer_class torch_dtype
    transformers_version use_cache use_return_dict bad_words_ids begin_suppress_tokens
    cross_attention_hidden_size diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id is_decoder length_penalty max_length min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature tie_encoder_decoder
    top_k top_p typical_p
""".split()
)
# Fields that would change what is counted, by the value with which they do not.
ONLY_WITH = {
    "chunk_size_feed_forward": 0,
    "gradient_checkpointing": False,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
    "use_bfloat16": False,
    "quantization_config": None,
    "auto_map": None,
}


def find_shape(
    model: str | None, sizes: dict[str, Any], tokenizer: str, vocab_size: int | None
) -> Shape:
    """Sizes of a published GPT-2 or of a saved model's folder; else of a new model, `sizes` being
    what `shape_of` gives, with its tokenizer's vocabulary.

    Raises InputError: the sizes are not known without the model or the tokenizer's training, or
    `shape_of_config`.
    """
    if model is None:
        return new_shape(sizes, find_vocab_size(tokenizer, vocab_size))
    name = model.removeprefix("openai-community/").removeprefix("distilbert/")
    if name in PUBLISHED and not Path(model).is_dir():
        return Shape(*PUBLISHED[name], 1024, 50257, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    return read_shape(model)


def new_shape(sizes: dict[str, Any], vocab_size: int) -> Shape:
    """Of a new GPT-2; `sizes` as `shape_of` gives them. Raises InputError as `shape_of_config`."""
    given = dict(sizes)
    architecture = given.pop("architecture")
    del given["trust_remote_code"]
    fields = SIZES | dict(ARCHITECTURES[architecture].config) | given
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise InputError(
            f"hidden_size {fields['hidden_size']} is not a multiple of num_attention_heads "
            f"{fields['num_attention_heads']}"
        )
    return shape_of_config(
        fields | {"model_type": architecture, "vocab_size": vocab_size}, "command line"
    )


def read_shape(folder: str) -> Shape:
    """Sizes of the model that a folder holds; raises InputError: no GPT-2 there, or see
    `shape_of_config`.
    """
    if Path(folder, "adapter_config.json").is_file():
        raise InputError(
            f"--model {folder}: is an adapter; make a plain model of it first (its run with "
            "--merge)"
        )
    path = Path(folder, "config.json")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"--model {folder}: not a folder of a saved GPT-2; known without files: "
            f"{', '.join(PUBLISHED)}"
        ) from None
    return shape_of_config(config, str(path))


def stated_architecture(folder: str) -> str | None:
    """The `model_type` of the model that a folder holds, as far as its config.json can be read."""
    try:
        config = json.loads(Path(folder, "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def shape_of_config(config: dict[str, Any], place: str) -> Shape:
    """What a GPT2Config says, every field of it.

    Raises InputError, beginning with `place`: another kind of model, a field that is not known, or
    one that changes what is counted in a way that is not.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not has_memory_formulas(str(kind)):
        raise InputError(f"{place}: model_type is {kind!r}, which is not counted by formulas")
    known = DEFAULTS.keys() | ALIASES.keys() | ONLY_WITH.keys() | NOT_COUNTED
    for name, value in config.items():
        if name in ONLY_WITH and value not in (None, ONLY_WITH[name]):
            raise InputError(
                f"{place}: {name} is {json.dumps(value)[:60]}, and plan does not count what that "
                "changes"
            )
        if name not in known:
            raise InputError(
                f"{place}: unknown field {name}; plan cannot tell what it changes, so take it out "
                "of a copy of this file if it is a note"
            )
    written = {ALIASES.get(name, name): value for name, value in config.items()}
    counted = {name: value for name, value in written.items() if name in DEFAULTS}
    return checked_shape(DEFAULTS | counted, place)


def checked_shape(values: dict[str, Any], place: str) -> Shape:
    """A Shape of these values; raises InputError, beginning with `place`, for one that no model can
    have.
    """
    shape = Shape(**values)
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"):
        _check_size(place, name, getattr(shape, name), is_optional=name == "n_inner")
    if shape.n_layer > MOST_BLOCKS:
        raise InputError(f"{place}: n_layer: got {shape.n_layer}, expected at most {MOST_BLOCKS:,}")
    if shape.n_embd % shape.n_head:
        raise InputError(
            f"{place}: n_embd {shape.n_embd} is not a multiple of n_head {shape.n_head}"
        )
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        _check_dropout(place, name, getattr(shape, name))
    for name in ("tie_word_embeddings", "add_cross_attention"):
        value = getattr(shape, name)
        if type(value) is not bool:
            raise InputError(f"{place}: {name}: got {value!r}, expected true or false")
    if shape.activation_function not in ACTIVATIONS:
        raise InputError(
            f"{place}: activation_function: got {shape.activation_function!r}; plan knows what the "
            f"backward pass keeps of {', '.join(ACTIVATIONS)}"
        )
    return shape


def _check_size(place: str, name: str, value: Any, *, is_optional: bool) -> None:
    if value is None and is_optional:
        return
    if type(value) is not int or value < 1:  # true is an int, too
        raise InputError(f"{place}: {name}: got {value!r}, expected a whole number, at least 1")


def _check_dropout(place: str, name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise InputError(f"{place}: {name}: got {value!r}, expected a number from 0 to below 1")


def find_vocab_size(tokenizer: str, vocab_size: int | None) -> int:
    """Tokens of a new model: as given, else the tokenizer's; raises InputError: not known."""
    words = vocab_size or tokenizer_size(tokenizer)
    if not words:
        raise InputError(
            f"tokenizer {tokenizer}: its vocabulary is not known before it is there; give "
            "--vocab_size"
        )
    return words


def tokenizer_size(tokenizer: str) -> int | None:
    """Tokens of a published GPT-2's tokenizer, of one to be trained, or of a folder's; None: not
    known yet.
    """
    _, _, size = tokenizer.partition(":")
    if tokenizer.removeprefix("openai-community/") in PUBLISHED:
        return 50257
    if size.isdecimal():
        return int(size)
    saved = saved_tokenizer(tokenizer)
    return saved.get_vocab_size() if saved else None


def saved_tokenizer(folder: str) -> Any:
    """The `tokenizers.Tokenizer` of a folder; None: not there, or broken."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    except Exception:  # the library has no class of its own for either
        return None
