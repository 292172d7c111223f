"""What is learned: one file per kind of learning."""

from distloop.tasks.goals import Goal, goal_of
from distloop.tasks.supervised import Shard, Supervised
from distloop.tasks.task import Loss, Minibatch, Task

__all__ = ["Goal", "Loss", "Minibatch", "Shard", "Supervised", "Task", "goal_of"]
