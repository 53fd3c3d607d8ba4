"""Every VLM type that transformers names: does a merge with its LLM give what it must? Run by hand:

    python tests/bench/families.py [TYPE ...]

Without types it goes through all of them, in some two minutes of one core, and writes the table that
the guide shows (nbs/guide/every_vlm.csv). Exits with 1 if a type that has an LLM does not work.
"""
import csv, sys, tempfile, warnings
from pathlib import Path
import torch, transformers

project = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(project), str(project/'tests')]
from every_vlm import ALONE, VLMS, judged, text_of                                # noqa: E402

warnings.filterwarnings('ignore')
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
TABLE = project/'nbs'/'guide'/'every_vlm.csv'


def row(kind):
    "One type as a row of the table"
    if kind in ALONE: return dict(type=kind, llm='', verdict='no LLM of its kind', why=ALONE[kind])
    with tempfile.TemporaryDirectory() as folder:
        verdict, why, stem, merged, kept = judged(kind, Path(folder))
    return dict(type=kind, llm=text_of(kind), verdict=verdict, why=why, names=stem, merged=merged, stays=kept)


if __name__=='__main__':
    rows = []
    for kind in sys.argv[1:] or VLMS:
        rows.append(row(kind))
        print(*(f'{v!s:{n}}' for v, n in zip(rows[-1].values(), (24, 20, 20, 0))), flush=True)
    if len(sys.argv)==1:
        with TABLE.open('w', newline='') as f:
            table = csv.DictWriter(f, ['type', 'llm', 'verdict', 'why', 'names', 'merged', 'stays'],
                                   lineterminator='\n')
            table.writeheader()
            table.writerows(rows)
    found = [r['verdict'] for r in rows]
    print(', '.join(f'{found.count(v)} {v}' for v in dict.fromkeys(found)))
    sys.exit(any(v not in ('works', 'no LLM of its kind') for v in found))
