"""The conformance kit: the contract's cases, run against any server, and against any client through a scripted server.

`tokenwire conformance` runs it; docs/conformance.md says what a client program must do. Knows the contract alone,
nothing of how this project's server is built.
"""
