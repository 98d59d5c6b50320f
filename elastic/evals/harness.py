"""lm-eval, the only file that imports it: our model as it wants one, our tasks as it wants them, what it found.

It comes with libraries that reach out to the Hugging Face hub. Here they are told not to, unless the environment
already says otherwise: everything runs without a network, or says that it does not.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("DISABLE_MULTIPROC", "1")  # or standard errors would fork this process once a core

import datasets
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows

from elastic.errors import ConfigError, ElasticError, is_out_of_memory
from elastic.evals.likelihood import Asked, OnProgress, log_likelihoods
from elastic.evals.subject import Subject
from elastic.evals.tasks import BITS, FACTS, SHIPPED, pieces, questions
from elastic.reports import Measured

BOOTSTRAPS = 1000
"""Draws for the standard errors that have no formula."""
SEED = 1234
"""lm-eval's own, of the examples that a task shows first."""
MOST_GENERATED = 256
"""Tokens that a model writes where a task does not say how many."""
FIRST = "\n"
"""What stands before a text that stands alone; a model of a run knows no token for the beginning."""


class Model(TemplateLM):  # type: ignore[misc]
    """One of our models, as lm-eval asks it."""

    def __init__(self, subject: Subject, batch: int, on_progress: OnProgress) -> None:
        super().__init__()
        self._subject, self._batch, self._on_progress = subject, batch, on_progress
        first = self.tok_encode(FIRST)
        if not first:
            raise ConfigError("the tokenizer has no token for a line break, after which texts are read")
        self._first = first[-1]

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text, if the model has one."""
        return min(self._subject.ends, default=self._first)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that stands alone."""
        return self._first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; there are no others to add.

        Raises:
            ValueError: the tokenizer has none for something in it.
        """
        return [int(token) for token in self._subject.tokenizer.encode(string)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For (context, continuation) pairs: how likely the continuation is, and whether it is what comes first."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """For whole texts, read so many tokens at a time as the model may, each piece beginning where one ended."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for context, scored in get_rolling_token_windows(tokens, self._first, self._subject.longest, 1):
                asked.append(Asked((*context, scored[-1]), len(scored)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, answer in zip(owners, self._ask(asked), strict=True):
            totals[owner] += answer.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuations of texts, up to a mark or so many tokens."""
        texts = []
        for request in requests:
            texts.append(self._continued(*request.args))
            self._on_progress(len(texts), len(requests))
        return texts

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        answers = self._ask([self._fitting(context, continuation) for _, context, continuation in requests])
        return [(answer.log_likelihood, answer.greedy) for answer in answers]

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> Asked:
        """With as much of the context's end as may be read with it; of a longer continuation, too, the end counts."""
        tokens = (*(context or (self._first,)), *continuation)[-(self._subject.longest + 1) :]
        return Asked(tokens, min(len(continuation), len(tokens) - 1))

    def _ask(self, asked: list[Asked]) -> Any:
        return log_likelihoods(self._subject.model, asked, self._batch, self._on_progress)

    def _continued(self, context: str, settings: Mapping[str, Any]) -> str:
        """Token by token, with what was read kept, where the model can do that."""
        until = settings.get("until") or []
        marks = [until] if isinstance(until, str) else list(until)
        most = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or MOST_GENERATED)
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        said = list[int]()
        text = ""
        for token in self._drawn(context, most, warm):
            if token in self._subject.ends:
                break
            said.append(token)
            text = self._subject.tokenizer.decode(said)
            if any(mark and mark in text for mark in marks):
                break
        for mark in filter(None, marks):
            text = text.partition(mark)[0]
        return text

    def _drawn(self, context: str, most: int, temperature: float) -> Iterator[int]:
        model, generator = self._subject.model, torch.Generator().manual_seed(SEED)
        prompt = (self.tok_encode(context) or [self._first])[-self._subject.longest :]
        prompt_1T = torch.tensor([prompt])
        if hasattr(model, "stream"):
            for token_11 in model.stream(prompt_1T, most, temperature, generator):
                yield int(token_11)
        else:
            yield from model.generate(prompt_1T, most, temperature, generator)[0, len(prompt) :].tolist()


def measure(
    subject: Subject, tasks: Sequence[str], limit: int | None, batch: int, on_progress: OnProgress
) -> list[Measured]:
    """Evaluate a model.

    Args:
        subject: the model.
        tasks: names of shipped tasks or of lm-eval's, or YAML files as lm-eval's guide describes them.
        limit: only so many examples of each task, the first ones; None: all.
        batch: texts at a time, at most.
        on_progress: is told how many requests of one kind are done.

    Raises:
        ConfigError: no such task, one whose data is not on this machine, or one that fails.
        MemoryError, RuntimeError: there is too little; see `errors.is_out_of_memory`.
    """
    with _quietly():
        loaded: dict[str, Any] = {}
        for name in tasks:
            loaded |= _shipped(name, subject) if name in SHIPPED else _standard(name)
        for task in loaded.values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(SEED)
        try:
            found = evaluate(
                Model(subject, batch, on_progress), {"tasks": loaded}, limit=limit, bootstrap_iters=BOOTSTRAPS
            )
        except Exception as error:  # whatever the libraries raise, or a task of the user's
            if isinstance(error, ElasticError) or is_out_of_memory(error):
                raise
            raise ConfigError(f"{', '.join(tasks)}: {_first_line(error)}") from error
    return [each for name in loaded for each in _found(name, found)]


def _shipped(name: str, subject: Subject) -> dict[str, ConfigurableTask]:
    config = {
        BITS: {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        FACTS: {
            "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}],
        },
    }[name]  # fmt: skip
    documents: dict[str, Callable[[], list[dict[str, Any]]]] = {
        BITS: lambda: [{"text": piece} for piece in pieces(subject.text)],
        FACTS: lambda: [
            {"text": each.text, "choices": list(each.choices), "answer": each.answer} for each in questions()
        ],
    }

    def dataset(**_: Any) -> dict[str, Any]:
        return {"test": datasets.Dataset.from_list(documents[name]())}

    return {name: ConfigurableTask(config={**config, "task": name, "test_split": "test", "custom_dataset": dataset})}


def _standard(name: str) -> dict[str, Any]:
    """A task of lm-eval's, a group of them, or one that a YAML file of the user's describes."""
    own = name.endswith(".yaml") and Path(name).is_file()
    manager = TaskManager(include_defaults=not own)  # thousands of files
    if not own and name not in manager.task_index:
        raise ConfigError(
            f'no task is called "{name}": it should be one of {", ".join(SHIPPED)}, a name of lm-eval\'s, or a file'
        )
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:  # whatever the libraries below raise
        raise ConfigError(f"task {name}: its data is not at hand on this machine: {_first_line(error)}") from error
    return tasks


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _found(name: str, found: Any) -> list[Measured]:
    """One for each metric of a task."""
    values, count = found["results"][name], found["n-samples"][name]["effective"]
    out = []
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{filtered}")
        if metric == "bits_per_byte":
            stderr = _bits_stderr([sample[metric] for sample in found["samples"][name]])
        known = isinstance(stderr, int | float) and math.isfinite(stderr)
        shown = metric if filtered == "none" else f"{metric} ({filtered})"
        out.append(
            Measured(
                task=name, metric=shown, value=float(value), stderr=float(stderr) if known else None, samples=count
            )
        )
    return out


def _bits_stderr(samples: Sequence[tuple[float, int]]) -> float:
    """Of a ratio of sums over independent texts, (log-likelihood, bytes) each; lm-eval has none. nan: of one text."""
    nats, num_bytes = np.array(samples, dtype=np.float64).T
    if len(nats) < 2:
        return math.nan
    rest = nats - num_bytes * nats.sum() / num_bytes.sum()
    return float(np.sqrt(len(nats) * rest.var(ddof=1)) / num_bytes.sum() / math.log(2))


@contextmanager
def _quietly() -> Iterator[None]:
    """What these libraries remark, and their bars, stay away from the user: what is wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
