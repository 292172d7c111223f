"""What can go wrong, as a small tree.

DistloopError
├── UserError            something given is wrong; said once, the process exits with 2
│   ├── ConfigError      a key, a value, a name, a launch line
│   ├── DataError        a file or a row
│   └── ModelError       a model that cannot be trained so, or differs between ranks
├── ShapeError           ranks disagree about the length or type of a vector
└── NotFiniteError       the loss is not finite; the weights are those before it
"""

from typing import Self


class DistloopError(Exception):
    """Everything that distloop raises on purpose.

    ``everywhere`` says that all ranks raise it together, so that nobody waits and one of them can speak for all.
    """

    everywhere = False

    def on_all_ranks(self) -> Self:
        """The same error, said to be raised by all ranks."""
        self.everywhere = True
        return self


class UserError(DistloopError):
    """Something given is wrong: the message says what was given, what was expected and what to do."""


class ConfigError(UserError):
    """A key, a value, a name or a launch line is wrong."""


class DataError(UserError):
    """A file or a row of data is wrong."""


class ModelError(UserError):
    """A model cannot be trained as it is, or differs between ranks."""


class ShapeError(DistloopError):
    """Ranks disagree about the length or the type of a vector."""


class NotFiniteError(DistloopError):
    """The loss is not finite; the weights are still those before the step."""
