"""Agreement of the offline scorer with the verdicts of a judge, and its speed.

    python tests/bench/agreement.py FOLDER [--show]    # of parquet files with verdicts; with what disagrees

The truth is `adjudicated_correct` where a reader ruled, else `judge_correct`. DynaMath has its own
string rule there, so it is compared with the protocol `strict`.
"""
import sys, time
from pathlib import Path
import polars as pl
from vlm_merging.scoring.score import score

def truth(d): return pl.coalesce(*(c for c in ('adjudicated_correct', 'judge_correct') if c in d.columns))

def scored(folder):
    "Every file, scored: benchmark -> (replies, scores, seconds)"
    out = {}
    for path in sorted(Path(folder).glob('*.parquet')):
        d = pl.read_parquet(path)
        start = time.perf_counter()
        s = score(d, 'strict' if path.stem=='dynamath' else 'offline')
        out[path.stem] = d.with_columns(truth=truth(d)), s, time.perf_counter()-start
    return out

if __name__=='__main__':
    folder = next((a for a in sys.argv[1:] if a!='--show'), None)
    if folder is None: sys.exit(__doc__)
    made = scored(folder)
    rows = wrong = 0
    print(f"{'benchmark':12}{'rows':>6}{'wrong':>7}{'agreement %':>13}{'ms a row':>10}   off by run (points)")
    for name, (d, s, seconds) in made.items():
        both = d.select('run', 'split', 'truth').with_columns(got=s['correct'])
        bad = both.filter(pl.col('truth').ne_missing(pl.col('got'))).height
        rows, wrong = rows+d.height, wrong+bad
        off = both.group_by('run',
                            maintain_order=True).agg(off=100*(pl.col('got').mean()-pl.col('truth').mean()))
        print(f"{name:12}{d.height:6}{bad:7}{100-100*bad/d.height:13.2f}{1000*seconds/d.height:10.2f}   "
              +', '.join(f'{r} {o:+.2f}' for r, o in off.rows()))
        if name=='mathverse':
            gain = both.pivot('run', index='split', values=['got', 'truth'], aggregate_function='mean')
            first, second = both['run'].unique(maintain_order=True)
            for r in gain.iter_rows(named=True):
                by = {w: 100*(r[f'{w}_{second}']-r[f'{w}_{first}']) for w in ('got', 'truth')}
                print(f"    gain {r['split']:32} {by['got']:+.2f}, by the verdicts {by['truth']:+.2f}")
    pace = 1000*sum(t for _, _, t in made.values())/rows
    print(f"{'all':12}{rows:6}{wrong:7}{100-100*wrong/rows:13.2f}{pace:10.2f}")
    if '--show' in sys.argv:
        for name, (d, s, _) in made.items():
            at = d['truth'].ne_missing(s['correct'])
            for r, g in zip(d.filter(at).iter_rows(named=True), s.filter(at).iter_rows(named=True)):
                print('##', name, r['run'], r['index'], 'gold', r['answer'], 'truth', r['truth'], '|',
                      g['picked'], g['tier'], g['reason'], '|', r['prediction'][-200:])
