"""The libraries that could hold outputs to a grammar, behind one shape, loaded by name."""
