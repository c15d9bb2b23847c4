"""What becomes of groups of answers while a model learns from their rewards: kept for the report,
and a training that can teach nothing is stopped.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler

from hfscale.folders import GROUPS, write_atomically
from hfscale.process import InputError
from hfscale.rewards.functions import Reward

KEPT_GROUPS = 4  # of a step that is kept
KEPT_STEPS = 12  # about so many, spread over the run
CONSTANT_STEPS = 20  # from the first on in which no group's rewards differ: nothing will be learned


class GroupTrace(TrainerCallback):
    """Keeps some groups of answers with their rewards and advantages, and the mean reward of every
    group of rank 0, in `groups.jsonl` of the run's folder.

    A group's line: `step`, `prompt`, `references`, `answers` (for each `text`, `reward`,
    `advantage` as the trainer has it, and `tokens`, EOS included). A step's line: `step` and
    `rewards`, the mean of each of its groups.
    """

    def __init__(self, num_generations: int, weights: list[float] | None):
        self.num_generations = num_generations
        self.weights = weights
        self.lines: list[dict[str, Any]] = []
        self._parts: list[list[float]] = []  # of the batch that is judged now, by reward
        self._groups: list[dict[str, Any]] = []  # of the step, without advantages
        self._advantages: dict[tuple[tuple[int, ...], ...], float] = {}
        self.trainer: Any = None

    def watched(self, rewards: list[Reward]) -> list[Reward]:
        """The rewards; what the last of them has judged is taken in."""

        def watch(reward: Reward, is_last: bool) -> Reward:
            def judge(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
                values = reward(prompts=prompts, completions=completions, **columns)
                self._parts.append(values)
                if is_last:
                    self._take(prompts, completions, columns)
                return values

            judge.__name__ = reward.__name__
            return judge

        return [watch(reward, reward is rewards[-1]) for reward in rewards]

    def watch(self, trainer: Trainer) -> None:
        """Take the advantages from what a trainer's loss is computed of."""
        compute_loss = trainer.compute_loss
        self.trainer = trainer

        def watched_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:
                self._note_advantages(inputs)
            return compute_loss(model, inputs, *args, **kwargs)

        vars(trainer).update(compute_loss=watched_loss)
        trainer.add_callback(self)

    def _take(self, prompts: list[str], completions: list[str], columns: dict[str, Any]) -> None:
        """Cut a batch of answers into its groups, whose answers stand beside each other."""
        parts, self._parts = np.array(self._parts), []
        if self.trainer is None or not self.trainer.model.training:
            return  # held-out prompts, answered once each
        state = self.trainer.state
        rewards = np.array(self.weights or [1.0] * len(parts)) @ parts
        ids = columns["completion_ids"]
        self._groups = []
        for start in range(0, len(completions), self.num_generations):
            group = range(start, start + self.num_generations)
            answers = [
                {"text": completions[i], "reward": float(rewards[i]), "ids": tuple(ids[i])}
                for i in group
            ]
            self._groups.append(
                {
                    "step": state.global_step + 1,
                    "prompt": prompts[start],
                    "references": columns.get("references", [[]] * len(prompts))[start],
                    "answers": answers,
                }
            )

    def _note_advantages(self, inputs: dict[str, torch.Tensor]) -> None:
        """Of each row by its tokens: equal answers of a group have one advantage."""
        prompts = _without_padding(inputs["prompt_ids"], inputs["prompt_mask"])
        answers = _without_padding(inputs["completion_ids"], inputs["completion_mask"])
        advantages = inputs["advantages"].tolist()
        self._advantages |= dict(zip(zip(prompts, answers, strict=True), advantages, strict=True))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on after the lines of the steps that are behind the run."""
        path = Path(str(args.output_dir), GROUPS)
        if state.global_step and path.is_file():
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            self.lines = [line for line in lines if line["step"] <= state.global_step]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the step's means, and of some steps some groups."""
        if not state.is_world_process_zero or not self._groups:
            return
        means = [
            float(np.mean([answer["reward"] for answer in group["answers"]]))
            for group in self._groups
        ]
        self.lines.append({"step": state.global_step, "rewards": means})
        every = max(1, state.max_steps // KEPT_STEPS)
        if state.global_step == 1 or state.global_step % every == 0:
            self.lines += [self._with_advantages(group) for group in self._chosen()]
        self._groups = []
        self._advantages.clear()

    def _chosen(self) -> list[dict[str, Any]]:
        """Groups of one step: first those of each kind, then others."""
        kinds: dict[str, dict[str, Any]] = {}
        for group in self._groups:
            rewards = [answer["reward"] for answer in group["answers"]]
            kind = "mixed" if len(set(rewards)) > 1 else f"all {rewards[0]}"
            kinds.setdefault(kind, group)
        first = list(kinds.values())[:KEPT_GROUPS]
        others = [group for group in self._groups if group not in first]
        return [*first, *others[: KEPT_GROUPS - len(first)]]

    def _with_advantages(self, group: dict[str, Any]) -> dict[str, Any]:
        prompt = tuple(self.trainer.processing_class(group["prompt"])["input_ids"])
        answers = [
            {
                "text": answer["text"],
                "reward": answer["reward"],
                "advantage": self._advantages[prompt, answer["ids"]],
                "tokens": len(answer["ids"]),
            }
            for answer in group["answers"]
        ]
        return group | {"answers": answers}

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is known at a checkpoint, from which a run may go on."""
        self._write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write all of it."""
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero:
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in self.lines)
            write_atomically(Path(str(args.output_dir), GROUPS), text)


def _without_padding(ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, ...]]:
    """The tokens of each row (rows x length)."""
    return [
        tuple(row[kept].tolist()) for row, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)
    ]


class StopConstant(TrainerCallback):
    """Ends a training in which no group has taught anything since it began: where all answers of
    each prompt have one reward, all advantages are 0. One that had something to learn before goes
    on.
    """

    def __init__(self) -> None:
        self.has_learned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise InputError, on all ranks, whose logs are the same."""
        share = (logs or {}).get("frac_reward_zero_std")
        if share is None:
            return
        self.has_learned = self.has_learned or share < 1
        if not self.has_learned and state.global_step >= CONSTANT_STEPS:
            reward = (logs or {}).get("reward", 0.0)
            raise InputError(
                f"reward: in {state.global_step} steps all answers to each prompt had the same "
                f"reward (now {reward:g}), so that nothing was learned; start from a model that is "
                "right at times, raise temperature or num_generations, or take a finer reward"
            )


class SeededOrder(TrainerCallback):
    """Draws each epoch's order of prompts by the seed and the number of the epoch: TRL's sampler
    begins a run that goes on with the order of the first epoch.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Seed TRL's sampler."""
        batches: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):  # of one that takes a process's share
            batches = batches.batch_sampler
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, RepeatSampler) and sampler.shuffle:
            sampler.generator.manual_seed(args.seed + int(state.epoch or 0))
