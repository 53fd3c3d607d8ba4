"""Messages are written in the words of Python; the shell tells them in its own: `base` as --base."""
# Nothing is known here of any message: the table of names comes from the signatures.
from __future__ import annotations
import ast, re, shlex
from collections.abc import Callable
from dataclasses import dataclass

VALUE = r"""'[^'\n]*'|"[^"\n]*"|-?\d[\w.]*\w|-?\d|-?inf|nan|True|False|None|\[[^]\n]*\]"""

@dataclass(frozen=True)
class Called:
    "How a function of Python is called in the shell"
    prefix:str          # 'vlm-merging prepare '; '' if its parameters are options of the running command
    flags:dict          # Parameter, in order -> '--from'; '': stands without a name; None: cannot be typed

def typed_value(
    value,              # A plain value of Python
)->str:
    "A value as one types it"
    if isinstance(value, (list, tuple)): return ','.join(map(typed_value, value))
    return shlex.quote(str(value)) if re.search(r'\s', str(value)) else str(value)

def _setting(flag, value):
    if value is True: return flag
    if value is False: return f'{flag} no'
    if value is None: return f'no {flag}'
    return f'{flag} {typed_value(value)}'.strip()

def _call(text, calls):
    "`load('mine.csv', n=20)` as `--benchmark mine.csv -n 20`; None if it is not known how"
    try: node = ast.parse(text.strip(), mode='eval').body
    except SyntaxError: return None
    how = calls.get(getattr(getattr(node, 'func', None), 'id', None))
    if how is None: return None
    given = [*zip(how.flags, node.args), *((k.arg, k.value) for k in node.keywords)]
    if len(node.args)>len(how.flags) or any(how.flags.get(name) is None for name, _ in given): return None
    def worth(o): return o.id.upper() if isinstance(o, ast.Name) else ast.literal_eval(o)
    try: return how.prefix+' '.join(_setting(how.flags[name], worth(o)) for name, o in given)
    except ValueError: return None

def in_shell_words(
    text:str,           # Of an error, a warning, or a comment beside a parameter
    names:dict,         # Parameter -> flag, of the running command
    calls:Callable=dict, # Gives function -> `Called`; asked only if a call is in the text
)->str:
    "The same with the names that the shell has for it"
    known_calls = calls() if re.search(r'\w\([^()\n]*\)', text) else {}
    text = re.sub(r'\[Errno -?\d+\] ', '', text)
    def assigned(m):
        try: return _setting(names[m[1]], ast.literal_eval(m[2]))
        except (ValueError, SyntaxError): return m[0]
    def code(m):
        inside = m[1]
        if inside in names: return names[inside]
        if (n := re.fullmatch(rf'(\w+)=({VALUE})', inside)) and n[1] in names: return assigned(n)
        return _call(inside, known_calls) or m[0]
    text = re.sub(r'`([^`\n]+)`', code, text)
    text = re.sub(r'(?<![\w.])\w+\([^()\n]*\)', lambda m: _call(m[0], known_calls) or m[0], text)
    if not names: return text
    known = '|'.join(sorted(map(re.escape, names), key=len, reverse=True))
    before = r'(?<![\w./-])'
    text = re.sub(rf'{before}({known})=({VALUE})', assigned, text)
    text = re.sub(rf'{before}({known})(?= is (?:{VALUE}))', lambda m: names[m[1]], text)
    text = re.sub(rf"(^|[:.] )({known})(?= '[^'\n]*')", lambda m: m[1]+names[m[2]], text)
    return re.sub(rf'{before}({known})(?![\w./-]|\()', lambda m: names[m[1]] if '_' in m[1] else m[0], text)
