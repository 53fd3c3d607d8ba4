"diagnose and profile from the shell: what they print, write and refuse, with stand-ins, and once on the lab"
import types
import numpy as np, polars as pl, pytest
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.merge import merge
from vlm_merging.merging.recipe import Recipe
from vlm_merging.cli.probing_commands import named_models
from vlm_merging.cli.signatures import parameters_of

@pytest.fixture
def asked(monkeypatch):
    "A stand-in for `probe_folder` that notes its arguments"
    held = {}
    def run(models, items, out, **more):
        held.update(models=models, items=items, out=out, **more)
        more = dict(parts=('layer', 'mlp', 'attention'), how=('skip',)) | more
        out.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        return pl.DataFrame([dict(model=m, benchmark=i.benchmark, split=i.split, index=i.id, group=i.group,
                                  **{t:v for t, v in i.tags.items()}, measure=measure, layer=l, layers=str(l),
                                  part=part, how=how, heads='', before=1. if measure=='answer' else -.5,
                                  after=float(rng.random()>.6/(1+l)) if measure=='answer'
                                  else -.5-2/(1+l)+.1*rng.normal())
                             for m in models for i in items for measure in more['measures']
                             for part in more['parts'] for how in more['how'] for l in range(4)])
    import vlm_merging.probing.probe
    monkeypatch.setattr(vlm_merging.probing.probe, 'probe_folder', run)
    return held

def test_a_probe_goes_where_it_is_told(call, asked, tmp_path):
    code, out, err = call('profile', 'org/vlm@main', '--against', tmp_path/'merged', '--benchmark', 'lab',
                          '-n', 42, '--how', 'uniform,skip', '--parts', 'layer', '--heads', '--layers', '0-3',
                          '--measure', 'likelihood,answer',
                          '--batch-size', 4, '--max-new-tokens', 20, '--dtype', 'float32', '--ray', '--out',
                          tmp_path/'run', '--chart', tmp_path/'page.html', '--by', 'category,topic')
    assert code==0, err
    assert asked['models']=={'vlm@main':'org/vlm@main', 'merged':str(tmp_path/'merged')}
    assert len(asked['items'])==42
    assert (asked['how'], asked['parts'], asked['measures'], asked['layers'],
            asked['ray'])==(('uniform', 'skip'), ('layer', 'head'), ('likelihood', 'answer'), '0-3', 'local')
    assert {k:asked[k] for k in ('batch_size', 'max_new_tokens', 'dtype')}==dict(batch_size=4,
        max_new_tokens=20, dtype='float32')
    assert 'device' not in asked
    assert 'merged against vlm@main' in out and 'nats' in out and 'points' in out
    made = {n:pl.read_parquet(tmp_path/'run'/f'{n}.parquet') for n in ('profile', 'depth', 'change')}
    assert set(made['profile']['tag'])=={'all', 'category', 'topic'}
    assert set(made['change']['versus'])=={'vlm@main'} and made['depth'].height
    assert (tmp_path/'page.html').stat().st_size>300_000
    assert '<script src' not in (tmp_path/'page.html').read_text()

def test_the_defaults_of_a_probe(call, asked, tmp_path):
    code, out, err = call('profile', 'm', '--benchmark', 'lab', '-n', 21, '--out', tmp_path/'run')
    assert code==0 and asked.keys()=={'models', 'items', 'out',
                                      # The rest is left to Python
                                      'measures'} and asked['measures']==('likelihood',), err
    assert call('profile', 'm', '--benchmark', 'lab', '-n', 21, '--out', tmp_path/'heads', '--heads')[0]==0
    assert asked['parts']==(*parameters_of('probing.probe:probe_folder')['parts'].default, 'head')
    assert set(pl.read_parquet(tmp_path/'run'/'profile.parquet')['tag'])=={'all', 'category'}
    assert not (tmp_path/'run'/'change.parquet').exists()
    assert call('profile', 'm', '--benchmark', 'lab', '-n', 21, '--out', tmp_path/'run', '--by', '')[0]==0
    assert set(pl.read_parquet(tmp_path/'run'/'profile.parquet')['tag'])=={'all'}

@pytest.mark.parametrize('line,why', [('--benchmark lab --out r', '--model is missing'),
                                      ('m --out r', '--benchmark is missing'),
                                      ('m --benchmark lab', '--out is missing'),
    ('m --benchmark lab --out r --how erase', "--how: 'erase' is not known. There are: skip, zero"),
    ('m --benchmark lab --out r --parts norm', "--parts: 'norm' is not known"),
    ('m --benchmark lab --out r --measure loss', "--measure: 'loss' is not known. There are: likelihood, "
                                                 "answer, both"),
                                                 ('m --benchmark lab --out r --parts ,',
                                                  '--parts: it is empty'),
    ('m --benchmark lab --out r --how weights', 'go together'),
    ('m --benchmark lab --out r --other x', 'go together'),
    ('m --benchmark lab --out r --by colour', "no item has the tag 'colour'"),
    ('m --against m --benchmark lab --out r', 'the model itself'),
    ('m --benchmark lab --out r --batch-size 0', '--batch-size is 0'),
    ('m --benchmark lab --out r --chart x.gif', 'written as .html'),
    ('m --benchmark nowhere --out r', 'nowhere'),
    ('m --benchmark lab --out r --diagnosis none.parquet', 'none.parquet is not there')])
