"Probe runs: parts, resume, Ray, weights of another model, and the same numbers as in memory"
import pytest

from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.merge import merge
from vlm_merging.asking.opening import open_model
from vlm_merging.probing.layers import decoder_layers
from vlm_merging.probing.masks import Mask, applied, masked, masks
from vlm_merging.probing.probe import Profile, score_reply, profile, profile_rows, probe_folder
from vlm_merging.merging.recipe import Recipe
from vlm_merging.benchmarks.load import load

LAB, HOW = lab_folder(), dict(batch_size=16, max_new_tokens=12)

@pytest.fixture(scope='module')
def vlm(): return open_model(LAB/'vlm', **HOW)

def sorted_rows(frame):
    return frame.sort('index', 'model', 'measure', 'layers', 'part', 'how').select(sorted(frame.columns))

def test_a_folder_has_the_numbers_of_a_run_in_memory(tmp_path, vlm):
    items = load('lab', n=28, split='dev')
    how = dict(parts=('mlp', 'layer'), how=('skip', 'mean'), measures=('likelihood', 'answer'))
    there = probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', layers='1-2', **how, **HOW)
    here = profile_rows({'VLM': vlm}, sorted(items,
                                             key=lambda i: (i.benchmark, i.split, bool(i.images),
                                                            len(i.question))),
                        masks(vlm.model, how['parts'], how['how'], '1-2'), measures=how['measures'])
    a, b = sorted_rows(there), sorted_rows(here)
    assert a.drop('before', 'after').equals(b.drop('before', 'after'))
    assert all((a[c]-b[c]).abs().max()<1e-3 for c in ('before', 'after'))
    assert there.height==28*2*2*2*2

def test_two_models_and_other_weights(tmp_path):
    half = merge(Recipe(LAB/'vlm', LAB/'llm', knobs={'weight': .5}), out=tmp_path/'half')
    items = load('lab', n=7, split='dev')
    rows = probe_folder({'VLM': LAB/'vlm', 'merged': half}, items, tmp_path/'run', layers='3',
                        parts=('layer',), how=('weights',), other=LAB/'vlm', **HOW)
    own = rows.filter(model='VLM')
    assert (own['before']-own['after']).abs().max()<1e-5              # Its own weights change nothing
    other = rows.filter(model='merged')
    assert (other['before']-other['after']).abs().max()>1e-3

def test_it_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch):
    from vlm_merging.probing import probe as room
    items, asked, once = load('lab', n=80, split='dev'), [], room.probe_part
    def counted(*args):
        asked.append(len(args[2]))
        if len(asked)==2: raise KeyboardInterrupt
        return once(*args)
    monkeypatch.setattr(room, 'probe_part', counted)
    how = dict(layers='2', parts=('mlp',), **HOW)
    with pytest.raises(KeyboardInterrupt): probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how)
    rows = probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how)
    assert asked==[32, 32, 32, 16] and rows['index'].n_unique()==80
    # Nothing is asked again
    assert probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how|dict(batch_size=3)).equals(rows)
    for other in (dict(how=('mean',)), dict(layers='3'), dict(measures=('answer',)), dict(max_new_tokens=5),
                  dict(target='reply')):
        with pytest.raises(ValueError, match='begun with other settings'):
            probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how|other)
    with pytest.raises(ValueError, match='begun with other settings'):
        probe_folder({'VLM': LAB/'vlm'}, items[:79], tmp_path/'run', **how)
    with pytest.raises(ValueError, match='hash_of_questions'):
        probe_folder({'VLM': LAB/'vlm'}, load('lab', n=80, seed=1, split='dev'), tmp_path/'run', **how)
    both = probe_folder({'VLM': LAB/'vlm', 'base': merge(Recipe(LAB/'vlm', LAB/'llm'),
                                                         out=tmp_path/'merged')}, items, tmp_path/'run',
                                                         **how)
    # A model can be added
    assert asked[4:]==[32, 32, 16] and both.filter(model='VLM').equals(rows) and both.height==2*rows.height

def test_an_own_score_and_an_own_target(vlm):
    items = load('lab', n=14, split='dev')
    table = profile(vlm, items, [Mask((0,))], lambda item, text: float('yes' in text),
                    measures=('answer',)).table
    assert set(table['tag'])=={'all', 'category'} and table.filter(tag='all')['n'].to_list()==[14]
    same = profile(vlm, items, [Mask((5,), 'mlp')], target=lambda item: f'so {item.answer}', by=()).table
    plain = profile(vlm, items, [Mask((5,), 'mlp')], by=()).table
    assert same['before'][0]<plain['before'][0]                       # The VLM does not say "so"

