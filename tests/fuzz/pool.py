"""What a run comes to: errors over all its cases. Without torch, which takes seconds to import."""

from collections import defaultdict

FACTORS = {"result": 2.0, "gradient": 3.0}  # times the error of plain PyTorch


class Pool:
    """Errors over a run, per operator, dtype and kind, in units of the largest value."""

    def __init__(self) -> None:
        self.squares: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
        self.exact = 0

    def add(self, key: tuple[str, str, str], found: float, eager: float, floor: float) -> None:
        """Mean squares of the errors of a tensor; ``floor``: what PyTorch's counts at least."""
        sums = self.squares[key]
        sums[0] += found
        sums[1] += max(eager, floor)
        sums[2] += 1

    def ratios(self) -> dict[tuple[str, str, str], tuple[float, int]]:
        """Root mean square error over PyTorch's, and the cases it was taken over."""
        return {
            key: ((a / b) ** 0.5 if b else 0.0, int(n)) for key, (a, b, n) in self.squares.items()
        }
