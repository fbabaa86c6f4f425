"""What is being done, how much of it is done, and how long the rest will take."""

import time
from collections.abc import Callable

Progress = Callable[[str], None]


class Remaining:
    """Says how much is done, and how long the rest will take at this pace."""

    def __init__(self, doing: str, total: int, progress: Progress):
        self.doing, self.total, self.progress = doing, total, progress
        self.done, self.begin = 0, time.perf_counter()

    def advance(self, by: int = 1) -> None:
        self.done += by
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        minutes, seconds = divmod(round(left), 60)
        share = f"{self.done / self.total:.0%} of {self.total:,} texts x settings"
        self.progress(f"{self.doing}: {share}, about {minutes}:{seconds:02} left")
