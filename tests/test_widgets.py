"""Widgets without a browser: controls drive the worker, a newer setting overtakes, errors are sentences,
and nothing a model says becomes part of the page"""
import json, re, shutil, threading, time
import ipywidgets as W
import polars as pl, pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from vlm_merging.widgets import background, panels
from vlm_merging.benchmarks.items import Item, Picture
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging.knobs import METHODS, Knob
from vlm_merging.asking.models import Reply
from vlm_merging.asking.opening import open_model
from vlm_merging.widgets.background import Answer, Worker, say_in, status_line
from vlm_merging.widgets.panels import (
    LAB_ASKING, lines_html, picture_html, literal_text, score_offline, table_html, verdict_html)
from vlm_merging.probing.profile import profile_table, toy_probe
from vlm_merging.benchmarks.load import load
from vlm_merging.charts.maps import layers_page
from vlm_merging.widgets.layer_explorer import BY, LayerExplorer, followed
from vlm_merging.widgets.merge_controls import LAB_SHARES, knob_control
from vlm_merging.widgets.merge_explorer import SHELL, MergeExplorer
from vlm_merging.widgets.reply_browser import ReplyBrowser, chosen_rows, reply_html, reply_rows, tag_values

pytestmark = pytest.mark.xdist_group('widgets')
EVIL = '</td><img src=x onerror="alert(1)"><script>alert(2)</script>&amp;'
LONG, UNASKED = 120, 'not asked yet'

def tags_in(page): return set(re.findall(r'<\s*/?\s*([a-zA-Z0-9]+)', page))
def status_text(widget): return re.sub(r'<[^>]+>', '', widget.status.value).strip()

# Text ------------------------------------------------------------------------

@pytest.mark.parametrize('page_of', [lambda: literal_text(EVIL),
                                  lambda: table_html([EVIL], [[literal_text(EVIL)]]),
                                  lambda: lines_html([EVIL]),
                                 lambda: reply_html(dict(prediction=EVIL, picked=EVIL, reason=EVIL, tier=EVIL,
                                                         question=EVIL, answer=EVIL, index=EVIL, run=EVIL,
                                                         correct=True, outcome=EVIL)),
                                 lambda: picture_html(Picture(Image.new('RGB', (8, 8)),
                                     'x" onerror="alert(1)')),
                                     lambda: picture_html(Picture(b'no picture', EVIL))])
def test_text_of_a_model_is_no_html(page_of):
    page = page_of()
    assert tags_in(page)<={'span', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'div', 'b', 'br', 'img'}
    assert 'script' not in tags_in(page)
    assert 'onerror="' not in page and '<img src=x' not in page

def test_a_status_line_is_no_html_and_has_a_role():
    place = status_line()
    say_in(place)('busy', EVIL)
    assert tags_in(place.value)=={'div', 'span'} and 'role="status"' in place.value
    assert 'data-kind="busy"' in place.value

def test_what_is_right_is_told_by_a_word():
    assert [re.sub(r'<[^>]+>|●', '', verdict_html(c)).strip() for c in (True, False, None)]==['right',
        'wrong', 'not scored']

def test_no_colour_of_letters_is_fixed():
    "Letters have the colour of the page; only dots and marks have their own"
    page = reply_html(dict(prediction='7', question='?', answer='7', run='a',
                           correct=True))+lines_html(['x'])+table_html(['a'], [['b']])
    colours = re.findall(r'(?<!-)color:([^;"]+)', page)
    assert {c for c in colours if not c.startswith('var(--jp')}<={panels.COLOURS[1], panels.COLOURS[2],
        'transparent'}
    assert 'background' not in page

def test_a_large_picture_is_made_small():
    page = picture_html(Picture(Image.linear_gradient('L').resize((3000, 1500)).convert('RGB'), 'large'), 100)
    assert 'width="100" height="50"' in page and len(page)<120_000

# The worker ------------------------------------------------------------------

def test_many_settings_make_one_job():
    ran, worker = [], Worker(lambda *a: None, pause=.2)
    for i in range(50): worker.ask(lambda step, i=i: ran.append(i))
    worker.wait(LONG)
    assert ran==[49]

def test_a_newer_setting_ends_an_older_one_at_its_next_step():
    ran, begun, worker = [], threading.Event(), Worker(lambda *a: None, pause=0)
    def old(step):
        for i in range(10_000):
            begun.set()
            time.sleep(.005)
            step(str(i))
        ran.append('old')
    worker.ask(old)
    assert begun.wait(LONG)
    worker.ask(lambda step: ran.append('new'))
    worker.wait(LONG)
    assert ran==['new'] and worker.thread is None

