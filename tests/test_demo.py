"""The demo: its folder appears whole, its lines and its page tell the same numbers,
and the page needs nothing but itself"""
import json, os, re, shutil, subprocess, sys

import pytest, torch
from conftest import Tags, needs_nothing_else
from vlm_merging.cli import demo as room
from vlm_merging.cli.commands import as_called
from vlm_merging.cli.main import main
from vlm_merging.cli.demo import DEMO, LEAST, MODELS, demo, demo_page, facts, find
from vlm_merging.cli.page_parts import question_parts, template, verdict_parts
from vlm_merging.lab.trio import questions, right
from vlm_merging.merging.recipe import Recipe

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group('demo')          # One demo for all of them
PROGRAM = [sys.executable, '-m', 'vlm_merging']
KINDS = ('perception', 'reasoning')
N = 48                  # Questions; the demo itself takes ten times as many


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Folder, output and errors of `vlm-merging demo`, started as a user would, in an empty folder"
    where = tmp_path_factory.mktemp('somewhere')
    done = subprocess.run([*PROGRAM, 'demo', '-n', str(N)], cwd=where, capture_output=True, text=True,
                          timeout=600,
                          env=os.environ | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1'))
    assert done.returncode==0, done.stderr
    return where/DEMO, done.stdout, done.stderr


@pytest.fixture(scope='module')
def same(tmp_path_factory):
    "What is found where the merge is the VLM itself"
    return find(tmp_path_factory.mktemp('same'), LEAST, 1., 3, bool)


@pytest.fixture(scope='module')
def tags(made): return Tags((made[0]/'report.html').read_text(encoding='utf-8'))


def table(tags, head):
    "The table whose head holds `head`, column by column: first cell -> its other cells"
    rows = next(t for t in tags.tables if head in t[0])
    columns = dict(zip(rows[0], zip(*rows)))
    return {name:dict(zip(columns[rows[0][0]][1:], cells[1:])) for name, cells in columns.items()}


# --- The folder

def test_the_folder_holds_what_is_said(made):
    out, said, _ = made
    assert [p.name for p in out.parent.iterdir()]==[DEMO], 'something else was left'
    assert sorted(p.name for p in out.iterdir())==['merged', 'recipe.json', 'replies', 'report.html']
    assert sorted(p.name for p in (out/'replies').iterdir())==sorted(MODELS)
    assert Recipe.read(out).knobs==Recipe.read(out/'merged').knobs
    about = json.loads((out/'recipe.json').read_text())['demo']
    assert (about['n'], about['seed'])==(N, 1) and 'torch' in about['versions']
    assert '.draft' not in ''.join(p.read_text()
                                   for p in out.rglob('*.json')
                                   if 'tokenizer' not in p.name), 'a name that is gone'


def test_the_merged_model_opens_as_any_other(made):
    from transformers import AutoModelForImageTextToText
    model, found = AutoModelForImageTextToText.from_pretrained(made[0]/'merged', output_loading_info=True)
    assert not found['missing_keys'] and model.config.model_type=='llava'


def test_the_next_line_can_be_pasted_where_no_name_leads_to_the_program(monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    for typed, name in (('.venv/bin/vlm-merging', '.venv/bin/vlm-merging'), ('pytest', 'vlm-merging')):
        monkeypatch.setattr(sys, 'argv', [typed])
        assert as_called()==name

def test_the_next_commands_work_as_they_are_pasted(made, tmp_path):
    "Where the demo was started; with fewer questions"
    shutil.copytree(made[0], tmp_path/DEMO)
    for name, does in (('vlm-merging', f'exec {sys.executable} -m vlm_merging "$@"'),
                       ('browser', f'echo "$1" >{tmp_path}/opened')):
        (tmp_path/name).write_text(f'#!/bin/sh\n{does}\n')
        (tmp_path/name).chmod(0o755)
    lines = made[1].splitlines()
    lines = lines[next(i for i, o in enumerate(lines) if o.startswith('next')) + 1:]
    assert [o.split()[0] for o in lines]==['python3', 'vlm-merging', 'vlm-merging']
    env = os.environ | dict(PATH=f"{tmp_path}:{os.environ['PATH']}", BROWSER=f'{tmp_path}/browser')
    said = [subprocess.run(o.replace('-n 200', '-n 40'), shell=True, cwd=tmp_path, env=env,
                           capture_output=True, text=True) for o in lines]
    assert not any(o.returncode for o in said), [o.stderr for o in said]
    assert (tmp_path/'opened').read_text().strip().endswith(f'{DEMO}/report.html')
    assert '40 of 40 items have a reply' in said[1].stdout + said[1].stderr
    assert 'weight' in said[2].stdout


# --- The lines

def test_a_dozen_lines_and_steps_apart_from_them(made):
    out, said, steps = made
    lines = said.splitlines()
    assert 0<len(lines)<=13 and all(lines)
    assert all(re.match(r' *\d+ s  \w', line) for line in steps.splitlines()), steps
    seconds = [int(line.split()[0]) for line in steps.splitlines()]
    assert seconds==sorted(seconds) and len(seconds)>=8
    for name in ('report.html', 'merged'):
        path = next(line.split(': ')[1] for line in lines if line.endswith(f'{DEMO}/{name}'))
        assert (out.parent/path).exists()


def test_lines_and_tables_have_the_same_numbers(made, tags):
    cells, lines = table(tags, 'LLM'), made[1].splitlines()
    for model in MODELS:
        line = next(line for line in lines if line.startswith(f'{model} '))
        for kind in KINDS:
            share, low, high = re.search(rf'{kind} ([\d.]+%) \(95% ([\d.]+) to ([\d.]+)\)', line).groups()
            assert cells[model][kind]==f'{share} {low}–{high}'
    change, lengths, costs = (next(line for line in lines if line.startswith(s))
                              for s in ('change', 'replies', 'layers'))
    length = table(tags, 'mean length, characters')
    for kind in KINDS:
        assert re.search(rf'{kind} (.*?)(;|$)', change)[1] in tags.text
        assert re.search(rf'{kind} (.*?) characters',
                         lengths)[1]==f"{length['VLM'][kind]} to {length['merged'][kind]}"
        assert re.search(rf'({kind}: .*?)(;|$)', costs)[1] in tags.text
    weight = Recipe.read(made[0]).knobs['weight']
    assert f'{weight:g} of the VLM' in lines[0] and f'{weight:g} of the weights of the first' in tags.text


def test_the_numbers_are_those_of_the_replies(made, tags):
    "Counted anew, by the lab's own rule"
    asked, cells = {q.id:q for q in questions(N, 1, 'test')}, table(tags, 'LLM')
    for model in MODELS:
        rows = [json.loads(line)
                for line in (made[0]/'replies'/model/'replies.jsonl').read_text().splitlines()]
        assert {r['index'] for r in rows}==asked.keys() and {r['run'] for r in rows}=={model}
        for kind in (*KINDS, None):
            some = [right(asked[r['index']], r.get('prediction', ''))
                    for r in rows if asked[r['index']].kind==(kind or asked[r['index']].kind)]
            assert cells[model][kind or 'all'].split()[0]==f'{sum(some)/len(some):.1%}'


def test_weights_and_masks_have_questions_of_their_own(same):
    assert all({*t['index']}=={f'test-3-{i}' for i in range(LEAST)} for t in same.about.scores)
    assert same.about.tried['n'].max()==LEAST//2==same.about.profile['n'].max()


# --- The page

def test_the_page_needs_nothing_but_itself(made, tags):
    text = (made[0]/'report.html').read_text(encoding='utf-8')
    assert 100_000<len(text)<2_000_000 and str(made[0]) not in text and os.path.expanduser('~') not in text
    needs_nothing_else(text)


def test_everything_drawn_is_told(tags):
    pictures = [a for t, a in tags.tags if t=='img']
    assert len(pictures)>=3 and all(a['alt'].startswith('test-1-') for a in pictures)
    assert all(a['aria-label'] for t, a in tags.tags if a.get('role')=='img')
    drawings = sum(t=='svg' for t, _ in tags.tags)
    assert drawings==sum(a.get('role')=='img' for _, a in tags.tags)==2*sum(t=='figure' for t,
        _ in tags.tags)==12


def test_what_a_model_says_is_no_markup():
    bad = '<script>alert("x")</script> & <b>'
    said = [(m, dict(prediction=p, correct=c)) for m, p, c in (('VLM', bad, True), ('LLM', '', False),
                                                               ('merged', '7', False))]
    card = question_parts(dict(question=bad, answer='8', index='1'), [], said)
    card = str(template('parts.html').module.question(card))
    assert '<script' not in card and '<b>' not in card and '&lt;script&gt;' in card and 'nothing' in card
    assert (card.count('✓'), card.count('✗'))==(1, 2)


def test_a_verdict_is_a_heading_and_points_with_remarks():
    told = verdict_parts('b against a\n- better <1>.\n    Replies are longer.\n- same')
    assert told==dict(heading=['b against a'],
                      points=[('better <1>.', ['Replies are longer.']), ('same', [])])
    text = str(template('parts.html').module.verdict(told))
    assert '<p>b against a</p>' in text
    assert '<li>better &lt;1&gt;.<br><small>Replies are longer.</small>' in text and text.count('<li>')==2


def test_each_question_has_one_outcome(same):
    assert sum(size for _, size, _ in same.about.shown)==LEAST
    assert all(0<len(rows)<=size for _, size, rows in same.about.shown)


def test_a_merge_that_is_the_vlm(same):
    assert not same.picked and same.recipe.knobs=={'weight':1.}
    lines, text = facts(same, 'x'), Tags(demo_page(same)).text
    assert len(lines)<=13 and 'as given' in lines[0]
    assert 'perception 0.0 points' in lines[4] and 'No item was scored differently on lab' in text
    assert 'if you did not choose it after' in text


# --- When it cannot be done, or is stopped

@pytest.fixture
def quick(monkeypatch):
    "The demo without its work; what it is told to do instead is called with the folder"
    def run(work, *argv):
        def fake(folder, *_):
            (folder/'merged').mkdir()
            work(folder)
            return replace_recipe()
        monkeypatch.setattr(room, 'find', fake)
        monkeypatch.setattr(room, 'demo_page', lambda found: f'page {len(argv)}')
        monkeypatch.setattr(room, 'facts', lambda found, out: [f'written to {out}'])
        return main(['demo', *argv])
    def replace_recipe():
        class Found: recipe = Recipe('vlm', 'llm')
        return Found
    return run


def test_its_own_folder_is_written_anew(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert quick(lambda folder: (folder/'first').touch())==0 and (tmp_path/DEMO/'first').exists()
    assert quick(lambda folder: None, '--seed', '2')==0 and not (tmp_path/DEMO/'first').exists()
    assert [p.name for p in tmp_path.iterdir()]==[DEMO]
    assert (tmp_path/DEMO/'report.html').read_text()=='page 2'
    assert capsys.readouterr().out.splitlines()[-1]==f'written to {DEMO}'
    assert quick(lambda folder: None, '--out', 'other')==0
    assert quick(lambda folder: None, '--out', 'other')==3, 'a folder that was named is kept'


@pytest.mark.parametrize('fault,code', [(KeyboardInterrupt(), 130), (ValueError('No.'), 3)],
                         ids=['ctrl-c', 'refused'])
def test_stopped_it_leaves_what_was_there(fault, code, quick, tmp_path, monkeypatch, capsys):
    def fail(folder): raise fault
    monkeypatch.chdir(tmp_path)
    assert quick(fail)==code and not list(tmp_path.iterdir())
    assert quick(lambda folder: (folder/'first').touch())==0
    assert quick(fail)==code and [p.name for p in tmp_path.iterdir()]==[DEMO]
    assert (tmp_path/DEMO/'first').exists()
    assert 'goes on from here' not in capsys.readouterr().err


def test_any_other_folder_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for held in ('notes.txt', 'recipe.json'):  # The latter: somebody merged into a folder of this name
        (tmp_path/DEMO).mkdir()
        (tmp_path/DEMO/held).write_text('{"recipe": {}}')
        assert main(['demo'])==3 and 'already there' in capsys.readouterr().err
        assert [p.name for p in (tmp_path/DEMO).iterdir()]==[held]
        shutil.rmtree(tmp_path/DEMO)
    for argv, said in ((['-n', '8'], '-n is 8; 40 questions are the least'),
                       (['--weight', '1.5'], 'from 0 to 1'),
                       (['--seed', '-1'], '--seed is -1; it is 0 or above'),
                       (['--out', 'no/where'], 'not a folder')):
        assert main(['demo', *argv])==3
        err = capsys.readouterr().err.splitlines()
        assert said in err[-1] and 'Traceback' not in ''.join(err) and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match='hundreds say more'): demo(n=LEAST-1)


# --- In a browser

@pytest.mark.parametrize('width,scheme', [(390, 'light'), (390, 'dark'), (1100, 'light'), (1100, 'dark')])
def test_in_a_browser(width, scheme, browser, made):
    seen, said = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme), []
    seen.on('console', lambda m: said.append(m.text))
    seen.on('pageerror', lambda e: said.append(str(e)))
    seen.on('request', lambda r: said.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    seen.goto((made[0]/'report.html').as_uri())
    assert not said
    assert seen.evaluate('document.documentElement.scrollWidth')<=width, 'the page is wider than the screen'
    drawn = seen.locator('figure svg:visible')
    assert drawn.count()==6 and seen.locator('article img').count()>=3
    for k in range(6):
        box = drawn.nth(k).bounding_box()
        assert box['width']<=width and box['height']>60
    dots = seen.locator('figure svg:visible').nth(1).locator('.role-mark.mark-symbol path')
    assert dots.count()==2*len(room.WEIGHT_GRID)
    assert seen.evaluate("[...document.images].every(i => i.naturalWidth==48)")
    light = seen.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light=='rgb(255, 255, 255)')==(scheme=='light')
    seen.close()
