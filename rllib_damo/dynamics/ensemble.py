"""The dynamics ensemble: Gaussian networks that predict a state change and a reward (docs/damo.md, "Model")."""

from __future__ import annotations

import functools
import io
import itertools
import os
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo.dynamics.termination_head import LearnedTermination
from rllib_damo.nn.gaussian_mlp import bounded_gaussian
from rllib_damo.nn.stacked_mlp import stacked_forward
from rllib_damo.utils.checksums import seal, unsealed
from rllib_damo.utils.paths import atomic_write

_FORMAT = "rllib_damo.dynamics/1"
#: Limits of states where the data show none. States of an earlier version lack these buffers.
_NO_LIMITS = {"obs_low": -torch.inf, "obs_high": torch.inf}
_END_OF_ZIP, _END_SIZE = b"PK\5\6", 22
#: The end of each message about a file that can't be used.
FILE_FIX = "Delete it and train the dynamics again, or name another file in dynamics_path."

#: ``(obs (B, obs), unit_actions (B, act), generator) -> next_obs (B, obs), rewards (B,)``
Sampler = Callable[[Tensor, Tensor, "torch.Generator | None"], tuple[Tensor, Tensor]]


class DynamicsEnsemble(nn.Module):
    """E Gaussian networks over [s' - s, r], given the state and the unit action; evaluated side by side.

    In the shapes below B is a batch of rows, D = obs_dim + 1 the number of predicted quantities. Inputs and targets are
    standardised by the training data's statistics, inside the network: every argument and result has the data's units.
    A quantity that is constant in the data is constant in the model, with a variance of 0. States are drawn within the
    limits at which those of the data were clipped, if they were (`utils/limits.py`).

    Args:
        obs_dim: width of an observation.
        act_dim: width of an action.
        hidden_dims: widths of the SiLU layers.
        num_ensemble: E.
        num_elites: how many members `sample` draws from.
        learn_terminations: add a learned termination head, `termination`, for environments without a known function.

    Raises:
        ValueError: more elites than members, or sizes below 1.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    obs_low: Tensor
    obs_high: Tensor
    elites: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        *,
        hidden_dims: Sequence[int] = (200, 200, 200, 200),
        num_ensemble: int = 7,
        num_elites: int = 5,
        learn_terminations: bool = False,
    ):
        super().__init__()
        if not 1 <= num_elites <= num_ensemble:
            raise ValueError(
                f"num_elites={num_elites} must be at least 1 and at most num_ensemble={num_ensemble}: "
                "elites are chosen among the members."
            )
        if min(obs_dim, act_dim, *hidden_dims, 1) < 1:
            raise ValueError(
                f"obs_dim={obs_dim}, act_dim={act_dim}, hidden_dims={tuple(hidden_dims)} must be positive."
            )
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.hidden_dims, self.num_ensemble, self.num_elites = tuple(hidden_dims), num_ensemble, num_elites
        out_dim = obs_dim + 1
        dims = (obs_dim + act_dim, *self.hidden_dims, 2 * out_dim)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(dims):
            std = 0.5 / fan_in**0.5
            weight = nn.init.trunc_normal_(torch.empty(num_ensemble, fan_in, fan_out), std=std, a=-2 * std, b=2 * std)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_ensemble, 1, fan_out)))
        # Bounds of the log variance in standardised units; each member learns its own.
        self.max_logvar = nn.Parameter(torch.full((num_ensemble, 1, out_dim), 0.5))
        self.min_logvar = nn.Parameter(torch.full((num_ensemble, 1, out_dim), -10.0))
        self.register_buffer("input_mean", torch.zeros(obs_dim + act_dim))
        self.register_buffer("input_std", torch.ones(obs_dim + act_dim))
        self.register_buffer("target_mean", torch.zeros(out_dim))
        self.register_buffer("target_std", torch.ones(out_dim))
        for name, bound in _NO_LIMITS.items():
            self.register_buffer(name, torch.full((obs_dim,), bound))
        self.register_buffer("elites", torch.arange(num_elites))
        self.termination = LearnedTermination(obs_dim, act_dim) if learn_terminations else None

    def forward(self, obs: Tensor, unit_actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of [s' - s, r] by every member.

        Args:
            obs: ``(B, obs_dim)``.
            unit_actions: ``(B, act_dim)`` in [-1, 1].

        Returns:
            Two tensors ``(E, B, obs_dim + 1)``; the log variance is -inf for what is constant in the data.
        """
        x = (torch.cat((obs, unit_actions), dim=-1) - self.input_mean) / self.input_std
        x = x.expand(self.num_ensemble, *x.shape)
        raw = stacked_forward(x, list(self.weights), list(self.biases), F.silu)
        mean, logvar = bounded_gaussian(raw, self.max_logvar, self.min_logvar)
        return mean * self.target_std + self.target_mean, logvar + 2 * self.target_std.log()

    def sample(
        self, obs: Tensor, unit_actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws next states and rewards; each row from one elite, drawn at random for it.

        Args:
            obs: ``(B, obs_dim)``.
            unit_actions: ``(B, act_dim)`` in [-1, 1].
            generator: on the tensors' device.

        Returns:
            Next observations ``(B, obs_dim)`` and rewards ``(B,)``.
        """
        return self.sampler()(obs, unit_actions, generator)

    def sampler(self) -> Sampler:
        """`sample` with the elites' weights collected once, for many calls."""
        num, dim, draw = self.num_elites, self.obs_dim, self.elite_sampler()

        @torch.inference_mode()
        def sample(obs: Tensor, unit_actions: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
            batch = len(obs)
            group = -(-batch // num)
            # A random permutation of the rows, cut into one equal group per elite. Dummy rows fill the last places, so
            # each row falls to each elite with the same probability.
            slots = torch.randperm(num * group, generator=generator, device=obs.device)
            rows = torch.empty_like(slots)
            rows[slots] = torch.arange(num * group, device=obs.device)
            inputs = torch.cat((obs, unit_actions), dim=-1)[slots % batch]
            drawn = draw(inputs.view(num, group, -1), generator).view(num * group, dim + 1)[rows[:batch]]
            return self.clip(obs + drawn[:, :dim]), drawn[:, dim]

        return sample

    def clip(self, next_obs: Tensor) -> Tensor:
        """``(..., obs_dim)`` within the limits of the data's states."""
        return next_obs.clamp(self.obs_low, self.obs_high)

    def elite_sampler(self) -> Callable[[Tensor, torch.Generator | None], Tensor]:
        """A function by which each elite draws for rows of its own, with the weights collected once.

        Its arguments are [obs | unit actions], ``(num_elites, B, obs_dim + act_dim)``, which it overwrites, and the
        generator; it returns [s' - s, r], ``(num_elites, B, obs_dim + 1)``, and leaves it to the caller to `clip`.
        """
        with torch.inference_mode():
            weights = [w[self.elites] for w in self.weights]
            biases = [b[self.elites] for b in self.biases]
            max_logvar, min_logvar = self.max_logvar[self.elites], self.min_logvar[self.elites]
        silu_ = functools.partial(F.silu, inplace=True)

        @torch.inference_mode()
        def draw(inputs: Tensor, generator: torch.Generator | None) -> Tensor:
            x = inputs.sub_(self.input_mean).div_(self.input_std)
            mean, logvar = bounded_gaussian(stacked_forward(x, weights, biases, silu_), max_logvar, min_logvar)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            return mean.addcmul(logvar.mul_(0.5).exp_(), noise).mul_(self.target_std).add_(self.target_mean)

        return draw

    def elites_only(self) -> DynamicsEnsemble:
        """A frozen copy whose members are the elites; without the termination head."""
        sizes = self.hparams | {"num_ensemble": self.num_elites, "learn_terminations": False}
        model = DynamicsEnsemble(**sizes).to(self.input_mean)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name != "elites":  # all of its members
                    own = self.state_dict()[name]
                    value.copy_(own[self.elites] if own.ndim == 3 else own)
        return model.requires_grad_(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of any module; a state of an earlier version has no limits."""
        limits = {name: torch.full_like(getattr(self, name), bound) for name, bound in _NO_LIMITS.items()}
        return super().load_state_dict({**limits, **state_dict}, *args, **kwargs)

    # -- files -------------------------------------------------------------------------------------------------------

    @property
    def hparams(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "obs_dim": self.obs_dim,
            "act_dim": self.act_dim,
            "hidden_dims": self.hidden_dims,
            "num_ensemble": self.num_ensemble,
            "num_elites": self.num_elites,
            "learn_terminations": self.termination is not None,
        }

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes weights, statistics and a checksum to ``path``, whole or not at all; returns the absolute path."""
        target = Path(path).expanduser().absolute()
        state = {key: value.cpu() for key, value in self.state_dict().items()}
        archive = io.BytesIO()
        torch.save({"format": _FORMAT, "hparams": self.hparams, "state": state}, archive)
        with atomic_write(target) as file:
            file.write(archive.getbuffer())
            file.write(seal(archive.getbuffer()))
        return str(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> DynamicsEnsemble:
        """Reads a file written by `save`; runs no code from it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a dynamics file, or a damaged one.
        """
        source = Path(path).expanduser()
        if not source.is_file():
            raise FileNotFoundError(
                f"No dynamics file at {source}, as this machine ({platform.node()}) sees it. On several machines the "
                "file must be on a filesystem that all of them see: set dynamics_cache_dir or RLLIB_DAMO_CACHE to a "
                "folder there, and dynamics_path, if it is set, to a file there."
            )
        content = source.read_bytes()
        archive = unsealed(content)
        if archive is None:
            raise ValueError(f"{source} is damaged: its content does not fit its checksum. {FILE_FIX}")
        try:
            if archive is content:  # a file of an earlier version, which has only the checksums of the archive
                _check_archive(archive)
            stored = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
        except Exception as error:  # a damaged file may raise any
            raise ValueError(
                f"{source} is damaged or not a dynamics file ({type(error).__name__}). {FILE_FIX}"
            ) from error
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            found = stored.get("format") if isinstance(stored, dict) else type(stored).__name__
            raise ValueError(f"{source} is not a dynamics file of format {_FORMAT!r}: found {found!r}. {FILE_FIX}")
        model = cls(**stored["hparams"]).to(device)
        try:
            model.load_state_dict(stored["state"])
        except RuntimeError as error:
            raise ValueError(f"{source} holds weights that do not fit its own sizes: {error}. {FILE_FIX}") from error
        return model


def _check_archive(archive: bytes) -> None:
    """Compares the CRC of each part of an archive, which PyTorch does not.

    Raises:
        ValueError: one differs, or something follows the archive.
    """
    if archive[-_END_SIZE:][: len(_END_OF_ZIP)] != _END_OF_ZIP:
        raise ValueError("the archive does not end with its directory")
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        if damaged := parts.testzip():
            raise ValueError(f"{damaged} is damaged")
