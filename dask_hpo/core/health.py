"""Which workers fail trials that succeed elsewhere: a broken disk, a package that is missing.

A worker is suspected once its last ``SUSPECT_AFTER`` trials all failed. It is set aside if trials
have run, or run, elsewhere and none has failed there, or if so long a row of failures is no chance.
With f the rate at which trials fail elsewhere (by Laplace's rule of succession, (failed + 1) /
(ended + 2)), k failures in a row have the probability f^k.
"""

from __future__ import annotations

from collections import Counter

SUSPECT_AFTER = 5
#: So small that hardly one sound worker is set aside in a million trials.
NO_CHANCE = 1e-6


class WorkerHealth:
    """Counts the ends of trials by worker. A worker costs O(1) per end, a suspect O(workers)."""

    def __init__(self) -> None:
        self.excused = 0  #: failures of workers that were set aside for them
        self._in_a_row: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def is_suspect(self, worker: str) -> bool:
        """Whether the last trials of a worker all failed."""
        return self._in_a_row[worker] >= SUSPECT_AFTER

    def ended(self, worker: str, *, failed: bool) -> None:
        """Hear of the end of a trial."""
        self._ended[worker] += 1
        self._failed[worker] += failed
        self._in_a_row[worker] = self._in_a_row[worker] + 1 if failed else 0

    def judge(self, worker: str, *, others_at_work: bool) -> int:
        """Return after how many failures in a row a suspect is to be set aside; 0: it is not.

        One that comes back, repaired and under its old address, begins with a clean record.
        ``others_at_work``: whether trials run on other workers.
        """
        ended = self._ended.total() - self._ended[worker]
        failed = self._failed.total() - self._failed[worker]
        in_a_row = self._in_a_row[worker]
        no_chance = ended > failed and ((failed + 1) / (ended + 2)) ** in_a_row < NO_CHANCE
        fine_elsewhere = failed == 0 and (others_at_work or ended > 0)
        if not fine_elsewhere and not no_chance:
            return 0
        self.excused += in_a_row
        for counter in (self._in_a_row, self._failed, self._ended):
            del counter[worker]
        return in_a_row
