"""Group relative policy optimization (Shao et al. 2024, section 4): one step in each round, on what was just drawn.

    rounds/0007/answers/        drawn with the weights before the round
                state/          adapter and optimizer after it; only the newest round keeps them
                report.json     last

A group whose rewards are all equal gives no gradient.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.adapters.export import export_adapter
from trainer.reward.advantages import advantages
from trainer.reward.answers import Answer, by_task
from trainer.reward.job import Job
from trainer.reward.once import Once, parsed
from trainer.reward.partial import share, single_assertions
from trainer.reward.policy import Key, Policy, token_sample
from trainer.run_dir import new_folder

THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """An answer with its reward and its advantage."""

    answer: Answer
    reward: float
    advantage: float


class Grpo:
    """Group relative policy optimization."""

    def __init__(self, job: Job, done: int) -> None:
        self.job = job
        self.done = done
        self.policy = Policy(job.recipe, job.tokenizer, start=job.request.adapter, stop=job.stop)
        if done:
            self.policy.restore(self._state(done))

    def answers(self, number: int) -> list[Answer]:
        """Answer all tasks. A round that was killed begins anew: its answers' ids are lost."""
        shutil.rmtree(self.job.round_folder(number), ignore_errors=True)
        self.policy.engine.ids.clear()
        return self.job.answers(number, lambda: self.policy.engine)

    def learn(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Take one step on all groups whose rewards differ."""
        reward = self.job.recipe.reward
        rewards = self._rewards(answers)
        costs = self._distances(answers) if reward.kl else [0.0] * len(answers)
        paid = {
            _key(answer): value - reward.kl * cost for answer, value, cost in zip(answers, rewards, costs, strict=True)
        }
        groups = by_task(answers)
        of_task = {_key(answer): value for answer, value in zip(answers, rewards, strict=True)}
        same = sum(len({of_task[_key(answer)] for answer in group}) == 1 for group in groups.values())
        weights: dict[Key, float] = {}
        for group in groups.values():
            keys = [_key(answer) for answer in group]
            found = advantages([paid[key] for key in keys], divide_by_deviation=reward.divide_by_deviation)
            weights.update(zip(keys, found, strict=True))
        samples = [
            token_sample(*self._ids(answer), weights[_key(answer)]) for answer in answers if weights[_key(answer)]
        ]
        norm = None
        if samples:
            rate = self.job.recipe.training.learning_rate if reward.learning_rate is None else reward.learning_rate
            norm = self.policy.step(samples, divide_by=len(answers) * reward.max_tokens, rate=rate)
        with self.job.stop.deferred(), new_folder(self._state(number)) as folder:
            self.policy.save(folder)
        self.done = number
        return {
            "groups": len(groups),
            "groups_without_signal": same,
            "trained_answers": len(samples),
            "mean_reward": round(sum(rewards) / len(rewards), 6),
            "kl_to_start": round(sum(costs) / len(costs), 6) if reward.kl else None,
            "grad_norm": norm,
        }

    def settle(self, number: int) -> None:
        """Remove the weights of all earlier rounds."""
        for earlier in range(1, number):
            shutil.rmtree(self._state(earlier), ignore_errors=True)

    def finish(self) -> Path | None:
        """Write the adapter after the last round."""
        job = self.job
        folder = job.request.to / "adapter"
        facts = {"seed": job.recipe.training.seed, "reward_rounds": self.done}
        export_adapter(folder, self.policy.adapted, job.tokenizer, job.recipe, facts=facts)
        return folder

    def _state(self, number: int) -> Path:
        return self.job.round_folder(number) / "state"

    def _ids(self, answer: Answer) -> tuple[list[int], list[int]]:
        """Return the ids of prompt and answer. A solution in place of an answer (--smoke) is encoded."""
        engine, tokenizer = self.policy.engine, self.job.tokenizer
        if (found := engine.ids.get(_key(answer))) is not None:
            return found
        question = self.job.asking(0, None).question(answer.task)
        drawn = tokenizer.encode(answer.text, add_special_tokens=False)
        return engine._ids(question), [*drawn, tokenizer.eos_token_id]

    def _rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1 for an answer that passes. Another one gets 0, or the share of assertions that hold (reward.partial)."""
        if not self.job.recipe.reward.partial:
            return [float(answer.passed) for answer in answers]
        runner = Once(self.job.runner)

        def reward_of(answer: Answer) -> float:
            if answer.passed or parsed(answer.program) is None:
                return float(answer.passed)
            alone = single_assertions(answer.task)
            return share([runner(task, answer.completion).passed for task in alone])

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(reward_of, answers))

    def _distances(self, answers: Sequence[Answer]) -> list[float]:
        """Return log p(answer) now minus at the start, for each answer. Their mean estimates the KL divergence.

        As a part of the reward it gives the divergence's own gradient. As a part of the loss it would not.
        """
        samples = [token_sample(*self._ids(answer)) for answer in answers]
        now, before = self.policy.log_probabilities(samples), self.policy.log_probabilities_at_start(samples)
        return [a - b for a, b in zip(now, before, strict=True)]


def _key(answer: Answer) -> Key:
    return answer.task.task_id, answer.sample
