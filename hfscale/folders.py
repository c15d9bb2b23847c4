"""What the recipes write, by name: all that --overwrite deletes (patterns of
`config.check_replaceable`).
"""

UNFINISHED = ".*.part"  # of `write_text`, after a kill
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
MODEL_FILES = (
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "task.json",
    "training_args.bin",
    "trainer_state.json",
    "README.md",
    UNFINISHED,
)
CHECKPOINT_FILES = (
    *MODEL_FILES,
    "manifest.json",
    "checkpoint-is-incomplete.txt",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_*.pth",
    # DeepSpeed's
    "latest",
    "latest_universal",
    "zero_to_fp32.py",
    "zero_to_torch.py",
    "global_step*/**",
    # FSDP's
    "pytorch_model_fsdp*.bin",
    "pytorch_model_fsdp_*/**",
    "optimizer_*/**",
)
CONVERTED = (
    "resuming"  # a checkpoint rewritten for another engine, until the first step after it is done
)
RUN_FILES = (
    *MODEL_FILES,
    "run.json",
    "report.html",
    "runs/events.out.tfevents.*",
    "runs/*/events.out.tfevents.*",
    "runs/*/*/events.out.tfevents.*",
    "wandb/**",
    f"{CONVERTED}/**",
    "checkpoint-[0-9]*",
    *(f"checkpoint-[0-9]*/{name}" for name in CHECKPOINT_FILES),
)
DATA_CARD = "data_card.json"
PREPARED_FILES = (
    DATA_CARD,
    "data_card.md",
    "funnel.png",
    "dropped.jsonl",
    "contamination.json",
    "dataset_dict.json",
    *(
        f"{split}/{name}"
        for split in ("train", "validation", "test")
        # the last: what `datasets` keeps beside a saved set that is read
        for name in ("data-*-of-*.arrow", "dataset_info.json", "state.json", "cache-*.arrow")
    ),
    UNFINISHED,
)
TOKENIZER_REPORT = "tokenizer_report.json"
TRAINED_TOKENIZER_FILES = (*TOKENIZER_FILES, TOKENIZER_REPORT, UNFINISHED)
ATTENTION_RECORD = "attention.json"
ATTENTION_FILES = (
    ATTENTION_RECORD,
    "attention.npz",
    "attention.txt",
    "attention.html",
    "attention_maps.png",
    "head_scores.png",
    UNFINISHED,
)
