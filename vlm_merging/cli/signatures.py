"""What functions take, read from their source files: options of the shell stand in signatures alone."""
# Nothing is imported for it, so that `--help` needs neither torch nor transformers.
from __future__ import annotations
import ast, re, sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
METHOD_MODULES = 'merging.methods', 'merging.matrices'  # The first holds the table of all
LISTS = {'tuple', 'list', 'Iterable', 'Sequence'} # Annotations of parameters that take several values
REQUIRED = '(required)' # Default of a parameter that has none

@dataclass(frozen=True)
class Parameter:
    "One parameter, as its signature tells it"
    name:str            # As Python calls it
    kinds:tuple         # Types it takes, such as 'int', 'str', 'Path'; () without annotation
    default:object      # `REQUIRED` if there is none
    choices:tuple=()    # Of a `Literal`, or of a comment that begins with 'this', 'that' or 'such'
    bounds:tuple=()     # Of an `Annotated` number; () without bounds
    about:str=''        # The comment beside it

    @property
    def several(self)->bool:
        "Does it take a list?"
        return bool(LISTS & {*self.kinds}) or isinstance(self.default, (tuple, list))

@dataclass(frozen=True)
class ModuleText:
    "A module as text"
    tree:ast.Module     # Its syntax
    lines:list          # The text, line by line
    names:dict          # Name -> syntax of its value, or (module, name) it is imported from

def _imported(node, house):
    "Names that an import brings from this package -> (module, name)"
    module = node.module or ''
    if node.level==1: module = f'{house}.{module}'
    elif not node.level: module = module.removeprefix(f'{PACKAGE.name}.')
    return {a.asname or a.name:(module, a.name) for a in node.names}

@lru_cache
def module_text(
    module:str,         # 'house.room'
)->ModuleText:
    "Read a module of this package without importing it"
    text = PACKAGE.joinpath(*module.split('.')).with_suffix('.py').read_text(encoding='utf-8')
    tree, names = ast.parse(text), {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom): names |= _imported(node, module.partition('.')[0])
        for target in node.targets if isinstance(node, ast.Assign) else ():
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts) if both else [(target, node.value)]
            names |= {t.id:value for t, value in pairs if isinstance(t, ast.Name)}
    return ModuleText(tree, text.splitlines(), names)

def _looked_up(name, source):
    "The syntax that a name stands for and where it stands; None if that is not in this package"
    held = source.names.get(name)
    if not isinstance(held, tuple): return held, source
    try: return _looked_up(held[1], module_text(held[0]))
    except (OSError, ValueError): return None, source

def _value(node, source):
    "What a plain expression is worth; what is not plain, such as a function, is worth its own name"
    if isinstance(node, ast.Name):
        held, where = _looked_up(node.id, source)
        return node.id if held is None else _value(held, where)
    if isinstance(node, ast.Tuple): return tuple(_value(o, source) for o in node.elts)
    if isinstance(node, ast.Call):
        given = {k.arg:_value(k.value, source) for k in node.keywords}
        called = ast.unparse(node.func)
        if called=='dict': return given
        made = {'dict':{}, 'list':[]}.get(given.get('default_factory'))
        if called=='field': return given.get('default', made)
    try: return ast.literal_eval(node)
    except ValueError: return ast.unparse(node)

def constant_words(
    where:str,          # 'house.room:NAME', a constant
)->tuple:               # Of a table its keys
    "The words that a constant holds"
    module, _, name = where.partition(':')
    return tuple(_value(ast.Name(name), module_text(module)))

