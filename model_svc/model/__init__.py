"""Models: loading them from a folder, giving them paged attention, and refusing those that would be served wrongly."""

import time

IMPORT_STARTED_S = time.perf_counter()
"""When this package was first imported: before torch and transformers, whose import is the longest start-up phase."""
