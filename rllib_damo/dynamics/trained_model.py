"""The dynamics model of one algorithm: given, found in the cache, or trained epoch by epoch and then cached."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_damo.dynamics import cache
from rllib_damo.dynamics.ensemble import FILE_FIX, DynamicsEnsemble
from rllib_damo.dynamics.model_error import Tracks, model_error
from rllib_damo.dynamics.termination import resolve_termination
from rllib_damo.dynamics.training import DynamicsTrainer, holdout_rows
from rllib_damo.errors import UserError
from rllib_damo.utils.batch import Batch
from rllib_damo.utils.paths import atomic_write

logger = logging.getLogger(__name__)

#: How often a run that waits for another one's training of the same model says so.
WAIT_SECONDS = 60.0
#: On how many of the dataset's rows a model is tried out.
_NUM_TRIED_ROWS = 1000


class DynamicsComponent:
    """Trains the ensemble once for each (dataset, settings, seed) on a machine; the first run that needs it trains it.

    Args:
        config: of a model-based algorithm: the options of ``.dynamics()``, ``seed``, ``env`` and ``env_config``.
        columns: the dataset's columns (NumPy arrays, unit actions).
        name: the dataset's name, for messages.
        fingerprint: of its content.
        parent: the file of a model of other data, whose weights training starts from.
        tracks: parts of real episodes, on which a model that is ready is measured; None: it is not.

    Attributes:
        path: the trained model's file, once ``ready``.
        error: what `model_error` says of it.

    Raises:
        ValueError: ``dynamics_path`` holds no model for this dataset, or a model is to be trained and can't be kept;
            or the parent's sizes are not those of the options.
        UserError: no prediction of the model is finite.
    """

    def __init__(
        self, config: AlgorithmConfig, columns: Batch, name: str, fingerprint: str, parent: bytes | None = None,
        tracks: Tracks | None = None,
    ):  # fmt: skip
        self.config, self.name, self._fingerprint, self._parent = config, name, fingerprint, parent
        self._tracks = tracks
        self.error: dict[str, dict[str, float]] = {}
        self.columns: Batch | None = columns  # until the model is trained
        wants_gpu = config.num_gpus_per_learner > 0 or config.num_gpus_per_env_runner > 0
        self.device = torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")
        self.learn_terminations = resolve_termination(config.env, config.termination_fn, config.env_config) is None
        self._trainer: DynamicsTrainer | None = None
        self._lock: Any = None
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        self._own_files: list[Path] = []  # in it
        self.key: str | None = None  # of the model in the cache
        if config.dynamics_path is not None:
            self.path = Path(config.dynamics_path).expanduser()
            self._check(self.path, columns)
            self._finish()
        else:
            self._locate()
            self.ready = False
            if self._is_cached():
                self._finish()
            else:
                cache.check_writable(config.dynamics_cache_dir)
                if parent is not None:
                    self._load_parent()  # refuses one that does not fit

    def _locate(self) -> None:
        """Where the cache has, or will have, the model."""
        settings = self._settings()
        if self._parent is not None:
            settings["parent"] = hashlib.sha256(self._parent).hexdigest()
        self.key = cache.key(self._fingerprint, settings, self.config.seed or 0)
        self.path = cache.path(self.key, self.config.dynamics_cache_dir)

    def _settings(self) -> dict[str, Any]:
        c = self.config
        settings = {
            "num_ensemble": c.num_ensemble,
            "num_elites": c.num_elites,
            "hidden_dims": tuple(c.dynamics_hidden_dims),
            "lr": c.dynamics_lr,
            "weight_decay": tuple(c.dynamics_weight_decay),
            "batch_size": c.dynamics_batch_size,
            "max_epochs": c.dynamics_max_epochs,
            "max_epochs_since_update": c.max_epochs_since_update,
            "holdout_size": c.holdout_size,
            "logvar_loss_coef": c.logvar_loss_coef,
            "learn_terminations": self.learn_terminations,
            "action_bounds": [c.action_space.low.tolist(), c.action_space.high.tolist()],
        }
        if c.dynamics_precision != "fp32":  # older keys are those of float32
            settings["precision"] = c.dynamics_precision
        return settings

    def _check(self, path: Path, columns: Batch) -> None:
        """Raises ValueError unless ``path`` holds a model of the dataset's widths, and of terminations if need be."""
        ensemble = DynamicsEnsemble.load(path, "cpu")
        found = ensemble.obs_dim, ensemble.act_dim
        wanted = columns.obs.shape[1], columns.actions.shape[1]
        if found != wanted:
            raise ValueError(
                f"`dynamics_path` {path}: a model of {found[0]} observations and {found[1]} actions, but the dataset "
                f"{self.name} has {wanted[0]} and {wanted[1]}: name a model that was trained on it."
            )
        self._check_terminations(ensemble, f"`dynamics_path` {path}")

    def _check_terminations(self, ensemble: DynamicsEnsemble, origin: str) -> None:
        """Raises ValueError where terminations are to be learned, and a model from elsewhere learned none."""
        if self.learn_terminations and ensemble.termination is None:
            raise ValueError(
                f"{origin}: this model learned no terminations, and there is no known rule for env="
                f"{self.config.env!r}. Set `.dynamics(termination_fn=...)`, or train a model for this environment."
            )

    def _is_cached(self) -> bool:
        """Whether the cache has a file that can be read; one that can't is removed, for the model can be had again."""
        otherwise = "A checkpoint that is restored brings its own copy; otherwise the model is trained again."
        return cache.read(self.path, otherwise) is not None

    def train_epoch(self) -> dict[str, float]:
        """Trains one epoch; or waits, where another run trains the same model, until that run has finished it.

        Returns:
            ``epoch``, ``train_loss``, ``holdout_loss``, ...; or ``waited_seconds``.

        Raises:
            ValueError: the trained model can't be written; the next call tries again.
        """
        start = time.perf_counter()
        self._wait()
        if self._is_cached():  # trained by another run in the meantime
            self._finish()
            return {"waited_seconds": time.perf_counter() - start}
        if self._trainer is None:
            self._trainer = self._make_trainer(self._untrained() if self._parent is None else self._load_parent())
        start = time.perf_counter()
        metrics = {} if self._trainer.done else self._trainer.train_epoch()
        metrics["epoch_seconds"] = time.perf_counter() - start
        if self._trainer.done:
            try:
                self._trainer.finish().save(self.path)
            except OSError as error:
                raise ValueError(
                    f"The dynamics model is trained and can't be written to {self.path} "
                    f"({error.strerror or error}). Make room and train on; or save a checkpoint and restore it with "
                    "another dynamics_cache_dir or RLLIB_DAMO_CACHE."
                ) from error
            self._finish()
        return metrics

    def refit(self, columns: Batch, num_offline: int, number: int) -> dict[str, float]:
        """Trains the model, which is `ready`, further on other rows, until no network improves.

        Its file is then this run's own: the cache's are for all runs on the same dataset. The dataset's rows that the
        first training kept aside are kept aside again, and the same share of the online rows.

        Args:
            columns: all rows (NumPy arrays, unit actions): first the dataset's, then online ones.
            num_offline: how many are the dataset's.
            number: of the refit, which draws rows of its own.

        Returns:
            The last epoch's metrics.
        """
        self.columns = columns
        model = DynamicsEnsemble.load(self.file()).to(self.device)
        size, seed, num_online = self.config.holdout_size, self.config.seed or 0, len(columns.obs) - num_offline
        kept = holdout_rows(num_offline, size, seed)
        online = holdout_rows(num_online, round(num_online * len(kept) / num_offline), seed + number)
        trainer, metrics = self._make_trainer(model, number, torch.cat((kept, num_offline + online))), {}
        while not trainer.done:
            metrics = trainer.train_epoch()
        with tempfile.TemporaryDirectory(prefix="rllib_damo_") as folder:
            content = Path(trainer.finish().save(Path(folder) / "dynamics.pt")).read_bytes()
        self.key, self.path = None, self._write_own(content)
        self._finish()
        return metrics

    def _write_own(self, content: bytes) -> Path:
        """Writes a model that belongs to this run, beside the cache's; `close` deletes it.

        The last two are kept: a pending round may name the one before.
        """
        if self._own_folder is None:
            folder = cache.directory(self.config.dynamics_cache_dir)
            self._own_folder = tempfile.TemporaryDirectory(prefix="run-", dir=folder, ignore_cleanup_errors=True)
        path = cache.write(content, self._own_folder.name)
        self._own_files = [file for file in self._own_files if file != path] + [path]
        if len(self._own_files) > 2:
            self._own_files.pop(0).unlink(missing_ok=True)
        return path

    def _wait(self) -> None:
        """Waits until no other run trains this model."""
        assert self.key is not None  # a given model is ready
        if self._lock is None:
            self._lock = cache.lock(self.key, self.config.dynamics_cache_dir)
        while not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=WAIT_SECONDS)
            except Timeout:
                logger.warning(
                    f"Another run trains the same dynamics model; this one waits for it (lock {self._lock.lock_file}). "
                    "If it is an algorithm in this program, let that train, or stop() it."
                )

    def _untrained(self) -> DynamicsEnsemble:
        c, rows = self.config, self.columns
        assert rows is not None  # it is not trained yet
        torch.manual_seed(c.seed or 0)
        return DynamicsEnsemble(
            rows.obs.shape[1],
            rows.actions.shape[1],
            hidden_dims=tuple(c.dynamics_hidden_dims),
            num_ensemble=c.num_ensemble,
            num_elites=c.num_elites,
            learn_terminations=self.learn_terminations,
        ).to(self.device)

    def _make_trainer(
        self, ensemble: DynamicsEnsemble, refit: int = 0, holdout: torch.Tensor | None = None
    ) -> DynamicsTrainer:
        """A trainer of the ensemble, in place, on `columns`.

        Args:
            ensemble: untrained, or one that is trained further.
            refit: number of the refit that it is for.
            holdout: the rows that it keeps aside; None: drawn ones.
        """
        c, rows = self.config, self.columns
        assert rows is not None
        return DynamicsTrainer(
            ensemble,
            rows.obs,
            rows.actions,
            rows.next_obs,
            rows.rewards,
            rows.terminated > 0,
            lr=c.dynamics_lr,
            weight_decay=tuple(c.dynamics_weight_decay),
            batch_size=c.dynamics_batch_size,
            max_epochs=c.dynamics_max_epochs,
            max_epochs_since_update=c.max_epochs_since_update,
            holdout_size=c.holdout_size,
            logvar_loss_coef=c.logvar_loss_coef,
            precision=c.dynamics_precision,
            seed=(c.seed or 0) + refit,
            device=self.device,
            fit_statistics=self._parent is None and not refit,
            holdout=holdout,
        )

    def _load_parent(self) -> DynamicsEnsemble:
        """The model that training starts from.

        Raises:
            ValueError: it is of other sizes than the options, or it learned no terminations where they are needed.
        """
        assert self._parent is not None
        c, ensemble = self.config, DynamicsEnsemble.load(self._write_own(self._parent))
        sizes = ensemble.hparams
        found = {
            "dynamics_hidden_dims": tuple(sizes["hidden_dims"]), "num_ensemble": sizes["num_ensemble"],
            "num_elites": sizes["num_elites"],
        }  # fmt: skip
        for name, value in found.items():
            wanted = getattr(c, name)
            if value != (tuple(wanted) if isinstance(wanted, (list, tuple)) else wanted):
                raise ValueError(
                    f"start_from: its dynamics model has {name}={value}, and this run has {wanted}. Set "
                    f"`.dynamics({name}={value})`."
                )
        self._check_terminations(ensemble, "the dynamics model of `start_from`")
        return ensemble.to(self.device)

    def _finish(self) -> None:
        model = DynamicsEnsemble.load(self.path, "cpu")
        self._check_predictions(model)
        self.error = {} if self._tracks is None else model_error(model, self._tracks)
        self.ready = True
        self._content = self.path.read_bytes()  # a cache may be emptied during a run
        self._trainer = self.columns = None
        self._release_lock()

    @torch.no_grad()
    def _check_predictions(self, model: DynamicsEnsemble) -> None:
        """Tries the model out on rows of the dataset: rollouts leave out what is not finite.

        Raises:
            UserError: nothing is finite.
        """
        if self.columns is None:  # it has been tried out
            return
        picks = np.linspace(0, len(self.columns.obs) - 1, _NUM_TRIED_ROWS).astype(np.int64)
        rows = [torch.as_tensor(column[picks]) for column in (self.columns.obs, self.columns.actions)]
        mean, logvar = model(*rows)
        are_finite = (mean.isfinite() & (logvar < torch.inf)).all(-1)  # of what is constant, the log variance is -inf
        shares = {member: float(are_finite[member].float().mean()) for member in model.elites.tolist()}
        if not any(shares.values()):
            raise UserError(
                f"{self.path}: no prediction of this dynamics model is finite, on any of {_NUM_TRIED_ROWS} rows of the "
                f"dataset {self.name}. {FILE_FIX} A smaller dynamics_lr may help, and so may data without extreme "
                "values."
            )
        bad = {member: share for member, share in shares.items() if share < 1}
        if bad:
            listed = ", ".join(f"member {member} in {1 - share:.0%}" for member, share in bad.items())
            logger.warning(
                f"{self.path}: {len(bad)} of {len(shares)} elites of this dynamics model predict values that are not "
                f"finite ({listed} of {_NUM_TRIED_ROWS} rows of the dataset {self.name}). Rollouts end there, so they "
                "give fewer rows. To train it anew, delete the file."
            )

    def close(self) -> None:
        """Releases the lock, and deletes the run's own models."""
        self._release_lock()
        if self._own_folder is not None:
            self._own_folder.cleanup()
            self._own_folder, self._own_files = None, []

    def _release_lock(self) -> None:
        """Another process may train this model then."""
        if self._lock is not None and self._lock.is_locked:
            self._lock.release()

    def file(self) -> Path:
        """The trained model's file, written again if it is gone."""
        if not self.path.exists():
            self.path = self._keep(self._content, self.key)
        return self.path

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """The trained model's file as bytes, or the unfinished training's state."""
        state: dict[str, Any] = {"file": None, "trainer": None, "parent": None, "key": self.key}
        if self.ready:
            state["file"] = self._content
        else:
            state["parent"] = self._parent
            if self._trainer is not None:
                state["trainer"] = self._trainer.state_dict()
        return state

    def set_state(self, state: Mapping[str, Any], read: Callable[[], Batch]) -> None:
        """Takes the checkpoint's model, whatever the cache holds; where the cache lacks it, it gets it back.

        Args:
            state: what `get_state` returned.
            read: reads the dataset's columns again, for a training that is to go on.
        """
        key = state.get("key", self.key)
        if state["file"] is not None:
            if not (self.ready and self._content == state["file"]):
                self.path = self._keep(state["file"], key)
            self.key = key  # of the model that is there now, whatever this run's options would train
            self._finish()
            return
        if state.get("parent") is not None and key != self.key:
            self._parent = state["parent"]
            self._locate()
            self.columns = read() if self.columns is None else self.columns
            self.ready = False
            if self._is_cached():
                self._finish()
        if state["trainer"] is not None and not self.ready:
            self._trainer = self._make_trainer(self._untrained() if self._parent is None else self._load_parent())
            self._trainer.load_state_dict(state["trainer"])

    def _keep(self, content: bytes, key: str | None) -> Path:
        """The file of a model: the cache's of the key that it was trained for, or, where that is another, the run's."""
        path = None if key is None else cache.path(key, self.config.dynamics_cache_dir)
        if path is None or (path.exists() and path.read_bytes() != content):
            return self._write_own(content)
        if not path.exists():
            with atomic_write(path) as file:
                file.write(content)
        return path
