"""How many bytes of bodies that are not whole yet this process holds, all together. Does not know whose they are."""

from dataclasses import dataclass


@dataclass(slots=True)
class BodyRoom:
    """Room for what has come of bodies, taken piece by piece and given back when a body is whole or given up."""

    max_bytes: int
    num_bytes: int = 0

    def take(self, num_bytes: int) -> bool:
        """Whether there is room for so many more, which are taken then."""
        if self.num_bytes + num_bytes > self.max_bytes:
            return False
        self.num_bytes += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """So many are needed no more."""
        self.num_bytes -= num_bytes