def test_a_setting_that_comes_at_the_last_moment_is_not_lost():
    ran = []
    worker = Worker(lambda kind, what: kind=='done' and len(ran)==1
                    and worker.ask(lambda step: ran.append('second')), pause=0)
    worker.ask(lambda step: ran.append('first'))
    end = time.monotonic()+LONG
    while len(ran)<2 and time.monotonic()<end: time.sleep(.01)
    assert ran==['first', 'second']

def test_an_error_is_said_and_the_next_setting_works():
    lines, worker = [], Worker(lambda *a: lines.append(a), pause=0)
    def broken(step): raise RuntimeError('a\n  long   story')
    worker.ask(broken)
    worker.wait(LONG)
    assert lines==[('busy', 'a new setting'), ('trouble', 'RuntimeError: a long story')]
    worker.ask(lambda step: step('on'))
    worker.wait(LONG)
    assert [k for k, _ in lines]==['busy', 'trouble', 'busy', 'busy', 'done'] and not background.BUSY.locked()

def test_widgets_take_turns_and_one_that_waits_can_be_overtaken():
    go, lines, ran = threading.Event(), [], []
    first, second = Worker(lambda *a: None, pause=0), Worker(lambda *a: lines.append(a), pause=0)
    first.ask(lambda step: go.wait(LONG))
    while not background.BUSY.locked(): time.sleep(.01)
    second.ask(lambda step: ran.append('old'))
    end = time.monotonic()+LONG
    while ('busy', 'waiting for another widget') not in lines and time.monotonic()<end: time.sleep(.01)
    second.ask(lambda step: ran.append('new'))
    assert not ran
    go.set()
    second.wait(LONG)
    assert ran==['new']

def test_waiting_has_an_end():
    go, worker = threading.Event(), Worker(lambda *a: None, pause=0)
    worker.ask(lambda step: go.wait(LONG))
    with pytest.raises(TimeoutError, match='still at work'): worker.wait(.05)
    go.set()
    worker.wait(LONG)

def test_the_caller_is_not_kept_waiting():
    go, worker = threading.Event(), Worker(lambda *a: None, pause=0)
    worker.ask(lambda step: go.wait(LONG))
    assert worker.thread is not None                              # the work waits, the caller does not
    go.set()
    worker.wait(LONG)

# Answers of older settings ---------------------------------------------------

def is_aside(answer): return 'aria-busy="true"' in answer.value and 'of the settings before' in answer.value

def test_an_answer_is_set_aside_once_and_what_is_empty_never():
    answer = Answer()
    answer.set_aside()
    assert answer.value==''
    answer.show(literal_text(EVIL))
    shown = answer.value
    for _ in range(3): answer.set_aside()
    assert is_aside(answer) and answer.value.count(shown)==1 and 'script' not in tags_in(answer.value)
    answer.show(literal_text('new'))
    answer.drop_old()
    assert not is_aside(answer) and 'new' in answer.value

def test_what_an_outdated_job_shows_at_its_end_is_set_aside_too():
    answer, begun, overtaken, seen = Answer(), threading.Event(), threading.Event(), []
    worker = Worker(lambda *a: None, 0, (answer,))
    def old(step):
        begun.set()
        overtaken.wait(LONG)
        answer.show(literal_text('of the old setting'))
    def new(step):
        seen.append(is_aside(answer))
        answer.show(literal_text('of the new setting'))
    worker.ask(old)
    assert begun.wait(LONG)
    worker.ask(new)
    overtaken.set()
    worker.wait(LONG)
    assert seen==[True] and 'of the new setting' in answer.value and not is_aside(answer)

# Knobs -----------------------------------------------------------------------

@pytest.mark.parametrize('name', METHODS)
def test_every_method_gets_its_controls(name):
    for knob in METHODS[name].knobs.values():
        control = knob_control(knob)
        assert control.value==knob.default and control.description==knob.name
        assert control.tooltip==knob.about.split('; several LLMs')[0]!=''
        if knob.choices and knob.choices!=(True, False): assert control.options==knob.choices
        elif not knob.choices: assert (control.min, control.max)==(knob.low, knob.high)

def test_a_yes_or_no_is_a_box_to_tick():
    assert isinstance(knob_control(Knob('rescale', True, choices=(True, False), about='x')), W.Checkbox)

# Merge -----------------------------------------------------------------------

