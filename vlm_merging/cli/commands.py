"""A command is a short function, and a list of the functions from whose signatures its options come."""
# A list such as 'benchmarks.load:load what=benchmark split n' shows three parameters of `load`, the first of
# them under another name.
from __future__ import annotations
import argparse, ast, re, shutil, sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from vlm_merging.checkpoints.texts import did_you_mean, one_line
from vlm_merging.cli.messages import Called, in_shell_words
from vlm_merging.cli.signatures import REQUIRED, constant_words, definition, methods_read, parameters_of
from vlm_merging.cli.typed import Split, value_kind

PROGRAM = 'vlm-merging'

def as_called()->str:
    "The program as a next line can name it: by its name, or by its path where no name leads to it"
    typed = sys.argv[0]
    return typed if Path(typed).name==PROGRAM and not shutil.which(PROGRAM) else PROGRAM
COMMANDS = {}           # Name -> `Command`
KNOBS = 'knobs'         # In the list of a command: the knobs of all methods; `knobs but weight`: all others
SMALLEST = dict(n=1, batch_size=1, max_new_tokens=1, temperature=0, subspace=0, workers=1, layer_swap=0,
                samples=1,
                repeat=0)

@dataclass(frozen=True)
class Option:
    "One thing that can be typed"
    name:str            # As the shell calls it, with underscores
    parameter:object    # The `Parameter` it sets
    group:str           # Heading in the help
    own:bool=False      # Is it a parameter of the command itself?
    place:bool=False    # Does it stand without a name?

    @property
    def flag(self)->str:
        "As it is typed"
        if self.place: return self.name.upper()
        return f'-{self.name}' if len(self.name)==1 else f"--{self.name.replace('_','-')}"

@dataclass(frozen=True)
class Command:
    "One command of the program"
    run:Callable        # Gets what was typed; gives the exit code
    example:str         # A line or several
    shows:dict=field(default_factory=dict)   # Heading -> list or lists of parameters, as above
    choices:dict=field(default_factory=dict) # Option -> 'house.room:NAME', which holds the words it can be
    bare:dict=field(default_factory=dict)    # Option -> its value when it stands alone
    also:dict=field(default_factory=dict)    # Another name of an option -> option
    was:dict=field(default_factory=dict)     # Option of old -> what it is called now
    undone:str=''       # Yes/no options that a recipe may have set: --no-x takes them back
    places:str=''       # Options that may stand without their name, in order, with blanks between
    needs:str=''        # Options that must be given
    spaced:str=''       # Options that take several words; lists take commas, too

    @property
    def name(self)->str:
        "As it is typed"
        return self.run.__name__.removesuffix('_command')

    @property
    def about(self)->str:
        "What it does, in a sentence"
        where = f"{self.run.__module__.removeprefix('vlm_merging.')}:{self.run.__name__}"
        return self.run.__doc__ or ast.get_docstring(definition(where)[0])      # python -OO drops docstrings

    @property
    def lists(self)->list:
        "Headings, each with one list of parameters"
        lists = {head:[o] if isinstance(o, str) else o for head, o in self.shows.items()}
        return [(head, text) for head, texts in lists.items() for text in texts]

def command(
    **about,            # Fields of `Command`
)->Callable:
    "Enter `name_command` into `COMMANDS`; its own parameters are options, too (before a `*` without name)"
    def enter(run):
        made = Command(run, **about)
        COMMANDS[made.name] = made
        return run
    return enter

def listed_names(
    text:str,           # 'house.room:function' and names of parameters: as they are, or python=shell
)->tuple[str, dict]:    # 'house.room:function'; name in Python -> name in the shell
    "Read a list of parameters"
    where, *names = text.split()
    if not names: names = [n for n in parameters_of(where) if n!='progress']
    return where, {n.partition('=')[0]:(n.partition('=')[2] or n) for n in names}

def is_knobs(
    text:str,           # Of the lists of a command
)->bool:
    "Does it stand for the knobs of all methods?"
    return text.split()[0]==KNOBS

def knobs_shown()->dict: # Name -> `Parameter`; `about` says for which methods
    "The knobs of all methods"
    uses = {}
    for method, (_, knobs) in methods_read().items():
        for k in knobs.values(): uses.setdefault(k.name, []).append((method, k))
    def told(value): return {True:'yes', False:'no'}.get(value, value) if isinstance(value, bool) else value
    out = {}
    for name, ((_, first), *_) in uses.items():
        defaults = ', '.join(f'{method}: {told(k.default)}' for method, k in uses[name])
        about = f"{first.about.rstrip('?')} ({defaults})"
        out[name] = replace(first, kinds=('knob',), default=None, choices=(), about=about)
    return out

