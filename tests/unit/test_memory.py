import ctypes
import subprocess
import sys

import pytest

FREED_UNDER_ONE_THAT_IS_USED = """
import ctypes, psutil
from service.cycle.memory import return_freed_memory

resident = lambda: psutil.Process().memory_info().rss / 2**20
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
before = resident()
taken = [library.malloc(4000) for _ in range(25_000)]
for one in taken:
    ctypes.memset(one, 1, 4000)
for one in taken[:-1]:
    library.free(one)
freed = resident()
return_freed_memory()
print(freed - before, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED_UNDER_ONE_THAT_IS_USED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    freed_mib, given_back_mib = map(float, done.stdout.split())
    assert freed_mib > 80, "malloc did not keep it: nothing is tested"
    assert given_back_mib < 20
