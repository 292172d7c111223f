"""How bytes move between ranks. Importing it initialises MPI."""

from distloop.comm.agree import agree, agree_on, at_root, exchange, together
from distloop.comm.collective import Collective, as_array
from distloop.comm.compressed import Compressed
from distloop.comm.counted import CountedComm, Traffic
from distloop.comm.hierarchical import Hierarchical
from distloop.comm.memory import Memory, NodeMemory, PrivateMemory
from distloop.comm.native import Native
from distloop.comm.powersgd import PowerSGD
from distloop.comm.ring import Ring
from distloop.comm.shared import Shared
from distloop.comm.star import Star
from distloop.comm.topk import TopK
from distloop.comm.wire import Bf16, Plain, Wire
from distloop.comm.world import World

__all__ = [
    "Bf16",
    "Collective",
    "Compressed",
    "CountedComm",
    "Hierarchical",
    "Memory",
    "Native",
    "NodeMemory",
    "Plain",
    "PowerSGD",
    "PrivateMemory",
    "Ring",
    "Shared",
    "Star",
    "TopK",
    "Traffic",
    "Wire",
    "World",
    "agree",
    "agree_on",
    "as_array",
    "at_root",
    "exchange",
    "together",
]
