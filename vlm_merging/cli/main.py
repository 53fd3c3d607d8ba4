"""`vlm-merging`: the calls of Python from the shell, with exit codes that scripts can use."""
# 0: done. 1: the machine failed (disk full, no permission). 2: the command line cannot be understood. 3:
# refused (the models do not fit, an input is damaged, the target exists). 4: done, but not with all: some
# questions have no reply (`ask`, and then `score` and `compare`), or some rows of a table cannot be asked
# (`ask`, `profile`, `sweep`). 130: stopped with Ctrl-C; the same command goes on from there. 141: the reader
# of the output left (`| head`), the work was done.
from __future__ import annotations
import errno, gc, os, sys, warnings
from contextlib import contextmanager
from functools import partial
from vlm_merging import __version__
from vlm_merging.checkpoints.places import path_of
from vlm_merging.checkpoints.texts import did_you_mean, one_line
# These fill COMMANDS
from vlm_merging.cli import demo, merging_commands, asking_commands, probing_commands, report, completion
from vlm_merging.cli.commands import (COMMANDS, PROGRAM, Command, calls_of, carry_out_command, flags_of,
                                      read_words)
from vlm_merging.cli.messages import in_shell_words
from vlm_merging.cli.process import BROKEN, GOES_ON, INTERRUPT, STOPPED
from vlm_merging.cli.terminal import all_seen

ROOMS = demo, merging_commands, asking_commands, probing_commands, report, completion
ABOUT = 'Give a vision-language model the reasoning of a language model, by merging their weights.'
WAS = dict(evaluate='ask', probe='profile') # Command of old -> what it is called now
USAGE = f'usage: {PROGRAM} COMMAND [options]'

def overview()->str:
    "What stands behind `vlm-merging --help`"
    wide = max(map(len, COMMANDS))
    lines = [f'  {name:<{wide}}  {c.about}' for name, c in COMMANDS.items()]
    return '\n'.join([USAGE, '', ABOUT, '', 'commands:', *lines, '',
                      f'{PROGRAM} COMMAND --help tells the options of each.',
                      'Models are folders or hub ids; lab/vlm, lab/llm, lab/base come with the package.', '',
                      'for example:', f'  {PROGRAM} demo', f'  {PROGRAM} plan --vlm lab/vlm --llm lab/llm'])

@contextmanager
def _no_garbage():
    "Without looking for garbage: in signatures there is none, and looking takes a quarter of a `--help`"
    was = gc.isenabled()
    gc.disable()
    try: yield
    finally:
        if was: gc.enable()

def read_line(
    argv:list,          # The words behind the program's name
)->tuple[Command, dict]: # The command; option -> value, of those that were typed
    "What a command line says; exits with 2 if it cannot be understood, and with 0 if it only asks for help"
    argv = list(map(str, argv))
    first = argv[0] if argv else ''
    if first in ('-h', '--help'): print(overview()); raise SystemExit(0)
    if first=='--version': print(__version__); raise SystemExit(0)
    if first not in COMMANDS:
        why = f'there is no command {first!r}.{did_you_mean(first, COMMANDS)}'
        if not first: why = 'a command is missing.'
        if first in WAS: why = f'{first} is called {WAS[first]} here.'
        print(f"{USAGE}\n{PROGRAM}: {why} There are: {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    with _no_garbage(): return COMMANDS[first], read_words(COMMANDS[first], argv[1:])

WRITES = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS # Only writing ends in these

def is_result(
    file,               # That an error names
    given:dict,         # Option -> value, as typed
)->bool:
    "Does it lie where a command line wants its results, or in a draft beside?"
    file = os.path.abspath(os.fsdecode(file))
    for name in ('out', 'rows', 'chart', 'judge_cache', 'data'):
        if not given.get(name): continue
        folder, last = os.path.split(os.path.abspath(path_of(given[name])))
        if file.startswith((os.path.join(folder, last), os.path.join(folder, f'.{last}.'))): return True
    return False

def told_fault(
    fault:BaseException, # What ended a command
    given:dict,         # Option -> value, as typed
)->tuple[str, int]|None: # A sentence and the exit code; None: a mistake of this program
    "What is said of an error"
    if INTERRUPT.came or isinstance(fault, KeyboardInterrupt): return GOES_ON, STOPPED
    if isinstance(fault, (ValueError, LookupError)): return str(fault), 3
    if isinstance(fault, MemoryError): return 'there is not enough memory.', BROKEN
    if not isinstance(fault, OSError): return None
    why = fault.strerror or str(fault)
    if not fault.filename: return f'{why}.', BROKEN
    result = fault.errno in WRITES or is_result(fault.filename, given)
    return f"{fault.filename} cannot be {'written' if result else 'read'}: {why}.", BROKEN

@all_seen
def main(
    argv:list|None=None, # The words behind the program's name; None: those of this process
)->int:                 # Exit code, see above
    "Run the program"
    if argv is None and completion.asked_by_a_shell(): return 0
    command, given = read_line(sys.argv[1:] if argv is None else argv)
    def tell(text):
        words = in_shell_words(str(text), flags_of(command), partial(calls_of, command))
        print(f'{PROGRAM}: {one_line(words, 4000)}', file=sys.stderr)
    def warned(text, kind, *more):
        if issubclass(kind, UserWarning): tell(text)
        else: usual(text, kind, *more)
    try:
        with warnings.catch_warnings():
            usual, warnings.showwarning = warnings.showwarning, warned
            warnings.filterwarnings('ignore', module=r'PIL\.')  # A picture that fails is told by its row
            return carry_out_command(command, given)
    except BaseException as e:
        told = told_fault(e, given)
        if told is None: raise
        tell(told[0])
        return told[1]
