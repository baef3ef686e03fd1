"""The engine: schedule, run, update. Pure Python; the device is behind `ModelRunner`."""
