"""The whole toolkit on the lab's trio in about a minute, told in a dozen lines and on one page."""
# Whoever has just installed the package types `vlm-merging demo` first. It takes the steps that one would
# take with models of one's own, in their order: try some weights in memory, plan, merge, ask, score,
# compare item by item, mask one layer at a time, measure the weights.
from __future__ import annotations
import json, shlex, sys, time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from vlm_merging.checkpoints.places import path_of
from vlm_merging.checkpoints.texts import name_in_line
from vlm_merging.cli.commands import as_called, command
from vlm_merging.cli.page_parts import drawn_chart, gain_said, needed_layers, share_said, shown_rows
from vlm_merging.cli.report import page
from vlm_merging.cli.report_inputs import Reported, pictures_of, without_places

MODELS = ('VLM', 'LLM', 'merged') # Names in tables; the LLM is put into the VLM: the weight 0
DEMO = 'vlm-merging-demo' # Written anew each time; any other folder must not exist
WEIGHT_GRID = (0., .1, .2, .3, .4, .5, .6, .7, .8, .9, 1.)
LEAST = 40              # Questions, so that the half of them still says something of both kinds
ASKING = dict(batch_size=100, max_new_tokens=24, device='cpu')

@dataclass(frozen=True)
class Findings:
    "All that the demo found out: the lines and the page are made of this"
    recipe:object       # The `Recipe` of the merge
    picked:bool         # Was the weight chosen here? Else it was given
    sums:object         # From `summarize`
    weights:object      # From `diagnose`
    about:Reported      # What any report tells

def asked_three(
    recipe,             # Of the merge
    merged:Path,        # Folder of the merge
    folder:Path,        # Gets the replies of each
    items:list,         # What is asked
)->tuple[dict, list]:   # VLM and merged model, open; score tables of `MODELS`
    "Ask the VLM, the LLM in its place, and the merged model"
    from vlm_merging.asking.ask import ask
    from vlm_merging.asking.opening import open_model
    from vlm_merging.probing.mixing import Mixer
    from vlm_merging.scoring.score import score
    where = dict(VLM=recipe.vlm, merged=merged)
    opened = {name:replace(open_model(w, **ASKING), name=name) for name, w in where.items()}
    shell, scores = Mixer(opened['VLM'], recipe), []
    folder.mkdir(exist_ok=True)
    for name in MODELS:
        model = replace(shell.mix(knobs={'weight':0.}), name=name) if name=='LLM' else opened[name]
        ask(model, items, out=folder/name, progress=False)
        scores.append(score(folder/name))
        shell.restore()
    return opened, scores

def find(
    folder:Path,        # Gets `merged` and `replies`
    n:int,              # Questions; weights and masks have half as many of their own
    weight:float|None,  # Share of the VLM; None: chosen on the dev split
    seed:int,           # Of the questions
    step:Callable,      # Is told what is done next
)->Findings:
    "Take every step once"
    from vlm_merging.benchmarks.load import load
    from vlm_merging.asking.folder import versions
    from vlm_merging.comparing.compare import compare
    from vlm_merging.comparing.pairs import matched
    from vlm_merging.comparing.summary import summarize
    from vlm_merging.comparing.which_weight import choose_weight
    from vlm_merging.lab.trio import lab_folder
    from vlm_merging.merging.merge import merge
    from vlm_merging.merging.plan import plan
    from vlm_merging.merging.recipe import Recipe
    from vlm_merging.probing.diagnose import diagnose
    from vlm_merging.probing.masks import masks
    from vlm_merging.probing.probe import profile_rows
    from vlm_merging.probing.profile import profile_change, profile_table
    from vlm_merging.probing.sweep import sweep
    lab, half = lab_folder(), n//2
    vlm, llm, base = (lab/name for name in ('vlm', 'llm', 'base'))
    some = sorted({*WEIGHT_GRID, *([] if weight is None else [weight])})
    step(f'trying {len(some)} weights in memory, on {half} questions of the dev split')
    items = load('lab', n=half, seed=seed, split='dev')
    tried = sweep(vlm, llm, weights=some, items=items, by='category', progress=False, **ASKING).table
    recipe = Recipe(vlm, llm, knobs={'weight':choose_weight(tried) if weight is None else float(weight)})
    step(f"merging with weight {recipe.knobs['weight']:g}, from files to files")
    told = str(plan(recipe)).replace(str(lab), 'lab')
    merged = merge(recipe, out=folder/'merged', progress=False)
    step(f'asking VLM, LLM and merged model {n} questions about pictures of the test split')
    items = load('lab', n=n+half, seed=seed, split='test')
    opened, scores = asked_three(recipe, merged, folder/'replies', items[:n])
    step('comparing item by item')
    sums, compared = summarize(scores, 'category'), compare(scores[0], scores[2], 'category').table
    step(f'masking each layer, before and after, with {half} more questions')
    rows = profile_rows(opened, items[n:], masks(opened['VLM'].model, 'layer'), measures=('answer',))
    profile, change = profile_table(rows, 'category'), profile_change(rows, 'VLM', 'merged', 'category')
    step('measuring how far the weights had moved')
    shown = [*shown_rows(matched(scores[0], scores[2]), ['category'])]
    pictures = pictures_of([r for *_, rows in shown for r in rows], items[:n], folder/'replies'/'VLM')
    made = {'The plan of the merge':told, 'Recipe, seed, versions':json.dumps(dict(
        recipe=without_places(recipe.dict()), questions=n, seed=seed, versions=versions()), indent=1)}
    about = Reported(scores, compared, ['category'], shown, pictures, profile, change, tried, others=True,
                     weight=recipe.knobs['weight'], made=made)
    return Findings(recipe, weight is None, sums, diagnose(vlm, llm, base, progress=False), about)

