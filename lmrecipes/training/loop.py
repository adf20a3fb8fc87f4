"""The training loop: the one loop that all recipes share."""

from __future__ import annotations

import io
import logging
import math
import time
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lmrecipes.adaptive.plan import PlanFile
from lmrecipes.adaptive.steering import Steering, replayed_plan
from lmrecipes.data.augment import changes_of
from lmrecipes.data.batches import Batcher
from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.facts import mixture_of
from lmrecipes.data.inputs import longest_example
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.stream import Step, TrainingStream
from lmrecipes.data.tokenizer import tokenizer_of
from lmrecipes.files import write_json
from lmrecipes.mixture_text import announce
from lmrecipes.models.attention import arrangement
from lmrecipes.models.front_ends import front_ends
from lmrecipes.models.inputs import input_specs, modalities_of
from lmrecipes.models.loading import accelerate, load_trunk, require_positions
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.precision import proof
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.ranks import launch_command, launcher
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import (
    RunFolder,
    claim_run,
    new_run,
    resumable_run,
    write_dtypes,
    write_environment,
    write_mixture,
    write_recipe,
)
from lmrecipes.tracking.progress import TrainingBar, evaluation_bar
from lmrecipes.tracking.record import MetricsFile
from lmrecipes.tracking.trackers import Trackers
from lmrecipes.training.checkpoint import RunState, find_checkpoint, left_behind, load_checkpoint, save_checkpoint
from lmrecipes.training.cosines import Cosines
from lmrecipes.training.costs import Costs
from lmrecipes.training.distillation import soft_targets
from lmrecipes.training.engine import Engine
from lmrecipes.training.evaluation import evaluation_metrics
from lmrecipes.training.export import export_model
from lmrecipes.training.flops import measured_peak, parameters_of, training_flops_per_token
from lmrecipes.training.formats_over_time import FormatsOverTime
from lmrecipes.training.losses import head_specs, loss_scales, loss_units, weighted
from lmrecipes.training.probe import probe
from lmrecipes.training.review import Review, before_training
from lmrecipes.training.schedule import rate_metrics, rates
from lmrecipes.training.signals import Interrupted, Signals
from lmrecipes.training.skips import NotFinite, Outcome, Skips

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a run starts. run: its folder (None: a new one; with resume: the newest unfinished one of the recipe)."""

    deepspeed: dict[str, Any] | None = None
    run: Path | None = None
    resume: bool = False
    until: int | None = None
    """Stop with a checkpoint after this many steps, as if interrupted."""


class Training:
    """A run from its start to its exported model. `tasks` and `specs` are the same on every rank."""

    def __init__(self, recipe: Recipe, start: Start) -> None:
        self.recipe = recipe
        self.launcher = launcher()  # before Accelerate writes marks of its own into the environment
        replayed = replayed_plan(recipe)
        self.tasks = encode_tasks(recipe)
        self.inputs = input_specs(recipe.model, modalities_of(recipe))
        self.specs = head_specs(self.tasks)
        units = loss_units(recipe, self.specs)
        self.steering = Steering(recipe, mixture_of(recipe, self.tasks), units, replayed)
        soft = soft_targets(recipe, self.tasks, self.specs, self.steering.mixture)
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints of every operator that it loads
            self.engine = Engine(recipe, start.deepspeed)
        own = self.engine.together(lambda: _folder(recipe, start) if self.engine.is_main else None)
        self.run: RunFolder = self.engine.broadcast(own)
        changes, longest = changes_of(recipe.tasks, self.inputs, recipe.seed), longest_example(recipe, self.inputs)
        splits = {name: task.train for name, task in self.tasks.items()}
        batcher = Batcher(splits, self.specs, soft, self.inputs, changes)
        language, half = any(spec.of_tokens for spec in self.specs.values()), recipe.precision.half
        self.tokenizer = tokenizer_of(recipe)
        trunk = load_trunk(recipe.model, recipe.seed, recipe.batch.layout, half, language, self.tokenizer)
        require_positions(trunk.model, longest, trunk.first_position, tuple(self.inputs))
        self.choice, cut = trunk.choice, arrangement(recipe, trunk.choice, longest)
        self.stream = TrainingStream(
            batcher, loss_scales(recipe, self.specs), self.steering.mixture, self.engine.plan, cut, self.engine.rank,
            recipe.loader,
        )  # fmt: skip
        self.kernels = accelerate(trunk, recipe.model, self.engine.device)
        with self.engine.loading_whole():  # not every encoder can be loaded partitioned
            model = MultiTaskModel(trunk, self.specs, front_ends(recipe.model, self.inputs, trunk, recipe.seed))
        flops_per_token, self.parameters = training_flops_per_token(model), parameters_of(model)
        with redirect_stdout(io.StringIO()):
            self.engine.prepare(model)
        probe(self.engine, cut, longest, recipe.seed, self.inputs)
        self.draws_dropout = recipe.model.dropout != 0 or (recipe.model.lora.rank > 0 and recipe.model.lora.dropout > 0)
        self.skips = Skips(self.engine, recipe.precision.skips)
        self.formats = FormatsOverTime(self.engine, recipe)
        self.cosines = Cosines(recipe, self.engine, self.stream)
        nothing = [dict.fromkeys(self.tasks, 0) for _ in range(3)]
        self.state = RunState(examples=nothing[0], tokens=nothing[1], supervised=nothing[2])
        if start.resume:
            self._resume()
        self.dtypes = self._prove(after_step=False)
        peak = measured_peak(self.engine.device, recipe.precision.compute) * self.engine.world_size
        self.costs = Costs(recipe, self.engine.device, flops_per_token, peak)
        self.until = min(start.until or recipe.schedule.steps, recipe.schedule.steps)
        self.signals = Signals()
        self.review = Review(recipe, self.tasks, self.specs, self.tokenizer)
        self.trackers: Trackers | None = None
        self.plan_file: PlanFile | None = None

    def fit(self) -> dict[str, Any]:
        """Train to the end, export, evaluate on the test split. Returns the content of evaluation.json."""
        self.signals.listen()
        engine, recipe = self.engine, self.recipe
        if engine.is_main:
            write_recipe(self.run, recipe)
            write_environment(self.run, self.facts())
            whole, trained = self.parameters
            log.info(f"model: {whole:,} parameters, {trained:,} trained; {self.choice}; {self.kernels}")
            log.info(proof.table(self.dtypes))
            write_mixture(self.run, announce(recipe, self.tasks, self.steering.mixture), self.state.step)
        with ExitStack() as files:
            record = self._open(files) if engine.is_main else None
            if self.state.step == 0:
                self.review.before_training(engine, self.run, self.trackers)
            with TrainingBar(recipe.schedule.steps, self.state.step, list(self.tasks), show=engine.is_main) as bar:
                self._steps(record, bar)
            self.cosines.say(self.state.seconds)
            if self.until < recipe.schedule.steps:
                self._save()
                return {}
            return self._finish()

    def _open(self, files: ExitStack) -> MetricsFile:
        """Begin to write what happens, on rank 0 alone; `files` closes all."""
        settings, path, step = self.recipe.model_dump(mode="json"), self.run.path, self.state.step
        self.trackers = Trackers.start(self.recipe.tracking, path, settings, path.name, self.state.trackers or None)
        files.callback(self.trackers.finish)
        parts: tuple[Review | FormatsOverTime | Cosines, ...] = (self.review, self.formats, self.cosines)
        for part in parts:
            files.callback(part.close)
            part.open(self.run, step)
        if self.steering.writes:
            self.plan_file = PlanFile(self.run.plan, self.steering.plan)
            files.callback(self.plan_file.close)
        return files.enter_context(MetricsFile(self.run.metrics, step or None))

    def _steps(self, record: MetricsFile | None, bar: TrainingBar) -> None:
        trackers, recipe, last = self.trackers, self.recipe, self.recipe.schedule.steps
        steps, proven = self.stream.steps(self.state.step, self.until), False
        while self.state.step < self.until:
            began = time.perf_counter()
            step = next(steps)
            waited = time.perf_counter() - began
            metrics, outcome = self.one_step(step)
            seconds = time.perf_counter() - began
            self.state.seconds += seconds
            seconds -= metrics.get("time/cosines", 0.0)  # the speed is that of training
            metrics |= self.costs.of(step, self.state, self.steering, seconds, waited)
            number = self.state.step
            try:
                self.judge(outcome, metrics)
            except NotFinite as stop:
                left = left_behind(self.engine, self.run.checkpoints, stop.before, recipe.checkpoint.keep)
                raise RunFailed(f"{stop}; {left}") from None
            if outcome.applied and not proven:
                self.dtypes, proven = self._prove(after_step=True), True
                if self.engine.is_main:
                    write_dtypes(self.run, list(map(asdict, self.dtypes)))
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
        """Raise NotFinite, on every rank, where the numbers of the last step show that training cannot go on."""
        self.skips.judge(self.state, outcome, metrics, lambda micro_batch: self._draw(self.state.step - 1, micro_batch))

    def one_step(self, step: Step) -> tuple[dict[str, float], Outcome]:
        """One optimizer step, summed over ranks. `loss/<task>` is absent where the step held no example of the task."""
        sums = torch.zeros(len(self.tasks) + 1, dtype=torch.float64, device=self.engine.device)
        factors = self.steering.factors(self.state.step + 1)
        micro_batches = [weighted(micro, factors) for micro in step.micro_batches] if factors else step.micro_batches
        measured = self.cosines.before_step(self.state.step + 1, factors)
        self.formats.before_step(self.state.step + 1, after_skip=self.state.skips_in_a_row > 0)
        for i, micro in enumerate(micro_batches):
            self._draw(self.state.step, i)
            sums[:-1] += self.engine.micro_step(micro, last=i == len(micro_batches) - 1)
        sums[-1] = self.signals.asked
        now = rates(self.recipe, self.state.step)
        result = self.engine.apply(now)
        totals = self.engine.sum_over_ranks(sums).tolist()
        self.skips.count(self.state, result.applied, self._current)
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
        metrics |= rate_metrics(self.recipe, now)
        metrics |= {"grad_norm": result.grad_norm, "skipped_steps": self.state.skipped_steps}
        metrics |= self.formats.after_step(self.state.step) | measured
        metrics |= {f"loss_factor/{name}": factor for name, factor in (factors or {}).items()}
        if result.loss_scale is not None:
            metrics["loss_scale"] = result.loss_scale
        asked = max(self.engine.gather(self.signals.asked)) if totals[-1] else 0
        return metrics, Outcome(result.applied, all(map(math.isfinite, totals)), asked, micro_batches)

    def _draw(self, done: int, micro_batch: int) -> None:
        """Dropout masks as a function of the place in the run: no state of a generator to save, and a resumed run draws
        what the uninterrupted one would have drawn."""
        if self.draws_dropout:
            torch.manual_seed(hash_key(self.recipe.seed, "dropout", done, micro_batch, self.engine.rank))

    def _steer(self, losses: dict[str, float], step: Step) -> None:
        """Tell the steering of a step's losses and follow what it changes: what rank 0 decides, on every rank."""
        self.steering.observe(losses, step.elements)
        if self.steering.due(self.state.step):
            self.steering.follow(self.engine.broadcast(self.steering.decide(self.state.step)))
            self.stream.mixture = self.steering.mixture

    def _finish(self) -> dict[str, Any]:
        try:
            with self.engine.averaged():
                export_model(self.engine, self.recipe, self.specs, self.tokenizer, self.run.model, self.inputs)
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
        self.review.sample(self.engine, self.state.step, self.trackers)
        if self.engine.is_main:
            if start := before_training(self.run, scores):
                final["baselines"] = start
            write_json(self.run.evaluation, final)
            if self.trackers is not None:
                self.trackers.summary(evaluation_metrics(scores))
        self.engine.barrier()
        return final

    def facts(self) -> dict[str, Any]:
        """What the run runs on, for environment.json."""
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
            "dtypes": list(map(asdict, self.dtypes)),
        }

    def _current(self) -> RunState:
        """The state as it is saved."""
        if self.trackers is not None:
            self.state.trackers = self.trackers.state()
        self.state.steering = self.steering.state() if self.steering.writes else {}
        self.state.precision = self.formats.state()
        self.state.cosines = self.cosines.state()
        return self.state

    def _save(self) -> Path:
        return save_checkpoint(self.engine, self.run.checkpoints, self._current(), self.recipe.checkpoint.keep)

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
        self.formats.restore(self.state.precision, self.state.step)
        self.cosines.restore(self.state.cosines)
        self.stream.mixture = self.steering.mixture

    def _prove(self, after_step: bool) -> list[proof.Row]:
        """What rank 0 holds, by dtype. Raises InputError on every rank where one holds it otherwise than declared."""
        rows = proof.inspect(self.engine, after_step)
        self.engine.together(lambda: proof.require(rows))
        return rows


def _folder(recipe: Recipe, start: Start) -> RunFolder:
    if start.resume:
        return resumable_run(start.run, recipe)
    return claim_run(start.run) if start.run is not None else new_run(recipe.name)
