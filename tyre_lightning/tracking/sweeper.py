"""Hydra's sweeper for current Optuna: TPE, pruning, and a study that goes on where it was broken off.

``hydra-optuna-sweeper`` wants Optuna 2, a number from every run and no pruning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from tyre_lightning.errors import UserError
from tyre_lightning.tracking.studies import PRUNED, storage_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_HYDRAS_NAME = "hydra_plugins.tyre_lightning.StudySweeper"  # Hydra makes no plugin that is called otherwise

log = logging.getLogger(__name__)


class StudySweeper(Sweeper):
    """Runs the trials of an Optuna study (Akiba et al., KDD 2019) through any of Hydra's launchers.

    A trial's number is that of its run, so that a trial that was broken off goes on in its own folder.

    Args:
        study: its name.
        storage: the database's address; None: a file in the sweep's folder.
        metric: of those that a run returns.
        direction: maximize or minimize.
        n_trials: in all.
        n_jobs: at a time.
        prune: whether hopeless trials end early.
        seed: of the sampler (TPE, Bergstra et al., NeurIPS 2011).
    """

    def __init__(
        self, study: str, storage: str | None, metric: str, direction: str, n_trials: int, n_jobs: int, prune: bool,
        seed: int,
    ) -> None:  # fmt: skip
        self._name = study
        self._storage = storage
        self._metric = metric
        self._direction: Any = direction
        self._trials = n_trials
        self._jobs = n_jobs
        self._seed = seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self._folder = Path(config.hydra.sweep.dir)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing.

        Raises:
            UserError: Optuna is not installed, or an argument cannot be sampled from.
        """
        from filelock import FileLock

        space, fixed = search_space(arguments)
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "study.lock"):
            study = self._open()
            left = [trial for trial in study.trials if not trial.state.is_finished()]
            self._run(study, {trial.number: trial.params for trial in left}, fixed)
            while (missing := self._trials - len(study.trials)) > 0:
                asked = [study.ask(space) for _ in range(min(self._jobs, missing))]
                self._run(study, {trial.number: trial.params for trial in asked}, fixed)

    def _open(self) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        address = storage_of(self._storage, self._folder)
        study = optuna.create_study(
            study_name=self._name, storage=address, direction=self._direction, load_if_exists=True
        )
        # A study that goes on must not draw once more what it drew first.
        study.sampler = optuna.samplers.TPESampler(seed=self._seed + len(study.trials), constant_liar=self._jobs > 1)
        log.info("study %s has %d of %d trials", self._name, len(study.trials), self._trials)
        return study

    def _run(self, study: Study, trials: Mapping[int, Mapping[str, Any]], fixed: Sequence[str]) -> None:
        """Launch trials, by number, and tell the study what came of them."""
        for _, part in groupby(enumerate(sorted(trials)), lambda item: item[1] - item[0]):  # one after another
            numbers = [number for _, number in part]
            overrides = [[*fixed, *(f"{key}={value}" for key, value in trials[n].items())] for n in numbers]
            for number, job in zip(numbers, self._launcher.launch(overrides, initial_job_idx=numbers[0]), strict=True):
                self._tell(study, number, job.return_value)

    def _tell(self, study: Study, number: int, result: Any) -> None:
        from optuna.trial import TrialState

        if isinstance(result, Mapping) and math.isfinite(result.get(self._metric, math.nan)):
            study.tell(number, float(result[self._metric]))
            log.info("trial %d: %s=%.4f; the best so far: trial %d", number, self._metric, result[self._metric],
                     study.best_trial.number)  # fmt: skip
        else:
            pruned = isinstance(result, Mapping) and PRUNED in result
            study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            log.info("trial %d: %s", number, PRUNED if pruned else "failed")


def register_sweeper() -> None:
    """Make ``hydra/sweeper=optuna`` known to Hydra, whose launchers hand it on to their workers; idempotent."""
    plugins = Plugins.instance()
    plugins.register(StudySweeper)
    plugins.class_name_to_class[_HYDRAS_NAME] = StudySweeper


def search_space(arguments: Sequence[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Overrides as what is drawn from and what is fixed.

    Raises:
        UserError: Optuna is not installed, or an argument cannot be sampled from.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'tyre-lightning[sweeps]'") from error
    space, fixed = {}, []
    for text, override in zip(arguments, OverridesParser.create().parse_overrides(list(arguments)), strict=True):
        if override.is_sweep_override():
            space[override.get_key_element()] = _distribution(override, text)
        elif override.is_delete():
            fixed.append(text)
        else:  # as it was read here: a launcher's processes read it anew
            fixed.append(f"{override.get_key_element()}={override.get_value_element_as_str()}")
    if not space:
        raise UserError("a study needs something to choose from: give key=a,b or key=interval(0,1)")
    return space, fixed


def _distribution(override: Override, text: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return CategoricalDistribution([*override.sweep_string_iterator()])
    raise UserError(f"{text}: a study can draw from a,b,c, from range(...) and from interval(...)")
