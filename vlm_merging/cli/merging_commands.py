"""Merging from the shell: `plan`, `merge`, `relayout`, `inspect` and `methods`."""
from __future__ import annotations
import json, sys, time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from vlm_merging.checkpoints.places import path_of
from vlm_merging.checkpoints.texts import name_in_line
from vlm_merging.cli.commands import COMMANDS, KNOBS, PROGRAM, calls_of, command, flags_of, knobs_shown, taken
from vlm_merging.cli.messages import in_shell_words
from vlm_merging.cli.signatures import methods_read
from vlm_merging.cli.typed import unknown

WHO = 'merging.recipe:Recipe vlm llm base'
WHAT = 'merging.recipe:Recipe method'
WHERE = 'merging.recipe:Recipe layers modules embeddings'
HOW = 'merging.recipe:Recipe seed as_run layout'
OUTPUT = 'merging.merge:merge out overwrite workers device sha256 allow_nonfinite'
TYPED_ONLY = 'cli.merging_commands:asked_recipe'
RECIPE = dict(shows=dict(who=(WHO, f'{TYPED_ONLY} recipe'), what=(WHAT, KNOBS),
                         where=(WHERE, f'{TYPED_ONLY} layer_swap'), how=HOW),
              places='vlm llm base', choices=dict(method=KNOBS), undone='embeddings as_run')

def asked_recipe(
    *,
    recipe:Path|None=None, # A recipe file, a merged folder, or a YAML file of mergekit; options given here
                        # override it
    layer_swap:int|None=None, # The paper's layer swapping: layers up to this one stay the VLM's, the rest is
                        # mixed linearly
    **given,            # Option -> value, of `plan` or `merge`
):
    "The recipe that a command line describes; raise ValueError if it describes none"
    from vlm_merging.merging.recipe import Recipe
    before = Recipe.read(recipe, given.get('vlm')) if recipe else None
    fields = before.dict()|dict(inputs=before.inputs) if before else {}
    method = fields.get('method', 'linear')
    if layer_swap is not None:
        if given.get('method', 'linear')!='linear' or 'layers' in given:
            raise ValueError('--layer-swap is linear on the layers behind: leave out --method and --layers.')
        fields |= dict(method='linear', layers=f'{layer_swap+1}-')
    fields |= taken(given, WHO, WHAT, WHERE, HOW)
    if fields.get('method', 'linear')!=method: fields['knobs'] = {} # Those of another method stay
    fields['knobs'] = fields.get('knobs', {}) | {k:given[k] for k in knobs_shown() if k in given}
    for name in ('vlm', 'llm'):
        if not fields.get(name):
            raise ValueError(f'--{name} is missing. Name a folder or a hub id, or give a --recipe that does.')
    return Recipe(**fields)

@contextmanager
def as_typed(
    given:dict,         # Option -> value
):
    "Errors about the layers of a layer swap speak of that option"
    try: yield
    except ValueError as e:
        if (swap := given.get('layer_swap')) is None: raise
        raise ValueError(str(e).replace(f"layers '{swap+1}-'", f'--layer-swap {swap}')) from None

def told_finding(
    finding,            # Of a plan
    name:str,           # Of the running command
)->str:
    "A finding in the words of the shell"
    return in_shell_words(str(finding), flags_of(COMMANDS[name]), partial(calls_of, COMMANDS[name]))

