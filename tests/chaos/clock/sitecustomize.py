"""Sets the clock of a Python process wrong: `time.time`, `time.time_ns`, `datetime.now`, no other.

Python imports this file before anything else where the folder is on PYTHONPATH. Stepping the
machine's clock would disturb whoever else uses it, so every process of a run adds an offset to what
the system says (seconds, a double in the file that DASK_HPO_CHAOS_CLOCK names); the rig changes the
file, and all processes see the step at once. Clocks read in C, the monotonic ones and the times of
files stay right.
"""

import ctypes
import datetime
import gc
import mmap
import os
import struct
import time

with open(os.environ["DASK_HPO_CHAOS_CLOCK"], "rb") as file:
    _offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
_time, _time_ns, _now = time.time, time.time_ns, datetime.datetime.__dict__["now"]


def _offset_s():
    return struct.unpack("d", _offset[:])[0]


@classmethod
def _wrong_now(cls, tz=None):
    return _now.__get__(None, cls)(tz) + datetime.timedelta(seconds=_offset_s())


time.time = lambda: _time() + _offset_s()
time.time_ns = lambda: _time_ns() + round(_offset_s() * 1e9)
# One's own class in the place of this one crashes what is written in C, and C's has no attributes
# to set.
gc.get_referents(datetime.datetime.__dict__)[0]["now"] = _wrong_now
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
