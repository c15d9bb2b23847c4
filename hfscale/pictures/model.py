"""An encoder of pictures and a GPT-2 that looks at what it says: one model, saved as transformers'
VisionEncoderDecoderModel.
"""

import copy
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hfscale.manifest import check_loaded
from hfscale.models import check_remote_code, load_model
from hfscale.new_models import new_model
from hfscale.process import InputError

# Weights that are drawn anew where a GPT-2 that only knew text gets to see pictures.
NEW_IN_DECODER = ("crossattention", "ln_cross_attn")
POSITION_STD = 0.3  # what the numbers of a patch become by the first layer


def new_encoder(
    *,
    image_size: int,
    patch_size: int,
    num_hidden_layers: int,
    hidden_size: int,
    num_attention_heads: int,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) with random weights, and what makes its
    numbers of a picture; sizes in pixels.

    Raises InputError: sizes that do not go together.
    """
    if image_size % patch_size:
        raise InputError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if hidden_size % num_attention_heads:
        raise InputError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads "
            f"{num_attention_heads}"
        )
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_hidden_layers=num_hidden_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        intermediate_size=4 * hidden_size,
    )
    encoder = ViTModel(config)
    # Upstream draws them as small as single weights; a patch adds many of those up, and where it
    # lies would be learned late.
    torch.nn.init.trunc_normal_(encoder.embeddings.position_embeddings, std=POSITION_STD)
    size = {"height": image_size, "width": image_size}
    return encoder, ViTImageProcessorPil(size=size)


def load_encoder(
    name: str, *, trust_remote_code: bool = False, verify_digests: bool = False
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The encoder of a folder or Hub id, and its image processor (Pillow's, which computes the same
    everywhere).

    Raises InputError: it cannot be loaded, reads no pictures, or has no image processor.
    """
    check_loaded(f"encoder {name}", name, verify_digests=verify_digests)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        _check_reads_pictures(name, config)
        encoder = AutoModel.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        processor = AutoImageProcessor.from_pretrained(
            name, backend="pil", trust_remote_code=trust_remote_code
        )
    except InputError:
        raise
    except Exception as error:  # file, format and Hub errors have no common base
        check_remote_code(f"encoder {name}", error)
        raise InputError(
            f"encoder {name}: cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from None
    made = size_of(processor)
    taken = _pair(config.image_size)
    if made != taken:
        raise InputError(
            f"encoder {name}: takes pictures of {taken[0]} x {taken[1]} pixels, and the image "
            f"processor beside it, or that of its kind, makes {made[0]} x {made[1]}; put the right "
            "preprocessor_config.json there"
        )
    return encoder, processor


def size_of(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width in pixels of what an image processor makes of any picture."""
    blank = np.zeros((3, 8, 8), np.uint8)
    batch = processor(blank, input_data_format="channels_first", return_tensors="np")
    height, width = batch["pixel_values"].shape[-2:]
    return height, width


def _check_reads_pictures(name: str, config: PreTrainedConfig) -> None:
    if not hasattr(config, "image_size") or not hasattr(config, "patch_size"):
        raise InputError(
            f"encoder {name}: a model of the kind {config.model_type} does not read pictures in "
            "patches; give one that does, such as a ViT or DeiT, or --encoder new"
        )


def new_decoder(tokenizer: PreTrainedTokenizerBase, **fields: Any) -> PreTrainedModel:
    """A GPT-2 with random weights that looks at pictures; `fields` as for `new_model`.

    Raises InputError: another architecture, which cannot look at anything but text.
    """
    architecture = fields.get("architecture", "gpt2")
    if architecture != "gpt2":
        raise InputError(f"architecture: got {architecture}, but only gpt2 looks at pictures here")
    return _looking(new_model(tokenizer, **fields))


def load_decoder(name: str, **loading: bool) -> PreTrainedModel:
    """A saved GPT-2 that gets to see pictures: in each block a layer of cross-attention is added,
    with random weights.

    Raises InputError: as `load_model`; it is no GPT-2.
    """
    text_model = load_model(name, dtype=torch.float32, **loading)
    if not isinstance(text_model, GPT2LMHeadModel):
        raise InputError(
            f"model {name}: {type(text_model).__name__} cannot look at pictures; give a GPT-2"
        )
    return _looking(text_model)


def _looking(text_model: PreTrainedModel) -> PreTrainedModel:
    """The same GPT-2 with a layer of cross-attention in each block, of random weights."""
    config: Any = copy.deepcopy(text_model.config)
    config.add_cross_attention = True
    config.is_decoder = True
    decoder = GPT2LMHeadModel(config)
    missing, unknown = decoder.load_state_dict(text_model.state_dict(), strict=False)
    is_new = [any(part in name for part in NEW_IN_DECODER) for name in missing]
    assert all(is_new) and not unknown, (missing, unknown)
    return decoder


def picture_model(
    encoder: PreTrainedModel,
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> VisionEncoderDecoderModel:
    """Both as one model, which writes greedily from EOS to EOS."""
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config: Any = model.config
    config.decoder.update(special)
    special["decoder_start_token_id"] = tokenizer.eos_token_id
    config.update(special)
    model.generation_config = GenerationConfig(
        **special, max_new_tokens=max_new_tokens, do_sample=False
    )
    # What counts as a token in the log: those of captions, not the numbers of pixels.
    model.main_input_name = "decoder_input_ids"
    # Summaries of a picture, which no decoder reads; DDP stops at weights without a gradient.
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def count_patches(model: VisionEncoderDecoderModel) -> tuple[int, int]:
    """Rows and columns of patches that a picture is cut into."""
    config = model.encoder.config
    sides = [_pair(config.image_size), _pair(config.patch_size)]
    height, width = (pixels // patch for pixels, patch in zip(*sides, strict=True))
    return height, width


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