def test_scores_of_replies():
    item = next(i for i in load('lab', n=7) if i.tags['topic']=='plus')
    assert score_reply(item, f'2 + 3 = {item.answer} so {item.answer}')==1 and score_reply(item, 'red')==0
    import dataclasses
    assert score_reply(dataclasses.replace(item, answer=None), '5') is None

def test_what_cannot_be_probed_is_one_sentence(tmp_path):
    items = load('lab', n=7, split='dev')
    for how, said in ((dict(how=('weights',)), 'go together'), (dict(layers='7-9'), 'not within'),
                      (dict(parts=('neuron',)), 'neuron'),
                      (dict(measures=('speed',)), 'speed')):
        with pytest.raises(ValueError, match=said):
            probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how, **HOW)
    with pytest.raises(ValueError, match='no items'): probe_folder({'VLM': LAB/'vlm'}, [], tmp_path/'run')
    assert not (tmp_path/'run'/'parts').exists() or not list((tmp_path/'run'/'parts').iterdir())

def test_items_that_cannot_be_asked_are_counted_and_stop_nothing(tmp_path):
    from dataclasses import replace
    from vlm_merging.probing.profile import profile_table
    from vlm_merging.comparing.layer_findings import profile_verdict
    items = load('lab', n=33, split='dev')
    items = sorted(items, key=lambda i: (i.benchmark, i.split, bool(i.images), len(i.question)))
    items[32] = replace(items[32], answer=None)                       # Alone in its part
    how = dict(layers='1', parts=('mlp',), **HOW)
    with pytest.warns(UserWarning, match='left out'):
        rows = probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how)
    assert rows.height==33 and rows['after'].null_count()==1
    assert probe_folder({'VLM': LAB/'vlm'}, items, tmp_path/'run', **how).equals(rows)
    assert 'Left out: 1 of 33 scores' in profile_verdict(profile_table(rows))

def test_a_model_can_be_measured_by_its_own_replies(tmp_path, vlm):
    items = load('lab', n=7, split='dev')
    own = profile_rows(vlm, items, [Mask((5,), 'mlp')], target='reply')
    gold = profile_rows(vlm, items, [Mask((5,), 'mlp')])
    wrong = [score_reply(i, vlm(i))==0 for i in items]
    assert all((a>b)==w for a, b, w in zip(own['before'], gold['before'], wrong) if w)

def test_pictures_are_not_shown_to_a_text_model_and_models_in_memory_not_to_run(tmp_path, vlm):
    with pytest.raises(ValueError, match='is a text model'):
        probe_folder({'LLM': LAB/'llm'}, load('lab', n=7), tmp_path/'run')
    with pytest.raises(ValueError, match='model in memory'):
        probe_folder({'a': vlm}, load('lab', n=7), tmp_path/'run')
    with pytest.raises(ValueError, match='no open model'): profile(3, load('lab', n=7))

def test_a_folder_is_as_good_as_an_open_model_and_a_table_as_items(tmp_path, vlm):
    how = dict(parts='mlp', layers='1-2', measures='likelihood')
    named = profile({'VLM': LAB/'vlm'}, 'lab', **how, **HOW)
    assert named.rows.equals(profile({'VLM': vlm}, load('lab'), **how).rows) and named.table['n'].max()==420
    with pytest.raises(ValueError, match='nowhere.csv is not there'): profile(vlm, 'nowhere.csv')
    assert profile(LAB/'vlm', load('lab', n=7), masks(vlm, 'mlp', layers=1), **HOW).models==['vlm']

def test_a_profile_says_what_it_has(tmp_path, vlm):
    items, how = load('lab', n=28, split='dev'), dict(parts=('mlp',), layers='1-2')
    one = profile({'<b>VLM': vlm}, items, **how)
    assert one.change is None and one.verdict.startswith('<b>VLM on lab, 28 items')
    assert 'MLP' in one.chart().to_json()
    assert '<b>' not in one._repr_markdown_() and len(repr(one).split('\n'))<=40
    half = merge(Recipe(LAB/'vlm', LAB/'llm', knobs={'weight': .5}), out=tmp_path/'half')
    both = Profile(probe_folder({'VLM': LAB/'vlm', 'merged': half}, items, tmp_path/'run', **how, **HOW))
    assert both.models==['VLM', 'merged'] and both.change['versus'].unique().to_list()==['VLM']
    assert 'merged against VLM on lab' in both.verdict
    assert 'merged' in both.chart().to_json()

def test_masks_fit_what_open_model_returns(vlm):
    item = load('lab', n=1)[0]
    with masked(vlm, 0, 'attention', 'uniform') as blurred: told = blurred(item)
    with masked(vlm.model, 0, 'attention', 'uniform'): assert told==vlm(item)
    with applied(vlm, Mask(3), other=vlm) as same: assert same is vlm
    assert masks(vlm, 'mlp')==masks(vlm.model, 'mlp') and len(decoder_layers(vlm))==8