def _annotation(node, source):
    "Kinds, choices and bounds"
    if isinstance(node, ast.BinOp):
        (k, c, b), (k2, c2, b2) = (_annotation(o, source) for o in (node.left, node.right))
        return k+k2, c+c2, b+b2
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value)
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name=='Literal': return ('str',), tuple(_value(o, source) for o in inside), ()
        if name=='Annotated':
            return *_annotation(inside[0], source)[:2], tuple(_value(o, source) for o in inside[1:])
        return (name,), (), ()
    if isinstance(node, ast.Name):
        held, where = _looked_up(node.id, source)
        return _annotation(held, where) if isinstance(held, ast.Subscript) else ((node.id,), (), ())
    return () if node is None or ast.unparse(node)=='None' else (ast.unparse(node),), (), ()

_COMMENT = re.compile(r"""(?:[^#'"]|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")*#(.*)""") # No '#' of a string

def _comment(line):
    "The comment at the end of a line"
    found = _COMMENT.fullmatch(line)
    return found[1].strip('# ') if found else ''

def _about(line, source, ends):
    "The comment beside a line, and what goes on below it"
    said = [_comment(source.lines[line-1])]
    while line<ends and source.lines[line].lstrip().startswith('#'):
        said.append(_comment(source.lines[line]))
        line += 1
    return ' '.join(said)

def _parameter(arg, default, source, ends):
    kinds, choices, bounds = _annotation(arg.annotation, source)
    worth, about = REQUIRED if default is None else _value(default, source), _about(arg.lineno, source, ends)
    listed = re.match(r"(('\w+'(, | or )?){2,})(;|\.|$)", about)
    if listed and not choices: choices = tuple(re.findall(r"'(\w+)'", listed[1]))
    return Parameter(getattr(arg, 'arg', None) or arg.target.id, kinds, worth, choices, bounds, about)

def definition(
    where:str,          # 'house.room:function', 'house.room:Class' or 'house.room:Class.method'
):                      # Its syntax, and the `ModuleText` it stands in
    "Find a definition; raise LookupError if there is none"
    module, _, path = where.partition(':')
    source = module_text(module)
    body = source.tree.body
    for name in path.split('.'):
        found = [o for o in body if getattr(o, 'name', None)==name]
        if not found: raise LookupError(f'{module} defines no {path}.')
        body = found[-1].body
    return found[-1], source

@lru_cache
def parameters_of(
    where:str,          # As for `definition`
)->dict:                # Name -> `Parameter`, in order, without `self`, `cls`, `*args` and `**more`
    "What a function takes, or the fields of a dataclass"
    node, source = definition(where)
    if isinstance(node, ast.ClassDef):
        fields = [o for o in node.body if isinstance(o, ast.AnnAssign)]
        made = [_parameter(o, o.value, source, node.end_lineno) for o in fields]
    else:
        a = node.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [*[None]*(len(plain)-len(a.defaults)), *a.defaults, *a.kw_defaults]
        ends = node.body[0].lineno-1
        made = [_parameter(o, d, source, ends) for o, d in zip([*plain, *a.kwonlyargs], defaults)]
    return {p.name:p for p in made if p.name not in ('self', 'cls')}

@lru_cache
def _methods_written():
    made = {}
    for module, node in [(m, node) for m in METHOD_MODULES for node in module_text(m).tree.body]:
        marks = [ast.unparse(o).partition('(')[0] for o in getattr(node, 'decorator_list', ())]
        if 'merge_method' not in marks: continue
        known = parameters_of(f'{module}:{node.name}')
        made[node.name] = ast.get_docstring(node), {a.arg:known[a.arg] for a in node.args.kwonlyargs}
    return made

def methods_read()->dict: # Method -> what it does, and its knobs: name -> `Parameter`
    "The merge methods and their knobs: those written in this package, and those that were entered since"
    made = dict(_methods_written())
    entered = getattr(sys.modules.get(f'{PACKAGE.name}.{METHOD_MODULES[0]}'), 'METHODS', {})
    for name in entered.keys()-made.keys():
        knobs = [Parameter(k.name, (), k.default, k.choices, () if k.choices else (k.low, k.high), k.about)
                 for k in entered[name].knobs.values()]
        made[name] = entered[name].about, {k.name:k for k in knobs}
    return made
