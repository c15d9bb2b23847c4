"""What a run on pictures is about to do (`--dry_run`)."""

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase, TrainingArguments, VisionEncoderDecoderModel

from hfscale.models import count_parameters, count_trained
from hfscale.pictures.model import count_patches
from hfscale.process import is_main_rank
from hfscale.report.tables import show_table
from hfscale.training.preview import count_steps


def preview(
    model: VisionEncoderDecoderModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: DatasetDict,
    rows: DatasetDict,
    args: TrainingArguments,
) -> None:
    """Print (rank 0) the first caption in tokens, and the sizes of data and model."""
    if not is_main_rank():
        return
    first = rows["train"][0]
    tokens = [repr(tokenizer.decode([token])) for token in first["decoder_input_ids"][1:]]
    height, width = count_patches(model)
    counts = [
        ("first picture", examples["train"][0]["place"]),
        ("its caption, in the tokens that carry loss", " ".join(tokens)),
        ("patches of a picture", f"{height} x {width}"),
    ]
    for name, part in rows.items():
        counts.append((f"{name} pictures", f"{len(part):,}"))
        counts.append((f"{name} tokens scored", f"{sum(part['num_tokens']):,}"))
    counts.append(("steps", f"{count_steps(len(rows['train']), args):,}"))
    counts.append(("learning_rate", f"{args.learning_rate:g}"))
    for name, value in count_parameters(model).items():
        counts.append((name.replace("_", " "), f"{value:,}"))
    counts.append(("parameters trained", f"{count_trained(model):,}"))
    show_table(("what", "value"), counts, title="The run", show_header=False)
    print("dry run: nothing was trained or written; the memory of pictures is not planned")
