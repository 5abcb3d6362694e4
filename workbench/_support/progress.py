"""tqdm's progress bars, with a lock that is there from the beginning.

tqdm makes its lock when it is first needed. An interrupt in between would leave half of it, and
the next line that is printed would end in an `AttributeError` in place of the interrupt.
"""

import threading

from tqdm import tqdm

__all__ = ["tqdm"]

tqdm.set_lock(threading.RLock())  # bars are drawn by threads of one process only
