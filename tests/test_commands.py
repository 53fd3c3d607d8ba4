"From a benchmark to a verdict by the shell alone, on models made on the spot; and what is refused on the way"
import io, json, subprocess, sys
import polars as pl, pytest
from vlm_merging.cli.files import write_table
from vlm_merging.scoring.score import table_at
from vlm_merging.lab.trio import lab_folder, questions
from vlm_merging.merging.merge import merge
from vlm_merging.merging.recipe import Recipe

def png(image):
    held = io.BytesIO()
    image.save(held, 'PNG')
    return held.getvalue()

@pytest.fixture(scope='module')
def room(tmp_path_factory):
    "A merged lab model, and questions in the shape of a benchmark of the hub"
    out = tmp_path_factory.mktemp('room')
    merge(Recipe(lab_folder()/'vlm', lab_folder()/'llm', knobs=dict(weight=.25)), out=out/'merged')
    rows = [dict(type='human_test' if q.kind=='perception' else 'augmented_test', question=q.ask,
                 answer=q.answer,
                 image=dict(bytes=png(q.image), path=f'{q.id}.png')) for q in questions(84, 5)]
    (out/'hub'/'data').mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(out/'hub'/'data'/'test-00000-of-00001.parquet')
    pl.DataFrame([dict(index=q.id, question=q.ask, image=png(q.image), answer=q.answer, category=q.kind)
                  for q in questions(84, 5)]).write_parquet(out/'own.parquet')
    return out

def test_prepare_ask_score_compare_chart(room, call, tmp_path):
    code, out, err = call('prepare', 'ChartQA', '--from', room/'hub', '--to', tmp_path/'data')
    assert code==0 and 'ChartQA' in out, err
    for name, model in (('before', lab_folder()/'vlm'), ('after', room/'merged')):
        code, out, err = call('ask', '--model', model, '--benchmark', 'ChartQA', room/'own.parquet', '--data',
                              tmp_path/'data', '--max-new-tokens', 20,
                            '--batch-size', 32, '--out', tmp_path/name)
        assert code==0 and '168 of 168 items have a reply' in out, err
    lines = (tmp_path/'after'/'replies.jsonl').read_text().splitlines()
    # Killed in mid-line
    (tmp_path/'after'/'replies.jsonl').write_text('\n'.join(lines[:100])+'\n'+lines[100][:40])
    assert call('ask', '--model', room/'merged', '--benchmark', 'ChartQA', room/'own.parquet', '--data',
                tmp_path/'data', '--max-new-tokens', 20,
                '--batch-size', 32, '--out', tmp_path/'after')[0]==0
    assert table_at(tmp_path/'after').height==168
    code, out, err = call('score', tmp_path/'after', '--out', tmp_path/'after.parquet')
    assert code==0 and 'own, after' in out and '95%' in out and not err, err
    code, out, err = call('compare', tmp_path/'before', tmp_path/'after.parquet', '--by', 'category', '--out',
                          tmp_path/'table.csv', '--chart', tmp_path/'page.html')
    assert code==0 and 'after against before, 168 items of 2 benchmarks' in out, err
    assert 'reasoning' in out and 'perception' in out
    page = (tmp_path/'page.html').read_text()
    assert 'cdn' not in page.lower().split('<body')[0][:2000] and '<script src' not in page
    assert pl.read_csv(tmp_path/'table.csv').filter(tag='category', where='reasoning')['n'].to_list()==[40]

def test_what_is_said_of_a_run_is_no_kind_of_question(call, tmp_path):
    "Named as such by `score`; refused by `compare` where the runs differ in it"
    same = [dict(index=str(i), question=f'Which {i}?', answer=str(i), category='ab'[i%2]) for i in range(12)]
    for name, every in (('x', 2), ('y', 3)):
        pl.DataFrame([o|dict(prediction=o['answer'] if i%every else '-1', model=name, seed=7)
                      for i, o in enumerate(same)]).write_csv(tmp_path/f'{name}.csv')
    pl.DataFrame([o|dict(prediction='3', sample=s, seed=s) for o in same for s in (1, 2)]).write_csv(
        tmp_path/'z.csv')
    for table, tag, why in (('x', 'model', "model is 'x' in every row"),
                            ('x', 'seed', "seed is '7' in every row"),
                            ('x', 'run', 'run says what a run made of a question'),
                            ('z', 'seed', 'seed differs between the replies to one question')):
        code, out, err = call('score', tmp_path/f'{table}.csv', '--by', tag)
        assert code==0 and f'{why}, so it is no kind of question' in err, (table, tag, err)
    assert call('score', tmp_path/'x.csv', '--by', 'category')[2]==''
    code, out, err = call('compare', tmp_path/'x.csv', tmp_path/'y.csv', '--by', 'model')
    assert code==3 and "model is no tag of an item (it is 'x' and 'y' in the two runs)" in err
    assert call('compare', tmp_path/'x.csv', tmp_path/'y.csv', '--by', 'category')[0]==0

