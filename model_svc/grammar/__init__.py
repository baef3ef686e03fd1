"""What holds an output to its constraint: vocabularies as bytes, grammars, and how far an output has gone in one."""