@command(**RECIPE, example='vlm-merging plan --vlm lab/vlm --llm lab/llm --weight 0.6 --layers 2-')
def plan_command(
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 3 if it cannot be merged
    "Say what would be merged with what, what stays and why; nothing is written"
    from vlm_merging.merging.plan import plan
    with as_typed(given): made = plan(asked_recipe(**given))
    text = str(made)
    for f in made.findings: text = text.replace(str(f), told_finding(f, 'plan'))
    print(text)
    return 3 if made.stops else 0

@command(**RECIPE|dict(shows=RECIPE['shows']|dict(output=OUTPUT)), needs='out',
         example='vlm-merging merge --vlm lab/vlm --llm lab/llm --weight 0.6 --out merged\n'
                 'vlm-merging merge --recipe merged --weight 0.5 --out other\n'
                 'vlm-merging merge --vlm VLM --llm MATH --llm CODE --weight 0.8,0.1,0.1 --out three')
def merge_command(
    *,
    quiet:bool=False,   # No progress bar (there is none anyway where the output is not a terminal)
    **given,            # Option -> value, as typed
)->int:                 # Exit code
    "Merge, and say where the result is"
    from vlm_merging.checkpoints.texts import readable
    from vlm_merging.checkpoints.writer import usable_target
    from vlm_merging.merging.plan import plan
    usable_target(given['out'], given.get('overwrite', False))
    wanted, start = asked_recipe(**given), time.time()
    with as_typed(given): planned = plan(wanted)
    for f in planned.findings:
        if f.level=='warn': print(told_finding(f, 'merge'), file=sys.stderr)
    if 'base' in given and planned.idle_base:
        print(f'warn: {wanted.method} makes no use of the base, {name_in_line(wanted.base)}. A second LLM '
              f'has an --llm of its own.', file=sys.stderr)
    from vlm_merging.merging.merge import merge     # With torch, which takes seconds
    how = taken(given, OUTPUT)
    out = merge(planned, out=Path(how.pop('out')), progress=False if quiet else None, **how)
    size = sum(p.stat().st_size for p in out.rglob('*') if p.is_file())
    print(f'{name_in_line(out, 4000)}: {readable(size)} in {time.time()-start:.1f} s. '
          f'Open it with AutoModelForImageTextToText.from_pretrained.')
    return 0

@command(shows=dict(options='checkpoints.relayout:relayout'), places='folder', needs='folder to out',
         example='vlm-merging relayout merged --to hub --out served')
def relayout_command(
    **given,            # Option -> value, as typed
)->int:                 # Exit code
    "Copy a checkpoint under the names of another layout, bit for bit"
    from vlm_merging.checkpoints.relayout import relayout
    out = relayout(given.pop('folder'), **given)
    print(f'{name_in_line(out, 4000)}: the same numbers under the names of the layout {given["to"]}.')
    return 0

@command(shows=dict(options='merging.ways_out:what_would_stop engine=for'),
         choices={'for':'merging.ways_out:ENGINES'},
         example='vlm-merging inspect lab/vlm\nvlm-merging inspect merged --for vllm')
def inspect_command(
    folder:str,         # A folder or hub id; of a LoRA adapter too, or MODEL+ADAPTER
    **given,            # Option -> value, as typed
)->int:                 # Exit code: 3 if the engine would be stopped
    "Say what a checkpoint or an adapter holds, and its recipe if it was merged here"
    from vlm_merging.checkpoints.adapted import open_any, side_summary
    from vlm_merging.checkpoints.headers import Checkpoint
    from vlm_merging.checkpoints.model_files import read_json
    if (path_of(folder)/'run.json').is_file():
        raise ValueError(f'{folder} is a run, with replies. See it with {PROGRAM} score {folder}.')
    opened = open_any(folder)
    print(side_summary(opened))
    if (opened.path/'recipe.json').is_file():
        print('merged with', json.dumps(read_json(opened.path/'recipe.json').get('recipe')))
    if not isinstance(opened, Checkpoint):
        if 'for' in given:
            raise ValueError(f'{folder} is an adapter, which no engine opens by itself. Name a model.')
        return 0
    if 'for' not in given:
        from vlm_merging.merging.folders import taken_for_text
        for finding in taken_for_text(opened): print(f'  {finding}')
        return 0
    from vlm_merging.merging.ways_out import what_would_stop
    found = what_would_stop(opened, given['for'])
    print(*found or [f"Nothing is known that would stop {given['for']}."], sep='\n')
    return 3 if any(f.level=='stop' for f in found) else 0

@command(example='vlm-merging methods ties')
def methods_command(
    names:tuple=(),     # Methods; none: all
)->int:                 # Exit code
    "Say which merge methods there are, and what their knobs mean"
    known = methods_read()
    if odd := [n for n in names if n not in known]: raise ValueError(f'The method {unknown(odd[0], known)}')
    def shown(value): return {True:'yes', False:'no'}[value] if isinstance(value, bool) else value
    for name in names or known:
        about, knobs = known[name]
        print(f'{name}: {about}')
        for k in knobs.values():
            can = ' or '.join(map(shown, k.choices or (True, False)))
            if k.bounds: can = f'{k.bounds[0]:g} to {k.bounds[1]:g}'
            print(f"  --{k.name.replace('_', '-'):<12} {can}; default: {shown(k.default)}. {k.about}")
    return 0
