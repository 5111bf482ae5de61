"""Offline reinforcement learning in RLlib: DAMO (arXiv 2502.00850), and the algorithms that it is compared with.

Importing the package registers its algorithms with Ray Tune, by the names in `ALGORITHMS`.
"""

from __future__ import annotations

from rllib_damo.baselines.algaedice import AlgaeDICE, AlgaeDICEConfig
from rllib_damo.baselines.bc import BehaviorCloning, BehaviorCloningConfig
from rllib_damo.baselines.combo import COMBO, COMBOConfig
from rllib_damo.baselines.iql import OfflineIQL, OfflineIQLConfig
from rllib_damo.baselines.mobile import MOBILE, MOBILEConfig
from rllib_damo.baselines.mopo import MOPO, MOPOConfig
from rllib_damo.baselines.odice import ODICE, ODICEConfig
from rllib_damo.baselines.optidice import OptiDICE, OptiDICEConfig
from rllib_damo.baselines.rambo import RAMBO, RAMBOConfig
from rllib_damo.baselines.rebrac import ReBRAC, ReBRACConfig
from rllib_damo.baselines.td3bc import TD3BC, TD3BCConfig
from rllib_damo.core.registration import ALGORITHMS, register_algorithm
from rllib_damo.damo.damo import DAMO, DAMOConfig
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.formats.registry import Format, register_format
from rllib_damo.data.schema import Transitions
from rllib_damo.deploy.export import export_policy
from rllib_damo.evaluation.policy import load_policy
from rllib_damo.report.page import write_report
from rllib_damo.version import __version__
