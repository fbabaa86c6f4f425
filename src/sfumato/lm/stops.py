"""Whether more of a text needs to be written, where it stops before a given string.

A row's text does not depend on what is written behind its stop, so writing ends as soon as no row
needs more. `PageReader` cuts the texts; here only the newest tokens are read, after every page.
"""

from dataclasses import dataclass, field

from sfumato.decoding.request import Request
from sfumato.lm.pages import Page, PageReader

SLACK = 8  # tokens read beside the newest and those of the longest stop, of a byte each at least


@dataclass
class Watch:
    """Follows the pages of a request."""

    request: Request
    reader: PageReader
    seen: dict[int, int] = field(default_factory=dict)  # row: tokens that have been looked at
    over: set[int] = field(default_factory=set)  # rows that need no more

    def done(self, page: Page) -> bool:
        """Whether no row needs more than this page, the request's newest."""
        if not self.request.options.stop:
            return False
        for row in range(len(self.request.rows)):
            if row not in self.over and self._ended(page, row):
                self.over.add(row)
        return len(self.over) == len(self.request.rows)

    def _ended(self, page: Page, row: int) -> bool:
        (part,) = (part for part in self.request.rows[row] if isinstance(part, slice))
        steps = page.decided[row, part].tolist()
        settled, seen = self._settled(steps, part.start), self.seen.get(row, 0)
        if settled <= seen:
            return False
        self.seen[row] = settled
        stops = self.request.options.stop
        first = max(0, seen - max(len(stop.encode()) for stop in stops) - SLACK)
        ids = page.canvas.tokens[row, part][first:settled].tolist()
        if settled == len(steps) or any(i in self.reader.ends for i in ids):
            return True
        text = self.reader.decode(ids)
        return any(stop in text for stop in stops) and self.reader.reason(page, row) == "stop"

    def _settled(self, steps: list[int], start: int) -> int:
        """How many of a row's first tokens stay as they are, whatever is written next.

        A rule that takes decisions back does so within its block.
        """
        step, options = self.request.step, self.request.options
        if not (step.reopens or step.verifies):
            return next((n for n, step in enumerate(steps) if step < 0), len(steps))
        last = max((n for n, step in enumerate(steps) if step >= 0), default=-1)
        if options.block is None or options.grow or last < 0:
            return 0
        return max(0, (start + last) // options.block * options.block - start)
