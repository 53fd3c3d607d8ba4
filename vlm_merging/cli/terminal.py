"""What is printed can be seen: no text of strangers reaches a terminal as a command to it."""
# Escape sequences move the cursor, colour, wipe out lines and retitle windows. Commands make single lines of
# names; this stands behind all that is printed, by libraries too.
from __future__ import annotations
import contextlib, re, sys
from collections.abc import Callable
from functools import wraps
from vlm_merging.checkpoints.texts import visible

BAR = re.compile(r'(?:[\r\n]|\x1b\[A)*') # What a progress bar begins with: back to its line

class Printed:
    "A stream that shows control characters instead of passing them on"
    def __init__(self,
        stream,         # Text goes there
        bars:bool=False, # May progress bars be drawn on it?
    ): self.stream, self.bars = stream, bars

    def write(self,
        text:str,       # Of anybody
    )->int:
        "Write it so that it can be seen"
        start = BAR.match(text).end() if self.bars else 0
        self.stream.write(text[:start]+visible(text[start:], len(text)))
        return len(text)

    def __getattr__(self, name): return getattr(self.stream, name)

def all_seen(
    run:Callable,       # Prints
)->Callable:
    "The same with all that it prints in visible characters"
    @wraps(run)
    def wrapped(*args, **more):
        out, err = Printed(sys.stdout), Printed(sys.stderr, bars=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): return run(*args, **more)
    return wrapped
