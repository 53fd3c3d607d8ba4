"Probe runs: parts, resume, Ray, weights of another model, and the same numbers as in memory"
import polars as pl
import pytest

from vlm_merging.lab import lab_folder
from vlm_merging.merge import merge
from vlm_merging.models import open_model
from vlm_merging.probes import Mask, masks
from vlm_merging.profile import offline, profile, profile_rows, run
from vlm_merging.recipe import Recipe
from vlm_merging.sources import load

LAB, HOW = lab_folder(), dict(batch_size=16, max_new_tokens=12)

@pytest.fixture(scope='module')
def vlm(): return open_model(LAB/'vlm', **HOW)

def sorted_rows(frame): return frame.sort('index', 'model', 'measure', 'layers', 'part', 'how').select(sorted(frame.columns))

def test_a_folder_has_the_numbers_of_a_run_in_memory(tmp_path, vlm):
    items = load('lab', n=28, split='dev')
    how = dict(parts=('mlp', 'layer'), how=('skip', 'mean'), measures=('likelihood', 'answer'))
    there = run({'VLM': LAB/'vlm'}, items, tmp_path/'run', layers='1-2', **how, **HOW)
    here = profile_rows({'VLM': vlm}, sorted(items, key=lambda i: (i.benchmark, i.split, bool(i.images), len(i.question))),
                        masks(vlm.model, how['parts'], how['how'], '1-2'), measures=how['measures'])
    a, b = sorted_rows(there), sorted_rows(here)
    assert a.drop('before', 'after').equals(b.drop('before', 'after'))
    assert all((a[c]-b[c]).abs().max()<1e-3 for c in ('before', 'after'))
    assert there.height==28*2*2*2*2

def test_two_models_and_other_weights(tmp_path):
    half = merge(Recipe(LAB/'vlm', LAB/'llm', knobs={'weight': .5}), tmp_path/'half')
    items = load('lab', n=7, split='dev')
    rows = run({'VLM': LAB/'vlm', 'merged': half}, items, tmp_path/'run', layers='3', parts=('layer',), how=('weights',), other=LAB/'vlm', **HOW)
    own = rows.filter(model='VLM')
    assert (own['before']-own['after']).abs().max()<1e-5              # Its own weights change nothing
    other = rows.filter(model='merged')
    assert (other['before']-other['after']).abs().max()>1e-3

def test_it_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch):
    from vlm_merging import profile as room
    items, asked, once = load('lab', n=80, split='dev'), [], room.probe_part
    def counted(*args):
        asked.append(len(args[2]))
        if len(asked)==2: raise KeyboardInterrupt
        return once(*args)
    monkeypatch.setattr(room, 'probe_part', counted)
    how = dict(layers='2', parts=('mlp',), **HOW)
    with pytest.raises(KeyboardInterrupt): run({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how)
    rows = run({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how)
    assert asked==[32, 32, 32, 16] and rows['index'].n_unique()==80
    assert run({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how|dict(batch_size=3)).equals(rows)    # Nothing is asked again
    for other in (dict(how=('mean',)), dict(layers='3'), dict(measures=('answer',)), dict(max_new_tokens=5)):
        with pytest.raises(ValueError, match='begun with other settings'): run({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how|other)
    with pytest.raises(ValueError, match='begun with other settings'): run({'VLM': LAB/'vlm'}, items[:79], tmp_path/'run', **how)

def test_an_own_score_and_an_own_target(vlm):
    items = load('lab', n=14, split='dev')
    table = profile(vlm, items, [Mask((0,))], lambda item, text: float('yes' in text), measures=('answer',))
    assert set(table['tag'])=={'all', 'category'} and table.filter(tag='all')['n'].to_list()==[14]
    same = profile(vlm, items, [Mask((5,), 'mlp')], target=lambda item: f'so {item.answer}', by=())
    plain = profile(vlm, items, [Mask((5,), 'mlp')], by=())
    assert same['before'][0]<plain['before'][0]                       # The VLM does not say "so"

def test_scores_of_replies():
    item = next(i for i in load('lab', n=7) if i.tags['topic']=='plus')
    assert offline(item, f'2 + 3 = {item.answer} so {item.answer}')==1 and offline(item, 'red')==0
    import dataclasses
    assert offline(dataclasses.replace(item, answer=None), '5') is None

def test_what_cannot_be_probed_is_one_sentence(tmp_path):
    items = load('lab', n=7, split='dev')
    for how, said in ((dict(how=('weights',)), 'go together'), (dict(layers='7-9'), 'not within'), (dict(parts=('neuron',)), 'neuron'),
                      (dict(measures=('speed',)), 'speed')):
        with pytest.raises(ValueError, match=said): run({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how, **HOW)
    with pytest.raises(ValueError, match='no items'): run({'VLM': LAB/'vlm'}, [], tmp_path/'run')
    assert not (tmp_path/'run'/'parts').exists() or not list((tmp_path/'run'/'parts').iterdir())
