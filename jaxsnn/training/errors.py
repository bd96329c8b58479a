"""What ends a run before its last epoch."""

import signal


class TrainingError(RuntimeError):
    """The run cannot go on; the message is for the user and says what to do."""


class NonFiniteError(TrainingError):
    """The loss, a gradient or a parameter became NaN or Inf."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved; the same call continues it.

    Attributes:
      signum: number of the signal; by convention a process exits with `128 + signum`.
    """

    def __init__(self, signum: int):
        super().__init__(f"Stopped by {signal.Signals(signum).name}.")
        self.signum = signum