def test_the_program_in_a_process_of_its_own(room, tmp_path):
    table = pl.DataFrame([dict(benchmark='MathVista', run='a', index=str(i), question='How many?', answer='7',
                               prediction='So it is 7.') for i in range(3)])
    table.write_parquet(tmp_path/'t.parquet')
    done = subprocess.run([sys.executable, '-m', 'vlm_merging', 'score', str(tmp_path/'t.parquet'), '--out',
                           str(tmp_path/'s.jsonl')], capture_output=True, text=True, timeout=120)
    assert done.returncode==0 and 'MathVista, a: 100.0%' in done.stdout and not done.stderr
    made = pl.read_ndjson(tmp_path/'s.jsonl')
    assert made.columns[:5]==['benchmark', 'split', 'run', 'index', 'group']
    assert {'correct', 'picked', 'tier', 'reason'}<={*made.columns}

@pytest.mark.parametrize('argv,said', [
    (['ask', '--out', 'x'], '--benchmark is missing'),
    (['ask', '--benchmark', 'MathVista'], '--out is missing'),
    (['ask', '--benchmark', 'nothing', '--out', 'x'], 'nothing'), (['score', 'gone.parquet'], 'is not there'),
    (['score', 'OWN', '--out', 'x.txt'], 'written as'), (['score', 'OWN'], 'no column prediction'),
    (['compare', 'OWN', 'OWN'], 'no column prediction'), (['prepare', 'Nothing'], 'MathVista'),
    (['ask', '--benchmark', 'OWN', '--out', 'x'], '--model is missing'),
    (['ask', '--benchmark', 'OWN', '--out', 'x', '--model', 'gone/model'], 'gone/model'),
    (['score', 'OWN', '--protocol', 'judge'], 'go together')])
