"""Thin glue and a recipe collection for GPT-2-style language models on the Hugging Face stack."""

__version__ = "0.1.0"
