"""The training loop: the one loop that all recipes share."""

from __future__ import annotations

import io
import logging
import math
import resource
import signal
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from lmrecipes.adaptive.plan import PlanFile
from lmrecipes.adaptive.steering import Steering, replayed_plan
from lmrecipes.data.batches import Batcher
from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.facts import mixture_of
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.stream import Step, TrainingStream
from lmrecipes.data.tokenizer import tokenizer_of
from lmrecipes.files import write_json
from lmrecipes.mixture_text import announce
from lmrecipes.models.attention import arrangement, longest_text
from lmrecipes.models.loading import accelerate, load_trunk, require_positions
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.ranks import launch_command, launcher
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import (
    RunFolder,
    claim_run,
    new_run,
    resumable_run,
    write_environment,
    write_mixture,
    write_recipe,
)
from lmrecipes.tracking.progress import TrainingBar, evaluation_bar
from lmrecipes.tracking.record import MetricsFile
from lmrecipes.tracking.trackers import Trackers
from lmrecipes.training.checkpoint import RunState, find_checkpoint, load_checkpoint, save_checkpoint
from lmrecipes.training.engine import Engine
from lmrecipes.training.evaluation import evaluation_metrics
from lmrecipes.training.export import export_model
from lmrecipes.training.flops import measured_peak, parameters_of, training_flops_per_token
from lmrecipes.training.losses import head_specs, loss_scales, loss_units, weighted
from lmrecipes.training.probe import probe
from lmrecipes.training.review import Review, before_training
from lmrecipes.training.schedule import learning_rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a run starts. run: its folder (None: a new one; with resume: the newest unfinished one of the recipe)."""

    deepspeed: dict[str, Any] | None = None
    run: Path | None = None
    resume: bool = False
    until: int | None = None
    """Stop with a checkpoint after this many steps, as if interrupted."""


MOST_SKIPS = 50
"""fp16 steps skipped in a row before a run stops: dynamic scaling needs 17 at most from 2**16 to 1."""


class Interrupted(Exception):
    """A signal asked the run to stop; it was saved. `number` is the signal's."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; saved {checkpoint}")
        self.number = number


@dataclass(frozen=True)
class Outcome:
    """How a step went, the same on every rank. signal: number of a signal that asked the run to stop, or 0."""

    applied: bool
    finite: bool
    signal: int


