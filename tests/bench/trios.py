"""Other trios of the lab, and what a merge brings each of them: the table of the page `what_the_lab_shows`.

    python tests/bench/trios.py --seeds 0 1 2 3 4 --trios trios --table nbs/tutorials/five_trios.csv

trains each trio that is not in its folder yet, by `train_trio` and nothing else, chooses the weight on `dev`
by `choose_weight`, and reports everything else on `test`. A row is written as soon as a seed is done,
and a seed whose row stands in the table is not asked again. A training takes 10 to 20 minutes of one core, a
row about two. The last line says whether every row keeps the promise:
a gain in reasoning of at least 10 points whose 95% interval lies above 5, less than 2 points of perception
lost, at least 15 of them in the LLM in the VLM's shell, and a VLM that reasons below 65%.
"""
import argparse, sys
from functools import partial
from pathlib import Path

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vlm_merging import ask_mixture, choose_weight, compare, load, Recipe, score  # noqa: E402
from vlm_merging.lab.training import train_trio                                   # noqa: E402
from vlm_merging.probing.sweep import sweep_table                                 # noqa: E402

WEIGHTS = [k/20 for k in range(20, 5, -1)]
ASKING = dict(batch_size=100, max_new_tokens=16)


def asked(trio, items, weight, llm='llm'):
    "Scored replies of one mixture"
    recipe = Recipe(str(trio/'vlm'), str(trio/llm)).dict()
    how = dict(run=f'{llm} {weight:g}', weight=weight, layers='all', modules='all')
    return score(ask_mixture(recipe, how, items, ASKING))


def changes(before, after):
    "P and R after, in percent, and the change of each in points, with its 95% interval and p"
    row = {}
    for r in compare(before, after, by='category').table.filter(tag='category').to_dicts():
        kind = r['where'][0].upper()
        row |= {kind: 100*r['b']} | {f'{kind}_{name}': 100*r[c] for name, c in
                                     (('change', 'difference'), ('low', 'low'), ('high', 'high'))}
        row |= {f'{kind}_p': r['p_holm']}
    return row


def row_of(seed, trio, n):
    "One row of the table"
    dev, test = (load('lab', n=n, seed=k, split=split) for k, split in ((2, 'dev'), (3, 'test')))
    tried = [asked(trio, dev, w) for w in WEIGHTS]
    weight = choose_weight(sweep_table(pl.concat(tried), ['category']))
    vlm, shell, merge, base = (asked(trio, test, *how) for how in
                               ((1.,), (0.,), (weight,), (weight, 'base')))
    ends, best = changes(vlm, shell), changes(vlm, merge)
    words = merge.filter(category='reasoning')['prediction'].str.split(' ').list.len().mean()
    return dict(seed=seed, questions=n//2, weight=weight, vlm_P=best['P']-best['P_change'],
                vlm_R=best['R']-best['R_change'], shell_P=ends['P'], shell_R=ends['R']) | best | dict(
                words=words, base_R=changes(vlm, base)['R'])


def promise(row):
    "What a row lacks of the promise"
    return [what for what, kept in {
        'gain of 10': row['R_change']>=10, 'its interval above 5': row['R_low']>5,
        'loss below 2': row['P_change']>-2, 'a VLM below 65': row['vlm_R']<65,
        '15 lost in the shell': row['vlm_P']-row['shell_P']>=15}.items() if not kept]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    parser.add_argument('--trios', type=Path, default='trios', help='folder of the trios, one a seed')
    parser.add_argument('--table', type=Path, default='five_trios.csv')
    parser.add_argument('--questions', type=int, default=1000, help='of each split, half of each kind')
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = pl.read_csv(given.table).to_dicts() if given.table.exists() else []
    for seed in given.seeds:
        if seed in [r['seed'] for r in rows]: continue
        trio = given.trios/str(seed)
        if not trio.exists(): train_trio(trio, seed, say=partial(print, flush=True))
        rows.append(row_of(seed, trio, given.questions))
        pl.DataFrame(rows).sort('seed').write_csv(given.table, float_precision=4)
        print(rows[-1], flush=True)
    lacking = {r['seed']: promise(r) for r in rows if promise(r)}
    print(f'{len(rows)-len(lacking)} of {len(rows)} keep the promise. {lacking or ""}')


if __name__=='__main__': main()
