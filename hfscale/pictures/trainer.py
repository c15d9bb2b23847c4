"""The trainer of models that read a picture and write its caption."""

from typing import Any

import torch

from hfscale.pictures.model import count_patches
from hfscale.training.trainer import LMTrainer


class PictureTrainer(LMTrainer):
    """`LMTrainer`, whose losses are exact token means, with the work on pictures counted."""

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> int:
        """6 for each parameter of the encoder and each patch, and for each of the decoder and each
        token: the matrices' share of a forward and a backward pass.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        height, width = count_patches(model)
        patches = len(inputs["labels"]) * height * width
        of_encoder = patches * model.encoder.num_parameters(exclude_embeddings=True)
        of_decoder = inputs["labels"].numel() * model.decoder.num_parameters(
            exclude_embeddings=True
        )
        return 6 * (of_encoder + of_decoder)