# What is told: a dozen lines, and a page

YOURS = '''# do they fit? what stays, and why
vlm-merging plan    --vlm VLM --llm LLM
# which weight? on questions that are not reported
vlm-merging sweep   --vlm VLM --llm LLM --weights 0.6,0.7,0.8,0.9 \\
                    --benchmark dev.csv --out runs/sweep
vlm-merging merge   --vlm VLM --llm LLM --weight 0.8 --out OUT
# did it help? a page such as this one
vlm-merging ask     --model VLM --benchmark MathVista --out runs/vlm
vlm-merging ask     --model OUT --benchmark MathVista --out runs/merged
vlm-merging profile VLM --against OUT --benchmark MathVista -n 200 --out runs/probe
vlm-merging report  runs/vlm runs/merged --probe runs/probe --sweep runs/sweep --out page.html'''

def next_lines(
    out:Path,           # Folder of the demo
)->list[str]:           # Each as it can be pasted
    "Commands with which one goes on: look at the report, ask a model, try weights"
    return [shlex.join(words) for words in (
        ['python' if sys.platform=='win32' else 'python3', '-m', 'webbrowser', f"{out/'report.html'}"],
        [as_called(), 'ask', f"{out/'merged'}", *'--benchmark lab -n 200 --out'.split(), f'{out}-asked'],
        [as_called(), *'sweep lab/vlm lab/llm --weights 0.5,0.6,0.7,0.8,1 --benchmark lab'.split(),
         *'--split dev -n 200 --out'.split(), f'{out}-sweep'])]

def facts(
    f:Findings,         # What was found
    out:str|Path,       # Folder of the demo
)->list[str]:           # A dozen lines
    "What was found, for a terminal"
    w, many = f.recipe.knobs['weight'], f.about.compared.filter(tag='all')['n'][0]
    gains = f.about.compared.filter(tag='category').sort('where').to_dicts()
    how = f"chosen on {f.about.tried['n'].max()} other questions" if f.picked else 'as given'
    lines = [f'merged: {w:g} of the VLM and {1-w:g} of the LLM ({how}); '
             f'asked {many} questions about pictures']
    for name in MODELS:
        shares = f.sums.filter(tag='category', run=name, what='accuracy').sort('where').to_dicts()
        lines.append(f'{name:<7} '+'   '.join(f"{r['where']} {share_said(r)}" for r in shares))
    out = path_of(out)
    needed = '; '.join(f'{kind}: {said}' for kind, said in needed_layers(f.about.profile))
    return [*lines, 'change: '+'; '.join(f"{r['where']} {gain_said(r)}" for r in gains),
            'replies: '+'; '.join(f"{r['where']} {r['length_a']:.1f} to {r['length_b']:.1f} characters"
                                  for r in gains),
            f'layers whose loss costs right answers: {needed}',
            *(name_in_line(line, 9000) for line in (
                f"report: {out/'report.html'}", f"merged model, for from_pretrained: {out/'merged'}",
                'next, also with folders or hub ids, and with questions of your own:',
                *(f'  {o}' for o in next_lines(out))))]

