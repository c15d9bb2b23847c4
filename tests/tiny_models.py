"""Tiny models of many kinds with random weights, large enough ones that attention matters."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hfscale.data.tokenizer import train_bpe

CONTEXT = 64
VOCAB_SIZE = 270
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
GPTJ = {**GPT2, "rotary_dim": 4}
BERT = {
    name: LLAMA[name]
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
}
BART = {
    "dropout": 0.0,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "dropout": 0.0,
}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
HYBRID = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}

# Models that keep packed documents apart by their position ids.
APART = {
    "gpt2": GPT2,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 64,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": CONTEXT,
    },
    "gptj": GPTJ,
    "codegen": GPTJ,
    "gpt_bigcode": GPT2,
    "ctrl": {**GPT2, "dff": 64},
    "gpt_neox": BERT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "phi": LLAMA,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "olmo2": LLAMA,
    "lfm2": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "granite": LLAMA,
    "granitemoe": LLAMA,
    # A configuration within a configuration.
    "fuyu": {"text_config": {**LLAMA, "model_type": "persimmon", "vocab_size": VOCAB_SIZE}},
}
# Models in which documents of one row see each other: masks made of something else, no position
# ids, or a state.
TOGETHER = {
    "opt": OPT,
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "xglm": {
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": CONTEXT,
    },
    "mamba2": {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "jamba": {**LLAMA, **HYBRID},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
    "falcon": BERT,
    "rwkv": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "context_length": CONTEXT,
        "attention_hidden_size": 32,
        "intermediate_size": 64,
    },
    "openai-gpt": GPT2,
    "biogpt": BERT,
    "gpt_oss": LLAMA,
    "bart": BART,
    "roberta": {**BERT, "is_decoder": True},
}
# Models that see the token they are to predict.
FILLING = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with `VOCAB_SIZE` tokens."""
    texts = ["the cat sat on the mat and on the log", "some more words"]
    return train_bpe(Dataset.from_dict({"text": texts}), VOCAB_SIZE)


def tiny_model(kind: str, fields: dict, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """With weights of spread 0.3, so that what a place sees shows in its logits."""
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **special, **fields)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.tie_weights()
    return model.eval()


def eager_model(kind: str, fields: dict) -> PreTrainedModel:
    """That returns its attention weights."""
    model = tiny_model(kind, fields, VOCAB_SIZE)
    model.set_attn_implementation("eager")
    return model


def save_tiny_model(kind: str, fields: dict, folder: Path, padding: int = 0) -> Path:
    """The model and its tokenizer, which may leave some rows of the embeddings unused."""
    tokenizer = tiny_tokenizer()
    tiny_model(kind, fields, len(tokenizer) + padding).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