@pytest.fixture(scope='module')
def items(): return load('lab', n=24, seed=3, split='dev')

@pytest.fixture(scope='module')
def merging(items): return MergeExplorer(items=items, pause=.02).wait(LONG)

def test_the_ends_of_the_line_are_the_two_models(merging):
    merging.knobs['weight'].value = 1.
    merging.wait(LONG)
    assert {n:r.text for n, r in merging.replies['merged'].items()}=={n:r.text for n,
        r in merging.replies['VLM'].items()}
    assert merging.change['difference'].to_list()==[0.]*merging.change.height
    merging.knobs['weight'].value = 0.
    merging.wait(LONG)
    assert {n:r.text for n, r in merging.replies['merged'].items()}=={n:r.text for n,
        r in merging.replies[SHELL].items()}

def test_what_it_says_is_what_a_merge_on_disk_says(merging, items, tmp_path):
    from vlm_merging.merging.merge import merge
    merging.method.value = 'dare_linear'
    merging.knobs['density'].value, merging.seed.value = .6, 3
    merging.layers.value, merging.modules['norm'].value = (1, 5), False
    merging.wait(LONG)
    recipe = merging.recipe
    assert (recipe.method, recipe.layers, recipe.modules, recipe.seed,
            recipe.knobs['density'])==('dare_linear', '1-5', 'attention,mlp', 3, .6)
    other = open_model(merge(recipe, out=tmp_path/'m'), **LAB_ASKING)
    assert {r.id:r.text for r in other.many(items)}=={items[n].id:r.text for n,
                                                      r in merging.replies['merged'].items()}
    merging.layers.value, merging.modules['norm'].value = (0, merging.layers.max), True
    merging.method.value = 'linear'
    merging.wait(LONG)

def test_the_question_changes_without_work(merging):
    before = merging.worker.latest.number
    merging.question.value = 7
    assert merging.worker.latest.number==before and merging.items[7].question in merging.answers.value
    assert merging.answers.value.count('●')==3

def test_tables_and_charts_follow(merging):
    assert set(merging.table['run'])=={'VLM', SHELL, 'merged'}
    assert merging.table.filter(tag='category', what='accuracy')['low'].null_count()==0
    old = merging.map.value, merging.chart.value
    merging.knobs['weight'].value = .3
    merging.wait(LONG)
    assert status_text(merging).strip('● ').startswith('done in')
    assert merging.map.value!=old[0] and '<path' in merging.chart.value
    assert len(merging.words)==3 and all(w.rstrip('.') in merging.findings.value for w in merging.words[:1])

def places_of(merging): return merging.plan, merging.chart, merging.map, merging.findings

def test_while_it_works_nothing_of_the_old_setting_passes_for_the_new(merging):
    merging.knobs['weight'].value = .7
    merging.wait(LONG)
    assert merging.answers.value.count(UNASKED)==0
    with background.BUSY:                                         # Another widget is at work
        merging.knobs['weight'].value = .65
        assert all(is_aside(o) for o in places_of(merging)) and merging.answers.value.count(UNASKED)==1
        merging.question.value = (merging.question.value+1)%len(merging.items)
        assert merging.answers.value.count(UNASKED)==1
        assert 'a new setting' in status_text(merging) or 'waiting' in status_text(merging)
        with pytest.raises(ValueError, match='not been asked yet'): merging.browse()
    merging.wait(LONG)
    assert not any(is_aside(o) for o in places_of(merging)) and merging.answers.value.count(UNASKED)==0

def test_troubles_are_sentences_and_leave_no_old_answer(merging):
    for box in merging.modules.values(): box.value = False
    merging.wait(LONG)
    assert [o.value for o in places_of(merging)]==['']*4
    assert (merging.table, merging.change, merging.words)==(None, None, [])
    assert 'Tick attention, MLP or norm' in status_text(merging)
    assert not merging.replies['merged'] and merging.answers.value.count(UNASKED)==1
    with pytest.raises(ValueError, match='not been asked yet'): merging.browse()
    for box in merging.modules.values(): box.value = True
    merging.wait(LONG)
    assert merging.browse().rows.height==len(merging.items)

def words_in(widget): return re.sub(r'<[^>]+>', '', widget.value)

