"""A tier whose event loop hangs from SIGUSR1 until SIGUSR2, as in a call that does not return.

gRPC's own threads go on, and answer pings. As a module it is started in place of `tokenizer_svc`.
"""

import signal

from tokenizer_svc import __main__ as tier_main

HANG, GO_ON = signal.SIGUSR1, signal.SIGUSR2


def hang_when_told() -> None:
    """From now on. Before any thread is started, so that SIGUSR2 finds the one that waits for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {GO_ON})
    signal.signal(HANG, lambda *_: signal.sigwait({GO_ON}))


if __name__ == "__main__":
    hang_when_told()
    tier_main.main()
