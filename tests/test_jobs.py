"Parts appear whole or not at all, are not made twice, and are the same from a Ray cluster"
import os, sys

import polars as pl
import pytest

from vlm_merging.asking import jobs as jobs
from vlm_merging.asking.jobs import carry_out
from vlm_merging.lab.trio import lab_folder
from vlm_merging.probing.probe import probe_folder
from vlm_merging.benchmarks.load import load
from vlm_merging.probing.sweep import sweep

pytestmark = pytest.mark.xdist_group('ray')           # One cluster for all of them

def squares(i): return pl.DataFrame(dict(i=[i], square=[i*i]))
def failing(i): raise ValueError(f'Part {i} cannot be made. Leave it out.')
def pids(i): return pl.DataFrame(dict(i=[i], pid=[os.getpid()]))
JOBS = {f'part-{i}': (i,) for i in range(5)}

@pytest.fixture(scope='module')
def cluster():
    "A local Ray with two workers"
    pytest.importorskip('ray')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.path.dirname(__file__))   # Its workers find the functions of this file
        ray = jobs.cluster('local', 2)
    yield 'local'
    ray.shutdown()

def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no name for a part'):
        carry_out(squares, {'../x': (1,)}, tmp_path/'run', {})

def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='no folder of a run, but holds notes.txt'):
        carry_out(squares, JOBS, tmp_path, {})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0]!='.')==['notes.txt']

def test_two_processes_do_not_share_a_folder(tmp_path):
    from vlm_merging.checkpoints.disk import sole
    (tmp_path/'run').mkdir()
    with sole(tmp_path/'run'), pytest.raises(ValueError, match='Another process'):
        carry_out(squares, JOBS, tmp_path/'run', {})

def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(self, file): file.write(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(pl.DataFrame, 'write_parquet', full)
    with pytest.raises(OSError): carry_out(squares, JOBS, tmp_path/'run', {})
    assert not list((tmp_path/'run'/'parts').glob('part*'))

def test_ray_makes_the_same_files(tmp_path, cluster):
    here, there = (carry_out(squares, JOBS, tmp_path/n, dict(a=1), ray=r) for n,
                   r in (('here', None), ('there', cluster)))
    assert here.equals(there)
    for p in sorted((tmp_path/'here').rglob('*.*')):
        if p.suffix in ('.parquet', '.json'):
            assert p.read_bytes()==(tmp_path/'there'/p.relative_to(tmp_path/'here')).read_bytes()

def test_ray_works_in_two_other_processes(tmp_path, cluster):
    made = carry_out(pids, {f'part-{i}': (i,) for i in range(16)}, tmp_path/'run', {}, ray=cluster)
    assert os.getpid() not in made['pid'] and made['pid'].n_unique()==2

def test_an_error_on_ray_is_the_same_sentence(tmp_path, cluster):
    with pytest.raises(ValueError, match='Part . cannot be made. Leave it out.'):
        carry_out(failing, JOBS, tmp_path/'run', {}, ray=cluster)

def test_a_run_begun_here_is_finished_on_ray(tmp_path, cluster):
    first = {k: JOBS[k] for k in list(JOBS)[:2]}
    carry_out(pids, first, tmp_path/'run', {})
    made = carry_out(pids, JOBS, tmp_path/'run', {}, ray=cluster)
    assert made['pid'].to_list()[:2]==[os.getpid()]*2 and os.getpid() not in made['pid'].to_list()[2:]

def test_a_sweep_on_ray_gives_the_same_table(tmp_path, cluster):
    lab, items = lab_folder(), load('lab', n=14, split='dev')
    how = dict(weights=[.8, .5], items=items, max_new_tokens=12)
    here, there = (sweep(lab/'vlm', lab/'llm', out=tmp_path/n, ray=r, **how).table for n,
                   r in (('here', None), ('there', cluster)))
    assert here.equals(there)

def test_a_probe_on_ray_makes_the_same_files(tmp_path, cluster):
    items, how = load('lab', n=64, split='dev'), dict(layers='1', parts=('attention',), how=('uniform',),
                                                      batch_size=16)
    here = probe_folder({'VLM': lab_folder()/'vlm'}, items, tmp_path/'here', **how)
    there = probe_folder({'VLM': lab_folder()/'vlm'}, items, tmp_path/'there', ray=cluster, **how)
    assert here.equals(there)
    names = [sorted(p.name for p in (tmp_path/w/'parts').iterdir()) for w in ('here', 'there')]
    assert names[0]==names[1] and len(names[0])==2
    assert all((tmp_path/'here'/'parts'/n).read_bytes()==(tmp_path/'there'/'parts'/n).read_bytes()
               for n in names[0])

def test_without_ray_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.delitem(sys.modules, 'ray', raising=False)
    with pytest.raises(ValueError, match=r"pip install 'vlm_merging\[ray\]'"):
        carry_out(squares, JOBS, tmp_path/'run', {}, ray='local')

def test_no_cluster_at_an_address_is_one_sentence(tmp_path):
    pytest.importorskip('ray')
    for address in ('127.0.0.1:9', 'ray://127.0.0.1:9', 'no.such.machine.invalid:6379'):
        with pytest.raises(ValueError, match='No Ray cluster answers'): jobs.cluster(address)