class Training:
    """A run from its start to its exported model. `tasks`, `specs` and `mixture` are the same on every rank."""

    def __init__(self, recipe: Recipe, start: Start) -> None:
        self.recipe = recipe
        self.launcher = launcher()  # before Accelerate writes marks of its own into the environment
        replayed = replayed_plan(recipe)
        self.tasks = encode_tasks(recipe)
        mixture = mixture_of(recipe, self.tasks)
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints of every operator that it loads
            self.engine = Engine(recipe, start.deepspeed)
        self.run = self.engine.broadcast(_folder(recipe, start) if self.engine.is_main else None)
        if isinstance(self.run, InputError):
            raise self.run
        self.specs = head_specs(self.tasks)
        units = loss_units(recipe, self.specs)
        self.steering = Steering(recipe, mixture, units, replayed)
        self.mixture = self.steering.mixture
        batcher = Batcher({name: task.train for name, task in self.tasks.items()}, self.specs)
        language, half = any(spec.of_tokens for spec in self.specs.values()), recipe.precision.compute != "fp32"
        self.tokenizer = tokenizer_of(recipe)
        trunk = load_trunk(recipe.model, recipe.seed, recipe.batch.layout, half, language, self.tokenizer)
        require_positions(trunk.model, longest_text(recipe), trunk.first_position)
        self.choice, cut = trunk.choice, arrangement(recipe, trunk.choice)
        self.stream = TrainingStream(
            batcher, loss_scales(recipe, self.specs), self.mixture, self.engine.plan, cut, self.engine.rank,
            recipe.loader,
        )  # fmt: skip
        self.kernels = accelerate(trunk, recipe.model, self.engine.device)
        model = MultiTaskModel(trunk, self.specs)
        self.flops_per_token, self.parameters = training_flops_per_token(model), parameters_of(model)
        with redirect_stdout(io.StringIO()):
            self.engine.prepare(model)
        probe(self.engine, cut, longest_text(recipe), recipe.seed)
        self.draws_dropout = recipe.model.dropout != 0 or (recipe.model.lora.rank > 0 and recipe.model.lora.dropout > 0)
        self.skips_in_a_row = 0
        nothing = [dict.fromkeys(self.tasks, 0) for _ in range(3)]
        self.state = RunState(examples=nothing[0], tokens=nothing[1], supervised=nothing[2])
        if start.resume:
            self._resume()
        self.peak = measured_peak(self.engine.device, recipe.precision.compute) * self.engine.world_size
        self.until = min(start.until or recipe.schedule.steps, recipe.schedule.steps)
        self.signal = 0
        self.review = Review(recipe, self.tasks, self.specs, self.tokenizer)
        self.trackers: Trackers | None = None
        self.plan_file: PlanFile | None = None

    def fit(self) -> dict[str, Any]:
        """Train to the end, export, evaluate on the test split. Returns the content of evaluation.json."""
        self._listen()
        engine, recipe = self.engine, self.recipe
        if engine.is_main:
            write_recipe(self.run, recipe)
            write_environment(self.run, self._facts())
            whole, trained = self.parameters
            log.info(f"model: {whole:,} parameters, {trained:,} trained; {self.choice}; {self.kernels}")
            write_mixture(self.run, announce(recipe, self.tasks, self.mixture), self.state.step)
        record = MetricsFile(self.run.metrics, self.state.step or None) if engine.is_main else None
        self.trackers = trackers = self._trackers() if engine.is_main else None
        if engine.is_main and self.steering.writes:
            self.plan_file = PlanFile(self.run.plan, self.steering.plan)
        if engine.is_main:
            self.review.open(self.run, self.state.step)
        try:
            if self.state.step == 0:
                self.review.before_training(engine, self.run, trackers)
            with TrainingBar(recipe.schedule.steps, self.state.step, list(self.tasks), show=engine.is_main) as bar:
                self._steps(record, trackers, bar)
            if self.until < recipe.schedule.steps:
                self._save()
                return {}
            return self._finish(record, trackers)
        finally:
            if trackers is not None:
                trackers.finish()
            if record is not None:
                record.close()
            if self.plan_file is not None:
                self.plan_file.close()
            self.review.close()

    def _steps(self, record: MetricsFile | None, trackers: Trackers | None, bar: TrainingBar) -> None:
        recipe, last = self.recipe, self.recipe.schedule.steps
        steps = self.stream.steps(self.state.step, self.until)
        while self.state.step < self.until:
            began = time.perf_counter()
            step = next(steps)
            waited = time.perf_counter() - began
            metrics, outcome = self.one_step(step)
            seconds = time.perf_counter() - began
            self.state.seconds += seconds
            metrics |= self._costs(step, seconds, waited)
            number = self.state.step
            self.judge(outcome, metrics)
            if self.plan_file is not None:
                self.plan_file.extend(self.steering.plan)
            due = bool(recipe.evaluation.every) and number % recipe.evaluation.every == 0 and number < last
            if due:
                metrics |= evaluation_metrics(self.review.scores(self.engine, "validation"))
                self.review.sample(self.engine, number, trackers)
            if record is not None and (number % recipe.tracking.log_every == 0 or due or number == self.until):
                record.write(number, metrics)
                if trackers is not None:
                    trackers.log(metrics, number)
            bar.move(number, metrics)
            if outcome.signal:
                raise Interrupted(outcome.signal, self._save())
            if recipe.checkpoint.every and number % recipe.checkpoint.every == 0 and number < last:
                self._save()

    def judge(self, outcome: Outcome, metrics: dict[str, float]) -> None:
        """Stop where the numbers are not finite; in fp16 count the steps that the loss scaler skips, as it should."""
        number, norm = self.state.step, metrics["grad_norm"]
        if not outcome.finite and (outcome.applied or self.recipe.precision.compute != "fp16"):
            raise RunFailed(f"step {number}: the loss is {metrics['loss']}; {self._kept()}")
        if outcome.applied and math.isfinite(norm):
            self.skips_in_a_row = 0
            return
        if outcome.applied or self.recipe.precision.compute != "fp16":
            raise RunFailed(f"step {number}: the gradients are not finite (norm {norm}); {self._kept()}")
        self.state.skipped_steps += 1
        self.skips_in_a_row += 1
        log.warning("step %d was skipped: its gradients were not finite", number)
        if self.skips_in_a_row == MOST_SKIPS:
            raise RunFailed(
                f"step {number}: {MOST_SKIPS} steps in a row had gradients that were not finite; {self._kept()}"
            )

    def _kept(self) -> str:
        """What a failed run leaves to go on from."""
        kept = sorted(path.name for path in self.run.checkpoints.glob("step-*") if path.suffix != ".tmp")
        return f"the newest checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def one_step(self, step: Step) -> tuple[dict[str, float], Outcome]:
        """One optimizer step, summed over ranks. `loss/<task>` is absent where the step held no example of the task."""
        sums = torch.zeros(len(self.tasks) + 1, dtype=torch.float64, device=self.engine.device)
        factors = self.steering.factors(self.state.step + 1)
        micro_batches = [weighted(micro, factors) for micro in step.micro_batches] if factors else step.micro_batches
        for i, micro in enumerate(micro_batches):
            if self.draws_dropout:
                # Masks as a function of the place in the run: no state of a generator to save, and a resumed run draws
                # what the uninterrupted one would have drawn.
                torch.manual_seed(hash_key(self.recipe.seed, "dropout", self.state.step, i, self.engine.rank))
            sums[:-1] += self.engine.micro_step(micro, last=i == len(micro_batches) - 1)
        sums[-1] = self.signal
        rate = learning_rate(self.recipe.schedule, self.recipe.optimizer.lr, self.state.step)
        result = self.engine.apply(rate)
        totals = self.engine.sum_over_ranks(sums).tolist()
        self.state.step += 1
        metrics = {"loss": 0.0}
        for name, total in zip(self.tasks, totals, strict=False):
            self.state.examples[name] += step.examples[name]
            self.state.tokens[name] += step.tokens[name]
            self.state.supervised[name] += step.supervised[name]
            if step.elements[name]:
                metrics[f"loss/{name}"] = total / step.elements[name]
                metrics["loss"] += step.factors[name] * metrics[f"loss/{name}"]
        self._steer({name: metrics[f"loss/{name}"] for name in self.tasks if step.elements[name]}, step)
        metrics |= {"lr": rate, "grad_norm": result.grad_norm}
        metrics |= {f"loss_factor/{name}": factor for name, factor in (factors or {}).items()}
        if result.loss_scale is not None:
            metrics["loss_scale"] = result.loss_scale
        asked = max(self.engine.gather(self.signal)) if totals[-1] else 0
        return metrics, Outcome(result.applied, all(map(math.isfinite, totals)), asked)

    def _steer(self, losses: dict[str, float], step: Step) -> None:
        """Tell the steering of a step's losses and follow what it changes: what rank 0 decides, on every rank."""
        self.steering.observe(losses, step.elements)
        if self.steering.due(self.state.step):
            self.steering.follow(self.engine.broadcast(self.steering.decide(self.state.step)))
            self.mixture = self.stream.mixture = self.steering.mixture

    def _finish(self, record: MetricsFile | None, trackers: Trackers | None) -> dict[str, Any]:
        try:
            export_model(self.engine, self.recipe, self.specs, self.tokenizer, self.run.model)
        except RunFailed as failure:
            raise RunFailed(f"{failure}. Its training state is kept: {self._save()}") from None
        with evaluation_bar(show=self.engine.is_main) as moved:
            scores = self.review.scores(self.engine, "test", moved)
        final: dict[str, Any] = {
            "run": self.run.path.name,
            "step": self.state.step,
            "split": "test",
            "seconds_of_training": round(self.state.seconds, 3),
            "tasks": scores,
        }
        self.review.sample(self.engine, self.state.step, trackers)
        if self.engine.is_main:
            if start := before_training(self.run, scores):
                final["baselines"] = start
            write_json(self.run.evaluation, final)
            if trackers is not None:
                trackers.summary(evaluation_metrics(scores))
        self.engine.barrier()
        return final

    def _costs(self, step: Step, seconds: float, waited: float) -> dict[str, float]:
        tokens = sum(step.tokens.values())
        unit = self.recipe.mixture.unit
        drawn = {"tokens": self.state.tokens, "supervised_tokens": self.state.supervised}.get(unit, self.state.examples)
        target = self.mixture.targets(self.state.step * self.recipe.batch.examples)
        on_device = torch.cuda.max_memory_allocated() if self.engine.device.type == "cuda" else 0
        peak = on_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        costs = {
            "tokens_per_second": tokens / seconds,
            "model_flops_utilization": tokens * self.flops_per_token / seconds / self.peak,
            "memory/peak_gb": peak / 1e9,
            "time/step": seconds,
            "time/data": waited,
        }
        for name in self.tasks:
            costs[f"examples/{name}"] = self.state.examples[name]
            costs[f"tokens/{name}"] = self.state.tokens[name]
            if unit == "supervised_tokens":
                costs[f"supervised/{name}"] = drawn[name]
            costs[f"share/{name}"] = drawn[name] / sum(drawn.values())
            costs[f"target_share/{name}"] = target[name] / sum(target.values())
        if self.steering.changes_weights:
            in_force = self.mixture.shares_at((self.state.step - 1) * self.recipe.batch.examples)
            costs |= {f"weight/{name}": share for name, share in in_force.items()}
        return costs

    def _trackers(self) -> Trackers:
        trackers = Trackers.start(
            self.recipe.tracking, self.run.path, self.recipe.model_dump(mode="json"), self.run.path.name,
            self.state.trackers or None,
        )  # fmt: skip
        return trackers

    def _facts(self) -> dict[str, Any]:
        cuda = self.engine.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "world_size": self.engine.world_size,
            "zero": self.engine.zero_stage,
            "precision": self.recipe.precision.compute,
            "batch": str(self.engine.plan),
            "layout": str(self.choice),
            "kernels": self.kernels,
            "parameters": self.parameters[0],
            "trained_parameters": self.parameters[1],
            "command": launch_command(),
            "launcher": self.launcher,
            "threads": torch.get_num_threads(),
            "from_step": self.state.step,
        }

    def _save(self) -> Path:
        if self.trackers is not None:
            self.state.trackers = self.trackers.state()
        self.state.steering = self.steering.state() if self.steering.writes else {}
        return save_checkpoint(self.engine, self.run.checkpoints, self.state, self.recipe.checkpoint.keep)

    def _resume(self) -> None:
        found = self.engine.broadcast(find_checkpoint(self.run.checkpoints) if self.engine.is_main else None)
        if found is None:
            raise InputError(
                Problem(
                    str(self.run.checkpoints),
                    "no complete checkpoint to resume from",
                    "start without --resume, or name another run with --run-folder",
                    "resume-nothing",
                )
            )
        self.state = load_checkpoint(self.engine, found)
        self.steering.restore(self.state.steering)
        self.mixture = self.stream.mixture = self.steering.mixture

    def _listen(self) -> None:
        def asked(number: int, frame: FrameType | None) -> None:
            self.signal = number

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, asked)


def _folder(recipe: Recipe, start: Start) -> RunFolder | InputError:
    """The run's folder on rank 0; an error is handed to all ranks rather than raised on one."""
    try:
        if start.resume:
            return resumable_run(start.run, recipe)
        return claim_run(start.run) if start.run is not None else new_run(recipe.name)
    except InputError as error:
        return error