def test_what_a_probe_refuses(call, asked, tmp_path, monkeypatch, line, why):
    monkeypatch.chdir(tmp_path)
    code, out, err = call('profile', *line.split())
    assert (code, err.count('\n')) in ((3, 1),
                                       (2,
                                        2)) and why in err and not asked and not list(tmp_path.iterdir()), err

def test_a_file_is_no_folder(call, asked, tmp_path):
    (tmp_path/'run').write_text('')
    assert 'is a file' in call('profile', 'm', '--benchmark', 'lab', '--out', tmp_path/'run')[2]

def test_names_in_tables():
    assert named_models('org/A', None)=={'A':'org/A'}
    assert named_models('x/vlm/', 'y/vlm')=={'x/vlm/':'x/vlm/', 'y/vlm':'y/vlm'}

@pytest.fixture(scope='module')
def merged(tmp_path_factory):
    out = tmp_path_factory.mktemp('room')/'merged'
    return merge(Recipe(lab_folder()/'vlm', lab_folder()/'llm', knobs=dict(weight=.5)), out=out)

def test_the_lab_is_probed_and_gone_on_with(call, merged, tmp_path):
    line = ['profile', lab_folder()/'vlm', '--against', merged, '--benchmark', 'lab', '-n', 28, '--split',
            'dev', '--parts', 'layer', '--layers', '0-2', '--measure', 'likelihood', 'answer',
            '--max-new-tokens', 12, '--batch-size', 14, '--out', tmp_path/'run']
    code, out, err = call(*line)
    assert code==0 and 'vlm on lab, 28 items, log-probability of the right answer' in out, err
    assert 'merged against vlm' in out, err
    parts = sorted((tmp_path/'run'/'parts').iterdir())
    kept = [(p.name, p.stat().st_mtime_ns) for p in parts]
    parts[-1].unlink()
    assert call(*line)[1]==out                                  # The same words, one part asked again
    assert [(p.name, p.stat().st_mtime_ns)
            for p in sorted((tmp_path/'run'/'parts').iterdir())][:-1]==kept[:-1]
    code, out, err = call(*line[:-1], tmp_path/'run', '--how', 'zero')
    assert code==3 and 'other settings' in err
    profile = pl.read_parquet(tmp_path/'run'/'profile.parquet')
    first = profile.filter(measure='likelihood', tag='category', where='perception', layer=0,
                           model='vlm').row(0, named=True)
    assert first['high']<-2                                     # Layer 0 carries perception

def test_a_pair_is_diagnosed(call, tmp_path):
    lab = lab_folder()
    code, out, err = call('diagnose', '--vlm', lab/'vlm', '--llm', lab/'llm', '--base', lab/'base', '--out',
                          tmp_path/'w.parquet', '--chart', tmp_path/'page.html')
    assert code==0 and out.strip(), err
    table = pl.read_parquet(tmp_path/'w.parquet')
    assert {'layer', 'module', 'name'}<=set(table.columns) and (tmp_path/'page.html').stat().st_size>300_000
    assert call('diagnose', '--vlm', lab/'vlm', '--llm', lab/'llm', '--candidates', lab/'base')[0]==0

def test_the_map_of_weights_stands_below_a_profile(call, asked, tmp_path):
    lab = lab_folder()
    assert call('diagnose', '--vlm', lab/'vlm', '--llm', lab/'llm', '--out', tmp_path/'w.parquet')[0]==0
    code, out, err = call('profile', 'm', '--benchmark', 'lab', '-n', 21, '--out', tmp_path/'run',
                          '--diagnosis', tmp_path/'w.parquet', '--chart', tmp_path/'page.svg')
    assert code==0 and 'cosine' in (tmp_path/'page.svg').read_text(), err

def test_a_pair_that_cannot_be_merged_has_exit_code_3(call, monkeypatch, tmp_path):
    import vlm_merging.probing.diagnose as d
    stop = types.SimpleNamespace(level='stop')
    monkeypatch.setattr(d, 'diagnose', lambda *a,
                        **k: types.SimpleNamespace(findings=(stop,), stats=None, __str__=lambda s: 'no'))
    code, out, err = call('diagnose', '--vlm', 'a', '--llm', 'b', '--out', tmp_path/'w.parquet', '--chart',
                          tmp_path/'p.html')
    assert code==3 and 'nothing was written' in err and not list(tmp_path.iterdir())
    for line, why in ((('--vlm', 'a'), '--llm is missing'), (('--llm', 'a'), '--vlm is missing'),
                      (('--vlm', 'a', '--llm', 'b', '--subspace', '-1'), '--subspace is -1'),
                     (('--vlm', 'a', '--llm', 'b', '--out', 'x.txt'), 'written as')):
        code, out, err = call('diagnose', *line)
        assert code==3 and why in err
