"""The program as a process: Ctrl-C at any time, readers that leave, full disks, terminals of few letters."""
# It is imported first and imports nothing heavy: from here on Ctrl-C ends in one sentence.
from __future__ import annotations
import io, os, signal, sys

BROKEN = 1              # Exit code if the machine failed
STOPPED = 130           # Exit code after Ctrl-C, as shells have it
UNREAD = 141            # Exit code if the reader of the output left, as of a program that SIGPIPE ended
GOES_ON = 'stopped. The same command goes on from here.'

class Output(io.FileIO):
    "A stream on which work goes on when nobody reads it any more"
    trouble = None      # The first error of writing, after which nothing is written

    def write(self,
        data,           # Bytes
    )->int:
        "Write, or let it go"
        if self.trouble is None:
            try: return super().write(data)
            except OSError as e: self.trouble = e
        return len(data)

def open_output(
    name:str,           # stdout or stderr
    fd:int,             # Its descriptor
)->Output:
    "Put a stream in place that raises nothing, neither for what it cannot write nor for what it cannot spell"
    old, raw = getattr(sys, name), Output(fd, 'w', closefd=False)
    own = getattr(old, 'errors', 'strict')          # What somebody chose with PYTHONIOENCODING stays
    how = dict(encoding=getattr(old, 'encoding', 'utf-8'), line_buffering=fd==2 or raw.isatty(),
               errors='replace' if own in ('strict', 'surrogateescape') else own)
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **how))
    return raw

def fill_holes()->None:
    "Open what was closed before the start: its number would be given to the next file, and print into it"
    for fd in range(3):
        try: os.fstat(fd)
        except OSError:
            hole = os.open(os.devnull, os.O_RDWR)
            if hole!=fd: os.dup2(hole, fd); os.close(hole)

def say(
    text:str,           # A sentence
)->None:
    "Tell something beside the result"
    print(f'vlm-merging: {text}', file=sys.stderr, flush=True)

class Interrupt:
    "What Ctrl-C does: the first raises KeyboardInterrupt, a second ends the process where it is"
    # A kill loses nothing: what is written appears whole, and replies are kept one by one. Libraries swallow
    # the exception or raise another in its place, above all while they are imported: so it is remembered.
    came = False

    def __call__(self, *_):
        if self.came: self.end()
        self.came = True
        raise KeyboardInterrupt

    def end(self)->None:
        "Say so, and be gone at once"
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try: say(GOES_ON)
        finally: os._exit(STOPPED)

    def unraised(self,
        lost,           # What `sys.unraisablehook` gets
    )->None:
        "An exception that Python would only print"
        if self.came: self.end()
        sys.__unraisablehook__(lost)

INTERRUPT = Interrupt()