def shell_options(
    command:Command,    # From `COMMANDS`
)->dict:                # Name -> `Option`; the command's own come last
    "All that can be typed behind a command"
    out = {}
    for group, text in command.lists:
        if is_knobs(text):
            known = (*out, *text.split()[2:])
            out |= {n:Option(n, p, group) for n, p in knobs_shown().items() if n not in known}
            continue
        where, names = listed_names(text)
        for name, shell in names.items():
            out.setdefault(shell, Option(shell, parameters_of(where)[name], group))
    module, code = command.run.__module__.partition('.')[2], command.run.__code__
    own = list(parameters_of(f'{module}:{command.run.__name__}').values())
    front = code.co_argcount
    out |= {p.name:Option(p.name, p, 'options', True, k<front) for k, p in enumerate(own)}
    for n, where in command.choices.items():
        out[n] = replace(out[n], parameter=replace(out[n].parameter, choices=words_known(where)))
    return out

def words_known(
    where:str,          # 'house.room:NAME', or `KNOBS`: the methods
)->tuple:
    "What an option can be, read from a constant"
    return tuple(methods_read()) if where==KNOBS else constant_words(where)

def python_names(
    command:Command,    # From `COMMANDS`
)->dict:                # Name of a parameter -> name of the option
    "How Python calls what a command takes"
    out = {}
    for _, text in command.lists:
        if not is_knobs(text):
            for name, shell in listed_names(text)[1].items(): out.setdefault(name, shell)
    return {n:n for n in shell_options(command)}|out

def flags_of(
    command:Command,    # From `COMMANDS`
)->dict:                # Parameter of Python -> '--flag'
    "The table that messages are translated by"
    options, names = shell_options(command), python_names(command)
    return {name:options[shell].flag for name, shell in names.items() if not options[shell].place}

def calls_of(
    command:Command,    # The running one
)->dict:                # Function -> `Called`
    "How calls of Python are typed: functions whose parameters are options here, and other commands"
    out = {}
    for c in (command, *COMMANDS.values()):
        options, names = shell_options(c), python_names(c)
        for where in dict.fromkeys(listed_names(t)[0] for _, t in c.lists if not is_knobs(t)):
            name = where.rpartition(':')[2]
            if c is not command and name!=c.name: continue
            flags = dict.fromkeys(parameters_of(where))
            for n in flags.keys() & names.keys():
                bare = options[names[n]].place or names[n] in c.places.split()
                flags[n] = '' if bare else options[names[n]].flag
            out.setdefault(name, Called(f'{PROGRAM} {name} ' if name==c.name else '', flags))
    return out

def taken(
    given:dict,         # Option -> value, as typed
    *texts:str,         # Lists of parameters
)->dict:                # Name in Python -> value
    "Of what was typed, the part that belongs to some functions"
    return {name:given[shell] for t in texts for name, shell in listed_names(t)[1].items() if shell in given}

# The help

def help_of(
    p,                  # A `Parameter`
    names:dict,         # From `flags_of`
)->str:
    "The comment beside a parameter, as a sentence about an option"
    text = in_shell_words(p.about, names)
    if p.kinds==('bool',): text = re.sub(r'\?(?= |$)', '.', text, count=1).rstrip('.')
    text = re.sub(r'(^|[;.(] ?)None: ', r'\1default: ', text)
    if any(str(c) not in text for c in p.choices): text += f"; one of {', '.join(map(str, p.choices))}"
    worth = ','.join(p.default) if isinstance(p.default, tuple) else p.default
    plain = isinstance(worth, (str, int, float)) and not isinstance(worth, bool)
    if plain and worth not in (REQUIRED, '') and 'default' not in text.lower():
        text += f'; default: {worth}'
    return text.replace('`', '').replace('%', '%%')

class Parser(argparse.ArgumentParser):
    "An argparse parser that asks what was meant"
    def error(self, message):
        "Say how it is used, and what is wrong; exit code 2"
        self.print_usage(sys.stderr)
        self.exit(2, f'{self.prog}: {one_line(message, 4000)}\n')

class Layout(argparse.RawDescriptionHelpFormatter):
    "Help in which lists are written in one way"
    def _format_args(self, action, default_metavar):
        word = action.metavar or default_metavar
        if not action.option_strings: return word
        if action.nargs=='?': return f'[{word}]'
        return f'{word},...' if isinstance(action, Split) or action.nargs=='+' else word

