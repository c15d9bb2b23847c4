"""Captions of picture files by a model that finetune_picture saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, VisionEncoderDecoderModel

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.manifest import check_loaded
from hfscale.pictures.examples import resized
from hfscale.pictures.measures import write_captions
from hfscale.pictures.reading import open_picture
from hfscale.pictures.rows import PictureCollator
from hfscale.process import InputError


def caption_files(
    name: str,
    files: Sequence[str],
    *,
    device: torch.device,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    verify_digests: bool = False,
) -> list[str]:
    """The likeliest caption of each file, of up to `max_new_tokens` (None: as many as the model was
    measured with).

    Args:
        name: folder or Hub id of a VisionEncoderDecoderModel with tokenizer and image processor.

    Raises:
        InputError: another model, one that cannot be loaded, or a file that is no picture.
    """
    pictures = [open_picture("pictures", Path(file)) for file in files]
    check_loaded(f"model {name}", name, verify_digests=verify_digests)
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "vision-encoder-decoder":
            raise InputError(
                f"model {name}: a model of the kind {kind} does not write captions; give the "
                "folder of a run of finetune_picture"
            )
        model = VisionEncoderDecoderModel.from_pretrained(name, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except InputError:
        raise
    except Exception as error:  # file, format and Hub errors have no common base
        raise InputError(
            f"model {name}: cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from None
    tokenizer = load_pretrained_tokenizer(name)
    on_device: Any = model.to(device)  # type: ignore[arg-type]  # upstream's decorator hides it
    return write_captions(
        on_device,
        tokenizer,
        PictureCollator(processor, tokenizer.eos_token_id),
        [resized(picture, processor).tobytes() for picture in pictures],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens or model.generation_config.max_new_tokens,
    )
