"""Which rank the others wait for."""

import pytest

from hfscale.training.heartbeats import Beat, Seen, standing_ranks

LIMIT = 10.0


def seen(*ranks: tuple[int, int, dict]) -> dict[int, Seen]:
    """Of each rank: seconds since its last beat, since it went on, and what it said."""
    found = {}
    for rank, (beat_age, progress_age, said) in enumerate(ranks):
        one = Seen(0.0)
        one.beat = Beat("host", is_training=True, **said) if said is not None else None
        one.beat_since = 100.0 - beat_age
        one.progress_since = 100.0 - progress_age
        found[rank] = one
    return found


@pytest.mark.parametrize(
    ("ranks", "standing"),
    [
        ([(1, 1, {"progress": 5}), (1, 1, {"progress": 5})], {}),
        # A stopped process: no beat; who waits for it is not named.
        ([(1, 20, {"progress": 5}), (20, 20, {"progress": 5})], {1: "does not answer"}),
        ([(20, 20, {"progress": 5}), (1, 20, {"progress": 5})], {0: "does not answer"}),
        ([(20, 20, None), (1, 1, {"progress": 5})], {0: "does not answer"}),
        # A deadlock: it beats, and is behind.
        ([(1, 20, {"progress": 5}), (1, 20, {"progress": 6})], {0: "does not go on"}),
        ([(1, 1, {"progress": 5}), (1, 1, {"progress": 6})], {}),
        ([(1, 20, {"progress": 6}), (1, 20, {"progress": 6})], {}),
        # One that has ended is not waited for.
        ([(20, 20, {"progress": 5, "is_done": True}), (1, 1, {"progress": 6})], {}),
    ],
)
def test_who_stands_still(ranks, standing):
    assert standing_ranks(seen(*ranks), 100.0, LIMIT) == standing


def test_ages_start_anew_with_each_change():
    one = Seen(0.0)
    one.take(Beat("host", count=1, progress=1), 1.0)
    one.take(Beat("host", count=2, progress=1), 2.0)
    one.take(Beat("host", count=2, progress=1), 3.0)
    assert (one.beat_since, one.progress_since) == (2.0, 1.0)