def _needed(command, options):
    "Names of the options that must be given, but for what stands first"
    own = [n for n, o in options.items() if o.parameter.default==REQUIRED and o.own and not o.place]
    return list(dict.fromkeys([*command.needs.split(), *own]))

def _usage(command, options):
    "How a command is typed: what may be left out stands in brackets"
    fixed, needed = [o for o in options.values() if o.place], _needed(command, options)
    words = [o.flag+'...'*o.parameter.several for o in fixed]
    words = [w if o.parameter.default==REQUIRED else f'[{w}]' for o, w in zip(fixed, words)]
    places = command.places.split()
    words += [n.upper() if n in needed else f'[{n.upper()}]' for n in places]
    return ' '.join([*words, *(f'{options[n].flag} {n.upper()}' for n in needed if n not in places)])

def parser_of(
    command:Command,    # From `COMMANDS`
)->Parser:
    "The parser of one command"
    options, names, groups = shell_options(command), flags_of(command), {}
    fixed = [o for o in options.values() if o.place]
    name, untyped = f'{PROGRAM} {command.name}', argparse.SUPPRESS
    usage = ' '.join(f'{name} {_usage(command, options)} [options]'.split())
    p = Parser(name, usage, f'{command.about}.', formatter_class=Layout, epilog='for example:\n  '+
               command.example.replace('\n', '\n  '), allow_abbrev=False, add_help=False)
    first = p.add_argument_group('what stands first') if fixed else p
    for o in fixed:
        first.add_argument(o.name, nargs='*' if o.parameter.several else '?', default=untyped, metavar=o.flag,
                           help=help_of(o.parameter, names))
    for n in command.places.split():
        p.add_argument(f'place_{n}', nargs='?', default=untyped, help=argparse.SUPPRESS)
    for o in [o for o in options.values() if not o.place]:
        if o.group not in groups: groups[o.group] = p.add_argument_group(o.group)
        how = value_kind(o, o.name in command.spaced.split())
        if o.name in command.undone.split(): how = dict(action=argparse.BooleanOptionalAction)
        if o.name in command.bare: how |= dict(nargs='?', const=command.bare[o.name])
        plain = how.get('action') in ('store_true', argparse.BooleanOptionalAction)
        if not plain: how['metavar'] = o.name.rpartition('_')[2].upper()
        more = [f'--{other}' for other, name in command.also.items() if name==o.name]
        how |= dict(dest=o.name, default=untyped, help=help_of(o.parameter, names))
        groups[o.group].add_argument(o.flag, *more, **how)
    groups.get('options', p).add_argument('-h', '--help', action='help', help='Show this, and do nothing')
    return p

def read_words(
    command:Command,    # From `COMMANDS`
    words:list,         # Behind its name
)->dict:                # Option -> value, of those that were typed
    "What was typed behind a command; exits with 2 if it cannot be understood"
    p, options = parser_of(command), shell_options(command)
    got, rest = p.parse_known_intermixed_args(list(map(str, words)))
    if odd := [w for w in rest if w[:1]=='-']:
        flag = odd[0].partition('=')[0]
        new = command.was.get(flag.lstrip('-').replace('-', '_'))
        if new: p.error(f'{flag} is called {options[new].flag} here. {help_of(options[new].parameter, {})}.')
        flags = [o.flag for o in options.values() if not o.place]
        p.error(f'there is no option {flag}.{did_you_mean(flag, flags)}')
    if rest: p.error(f"{' '.join(rest)}: nothing is expected there. See {p.prog} --help.")
    got = vars(got)
    for name in command.places.split():
        if (key := f'place_{name}') in got:
            if name in got: p.error(f'{options[name].flag} is given twice.')
            got[name] = got.pop(key)
    for o in options.values():
        if o.place and o.parameter.default==REQUIRED and not got.get(o.name):
            p.error(f'{o.flag} is missing: {o.parameter.about}.')
    return got

def carry_out_command(
    command:Command,    # From `COMMANDS`
    given:dict,         # From `read_words`
)->int:                 # Exit code
    "Run a command; raise ValueError if something is missing, or too small"
    options, names = shell_options(command), flags_of(command)
    for name in _needed(command, options):
        if given.get(name) in (None, '', ()):
            raise ValueError(f'{options[name].flag} is missing: {help_of(options[name].parameter, names)}.')
    for name, least in SMALLEST.items():
        value = given.get(name)
        if isinstance(value, (int, float)) and value<least:
            raise ValueError(f'{options[name].flag} is {value:g}; the least is {least}.')
    return command.run(**given)
