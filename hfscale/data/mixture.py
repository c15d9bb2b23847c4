"""Training rows of one source, or of several in stated shares, in memory or as a stream without an
end.
"""

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    concatenate_datasets,
    interleave_datasets,
)

from hfscale.arguments import StreamArguments
from hfscale.data.splits import check_weights, join_parts
from hfscale.process import InputError

ROUNDING = 1e-9  # a share of 3 rows may come out as 2.9999999999


def join_rows(
    parts: list[DatasetDict], args: StreamArguments, *, seed: int
) -> tuple[DatasetDict, list[float]]:
    """Packed parts (see `load_parts`) -> rows to train on and to validate with, and the epochs of
    each source in one pass over the training rows (none for one source or a stream).

    A stream is shuffled in a buffer, begins anew in the same order whenever it ends, and draws the
    source of each row at random with the weights.

    Raises InputError: see `mix`.
    """
    if len(parts) == 1 and not args.streaming:
        return parts[0], []
    rows = join_parts(parts, args)
    epochs: list[float] = []
    sources = [part["train"] for part in parts]
    if args.streaming:
        rows["train"] = _endless(sources, args, seed)
    else:
        rows["train"], epochs = mix(
            sources, args.source_weights, temperature=args.source_temperature, seed=seed
        )
    return rows, epochs


def check_shares(documents: IterableDataset, processes: int) -> None:
    """Raises InputError if the files that one of the processes reads hold no document to train on:
    it would look for one forever, and the others wait. The same on every process.
    """
    # Accelerate deals out files; where there are fewer than processes, all read them, row by row.
    if processes == 1 or documents.num_shards < processes:
        return
    for rank in range(processes):
        of_rank = documents.shard(num_shards=processes, index=rank)
        if next(iter(of_rank), None) is None:
            raise InputError(
                f"--streaming: process {rank} of {processes} would find no document to train "
                "on in its files (empty, or held out); give more files, fewer processes, or a "
                "--validation_source"
            )


def _endless(sources: list[IterableDataset], args: StreamArguments, seed: int) -> IterableDataset:
    if args.shuffle_buffer_size > 0:
        sources = [
            rows.shuffle(
                seed=seed,
                buffer_size=args.shuffle_buffer_size,
                # One file read at a time: each open one would hold a batch of rows.
                max_buffer_input_shards=1,
            )
            for rows in sources
        ]
    sources = [rows.repeat(None) for rows in sources]
    if args.source_weights is None or len(sources) == 1:
        return sources[0]
    total = sum(args.source_weights)
    shares = [weight / total for weight in args.source_weights]
    return interleave_datasets(sources, probabilities=shares, seed=seed)


def mix(
    sources: list[Dataset],
    weights: list[float] | None = None,
    *,
    temperature: float | None = None,
    seed: int = 42,
) -> tuple[Dataset, list[float]]:
    """Shuffled rows of all sources in the wanted shares, as many as there are, and the epochs of
    each that they hold.

    A share counts rows. Mix packed rows to weigh by tokens, or texts to weigh by documents. Counts
    are exact rather than drawn: a source gives each of its rows once per whole epoch, and the rest
    from one more permutation.

    There is a weight for each source; default: n^(1/temperature) of its n rows, so at temperature 1
    (the default) the shares are as the sizes are, at larger ones nearer to equal. `seed` draws the
    permutations and the final order.

    Raises InputError: an empty source, weights that are none, or a temperature not above 0.
    """
    lengths = np.array([len(rows) for rows in sources])
    if not lengths.all():
        raise InputError(
            f"mixture: source {int(lengths.argmin()) + 1} has no rows; give sources that hold text"
        )
    temperature = 1.0 if temperature is None else temperature
    if not temperature > 0:
        raise InputError(f"source_temperature: got {temperature}, expected a number above 0")
    if weights is not None:
        check_weights(weights, len(sources))
        wanted = np.array(weights)
    else:
        wanted = lengths ** (1 / temperature)
    counts = _counts(wanted, lengths.sum())
    generator = np.random.default_rng(seed)
    parts = [
        rows.select(_draw(len(rows), count, generator))
        for rows, count in zip(sources, counts.tolist(), strict=True)
    ]
    mixed = concatenate_datasets(parts).shuffle(seed=seed, keep_in_memory=True)
    return mixed, (counts / lengths).tolist()


def _draw(num_rows: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` row numbers: each once per whole epoch, the rest from one more permutation."""
    epochs = -(-count // num_rows)  # rounded up
    drawn = [generator.permutation(num_rows) for _ in range(epochs)]
    return np.concatenate([np.empty(0, int), *drawn])[:count]


def _counts(weights: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers that sum to `size`, nearest to the shares (largest remainders; the earlier
    source wins a tie).
    """
    exact = weights / weights.sum() * size
    counts = np.floor(exact + ROUNDING).astype(int)
    largest_remainders_first = np.argsort(counts - exact, kind="stable")
    counts[largest_remainders_first[: size - counts.sum()]] += 1
    return counts
