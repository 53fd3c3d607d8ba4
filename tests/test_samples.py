"Several replies to a question: kept, gone on with and counted as one item; and what flips by itself"
import signal, subprocess, sys, time, warnings
from dataclasses import replace

import numpy as np, polars as pl, pytest
from vlm_merging.asking.ask import ask, in_samples
from vlm_merging.asking.models import prompt_inputs, Reply
from vlm_merging.asking.replies import replies, run_report, shortfall
from vlm_merging.asking.reading import table_at
from vlm_merging.asking.results import import_replies
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.comparing.compare import compare
from vlm_merging.comparing.pairs import comparison_table
from vlm_merging.comparing.findings import accuracy_said
from vlm_merging.comparing.samples import verdict_flips, per_item
from vlm_merging.comparing.statistics import interval, summed, typed_table
from vlm_merging.comparing.summary import summarize
from vlm_merging.scoring.problems import problems
from vlm_merging.scoring.score import score

def items_of(n): return [Item(f'{i}', f'What is {i}+{i}?', f'{2*i}', benchmark='Sums') for i in range(n)]

class Tosses:
    "An asker whose replies differ; it counts, and fails where it is told to"
    def __init__(self, bad=()): self.asked, self.bad, self.about = [], list(bad), dict(weights='w')
    def __call__(self, item):
        self.asked.append(item.id)
        if item.id in self.bad: self.bad.remove(item.id); raise TimeoutError('nothing')
        return f'{2*int(item.id)+len(self.asked)%2}'