def test_what_is_refused(room, call, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VLM_MERGING_DATA', str(tmp_path/'data'))
    code, out, err = call(*[room/'own.parquet' if a=='OWN' else a for a in argv])
    assert code==3 and said in err and 'Traceback' not in err and len(err.strip().splitlines())==1, err

def test_prepare_lists_what_there_is(call):
    code, out, _ = call('prepare')
    assert code==0
    assert all(name in out for name in ('MathVista', 'MathVerse', 'MathVision', 'DynaMath', 'MMStar', 'POPE',
                                        'K-MMStar'))

def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    frame = pl.DataFrame(dict(a=['1']))
    write_table(frame, tmp_path/'t.csv')
    def torn(self, file): file.write(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(pl.DataFrame, 'write_csv', torn)
    with pytest.raises(OSError): write_table(pl.DataFrame(dict(a=['2'])), tmp_path/'t.csv')
    assert [p.name for p in tmp_path.iterdir()]==['t.csv'] and (tmp_path/'t.csv').read_text()=='a\n1\n'

@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_scores_survive_a_round_trip(tmp_path, kind, call):
    rows = [dict(benchmark='b', run=r, index=str(i), answer='7', prediction=p, category='x') for r,
            p in (('a', '7'), ('b', '8')) for i in range(9)]
    for r in 'ab':
        (tmp_path/f'replies_{r}.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows if o['run']==r))
        assert call('score', tmp_path/f'replies_{r}.jsonl', '--out', tmp_path/f'{r}.{kind}')[0]==0
    assert call('compare', tmp_path/'replies_a.jsonl', tmp_path/'replies_b.jsonl')[1]==call('compare',
        tmp_path/f'a.{kind}', tmp_path/f'b.{kind}')[1]
    assert 'worse' in call('compare', tmp_path/f'a.{kind}', tmp_path/f'b.{kind}')[1]

def test_result_tables_of_vlmevalkit_are_known_by_their_names(tmp_path):
    "In a fresh process, where no other room has filled the list of benchmarks"
    (tmp_path/'llava_POPE.tsv').write_text('index\tquestion\tanswer\tprediction\n1\tIs there a '
                                           'dog?\tYes\tYes, there is a dog.\n2\tA cat?\tNo\tNo.\n')
    (tmp_path/'llava_ChartQA_TEST.csv').write_text('index,question,answer,prediction\n1,Which?,Blue,The bar '
                                                   'is blue.\n')
    for name, said in (('llava_POPE.tsv', 'POPE, llava: 100.0%'),
                       ('llava_ChartQA_TEST.csv', 'ChartQA, llava: 100.0%')):
        done = subprocess.run([sys.executable, '-m', 'vlm_merging', 'score', str(tmp_path/name)],
                              capture_output=True, text=True, timeout=120)
        assert done.returncode==0 and said in done.stdout, done.stdout+done.stderr

def test_rows_without_gold_do_not_hide_the_others(tmp_path, call):
    rows = [dict(benchmark='a', run='r', index=str(i), answer='7', prediction='7')
            for i in range(3)]+[dict(benchmark='b', run='r', index='1', answer=None, prediction='7')]
    pl.DataFrame(rows).write_parquet(tmp_path/'t.parquet')
    code, out, err = call('score', tmp_path/'t.parquet')
    assert code==0 and 'a, r: 100.0%' in out and 'b, r: no score' in out and 'row 4' in err
    assert not any(line.endswith(('; ', ';')) for line in out.splitlines())

def test_two_runs_of_one_name(tmp_path, call):
    for folder, p in (('v1', '7'), ('v2', '8')):
        (tmp_path/folder).mkdir()
        pl.DataFrame([dict(benchmark='b', run='vlm', index=str(i), answer='7', prediction=p)
                      for i in range(12)]).write_parquet(tmp_path/folder/'vlm.parquet')
    code, out, err = call('compare', tmp_path/'v1'/'vlm.parquet', tmp_path/'v2'/'vlm.parquet', '--chart',
                          tmp_path/'p.html')
    assert code==0 and 'v2' in out and 'v1' in out and (tmp_path/'p.html').is_file(), err

def test_targets_are_checked_before_the_work(tmp_path, call):
    rows = [dict(benchmark='b', run='vlm', index='1', answer='7', prediction='7')]
    pl.DataFrame(rows).write_parquet(tmp_path/'t.parquet')
    code, out, err = call('compare', tmp_path/'t.parquet', tmp_path/'t.parquet', '--out', tmp_path/'c.csv',
                          '--chart', tmp_path/'none'/'p.html')
    assert code==3 and 'no folder' in err and not (tmp_path/'c.csv').exists()
    assert call('score', tmp_path/'t.parquet', '--out', tmp_path)[0]==3

def test_lists_become_text_in_csv(tmp_path):
    made = write_table(pl.DataFrame(dict(skills=[['a', 'b'], None], n=[1, 2])), tmp_path/'t.csv')
    assert table_at(made)['skills'].to_list()==['["a", "b"]', None]

def test_semicolons_are_told(tmp_path, call):
    (tmp_path/'t.csv').write_text('index;answer;prediction\n1;7;7\n')
    code, _, err = call('score', tmp_path/'t.csv')
    assert code==3 and "';'" in err and 'commas' in err

@pytest.mark.parametrize('argv,said', [(['--out', 'FILE'], 'is a file'),
                                       (['--out', 'x', '--batch-size', '0'], '--batch-size is 0'),
                                       (['--out', 'x', '--temperature', '-1'], '--temperature is -1')])
def test_settings_are_checked_before_the_model_is_opened(room, call, tmp_path, argv, said):
    (tmp_path/'file').write_text('')
    code, _, err = call('ask', '--benchmark', room/'own.parquet', '--model', lab_folder()/'vlm',
                        *[tmp_path/'file' if a=='FILE' else a for a in argv])
    assert code==3 and said in err

def test_a_bad_line_does_not_stop_the_others(tmp_path, call):
    (tmp_path/'t.jsonl').write_text('{"index": "1", "answer": "7", "prediction": "7"}\n{"index": "2", '
                                    '"ans\n{"index": "3", "answer": "7", "prediction": "8"}\n')
    code, out, err = call('score', tmp_path/'t.jsonl')
    assert code==4 and 'of 2;' in out and 'line 2: no JSON object' in err
    (tmp_path/'t.csv').write_bytes(b'index,answer,prediction\n1,7,7\n2,7,7,8\n3,9,8\n')
    code, out, err = call('score', tmp_path/'t.csv')
    assert code==4 and 'of 2;' in out and 'row 2: more cells' in err, err

def test_other_questions_under_the_same_numbers_are_told(tmp_path, call):
    for name, ask in (('a', 'Is it red?'), ('b', 'Is it blue?')):
        pl.DataFrame([dict(benchmark='yn', run=name, index=str(i), question=ask, answer='yes',
                           prediction='yes') for i in range(20)]).write_parquet(tmp_path/f'{name}.parquet')
    assert '20 of 20 questions were put in other words' in call('compare', tmp_path/'a.parquet',
        tmp_path/'b.parquet')[1]

def test_under_a_strict_rule_a_change_of_style_is_no_gain(tmp_path, call):
    "One model answers in bare numbers, the other in sentences and is right more often"
    for run, said, wrong in (('terse', '{}', 3), ('wordy', 'Let us see. So the answer is {}.', 5)):
        pl.DataFrame([dict(benchmark='sums', split='test', run=run, index=str(i),
                           question=f'What is {i} plus {i%7}?', answer=str(i+i%7),
                           prediction=said.format(i+i%7+(i%wrong==0)), category=['small', 'large'][i>29])
                           for i in range(60)]).write_parquet(tmp_path/f'{run}.parquet')
    files = tmp_path/'terse.parquet', tmp_path/'wordy.parquet'
    assert call('compare', *files, '--out', tmp_path/'t.csv')[0]==0
    assert pl.read_csv(tmp_path/'t.csv').height==3
    lenient, strict = call('compare', *files)[1], call('compare', *files, '--protocol', 'strict')[1]
    assert '+13.3' in lenient and 'worse' in strict and '-66.7' in strict, lenient+strict

def test_several_benchmarks_are_written_in_one_way(room, call, tmp_path):
    for n, words in enumerate(([f"lab,{room/'own.parquet'}"], ['lab', room/'own.parquet'])):
        assert call('ask', lab_folder()/'vlm', '--benchmark', *words, '-n', 20, '--max-new-tokens', 4,
                    '--batch-size', 40, '--out', tmp_path/str(n))[0]==0
    assert {*table_at(tmp_path/'0')['benchmark']}=={'lab', 'own'}=={*table_at(tmp_path/'1')['benchmark']}

def test_words_of_the_shell_in_messages(room, call, tmp_path, monkeypatch):
    monkeypatch.setenv('VLM_MERGING_DATA', str(tmp_path/'data'))
    code, out, err = call('ask', 'lab/vlm', '--benchmark', 'MathVista', '--out', tmp_path/'run')
    assert code==3 and 'vlm-merging prepare MathVista --from folder' in err and 'source=' not in err

def test_an_unfinished_run_is_told(room, call, tmp_path):
    argv = ['ask', '--model', lab_folder()/'vlm', '--benchmark', room/'own.parquet', '--max-new-tokens', 4,
            '--out', tmp_path/'run']
    assert call(*argv)[0]==0
    lines = (tmp_path/'run'/'replies.jsonl').read_text().splitlines(True)
    (tmp_path/'run'/'replies.jsonl').write_text(''.join(lines[:30]))
    code, out, err = call('score', tmp_path/'run')
    assert code==4 and '30 of 84 items have a reply' in err and '54 were not asked yet' in err

def test_a_folder_without_replies_may_begin_anew(room, call, tmp_path):
    argv = ['ask', '--benchmark', room/'own.parquet', '--model', lab_folder()/'vlm', '--out', tmp_path/'run',
            '--max-new-tokens']
    call(*argv, 4)
    (tmp_path/'run'/'replies.jsonl').write_text('')
    assert call(*argv, 5)[0]==0 and call(*argv, 6)[0]==3

def test_a_device_that_is_not_there(room, call, tmp_path):
    code, _, err = call('ask', '--model', lab_folder()/'vlm', '--benchmark', room/'own.parquet', '--out',
                        tmp_path/'run', '--device', 'cuda7')
    assert code==3 and 'cuda7' in err and 'Traceback' not in err

def test_compare_tells_unfinished_runs(room, call, tmp_path):
    for name in 'ab':
        call('ask', '--model', lab_folder()/'vlm', '--benchmark', room/'own.parquet', '--max-new-tokens', 4,
             '--out', tmp_path/name)
        lines = (tmp_path/name/'replies.jsonl').read_text().splitlines(True)
        (tmp_path/name/'replies.jsonl').write_text(''.join(lines[:30]))
    code, out, err = call('compare', tmp_path/'a', tmp_path/'b')
    assert code==4 and err.count('30 of 84 items have a reply')==2 and 'not a random sample' in err

def test_compare_tells_the_worst_case_of_dynamath(tmp_path, call):
    for run, wrong in (('a', 3), ('b', 0)):
        pl.DataFrame([dict(benchmark='DynaMath', run=run, index=str(1000*v+q), group=str(q), answer='7',
                           prediction='8' if v==0 and q<wrong*4 else '7')
                      for q in range(20) for v in range(10)]).write_parquet(tmp_path/f'{run}.parquet')
    out = call('compare', tmp_path/'a.parquet', tmp_path/'b.parquet', '--out', tmp_path/'t.csv')[1]
    assert 'DynaMath, worst case is better: 40.0% to 100.0%, +60.0' in out
    assert pl.read_csv(tmp_path/'t.csv')['benchmark'].to_list()==['DynaMath', 'DynaMath, worst case']
