"""The noise of sampling: one uniform number per (seed, choice, output position), in pure Python.

Counter-based, so that a token depends on nothing else in the batch, and a stream that is cut can go on elsewhere with
the numbers it would have had. The mixing step is SplitMix64's finalizer (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", 2014). `model_svc.runner.noise` computes the same bits for whole batches.
Does not know how the number becomes a token.
"""

MASK_64 = 2**64 - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: the step that keeps counters of neighbours apart."""
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def mix(value: int) -> int:
    """A bijection of [0, 2^64) that spreads every input bit over all output bits."""
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1), a multiple of 2^-53, that draws the output token at `position` of a choice.

    `seed` is in [0, 2^64); `choice` counts a request's `n` choices and `position` its output tokens, both from 0.
    """
    state = mix((seed + GOLDEN_GAMMA) & MASK_64)
    state = mix(((state ^ choice) + GOLDEN_GAMMA) & MASK_64)
    state = mix(((state ^ position) + GOLDEN_GAMMA) & MASK_64)
    return (state >> 11) * 2.0**-53