def quiet(*a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ask(*a, **kw)

def files(out): return {p.name:p.read_bytes() for p in out.iterdir() if p.name not in ('run.json', '.lock')}

# ---- Asking ----

def test_one_sample_is_a_run_as_ever(tmp_path):
    table = ask(lambda i: 'x', items_of(3), tmp_path/'a', 'r')
    assert 'sample' not in table.columns
    assert b'sample' not in b''.join(files(tmp_path/'a').values())

def test_more_samples_are_added_and_none_is_asked_twice(tmp_path):
    model = Tosses()
    ask(model, items_of(4), tmp_path/'a', 'r')
    first = (tmp_path/'a'/'replies.jsonl').read_bytes()
    for k in (2, 4): table = ask(model, items_of(4), tmp_path/'a', 'r', samples=k)
    assert len(model.asked)==16 and table.height==16
    assert (tmp_path/'a'/'replies.jsonl').read_bytes().startswith(first)
    assert table.select('index', 'sample').rows()==[(str(i), str(s)) for i in range(4) for s in range(1, 5)]
    with pytest.raises(ValueError, match='Ask with samples=4 as before'):
        ask(model, items_of(4), tmp_path/'a', 'r')
    assert ask(model, items_of(5), tmp_path/'a', 'r', samples=4).height==20

def test_a_kill_among_samples_loses_nothing(tmp_path):
    code = ("import sys, time\nfrom vlm_merging.benchmarks.items import Item\n"
            "from vlm_merging.asking.ask import ask\n"
            "def slow(item):\n    open(sys.argv[2], 'a').write(item.id+'\\n'); time.sleep(.01); return 'x'\n"
            "ask(slow, [Item(f'{i}', f'What is {i}?', '1') for i in range(20)], out=sys.argv[1], run='k', "
            "samples=3)")
    out, asked = tmp_path/'run', tmp_path/'asked'
    command = [sys.executable, '-c', code, str(out), str(asked)]
    p = subprocess.Popen(command)
    while not (asked.exists() and len(asked.read_text().split())>=30):
        assert p.poll() is None
        time.sleep(.002)
    p.send_signal(signal.SIGKILL); p.wait()
    assert 'were not asked yet' in run_report(out) and '60 replies' in run_report(out)
    subprocess.run(command, check=True)
    assert replies(out).height==60 and len(asked.read_text().split())<=61
    assert shortfall(out)==''

def test_one_sample_that_fails_is_asked_again_and_its_item_has_the_others(tmp_path):
    model = Tosses(bad=['2'])
    table = quiet(model, items_of(3), tmp_path/'a', 'r', samples=2)
    assert table.height==5 and '5 of 6 replies are there' in run_report(tmp_path/'a')
    scores = score(tmp_path/'a')
    sums = summarize(scores).filter(tag='all')
    assert sums.filter(what='accuracy')['n'].to_list()==[3]
    assert sums.filter(what='failed samples').select('value', 'n').rows()==[(1/6, 6)]
    assert 'no reply' not in sums['what'].to_list()
    assert '1 of 6 samples failed' in accuracy_said(scores)
    assert ask(model, items_of(3), tmp_path/'a', 'r', samples=2).height==6 and len(model.asked)==7

def test_a_repeated_part_is_the_same_in_any_table_and_grows(tmp_path):
    rows = [dict(index=str(i), benchmark='B') for i in range(500)]
    def chosen(some, share): return {r['index'] for _, r in in_samples(some, 1, share) if r.get('sample')}
    assert chosen(rows, .2)&{str(i) for i in range(50)}==chosen(rows[:50], .2)<=chosen(rows[:50], .5)
    assert 70<len(chosen(rows, .2))<130 and len(chosen(rows, 1))==500 and not chosen(rows, 0)
    model = Tosses()
    table = ask(model, items_of(40), tmp_path/'a', 'r', repeat=.25)
    again = ask(model, items_of(40), tmp_path/'a', 'r', repeat=.25)
    assert again.equals(table) and len(model.asked)==table.height
    assert ask(model, items_of(40), tmp_path/'a', 'r', repeat=.5).height>table.height
    with pytest.raises(ValueError, match='a repeat as large as before'):
        ask(model, items_of(40), tmp_path/'a', 'r')

def test_replies_of_many_come_to_their_sample(tmp_path):
    class Many:
        about, calls = dict(weights='w'), 0
        def many(self, items):
            self.calls += 1
            for i in reversed(list(items)): yield Reply(i.id, f'{i.id} in call {self.calls}')
    table = ask(Many(), items_of(3), tmp_path/'a', 'r', samples=2)
    assert table['prediction'].to_list()==[f'{i} in call {s}' for i in range(3) for s in (1, 2)]

def test_what_makes_no_sense_is_refused_first(tmp_path):
    class Greedy:
        about = dict(weights='w', greedy=True)
        def __call__(self, item): return 'x'
    for how, why in ((dict(samples=3), '3 equal replies'), (dict(samples=0), '1 or more'),
                     (dict(repeat=2), 'from 0 to 1'),
                     (dict(samples=2, repeat=.5), 'leave out `repeat`'), (dict(samples=2.5), 'whole number')):
        with pytest.raises(ValueError, match=why): ask(Greedy(), items_of(2), tmp_path/'a', 'r', **how)
    assert not (tmp_path/'a').exists()

def test_equal_replies_are_told(tmp_path):
    ask(lambda i: 'same', items_of(3), tmp_path/'a', 'r', samples=3)
    assert 'each was answered in the same words each time' in run_report(tmp_path/'a')

torch = pytest.importorskip('torch')
from vlm_merging.asking.opening import open_model
from vlm_merging.lab.trio import lab_folder, questions

@pytest.fixture(scope='module')
def warm(): return replace(open_model(lab_folder()/'vlm', device='cpu', max_new_tokens=16), temperature=2.)

@pytest.fixture(scope='module')
def asked(): return [Item(q.id, q.ask, q.answer, images=(Picture(q.image),)) for q in questions(12, seed=4)]

def test_a_sample_is_the_same_in_any_batch_order_and_after_a_stop(warm, asked, tmp_path):
    one = ask(warm, asked, tmp_path/'a', 'r', samples=2)
    other = ask(replace(warm, batch_size=5), asked[::-1], tmp_path/'b', 'r', samples=2)
    text = ['index', 'sample', 'prediction']
    assert one.select(text).sort(text).equals(other.select(text).sort(text))
    lines = (tmp_path/'a'/'replies.jsonl').read_text().splitlines(keepends=True)
    (tmp_path/'a'/'replies.jsonl').write_text(''.join(lines[:7]))
    assert ask(warm, asked, tmp_path/'a', 'r', samples=2).select(text).equals(one.select(text))
    assert one.filter(sample='1')['prediction'].to_list()!=one.filter(sample='2')['prediction'].to_list()
    assert ask(replace(warm, seed=1), asked, tmp_path/'c', 'r',
               samples=2)['prediction'].to_list()!=one['prediction'].to_list()

def test_own_draws_have_the_chances_of_the_model(warm, asked):
    from collections import Counter
    copies = [replace(asked[0], id=str(i)) for i in range(300)]
    own = Counter(r.text[:1] for r in replace(warm, batch_size=100).many(copies))
    torch.manual_seed(0)
    ids = warm.model.generate(**(put := prompt_inputs(warm, copies, [[i.images[0].open()] for i in copies])),
                              max_new_tokens=16, do_sample=True, temperature=2., top_k=0)
    usual = Counter(warm.tokenizer.decode(o, skip_special_tokens=True)[:1]
                    for o in ids[:, put['input_ids'].shape[1]:])
    far = sum(abs(own[k]-usual[k]) for k in {*own, *usual})/2/300
    assert far<.15 and len(own)>2                                     # Total variation of two samples of 300

# ---- Counting ----

def drawn(run, k, n=150, seed=0, shift=0., copies=False):
    "Scores of k replies to each of n items in 50 groups; `copies`: the first reply k times"
    rng, hard = np.random.default_rng(seed), np.random.default_rng(1)
    p = np.clip(np.repeat(hard.beta(1, 1, 50), n//50)+shift, 0, 1)
    right = rng.random((n, 1 if copies else k))<p[:, None]
    right = np.repeat(right, k, 1) if copies else right
    return pl.DataFrame([dict(benchmark='B', run=run, index=str(i), group=str(i*50//n), sample=str(s+1),
                              correct=bool(right[i, s]), picked='ab'[int(right[i, s])], outcome='answered',
                              length=3)
                         for i in range(n) for s in range(k)])

def test_copies_change_no_interval_and_no_test():
    one, four = (drawn('a', k, copies=True) for k in (1, 4))
    other = drawn('b', 1, seed=5, shift=.1)
    def ends(t):
        return summarize(t).filter(tag='all', what='accuracy').select('value', 'low', 'high', 'n',
            'clusters').row(0)
    assert ends(four)==pytest.approx(ends(one))
    cols = ['n', 'clusters', 'a', 'b', 'difference', 'low', 'high', 'p', 'won', 'lost', 'detectable']
    assert comparison_table(four, other).select(cols).rows()==comparison_table(one, other).select(cols).rows()

def test_the_interval_of_samples_holds_the_truth_as_often_as_it_says():
    rng, hits, naive, n = np.random.default_rng(3), 0, 0, 200
    places = dict(index=np.repeat(np.arange(120), 5).astype(str),
                  group=np.repeat(np.arange(60), 10).astype(str),
                  sample=np.tile(np.arange(5), 120).astype(str))  # Two versions of 60 problems, five replies
    for seed in range(n):
        right = rng.random(600)<np.repeat(rng.beta(1, 3, 60), 10)
        sums = summed(typed_table(pl.DataFrame(places|dict(correct=right))), 'value')
        assert len(sums)==60 and sums[:, 1].sum()==120
        low, high, _ = interval(sums, resamples=1000, seed=seed)
        hits += low<=.25<=high
        half = 1.96*(right.mean()*(1-right.mean())/600)**.5           # 600 replies taken as items
        naive += abs(right.mean()-.25)<=half
    assert .91<hits/n<.985 and naive/n<.85

def test_two_runs_of_one_model_stay_within_the_noise_that_is_told():
    within = 0
    for seed in range(60):
        a, b = drawn('a', 1, seed=2*seed), drawn('b', 1, seed=2*seed+1)
        again = drawn('a', 1, seed=1000+seed).with_columns(sample=pl.lit('repeat')).head(60)
        row = comparison_table(pl.concat([a, again]), b, resamples=200).row(0, named=True)
        within += abs(row['difference'])<=row['noise']
    assert .85<within/60<1

def test_a_change_within_the_noise_of_asking_is_named():
    base, after = drawn('before', 1, seed=3), drawn('after', 1, seed=4)
    again = drawn('before', 1, seed=5).with_columns(sample=pl.lit('repeat'))
    text = compare(pl.concat([base, again]), after).verdict
    assert 'lies within this noise of asking' in text and 'the other run is taken to flip as much' in text
    assert 'noise of asking' not in compare(base, after).verdict
    far = compare(pl.concat([base, again]), drawn('after', 1, seed=4, shift=.4)).verdict
    assert 'is larger than this noise of asking' in far

def test_without_samples_and_repeats_tables_are_as_ever():
    one = drawn('a', 1)
    plain, other = one.drop('sample'), drawn('b', 1, seed=2).drop('sample')
    assert summarize(one).equals(summarize(plain))
    assert comparison_table(one, other).equals(comparison_table(plain, other))
    again = one.head(40).with_columns(sample=pl.lit('repeat'), correct=True)
    assert summarize(pl.concat([one, again])).filter(~pl.col('what').is_in(['flips',
        'other words'])).equals(summarize(plain))

def test_flips_by_hand():
    rows = [('1', '1', True), ('1', '2', False), ('1', '3', True), ('2', '1', False), ('2', 'repeat', False),
            ('3', '1', True)]
    t = pl.DataFrame(rows, schema=['index', 'sample', 'correct'],
                     orient='row').with_columns(prediction=pl.lit('x  y'))
    assert verdict_flips(t).select('index', 'samples', 'flips',
                                   'words').rows()==[('1', 3, pytest.approx(2/3), 0.),
        ('2', 2, 0., 0.)]
    assert per_item(t).select('index', 'samples', 'value').rows()==[('1', 3, pytest.approx(2/3)),
        ('2', 1, 0.), ('3', 1, 1.)]

@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_tables_of_others_with_a_column_sample(tmp_path, kind):
    rows = [dict(index=i, sample=s, question='How many?', answer='4', prediction='4' if (i+s)%2 else '5')
            for i in range(12) for s in range(3)]                     # They count from 0, in numbers
    from vlm_merging.cli.files import write_table
    path = write_table(pl.DataFrame(rows), tmp_path/f'mine.{kind}')
    scores = score(table_at(path))
    assert not [p for p in problems(scores) if 'more than once' in p]
    accuracy = summarize(scores).filter(tag='all', what='accuracy')
    assert accuracy['n'].to_list()==[12] and accuracy['value'][0]==pytest.approx(.5)
    twice = pl.concat([scores, scores.head(1)])
    with pytest.raises(ValueError, match='index and sample stand more than once, rows 1, 37'):
        summarize(twice)
    assert any('sample more than once, rows 1, 37' in p for p in problems(twice))
    assert compare(scores, scores.with_columns(run=pl.lit('b'), correct=True,
                                               value=1.)).table['n'].to_list()==[12]

def test_result_files_of_others_with_samples(tmp_path):
    path = tmp_path/'model_Mine.tsv'
    path.write_text('index\tsample\tquestion\tanswer\tprediction\n'+
                    ''.join(f'{i}\t{s}\tq\t4\t4\n' for i in (1, 2) for s in (1, 2)))
    assert import_replies(path, problems=[])['sample'].to_list()==['1', '2', '1', '2']

def test_the_floor_counts_an_item_once():
    rows = pl.DataFrame([dict(index=str(i), answer=a, prediction='4', question='How many?') for i,
                         a in enumerate('4456789')])
    thrice = pl.concat([rows.with_columns(sample=pl.lit(s)) for s in '123'])
    floors = ['by_chance', 'by_constant', 'if_empty']
    assert score(thrice).head(7).select(floors).equals(score(rows).select(floors))

def test_a_reply_browser_shows_each_sample(tmp_path):
    from vlm_merging.widgets.reply_browser import ReplyBrowser, reply_html, reply_rows
    t = drawn('a', 3).with_columns(prediction=pl.lit('x'), question=pl.lit('q'), answer=pl.lit('b'))
    assert reply_rows(t).height==450 and 'sample 2' in reply_html(reply_rows(t).row(1, named=True))
    both = reply_rows(t, drawn('b', 1).with_columns(prediction=pl.lit('y')))
    assert both.height==150 and 'the first of several samples' in reply_html(both.row(0, named=True))
    assert len(ReplyBrowser(t, drawn('b', 3).with_columns(prediction=pl.lit('y'))).rows)==150

# ---- From the shell ----

def test_samples_and_repetitions_in_the_shell(call, tmp_path):
    asked = 'ask', '--model', 'lab/vlm', '--benchmark', 'lab', '-n', 12, '--max-new-tokens', 16
    code, out, err = call(*asked, '--out', tmp_path/'g', '--samples', 3)
    assert code==3 and '--samples 3 would be 3 equal replies' in err and '--temperature 0.7' in err
    assert '--repeat 0.2' in err
    code, out, err = call(*asked, '--out', tmp_path/'g', '--repeat', .5)
    assert code==0 and 'a second one' in out and 'asked again, 0.0%' in out, err
    assert 'With 12 items of lab' in err
    code, out, err = call(*asked, '--out', tmp_path/'w', '--samples', 3, '--temperature', 2)
    assert code==0 and '36 of 36 replies are there' in out, err
    code, out, err = call('score', tmp_path/'w')
    assert code==0 and 'pass@3' in out and 'mean of 3 samples an item' in out, err
    code, out, err = call('compare', tmp_path/'g', tmp_path/'w', '--out', tmp_path/'c.csv')
    assert code==0 and 'Only 12 items asked again: too few to tell the noise of asking' in out, err
    assert call('ask', '--samples', 0)[0]!=0

def test_power_is_told_without_asking(call, tmp_path):
    code, out, err = call('power', 1000, 'lab', '--change', .03, '--discordance', .1)
    assert code==0 and not err
    assert 'With 1000 items a change' in out and 'items of lab a change' in out
    assert '3.0 points take about 900' in out
    assert call('power')[0]==2 and 'power' in call('--help')[1]
    assert call('power', 'nowhere.csv')[0]==3 and call('power', 1000, '--change', 2)[0]==3
