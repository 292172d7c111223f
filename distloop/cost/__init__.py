"""What each strategy costs, computed and not measured: bytes, messages, memory, seconds. Without MPI or torch.

Counts are exact integers, which the tests hold to what the transport counts. Seconds come from an alpha-beta model with
memory bandwidth beside it: good for choosing between strategies and for extrapolating, not for promising a time.
"""

from distloop.cost.algorithms import Algorithm, Path
from distloop.cost.fit import AlphaBeta
from distloop.cost.models import MODELS, Memory, Model
from distloop.cost.prediction import Prediction, Sending, Timing, predict, scaling, timing
from distloop.cost.topology import OPTIMIZERS, OptimizerCost, Topology, Workload
from distloop.cost.traffic import Sends, Sent

__all__ = [
    "MODELS",
    "OPTIMIZERS",
    "Algorithm",
    "AlphaBeta",
    "Memory",
    "Model",
    "OptimizerCost",
    "Path",
    "Prediction",
    "Sending",
    "Sends",
    "Sent",
    "Timing",
    "Topology",
    "Workload",
    "predict",
    "scaling",
    "timing",
]
