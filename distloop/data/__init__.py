"""Sources of rows: arrays, files and Datasets, read by index, shuffled and split without memory."""

from distloop.data.array_source import ArraySource
from distloop.data.dataset_source import DatasetSource
from distloop.data.loader import Loader, batches
from distloop.data.mapped import MappedArray
from distloop.data.open import Data, open_data
from distloop.data.permutation import Permutation, key_of
from distloop.data.source import Source, Spec, Subset, Task, split, split_tail

__all__ = [
    "ArraySource",
    "Data",
    "DatasetSource",
    "Loader",
    "MappedArray",
    "Permutation",
    "Source",
    "Spec",
    "Subset",
    "Task",
    "batches",
    "key_of",
    "open_data",
    "split",
    "split_tail",
]
