"""Servers that are measured: ours and its peers. Each is started, asked and stopped alike; none is a dependency."""
