"""The learned model of the environment: ensemble, training, termination, cache."""

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.termination import resolve_termination
from rllib_damo.dynamics.termination_head import LearnedTermination
from rllib_damo.dynamics.training import DynamicsTrainer
from rllib_damo.tasks import never_terminates

__all__ = ["DynamicsEnsemble", "DynamicsTrainer", "LearnedTermination", "never_terminates", "resolve_termination"]