def demo_page(
    f:Findings,         # What was found
)->str:                 # A whole page
    "The report, with what is to say of this trio alone"
    from vlm_merging.charts.maps import weight_map
    from vlm_merging.probing.weights import weights_by_layer
    w, chosen = f.recipe.knobs['weight'], 'as given on the command line'
    if f.picked: chosen = ('of those on the way from the VLM to where more than a point of perception, or a '
                           'single question, is lost, the one that reasons best')
    moved = weight_map(weights_by_layer(f.weights.stats), ('relative_vlm', 'relative_llm', 'cosine'))
    return page(
        f.about, title='What a merge did', yours=YOURS,
        lead=f'A tiny vision-language model (VLM) and a tiny reasoning model (LLM) became one: {w:g} of the '
             f'weights of the first, {1-w:g} of the second. Nothing was trained.',
        right_note='They are of the test split, whose pictures no model was trained on. LLM: put into the '
                   'VLM as it is, which is the weight 0.',
        moved=dict(chart=drawn_chart(moved, 'moved', 500),
                   said=f'{f.weights.verdict} (how sure: {f.weights.sure})'),
        notes=[f'The weight, {w:g}, was taken {chosen}; it was not chosen on the questions that are reported'
               +', if you did not choose it after looking at this page'*(not f.picked)+'.',
               'It is one trio, VLM, LLM and base, of one tiny world. It shows that the tools work and what '
               'they can tell, and nothing about your models: merging can hurt.'])

def demo(
    out:str|Path=DEMO,  # Folder that shall appear; one of this default name is replaced if a demo made it
    n:int=400,          # Questions for each model, at least 40; weights and masks have half as many
    weight:float|None=None, # Share of the VLM, 0 to 1; None: chosen on other questions
    seed:int=1,         # Of the questions: another number, other questions
    step:Callable=bool, # Is told what is done next
)->Findings:
    "Merge, ask, compare and mask the embedded trio, and write it all into a folder, whole or not at all"
    from vlm_merging.asking.folder import versions
    from vlm_merging.merging.recipe import Recipe
    from vlm_merging.checkpoints.disk import replace_text
    from vlm_merging.checkpoints.writer import KEY, drafting, remove_draft
    out = path_of(out)
    if n<LEAST: raise ValueError(f'n is {n}; {LEAST} questions are the least, and hundreds say more.')
    if seed<0: raise ValueError(f'seed is {seed}; it is 0 or above.')
    if weight is not None: Recipe('vlm', 'llm', knobs={'weight':weight})  # Is it a weight?
    note = out/'recipe.json'
    made_here = note.is_file() and '"demo"' in note.read_text(encoding='utf-8', errors='replace')
    mine = str(out)==DEMO and made_here
    if out.exists() and not mine:
        raise ValueError(f'{out} is already there and is left as it is: only {DEMO} is written anew, '
                         f'if a demo made it. Choose another name with `out`.')
    with drafting(out, str(time.time_ns()), overwrite=mine) as draft:
        try:
            found = find(draft, n, weight, seed, step)
            step('writing the report')
            replace_text(draft/'report.html', demo_page(found))
            about = dict(recipe=found.recipe.dict(), demo=dict(n=n, seed=seed, versions=versions()))
            replace_text(draft/'recipe.json', json.dumps(about, indent=1)+'\n')
        except KeyboardInterrupt:
            remove_draft(draft, KEY)
            raise
    return found

@command(shows=dict(options='cli.demo:demo out n weight seed'),
         example='vlm-merging demo\nvlm-merging demo -n 100 --seed 7 --out other')
def demo_command(
    **given,            # Option -> value, as typed
)->int:                 # Exit code
    "Show the toolkit on a trio that comes with it: merge, ask, compare, mask; writes a report"
    start = time.perf_counter()
    def step(what): print(f'{time.perf_counter()-start:4.0f} s  {what}', file=sys.stderr, flush=True)
    step('opening the trio')
    try:
        import torch
        from transformers.utils import logging
        torch.set_num_threads(1)                # Of models so small threads would wait for each other
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        found = demo(**given, step=step)
    except KeyboardInterrupt:
        print('vlm-merging: stopped. Nothing was written.', file=sys.stderr)
        return 130
    step('done')
    print('\n'.join(facts(found, given.get('out', DEMO))))
    return 0
