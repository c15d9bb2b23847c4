"""A rank that stands still is named, and ends the run, instead of being waited for without end."""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfscale.process import failure_status
from hfscale.training.saving import newest_step

# Each rank reads the beats of all others: among many ranks less often.
SECONDS_BETWEEN_BEATS = 1.0
RANKS_PER_SECOND = 32
SECONDS_FOR_OTHERS = 3.0  # to end, before the rank that says why ends too
STORE_SECONDS = 5.0  # that a call of the store may take
VERDICT = "verdict"  # the key of the line that ends all ranks


@dataclass
class Beat:
    """What a rank tells the others, again and again."""

    host: str
    count: int = 0  # of beats: stands still where the whole process does
    progress: int = 0  # of the main thread's events: stands still where that does
    step: int = 0
    is_training: bool = False
    is_done: bool = False


class Seen:
    """A rank's last beat, and since when it has been the same."""

    def __init__(self, now: float):
        self.beat: Beat | None = None
        self.beat_since = now
        self.progress_since = now

    def take(self, beat: Beat, now: float) -> None:
        """Note a beat that was read."""
        if self.beat is None or beat.count != self.beat.count:
            self.beat_since = now
        if self.beat is None or beat.progress != self.beat.progress:
            self.progress_since = now
        self.beat = beat


def standing_ranks(seen: dict[int, Seen], now: float, limit: float) -> dict[int, str]:
    """{rank: what is wrong with it} of those that others wait for: no beat came for `limit` seconds
    (a stopped process, a machine that is gone), or the main thread is behind another one's and did
    not go on for so long (a deadlock). Where all stand at the same place, nobody is named.
    """
    silent = {}
    behind = {}
    progress = [one.beat.progress for one in seen.values() if one.beat and one.beat.is_training]
    for rank, one in seen.items():
        if one.beat and one.beat.is_done:
            continue
        if now - one.beat_since > limit:
            silent[rank] = "does not answer"
        elif now - one.progress_since > limit and _is_behind(one.beat, progress):
            behind[rank] = "does not go on"
    return silent or behind


def _is_behind(beat: Beat | None, progress: list[int]) -> bool:
    return beat is not None and beat.is_training and beat.progress < max(progress)


class RankWatch(TrainerCallback):
    """Lets every rank say each second that it is there, through the store that connects the ranks,
    and ends all of them when one has not gone on for `ddp_timeout` seconds. Costs a step nothing:
    the main thread only counts.
    """

    def __init__(self, args: TrainingArguments):
        self.rank = args.process_index
        self.world_size = args.world_size
        self.limit = float(args.ddp_timeout)
        self.seconds_between = max(SECONDS_BETWEEN_BEATS, self.world_size / RANKS_PER_SECOND)
        self.output_dir = Path(str(args.output_dir))
        self.beat = Beat(socket.gethostname())
        self._store: Any = None
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own, where there are several ranks."""
        if self.world_size > 1 and "MASTER_PORT" in os.environ:
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Tell the others not to wait for this rank, which ends."""
        self.beat.is_done = True
        self._is_ending.set()
        self._thread.join(2 * STORE_SECONDS)
        with contextlib.suppress(RuntimeError):
            self._say()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on all ranks have to keep step."""
        self.beat.is_training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What comes now, rank 0 may do alone."""
        self.beat.is_training = False

    def go_on(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an event that all ranks have equally often."""
        self.beat.progress += 1
        self.beat.step = state.global_step

    on_step_begin = on_substep_end = on_pre_optimizer_step = on_step_end = go_on
    on_prediction_step = on_evaluate = on_save = on_log = go_on

    def end_others(self, line: str) -> bool:
        """Print a line, unless another rank has said one by now, and let all other ranks end with
        status 1; the launcher kills those that stand still. Returns once they had time to.
        """
        said = f"{self.rank} {line}"
        is_first = True
        with contextlib.suppress(RuntimeError):
            if self._thread.is_alive():  # it may not have connected yet
                self._store = self._store or _connect()
                is_first = self._store.compare_set(VERDICT, "", said).decode() == said
        if is_first:
            self._is_ending.set()
            print(f"error: {line}", file=sys.stderr, flush=True)
            if self._thread.is_alive():
                time.sleep(SECONDS_FOR_OTHERS)
        return is_first

    def _watch(self) -> None:
        seen = {rank: Seen(time.monotonic()) for rank in range(self.world_size)}
        answered_at = time.monotonic()
        while not self._is_ending.wait(self.seconds_between):
            try:
                self._store = self._store or _connect()
                self._say()
                if self._store.check([VERDICT]):
                    os._exit(failure_status())  # the main thread waits for a rank that is gone
                self._listen(seen)
            except RuntimeError as error:  # of the store, which is the launcher's on machine 0
                if time.monotonic() - answered_at > self.limit:
                    self._end(self._describe_silence(error))
                self._is_ending.wait(STORE_SECONDS)  # each try is a warning of torch's
                continue
            answered_at = time.monotonic()
            if standing := standing_ranks(seen, answered_at, self.limit):
                self._end(self._describe(standing, seen))

    def _end(self, line: str) -> None:
        self.end_others(line)
        os._exit(failure_status())

    def _say(self) -> None:
        self.beat.count += 1
        if self._store is not None:
            self._store.set(f"beat/{self.rank}", json.dumps(asdict(self.beat)))

    def _listen(self, seen: dict[int, Seen]) -> None:
        here = [rank for rank, one in seen.items() if one.beat or self._has_begun(rank)]
        beats = self._store.multi_get([f"beat/{rank}" for rank in here])
        now = time.monotonic()
        for rank, beat in zip(here, beats, strict=True):
            seen[rank].take(Beat(**json.loads(beat)), now)

    def _has_begun(self, rank: int) -> bool:
        return self._store.check([f"beat/{rank}"])

    def _describe(self, standing: dict[int, str], seen: dict[int, Seen]) -> str:
        words = []
        for rank, what in standing.items():
            beat = seen[rank].beat
            where = f" ({beat.host}), after step {beat.step}," if beat else ""
            words.append(f"rank {rank}{where} {what}")
        return f"{'; '.join(words)} {self._describe_end()}"

    def _describe_silence(self, error: RuntimeError) -> str:
        """Of the machine whose launcher connects the ranks."""
        reason = " ".join(str(error).split())[:100]
        host = os.environ.get("MASTER_ADDR")
        return f"the launcher on {host} does not answer ({reason}) {self._describe_end()}"

    def _describe_end(self) -> str:
        last = newest_step(self.output_dir)
        kept = f"checkpoint-{last} is kept, --resume auto goes on" if last else "no checkpoint yet"
        return f"since {self.limit:g} s (ddp_timeout); all ranks end; {kept}"


def _connect() -> Any:
    """A connection of this thread's own: a call on the shared one waits while the main thread's
    does.
    """
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=STORE_SECONDS),
    )
    return torch.distributed.PrefixStore("hfscale", store)
