"""The exceptions of the package, one tree.

HPOError
├── SpaceError (also a ValueError)      a search space, a domain or a configuration breaks a rule
├── OptionError (also a ValueError)     any other option breaks a rule
├── ObjectiveError                      what to run is missing or cannot be sent to a worker
├── ClusterError                        the cluster cannot run the trials that were asked for
│   ├── VersionMismatchError            a worker runs another Python or another dask_hpo
│   └── SchedulerLostError              the Dask scheduler is gone, and did not come back in time
├── LogError                            the experiment's directory cannot be written or read
│   ├── ExperimentExistsError           a new experiment asks for a name that is taken
│   └── ExperimentNotFoundError         no experiment of that name or at that path
└── TooManyFailuresError                the experiment gave up early; carries the first traceback

IllegalTransitionError (a RuntimeError) is none of them: it is a bug of ours, no user's error.
TrialStopped derives from BaseException, as KeyboardInterrupt does, so that a training loop that
catches Exception still ends when the driver says stop.

Every message states the value, the rule and the fix.
"""

from __future__ import annotations


class HPOError(Exception):
    """Base of every error that a user of the package can cause."""


class SpaceError(HPOError, ValueError):
    """A search space, a domain or a configuration breaks a rule."""


class OptionError(HPOError, ValueError):
    """An option other than the search space breaks a rule."""


class ObjectiveError(HPOError):
    """What to run is missing or cannot be sent to a worker."""


class ClusterError(HPOError):
    """The cluster cannot run the trials that were asked for."""


class VersionMismatchError(ClusterError):
    """A worker runs another version of Python or of this package than the driver."""


class SchedulerLostError(ClusterError):
    """The connection to the Dask scheduler broke; the message says how to go on."""


class LogError(HPOError):
    """The experiment's directory cannot be written or read."""


class ExperimentExistsError(LogError):
    """A new experiment asks for a name that is taken."""


class ExperimentNotFoundError(LogError):
    """No experiment has that name or stands at that path."""


class TooManyFailuresError(HPOError):
    """So many trials failed that the experiment gave up; the first traceback is in the message."""


class IllegalTransitionError(RuntimeError):
    """An event does not fit the state of its trial: a bug of this package."""


class TrialStopped(BaseException):
    """Raised by ``report()`` in a trial in a worker's thread when the driver stopped it."""