def test_whose_numbers_they_are_is_said(merging, items, tmp_path):
    controls = merging.controls
    for name in [*[m for m in METHODS if m!='linear'], 'linear']:   # From another to each
        controls.method.value = name
        own = {n:controls.knobs[n].value for n in LAB_SHARES if n in controls.knobs}
        lab = {n:LAB_SHARES[n] for n in own} if 'weight' in own else {}
        assert own==lab or not lab and own=={n:METHODS[name].knobs[n].default for n in own}
        said = 'Opens with weight 0.6' if lab else 'found with other models'
        assert said in words_in(controls.about), name
    controls.method.value = 'linear'
    merging.wait(LONG)
    other = shutil.copytree(lab_folder()/'vlm', tmp_path/'vlm')
    weights = load_file(other/'model.safetensors')
    name = next(n for n in weights if n.endswith('q_proj.weight'))
    save_file(weights|{name:weights[name]*1.01}, other/'model.safetensors', metadata=dict(format='pt'))
    stranger = MergeExplorer(other, lab_folder()/'llm', items=items[:2], pause=60, **LAB_ASKING)
    own, whose = stranger.knobs["weight"].value, words_in(stranger.controls.about)
    assert own==.9 and "found with other models" in whose
    stranger.worker.wait(LONG)

def test_a_method_that_needs_a_base_says_so(items):
    at = lab_folder()
    bare = MergeExplorer(at/'vlm', at/'llm', items=items, method='ties', pause=0, **LAB_ASKING).wait(LONG)
    assert 'needs `base`' in status_text(bare) and bare.asker is None           # Nothing was opened for it

def test_what_is_missing_is_said_at_once(tmp_path):
    at = lab_folder()
    with pytest.raises(ValueError, match='`items` are missing'): MergeExplorer(at/'vlm', at/'llm')
    with pytest.raises(ValueError, match='`vlm` is missing'): MergeExplorer(llm=at/'llm')
    with pytest.raises(ValueError, match='llm is None'): MergeExplorer(at/'vlm', items=load('lab', n=2))
    with pytest.raises(ValueError): MergeExplorer(at/'vlm', tmp_path/'nothing', items=load('lab', n=2))
    with pytest.raises(ValueError, match='`items` are missing'): LayerExplorer(model=at/'vlm')

def test_it_shows_itself(merging):
    assert 'application/vnd.jupyter.widget-view+json' in merging._repr_mimebundle_()

# Layers ----------------------------------------------------------------------

@pytest.fixture(scope='module')
def layers(items): return LayerExplorer(items=items, pause=.02).wait(LONG)

def test_a_mask_acts_while_it_is_asked_and_no_longer(layers, items):
    layers.layer.value, layers.part.value, layers.how.value = 0, 'layer', 'skip'
    layers.wait(LONG)
    right, most = (layers.scores[o].filter(pl.col('correct')).height for o in ('masked', 'unmasked'))
    assert right<most
    assert {r.id:r.text for r in layers.asker.many(items)}=={items[n].id:r.text for n,
        r in layers.replies.items()}

@pytest.mark.parametrize('how', BY)
def test_every_way_of_masking_works(layers, how):
    layers.layer.value, layers.part.value, layers.how.value = 1, 'attention', how
    layers.wait(LONG)
    assert status_text(layers).strip('● ').startswith('done in')
    said = 'Blind from layer 1 on' if how=='blind' else 'With the attention of layer 1 masked'
    assert said.lower() in layers.answers.value.lower()

def test_a_mask_that_is_waited_for_leaves_no_old_replies(layers):
    layers.how.value, layers.layer.value = 'skip', 3
    layers.wait(LONG)
    with background.BUSY:
        layers.layer.value = 4
        assert is_aside(layers.answers) and is_aside(layers.figures)
        with pytest.raises(ValueError, match='no replies under a mask'): layers.browse()
    layers.wait(LONG)
    assert not is_aside(layers.answers) and 'layer 4 masked' in layers.answers.value

def test_slider_and_click_move_one_mark(layers):
    layers.how.value, layers.layer.value = 'skip', 2
    assert layers.live.params.shown==2
    layers.live._vl_selections = {'picked':dict(value={'layer':[5], 'vlPoint':{'or':[{'layer':5}]}},
                                                store=[])}  # What a click in the browser sends
    assert (layers.layer.value, layers.live.params.shown)==(5, 5)
    layers.live._params = {'shown':0}  # A page drawn anew starts from its own number
    assert layers.live.params.shown==5
    layers.wait(LONG)
    assert 'layer 5 masked' in layers.answers.value

def test_the_mark_follows_a_number():
    page = layers_page(profile_table(toy_probe(n=20, depth=4), ('kind',)))
    text = json.dumps(followed(page, 3).to_dict())
    assert text.count('datum.layer === shown')==json.dumps(page.to_dict()).count('"param": "picked"')>0
    assert '"param": "picked"' not in text and '"toggle": false' in text

