"""Tables in, tables out: what is read may be a run, what is written appears whole or not at all."""
from __future__ import annotations
import json
from pathlib import Path
from vlm_merging.checkpoints.places import path_of, same_place

TABLES = ('.parquet', '.jsonl', '.csv')
PAGES = ('.html', '.svg', '.png')

def read_table(
    path:str|Path,      # As below
    problems:list|None=None, # As below
    items:str|None=None, # As below
):                      # A polars frame
    "A table of replies or scores, or the replies of a run"
    from vlm_merging.asking.reading import table_at
    return table_at(path, [] if problems is None else problems, None if path_of(path).is_dir() else items)

def with_run(
    frame,              # A polars frame of replies or scores
    path:str|Path,      # Where it was read
):                      # The frame, with a column `run`
    "A table whose run is called after its file, where nothing else names it"
    import polars as pl
    if 'run' in frame.columns and frame['run'].null_count()<max(frame.height, 1): return frame
    return frame.with_columns(run=pl.lit(path_of(path).stem))

def read_scores(
    path:str|Path,      # parquet, jsonl, csv, xlsx, tsv, json, or the folder of a run
    protocol:str='offline', # If it holds replies
    problems:list|None=None, # Sentences about rows that are left out are put here
    items:str|None=None, # Questions of result files that have none; a run has its own
    thinking:str='general', # What is thought, if it holds replies
):                      # A polars frame
    "A score table: as it is, or made of replies"
    from vlm_merging.scoring.problems import scores_of
    return scores_of(read_table(path, problems, items), protocol, thinking)

def ready_to_write(
    path:Path|None,     # Where something shall appear; None: nowhere
    kinds:tuple,        # Endings that can be written
    *inputs:str|Path,   # What is read, and must stay
)->None:
    "Raise ValueError, before any work is done, if a file cannot appear there"
    if path is None: return
    path = path_of(path)
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path.name}: this is written as {', '.join(kinds)}.")
    if not path.parent.is_dir():
        raise ValueError(f'There is no folder {path.parent} to write {path.name} in.')
    if path.is_dir(): raise ValueError(f'{path} is a folder. Name a file.')
    if any(same_place(path, i) for i in inputs):
        raise ValueError(f'{path} is what is read, and stays as it is. Write to another file.')
    if path.suffix.lower()=='.jsonl' and (path.parent/'run.json').is_file():
        raise ValueError(f'{path.parent} is a run, whose own files end in .jsonl. Write to another folder.')

def write_table(
    frame,              # A polars frame
    path:str|Path,      # .parquet, .jsonl or .csv
)->Path:
    "Write a table, whole or not at all; cells that a spreadsheet would compute (=, -5) are left as they are"
    from vlm_merging.checkpoints.disk import appearing
    path = path_of(path)
    ready_to_write(path, TABLES)
    kind = path.suffix.lower()
    if kind=='.csv':                                         # A cell of csv holds no list
        import polars as pl
        def as_text(v): return json.dumps(v.to_list() if isinstance(v, pl.Series) else v, ensure_ascii=False)
        lists = [c for c, t in frame.schema.items() if t.is_nested()]
        frame = frame.with_columns(pl.col(c).map_elements(as_text, return_dtype=pl.String) for c in lists)
    write = {'.parquet':'write_parquet', '.jsonl':'write_ndjson', '.csv':'write_csv'}[kind]
    with appearing(path) as file: getattr(frame, write)(file)
    return path
