"What `merge?` tells and Tab finds: the comment beside each parameter, and what `**rest` can be"
import inspect, re
from pkgutil import resolve_name

# What the `**rest` of a function goes on to; 'knobs': those of all merge methods
REST = dict(plan='knobs', merge='knobs', sweep='knobs asking.models:open_model',
            ask='asking.models:open_model', open_model='asking.models:LocalModel',
            profile='probing.probe:profile_rows', profile_rows='asking.models:open_model')
NOT_TYPED = dict(open_model=('name',), sweep=('weight',)) # Set by the function itself

def comments(
    thing,              # A function, or a class
)->dict[str, str]:      # Parameter -> what stands beside it
    "The comments of a signature, or of the fields of a class"
    head = re.split(r'\n\)\s*(?:->|:)|\n    (?:def|@)', inspect.getsource(thing))[0]
    names, out, last = inspect.signature(thing).parameters, {}, []
    for line in head.splitlines():
        code, _, text = line.partition('# ')
        if code.strip(): last = [n for n in names if re.search(rf'(?<![\w.]){n}\b *(?=[:=,)]|$)', code)]
        for n in last if text else (): out[n] = f"{out[n]} {text.strip()}" if n in out else text.strip()
    return out

def knob_lines()->dict[str, str]:
    "The knobs of all merge methods, each with its usual setting by method"
    from vlm_merging.merging.methods import METHODS
    about, usual = {}, {}
    for method in METHODS.values():
        for k in method.knobs.values():
            about.setdefault(k.name, k.about)
            usual.setdefault(k.name, []).append(f'{method.name}: {k.default}')
    return {n: f"{about[n]} ({', '.join(usual[n])})" for n in about}

def rest_lines(
    name:str,           # Of a function of the face
)->dict[str, str]:      # Parameter -> comment
    "What can stand for `**rest`"
    lines = {}
    for where in REST.get(name, '').split():
        if where=='knobs': lines |= knob_lines(); continue
        target = resolve_name(f'vlm_merging.{where}')
        usual = [n for n, p in inspect.signature(target).parameters.items() if p.default is not p.empty]
        lines |= {n: t for n, t in comments(target).items() if n in usual}
        lines |= rest_lines(where.partition(':')[2])
    return {n: t for n, t in lines.items() if n not in NOT_TYPED.get(name, ())}

def explain(
    name:str,           # As it is called in the face
    thing,              # What it is
):                      # The same
    "Put the comments of a signature into the help, and the names of `**rest` into the signature"
    plain = inspect.isfunction(thing) or inspect.isclass(thing) and '__dataclass_fields__' in vars(thing)
    if not plain or '\n' in (thing.__doc__ or ''): return thing
    signature = inspect.signature(thing)
    known, beside = signature.parameters, comments(thing)
    rest = {n: t for n, t in rest_lines(name).items() if n not in known}
    if rest:
        *first, last = known.values()
        more = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in rest]
        thing.__signature__ = signature.replace(parameters=[*first, *more, last])
    lines = [f'{n:<16} {t}' for n, t in ({n: beside[n] for n in known if n in beside} | rest).items()]
    if lines: thing.__doc__ = '\n'.join([thing.__doc__ or '', '', *lines])
    return thing