def test_a_profile_alone_gives_charts_and_figures():
    alone = LayerExplorer(profile_table(toy_probe(n=30, depth=6), ('kind',)), pause=0).wait(LONG)
    assert alone.layer.max==5 and alone.asker is None and alone.answers.value==''
    assert 'perception' in alone.figures.value
    old = alone.figures.value
    alone.layer.value = 4
    alone.wait(LONG)
    assert alone.figures.value!=old
    with pytest.raises(ValueError, match='Give a model and items'): alone.browse()

# Replies ---------------------------------------------------------------------

@pytest.fixture(scope='module')
def two():
    items = [Item(str(i), f'What is {i} plus 1?', str(i+1),
                  (Picture(Image.new('RGB', (40, 30), (i, 0, 0)), f'picture {i}'),), benchmark='Toy',
                  tags=dict(category=('reasoning', 'perception')[i%2], skills=['add', 'see'][:1+i%2]))
                  for i in range(12)]
    a = score_offline(items, {i:Reply(str(i), str(i+1 if i<6 else 0)) for i in range(12)}, 'before')
    b = score_offline(items, {i:Reply(str(i), EVIL if i==3 else f'The answer is {i+1 if i%2 else 99}.')
                              for i in range(12)}, 'after')
    return items, a, b

def test_verdicts_of_two_runs(two):
    rows = reply_rows(*two[1:])
    assert dict(zip(rows['index'], rows['verdict']))=={str(i):('both right' if i in (1, 5) else 'lost')
                                                       if i<6 else ('won' if i%2 else 'both wrong')
                                                       for i in range(12)}
    assert set(reply_rows(two[1])['verdict'])=={'right', 'wrong'}

def test_filters_narrow_and_can_be_joined(two):
    rows, ids = reply_rows(*two[1:]), lambda t: set(t['index'])
    assert ids(chosen_rows(rows, verdict='won'))=={'7', '9', '11'}
    assert ids(chosen_rows(rows, verdict='changed'))=={'0', '2', '3', '4', '7', '9', '11'}
    assert ids(chosen_rows(rows, tag=('skills', 'see')))=={str(i) for i in range(1, 12, 2)}
    assert ids(chosen_rows(rows, text='<SCRIPT>'))=={'3'}
    assert ids(chosen_rows(rows, text='is 11 plus'))=={'11'} and not chosen_rows(rows, text='[(').height
    assert ids(chosen_rows(rows, verdict='lost', tag=('category', 'perception')))=={'3'}
    assert sum(chosen_rows(rows, tier=t).height for t in rows['tier'].unique())>=12
    assert list(tag_values(rows))==['category: perception (6)', 'category: reasoning (6)', 'skills: add (12)',
                                    'skills: see (6)']

def test_browsing_by_button_slider_and_filter(two):
    items, a, b = two
    browser = ReplyBrowser(a, b, items)
    assert browser.row['index']=='0' and 'picture 0' in browser.view.value
    assert 'Reply 1 of 12' in status_text(browser)
    browser.on.click()
    browser.at.value = 4
    assert browser.row['index']=='3' and 'script' not in tags_in(browser.view.value)
    assert '&lt;script&gt;' in browser.view.value
    browser.verdict.value = 'won'
    assert (browser.at.value, browser.at.max)==(1, 3)
    assert 'Reply 1 of 3 that fit, of 12' in status_text(browser)
    for _ in range(5): browser.on.click()
    assert browser.at.value==3 and browser.row['index']=='11'
    for _ in range(5): browser.back.click()
    assert browser.at.value==1
    browser.text.value = 'nothing like this'
    assert browser.row is None and browser.view.value=='' and 'No reply of 12 fits' in status_text(browser)
    browser.text.value = ''
    browser.verdict.value = ''
    assert browser.fitting.height==12 and not browser.at.disabled

def test_one_run_and_no_items(two):
    browser = ReplyBrowser(two[1])
    assert list(browser.verdict.options)==['all', 'right (6)', 'wrong (6)']
    assert '<img' not in browser.view.value and 'why' in browser.view.value

def test_tables_that_do_not_fit_are_refused(two):
    with pytest.raises(ValueError, match='holds 2 runs'): ReplyBrowser(pl.concat(two[1:]))
    with pytest.raises(ValueError, match='share no item'):
        ReplyBrowser(two[1], two[2].with_columns(index=pl.col('index')+'x'))
