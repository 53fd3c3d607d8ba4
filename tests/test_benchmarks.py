"Benchmarks: rows in the shape of the hub and VLMEvalKit, tables of every kind, laziness, faults, preparing"
import base64, csv, hashlib, io, json, os, zipfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from vlm_merging.asking.ask import ask
from vlm_merging.asking.wire import wire_messages
from vlm_merging.asking.fingerprints import reply_key
from vlm_merging.asking.opening import open_model
from vlm_merging.asking.models import Reply, sent_parts, written
from vlm_merging.benchmarks import prepare as preparing
from vlm_merging.benchmarks import tables as readers
from vlm_merging.benchmarks.cells import cell, text_of, unpacked
from vlm_merging.benchmarks.items import (BENCHMARKS, RULE_OF, Item, Picture, as_item, metric_of,
                                          options_of, record_of, row_of)
from vlm_merging.benchmarks.mathematics import (dynamath_row, mathverse_row, mathvision_row, mathvista_row,
                                                mm_math_row)
from vlm_merging.benchmarks.perception import (blink_row, chartqa_row, docvqa_row, inline_options,
                                               mmbench_row,
                                               mmstar_row, ocrbench_row,
                                    tablevqa_row, textvqa_row)
from vlm_merging.benchmarks.prepare import data_root, pattern_of, prepare, prepared
from vlm_merging.benchmarks.tables import LONG, rows_in, rows_in_words
from vlm_merging.benchmarks.load import load, subset
from vlm_merging.benchmarks.own_rows import own_row
from vlm_merging.benchmarks.disciplines import (EMMA_STEPS, PRO_VISION, ai2d_row, logicvista_row,
                                                mmmu_pro_row, scienceqa_row)
from vlm_merging.benchmarks.hallucination import HALLUSION_KEYS, pope_row
from vlm_merging.benchmarks.korean import korean_row, kreta_row
from vlm_merging.benchmarks.pictures import parts_of
from vlm_merging.benchmarks.questions import as_items
from vlm_merging.scoring.score import score

def png(colour, size=(8, 6)):
    held = io.BytesIO()
    Image.new('RGB', size, colour).save(held, 'PNG')
    return held.getvalue()

RED, BLUE = png('red'), png('blue')
NOISE = Image.effect_noise((120, 120), 90).tobytes()
def big(seed):
    "A picture whose base64 text is long"
    held = io.BytesIO()
    Image.frombytes('L', (120, 120), NOISE[seed:]+NOISE[:seed]).save(held, 'PNG')
    return held.getvalue()

def text(data): return base64.b64encode(data).decode()
def colour(picture): return picture.open().getpixel((0, 0))
def said(error): return ' '.join(str(error.value).split())

def write(folder, name, rows, columns=None):
    "A table of each kind, from dictionaries"
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case '.parquet': pl.DataFrame(rows, infer_schema_length=None).write_parquet(path, row_group_size=3)
        case '.jsonl': path.write_text(''.join(json.dumps(o)+'\n' for o in rows))
        case '.json': path.write_text(json.dumps(rows))
        case _:
            columns = columns or list(rows[0])
            with open(path, 'w', newline='') as f:
                made = csv.DictWriter(f, columns, delimiter='\t' if path.suffix=='.tsv' else ',')
                made.writeheader()
                made.writerows(rows)
    return path

# Pictures

def test_a_picture_reads_what_it_is_given(tmp_path):
    (tmp_path/'a.png').write_bytes(RED)
    image = Image.new('RGBA', (2, 2), 'red')
    for source in (RED, bytearray(RED), memoryview(RED), tmp_path/'a.png', text(RED),
                   f'data:image/png;base64,{text(RED)}', image,
                   lambda: RED, {'bytes': RED, 'path': None}, text(RED)[:30]+'\n'+text(RED)[30:]):
        assert colour(Picture(source))==(255, 0, 0)
    assert Picture(RED).sha256()==Picture(text(RED)).sha256()!=Picture(BLUE).sha256()

@pytest.mark.parametrize('source, why', [
    (b'', 'cannot be decoded'), (b'GIF89a broken', 'cannot be decoded'), (RED[:45], 'cannot be decoded'),
    (text(b'hello'), 'cannot be decoded'),
    ('not/base64!', 'neither a file nor base64'), ('', 'there is no image'),
    (None, 'NoneType is no picture'), (5, 'int is no picture'),
    ({'bytes': None, 'path': None}, 'there is no image'),
    (Path('/nowhere/x.png'), 'cannot read /nowhere/x.png')])
def test_a_broken_picture_says_whose_it_is(source, why):
    with pytest.raises(ValueError) as e: Picture(source, 'mine.csv row 3').open()
    assert said(e).startswith('mine.csv row 3: ') and why in said(e)

# Cells

def test_cells_of_every_kind():
    assert [text_of(v) for v in (None, '', ' ', 'x', 4, 4.0, 4.5, float('nan'), True, ['a'], '0')]==[
        None, None, None, 'x', '4', '4', '4.5', None, 'True', '["a"]', '0']
    assert unpacked('["a", "b"]')==['a', 'b'] and unpacked("['a', None]")==['a', None]
    assert unpacked('[x') == '[x'
    assert unpacked("[__import__('os').system('true')]")=="[__import__('os').system('true')]"
    assert options_of({'c': '{"A": "x", "B": "y", "C": null}'}, 'c')==('x', 'y')
    assert options_of({'c': None, 'A': 'x', 'B': None, 'C': 'z'}, 'c')==('x', '', 'z')
    assert options_of({})==()
    with pytest.raises(ValueError, match='no list but'): options_of({'c': 'yes or no'}, 'c')
    with pytest.raises(ValueError, match='`a` is empty'): cell({'a': ' '}, 'a', 'b')
    with pytest.raises(ValueError, match='no column `a` or `b`'): cell({}, 'a', 'b')

def test_row_of_has_the_columns_of_a_reply_table():
    item = Item('7', 'Q', 'yes', choices=('ja', 'ü'), group='g', benchmark='MathVista', split='testmini',
                tags=dict(skills=['a'], question='never'))
    made = row_of(item)
    assert made['choices']=='["ja", "ü"]' and made['skills']=='["a"]'
    assert made['question']=='Q' and made['metric']=='mathvista'
    assert list(made)[:5]==['benchmark', 'split', 'index', 'group', 'question'] and made['precision'] is None
    assert row_of(replace(item, metric='anls'))['metric']=='anls'
    assert {type(v) for v in made.values()}<={str, type(None)}

def test_every_benchmark_has_its_rule():
    assert {b.name: b.metric for b in BENCHMARKS.values()}==RULE_OF
    for b in BENCHMARKS.values():
        assert b.split in b.splits and b.prompt and b.licence and set(b.tables.values())<=set(b.splits)
        assert b.revision=='main' or len(b.revision)==40
    for name, rule in dict(MathVista='mathvista', MathVista_MINI='mathvista', mmstar='mmstar',
                           MathVerse_MINI_Text_Lite='mathverse', MMStar_KO='mmstar',
                           TableVQABench='answer', DocVQA_VAL='anls', mine='answer',
                           OCRBench_v2='answer').items(): assert metric_of(name)==rule
    assert record_of('mm_math').name=='MM-Math' and record_of('MathVision_MINI').name=='MathVision'
    with pytest.raises(LookupError) as e: record_of('MathVisat')
    assert 'There are: ' in said(e) and 'MathVista' in said(e)

# Rows of each benchmark, as on the hub and as in VLMEvalKit's table

ABOUT = dict(category='general-vqa', context='pie chart', grade='daily life', img_height=6, img_width=8,
             language='english',
             skills=['statistical reasoning'], source='FigureQA', split='testmini',
             task='figure question answering')
VISTA = dict(pid='595', question='Is it the maximum?', image='images/595.jpg',
             decoded_image=dict(bytes=RED, path='595.jpg'), choices=['yes', 'no'],
             unit=None, precision=None, answer='no', question_type='multi_choice', answer_type='text',
             metadata=ABOUT, query=None)

def test_mathvista():
    made = mathvista_row(VISTA)
    assert made.question==('Hint: Please answer the question and provide the correct option letter, e.g., '
                           'A, B, C, D, at the end.\n'
                           'Question: Is it the maximum?\nChoices:\n(A) yes\n(B) no')
    assert (made.id, made.answer, made.answer_option, made.choices, made.question_type)==('595', 'no', 'B',
        ('yes', 'no'), 'multi_choice')
    assert made.tags['category']=='general-vqa' and made.tags['skills']==['statistical reasoning']
    assert colour(made.images[0])==(255, 0, 0)
    tsv = mathvista_row(dict(index='595', image=text(RED), question=made.question, answer='no',
                             answer_option='B', choices="['yes', 'no']",
                             question_type='multi_choice', answer_type='text', category='general-vqa',
                             task='figure question answering',
                             skills="['statistical reasoning']", context='pie chart', source='FigureQA',
                             grade='daily life', language='english'))
    assert replace(tsv, images=())==replace(made, images=())
    assert mathvista_row({**VISTA, 'query': 'Hint: as given'}).question=='Hint: as given'

@pytest.mark.parametrize('kind, places, unit, hint', [
    ('integer', None, '$', 'requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the '
                           'end.\nQuestion: Q (Unit: $)'),
    ('float', 1.0, None, 'requiring a floating-point number with one decimal place and provide the final '
                         'value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: Q'),
    ('float', 2.0, None, 'requiring a floating-point number with two decimal places and provide the final '
                         'value, e.g., 1.23, 1.34, 1.45, at the end.\nQuestion: Q'),
    ('list', None, None, 'requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], '
                         '[1.2, 1.3, 1.4], at the end.\nQuestion: Q')])
def test_mathvista_names_the_form(kind, places, unit, hint):
    made = mathvista_row({**VISTA, 'question': 'Q', 'choices': None, 'answer_type': kind, 'precision': places,
                          'unit': unit, 'answer': '1'})
    assert made.question=='Hint: Please answer the question '+hint
    assert (made.precision, made.unit, made.answer_option, made.question_type)==(places and int(places), unit,
        None, 'free_form')

VERSIONS = 'Text Dominant', 'Text Lite', 'Vision Intensive', 'Vision Dominant', 'Vision Only'
def verse(problem, version, **more):
    asked = 'Find it.\nChoices:\nA:1\nB:2'
    wo = ('According to the question shown in the image, please directly answer the question and provide '
          'the correct option letter, e.g., A, B, C, D.'
          if version=='Vision Only' else 'Please directly answer the question and provide the correct '
                                         'option letter, e.g., A, B, C, D.\nQuestion: '+asked)
    return dict(sample_index=str(5*problem+VERSIONS.index(version)+1 if version in VERSIONS else problem),
                problem_index=str(problem), problem_version=version,
                question='' if version=='Vision Only' else asked, image=dict(bytes=RED, path='x.png'),
                answer='B', question_type='multi-choice',
                metadata=dict(split='testmini', source='GeoQA', subject='Plane Geometry', subfield='Angle'),
                query_wo=wo, query_cot='think',
                question_for_eval=asked)|more

def test_mathverse():
    for version in VERSIONS:
        row = verse(3, version)
        made, built = mathverse_row(row), mathverse_row({**row, 'query_wo': None})
        assert made.question==built.question==row['query_wo'] and made.split==version.replace(' ', '_')
        assert made.group=='3'
        assert made.question_for_eval==row['question_for_eval'] and made.question_type=='multi_choice'
        assert made.tags['task']=='Angle'
    tsv = {**verse(3, 'Text Lite'), 'question': row['query_wo'], 'index': '9',
           'metadata': str(row['metadata'])}
    del tsv['sample_index'], tsv['query_wo']
    assert mathverse_row(tsv).id=='9' and mathverse_row(tsv).tags['source']=='GeoQA'
    assert mathverse_row(tsv).question==row['query_wo']
    free = mathverse_row({**verse(1, 'Text Lite', question='Find x.', question_type='free-form'),
                          'query_wo': None})
    hint = 'Please directly answer the question and provide the final value, e.g., 1, 2.5, 300.'
    assert free.question==f'{hint}\nQuestion: Find x.'

VISION = dict(id='110', question='Which?\n<image1>', options=['A', 'B', 'C', 'D', 'E'],
              image='images/110.jpg', decoded_image=dict(bytes=RED, path=None),
              answer='B', solution=None, level=2, subject='descriptive geometry')
def test_mathvision():
    made = mathvision_row(VISION)
    assert made.question==('Hint: Please answer the question and provide the correct option letter, e.g., '
                           'A, B, C, D, at the end.\n'
                           'Question: Which?\n<image1>\nChoices:\n(A) A\n(B) B\n(C) C\n(D) D\n(E) E')
    assert (made.id, made.answer_option, made.tags['level'])==('110', 'B', 2)
    free = mathvision_row({**VISION, 'options': [], 'question': 'How many?', 'answer': '12'})
    assert free.question==('Hint: Please answer the question and provide the final answer at the end.\n'
                           'Question: How many?')
    assert (free.question_type, free.answer_option, free.choices)==('free_form', None, ())
    tsv = mathvision_row(dict(index='110', question=made.question, choices="['A', 'B', 'C', 'D', 'E']",
                              answer='B', level='2', category='x', image=text(RED)))
    assert (tsv.question, tsv.choices)==(made.question, made.choices)
    assert mathvision_row({**VISION, 'options': [], 'question': 'How many?',
                           'answer': 'B'}).answer_option is None

def dyna(qid, **more):
    return dict(id=str(qid), question='How many?', image='x.png', decoded_image=dict(bytes=RED, path=None),
                ground_truth='4.5',
                                   answer_type='float', subject='algebra', knowledge_level='high school')|more
def test_dynamath():
    made = dynamath_row({**dyna(42), '__file__': 'sample7-00000-of-00007'})
    assert (made.id, made.group, made.answer, made.answer_type, made.question_type)==('6042', '42', '4.5',
        'float', 'free_form')
    assert made.question.startswith('## Question\n How many?\n## Answer Instruction Please')
    assert 'three-digit floating-point number and provide' in made.question
    assert json.loads(made.question[made.question.index('{'):])['short answer']=='[Concise Answer]'
    many = dynamath_row({**dyna(42, answer_type='multiple choice', ground_truth='B'), 'varid': '7',
                         'index': '6042'})
    assert many.question_type=='multi_choice' and "such as 'A', 'B', 'C', or 'D'" in many.question
    assert many.id=='6042'
    assert 'Float numbers in the answer should' in dynamath_row({**dyna(1, answer_type='text'),
        'varid': 1}).question
    tsv = dynamath_row(dict(index='6042', qid='42', varid='7', question='How many?', answer='4.5',
                            answer_type='float', subject='algebra', image=text(RED)))
    assert (tsv.id, tsv.group, tsv.question, tsv.answer)==(made.id, made.group, made.question, made.answer)
    with pytest.raises(ValueError, match='which variant this is'): dynamath_row(dyna(42))

def test_mm_math():
    made = mm_math_row(dict(question='Find $x$.', solution=r'... $\boxed{\frac{\sqrt{2}}{3}}$ and \boxed{4}',
                            file_name='1.png', year='nine', difficult='hard',
                            knowledge=[dict(level_1='a')], __row__=6))
    assert made.answer==r'\frac{\sqrt{2}}{3}, 4' and made.question.endswith(r'\boxed{}.') and made.id=='6'
    assert made.tags['level']=='hard'
    tsv = mm_math_row(dict(index='6', question='Find $x$.', answer=r'\frac{1}{2}', difficulty='easy',
                           year='nine', knowledge_l1='a', knowledge_l2='b'))
    assert tsv.question=='Find $x$.' and tsv.tags==dict(level='easy', grade='nine', category='a', task='b')
    with pytest.raises(ValueError, match='no .boxed'):
        mm_math_row(dict(question='?', solution='it is 3', __row__=0))

STAR = dict(index=0, question='What is red?\nOptions: A: the bus, B: the sky, C: 1, 2 and 3, D: none.',
            image=dict(bytes=RED, path=None), answer='C',
            category='math', l2_category='geometry',
            meta_info=dict(source='MathVista', split='val', image_path='images/0.jpg'))
def test_mmstar():
    made = mmstar_row(STAR)
    assert made.question==("What is red?\nA. the bus\nB. the sky\nC. 1, 2 and 3\nD. none.\n"
                           "Answer with the option's letter from the given choices directly.")
    assert (made.choices[2], made.answer, made.answer_option, made.tags)==('1, 2 and 3', 'C', 'C',
        dict(category='math', task='geometry', source='MathVista'))
    tsv = mmstar_row(dict(index='0', image=text(RED), question='What is red?', A='the bus', B='the sky',
                          C='1, 2 and 3', D='none.', answer='C', category='math',
                          l2_category='geometry', source='MathVista'))
    assert replace(tsv, images=())==replace(made, images=())
    assert mmstar_row({**STAR, 'question': 'Q', 'A': 'x', 'B': 'y', 'answer': 'B',
                       'hint': 'Look.'}).question.startswith('Look.\nQ\nA. x\nB. y\nAnswer')
    with pytest.raises(ValueError, match='the letter of one of 2 options is needed'):
        mmstar_row({**STAR, 'question': 'Q', 'A': 'x', 'B': 'y'})
    assert inline_options('Two?\nOptions: A: yes, B: no')==('Two?', ('yes', 'no'))
    assert inline_options('None')==('None', ()) and inline_options('Options: none')[1]==()
    with pytest.raises(ValueError, match='no options'): mmstar_row({**STAR, 'question': 'What?'})

def test_korean():
    hub = korean_row(dict(index='d1', question='합계는?', choice_a='1', choice_b='2', choice_c='3', choice_d='4',
                          answer='B', category='table', image=dict(bytes=RED)))
    assert hub.question=='합계는?\nOptions: A: 1, B: 2, C: 3, D: 4\n\n주어진 선택지 중 해당 옵션의 문자로 바로 답하세요.'
    tsv = korean_row(dict(index='d1', question='합계는?', A='1', B='2', C='3', D='4', answer='B',
                          category='table', image=text(RED)))
    star = korean_row(dict(index=1, question='<image>\n합계는?\nOptions: A: 1, B: 2, C: 3, D: 4', answer='B',
                           category='math', l2_category='x', meta_info='text'))
    assert hub.question==tsv.question==star.question and star.choices==('1', '2', '3', '4')
    assert star.tags==dict(category='math', task='x')

def test_short_answers():
    tail = '\nAnswer the question using a single word or phrase.'
    chart = chartqa_row(dict(type='human_test', question='How high?', answer='12%', image=dict(bytes=RED),
                             __row__=3))
    assert (chart.id, chart.question, chart.answer, chart.tags)==('3', 'How high?'+tail, '12%',
        dict(category='human_test'))
    assert chartqa_row(dict(index='9', split='test_human', question='How high?', answer='12')).id=='9'
    doc = docvqa_row(dict(questionId='49153', question='Date?', question_types=['form', 'layout'],
                          docId=14465, answers=['1/8/93', 'Jan 8'], data_split='val'))
    assert (doc.id, doc.group, json.loads(doc.answer), doc.answer_type, doc.tags)==('49153', '14465',
        ['1/8/93', 'Jan 8'], 'any of', dict(category=['form', 'layout']))
    assert docvqa_row(dict(index='1', question='Date?', answer="['1/8/93', 'Jan 8']")).answer==doc.answer
    # The test split has none
    assert docvqa_row(dict(questionId='1', question='Date?', answers=None)).answer is None
    brand = textvqa_row(dict(question_id=34602, image_id='a9', question='what brand?',
                             answers=['nokia']*9+['the nokia']))
    assert (brand.id, brand.group, len(json.loads(brand.answer)))==('34602', 'a9', 10)
    ocr = ocrbench_row(dict(dataset='HME100k', question='What is it?',
                            question_type='Handwritten Mathematical Expression Recognition', answer=['x ^ 2'],
                            __row__=0))
    assert (ocr.question, ocr.answer, ocr.tags['source'])==('What is it?', '["x ^ 2"]', 'HME100k')
    assert ocrbench_row(dict(index='4', question='Q', answer="['a']",
                             category='Doc-oriented VQA')).tags==dict(category='Doc-oriented VQA')

def test_pope():
    row = dict(id='0', question_id='1', question='Is there a dog in the image?', answer='Yes',
               image_source='COCO_7', image=dict(bytes=RED), category='adversarial')
    made = pope_row(row)
    assert (made.id, made.group, made.answer, made.tags)==('adversarial-1', 'COCO_7', 'yes',
                                                           dict(category='adversarial'))
    assert pope_row({**row, 'category': 'random'}).id!=made.id
    told = 'Is there a dog in the image? Please answer yes or no.'
    assert pope_row(dict(index='5', question=told, answer='No')).question==told

def test_tablevqa():
    fact = tablevqa_row(dict(qa_id='f1', question='canada won twice', gt='0', image=dict(bytes=RED),
                             __file__='vtabfact-00000-of-00001-ecd1'))
    assert (fact.split, fact.answer, fact.answer_option, fact.question_type)==('vtabfact', 'False', 'B',
        'multi_choice')
    assert fact.question.endswith('Answer: False\n\nStatement: canada won twice\nAnswer:')
    both = tablevqa_row(dict(index='w1', split='vwtq_syn', question='which?', answer='Ada|Bole',
                             image=text(RED)))
    assert (both.answer, both.answer_type, both.split)==('Ada, Bole', 'list', 'vwtq_syn')
    assert 'separate them with || marks' in both.question
    fin = tablevqa_row(dict(qa_id='x', split='fintabnetqa', question='total?', gt='$3,852 million'))
    assert fin.answer=='$3,852 million' and 'units such as $, %, million' in fin.question
    with pytest.raises(ValueError, match='no part'):
        tablevqa_row(dict(qa_id='x', split='train', question='?', gt='1'))
    with pytest.raises(ValueError, match='1 or 0'):
        tablevqa_row(dict(qa_id='x', split='vtabfact', question='?', gt='maybe'))

# Prompts as they were sent

DEV = Path(__file__).resolve().parents[2]/'shared'/'eval_data'/'dev'
@pytest.mark.skipif(not DEV.is_dir(), reason='the development data are not here')
def test_prompts_as_sent():
    def rows(name): return pl.read_parquet(DEV/f'{name}.parquet').unique('index').iter_rows(named=True)
    for r in rows('mathvista'):
        q = r['question'].split('\nQuestion: ',
                                1)[1].split('\nChoices:\n')[0].removesuffix(f" (Unit: {r['unit']})")
        made = mathvista_row({**r, 'question': q, 'choices': unpacked(r['choices']), 'answer_option': None})
        assert (made.question, made.answer_option)==(r['question'], r['answer_option'])
    for r in rows('mathverse'):
        made = mathverse_row({**r, 'problem_index': r['group'],
                              'problem_version': r['split'].replace('_', ' '),
                              'question': r['question'].split('\nQuestion: ', 1)[-1]
                              if r['split']!='Vision_Only' else ''})
        assert made.question==r['question']
    for r in rows('mathvision'):
        q = r['question'].split('\nQuestion: ', 1)[1].split('\nChoices:\n')[0]
        assert mathvision_row({**r, 'question': q, 'options': unpacked(r['choices'])}).question==r['question']

# Tables of one's own

def own(images):
    return [dict(index=str(i), question=f'Q{i}?', image=v, answer=str(i), room='hall') for i,
            v in enumerate(images)]

@pytest.mark.parametrize('name', ['t.parquet', 't.jsonl', 't.json', 't.csv', 't.tsv'])
def test_the_same_table_in_every_format(tmp_path, name):
    (tmp_path/'pictures').mkdir()
    (tmp_path/'pictures'/'red.png').write_bytes(RED)
    items = load(write(tmp_path, name, own(['pictures/red.png', str(tmp_path/'pictures'/'red.png'), text(RED),
                                            text(big(0)), f'data:image/png;base64,{text(RED)}'])))
    assert not items.problems and [i.id for i in items]==list('01234') and items[2].answer=='2'
    assert items[0].tags==dict(room='hall')
    assert [colour(i.images[0]) for i in items if i.id!='3']==[(255, 0, 0)]*4
    assert items[3].images[0].bytes()==big(0)
    assert {(i.benchmark, i.split, i.metric) for i in items}=={('t', '', 'answer')}

def test_bytes_and_structs_and_lists_in_parquet(tmp_path):
    for made in ([RED, BLUE], [dict(bytes=RED, path='a.png'), dict(bytes=BLUE, path=None)]):
        items = load(write(tmp_path, 'p.parquet', own(made)))
        assert [colour(i.images[0]) for i in items]==[(255, 0, 0), (0, 0, 255)]
        assert items[1].images[0].name=='p.parquet row 2'
    items = load(write(tmp_path, 'l.parquet', own([[dict(bytes=RED, path=None), dict(bytes=BLUE, path=None)],
                                                   [], [dict(bytes=BLUE, path=None)]])))
    assert [[colour(p) for p in i.images] for i in items]==[[(255, 0, 0), (0, 0, 255)], [], [(0, 0, 255)]]
    (tmp_path/'b.png').write_bytes(BLUE)
    items = load(write(tmp_path, 'n.parquet', own([dict(bytes=RED, path=None), None,
                                                   dict(bytes=None, path='b.png'),
                                                   dict(bytes=None, path='../b.png')])))
    assert [len(i.images) for i in items]==[1, 0, 1, 1] and colour(items[2].images[0])==(0, 0, 255)
    with pytest.raises(ValueError, match='n.parquet row 4: .*outside the folder'): items[3].images[0].open()

@pytest.mark.parametrize('name', ['m.jsonl', 'm.json', 'm.tsv', 'm.parquet'])
def test_several_images_of_a_row(tmp_path, name):
    (tmp_path/'red.png').write_bytes(RED)
    cells = [['red.png', text(BLUE)], [text(big(1)), text(big(2)), text(BLUE)]]
    if name=='m.tsv': cells = [str(c) for c in cells]
    if name=='m.parquet': cells = [json.dumps(c) for c in cells]
    a, b = load(write(tmp_path, name, own(cells)))
    assert [colour(p) for p in a.images]==[(255, 0, 0), (0, 0, 255)]
    assert [p.bytes() for p in b.images]==[big(1), big(2), BLUE]

def test_frames_and_text_only_questions():
    items = load(pl.DataFrame(dict(question=['a?', 'b?'], answer=[4, 5], image=[RED, None])), name='mine')
    assert [len(i.images) for i in items]==[1, 0] and items[0].benchmark=='mine' and items[1].answer=='5'
    assert items[1].id=='2'
    assert len(load(pl.LazyFrame(dict(question=['a?']))))==1

@pytest.mark.parametrize('row', [dict(choices=['red', 'blue']), dict(choices='["red", "blue"]'),
                                 dict(choices="['red', 'blue']"), dict(A='red', B='blue'),
                                 dict(options=['red', 'blue'])])
@pytest.mark.parametrize('answer', ['B', 'blue'])
def test_choices_however_written(row, answer):
    made = own_row({**row, 'question': 'Colour?', 'answer': answer, '__row__': 0})
    hint = "Answer with the option's letter from the given choices directly."
    assert made.question==f'Colour?\nA. red\nB. blue\n{hint}'
    assert (made.answer_option, made.choices, made.question_type, made.answer)==('B', ('red', 'blue'),
        'multi_choice', answer)

def test_columns_that_an_item_has():
    made = own_row(dict(question='Q', answer='4', index='a', group='g', answer_type='integer', precision='2',
                        unit='cm', split='test', metric='relaxed',
                        question_for_eval='E', level='[1, 2]', __row__=0))
    assert (made.id, made.group, made.answer_type, made.precision, made.unit, made.split, made.metric,
            made.question_for_eval)==(
        'a', 'g', 'integer', 2, 'cm', 'test', 'relaxed', 'E') and made.tags==dict(level=[1, 2])

# Faults

def faulty(tmp_path, name, rows, **how):
    items = load(write(tmp_path, name, rows, how.pop('columns', None)), **how)
    return items, '\n'.join(items.problems)

def test_a_bad_row_stops_no_other_and_is_named(tmp_path):
    rows = [dict(question='a?', answer='A', A='x', B='y'), dict(question='', answer='A', A='x', B='y'),
            dict(question='c?', answer='E', A='x', B='y'),
            dict(question='d?', answer='A', A='B', B='A'), dict(question='e?', answer='3', A='', B='')]
    items, told = faulty(tmp_path, 'b.csv', rows)
    assert [i.id for i in items]==['1', '5']
    assert "b.csv row 2: `question` is empty." in told
    assert "b.csv row 3: `answer` is 'E', but there are 2 choices: x, y." in told
    assert "b.csv row 4: `answer` is 'A', which may be A or B; add a column `answer_option`." in told
    assert repr(items).startswith('2 items, 3 left out; problems:\n- b.csv row 2')

def test_many_bad_rows_are_counted(tmp_path):
    items, told = faulty(tmp_path, 'b.jsonl', [dict(question='ok?', answer='1'),
                                               *(dict(question=None) for _ in range(20))])
    assert told=='b.jsonl lines 2, 3, 4, 5, 6, 7, 8, 9 and 12 more: `question` is empty.'
    assert rows_in_words([3])=='row 3'

def test_broken_lines_of_jsonl(tmp_path):
    (tmp_path/'a.jsonl').write_bytes(b'{"question": "a?", "answer": 1}\n{broken\n\n[1]\n"text"\n{"question": '
                                     b'"b?", "answer": 2}\n\xff\xfe\n'+b'['*5000+b'\n')
    items = load(tmp_path/'a.jsonl')
    assert [i.id for i in items]==['1', '5'] and [o.id for o in items.left]==['2', '3', '4', '6', '7']
    assert items.problems==['a.jsonl lines 2, 4, 5, 7: no JSON object. Each line must be one.',
                            'a.jsonl line 8: it is nested more than 100 deep.']

def test_a_row_with_too_many_cells(tmp_path):
    (tmp_path/'a.csv').write_text('question,answer\na?,1\n"b, c?",2\nd, e?,3\n"two\nlines",4\nshort\n')
    items = load(tmp_path/'a.csv')
    assert [i.question for i in items]==['a?', 'b, c?', 'two\nlines', 'short'] and items[3].answer is None
    assert items.problems[0]==(
        'a.csv row 3: more cells than the 2 columns. Put quotes around text that holds a comma.')
    assert '1 of 4 questions have no answer' in items.problems[1]

@pytest.mark.parametrize('name, content, why', [
    ('a.csv', 'question;answer\na;1\n', 'no comma but'),
    ('a.csv', 'question\tanswer\na\t1\n', 'or name it .tsv'),
    ('a.tsv', 'question,answer\na,1\n', 'no tab but'),
    ('a.csv', '', 'is empty'), ('a.csv', 'question,answer\n', 'has no rows'), ('a.jsonl', '', 'has no rows'),
    ('a.json', '[]', 'has no rows'),
    ('a.json', '{', 'no json table'), ('a.json', '5', 'a list of objects'),
    ('a.json', '[1]', 'a list of objects'), ('a.parquet', 'nonsense', 'no parquet table'),
    ('a.txt', 'question', 'a table is one of'),
    ('a.csv', 'frage,answer\na,1\n', 'no column `question`. Its columns are frage, answer'),
    ('a.jsonl', 'x\n', 'no JSON object')])
def test_a_table_that_is_none(tmp_path, name, content, why):
    (tmp_path/name).write_text(content)
    with pytest.raises(ValueError) as e: load(tmp_path/name)
    assert why in said(e) and (name in said(e)) and said(e).count('. ')<3

def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='is not there'): load(tmp_path/'no.csv')
    with pytest.raises(ValueError, match='is a folder'): load(tmp_path)
    with pytest.raises(ValueError, match='int is no table'): load(5)
    with pytest.raises(LookupError, match='No benchmark is named'): load('MathVisat')
    with pytest.raises(LookupError, match='No benchmark is named'):
        load(write(tmp_path, 'a.csv', own(['x'])), benchmark='MathVisat')
    with pytest.raises(LookupError, match="no split 'train'"):
        load('MathVista', split='train', folder=tmp_path)
    with pytest.raises(LookupError, match='is not prepared in'): load('MathVista', folder=tmp_path)
    with pytest.raises(LookupError, match="split 'b'; there are 'a'"):
        load(write(tmp_path, 's.csv', [dict(question='?', split='a')]), split='b')

def test_marks_of_windows_and_capitals(tmp_path):
    (tmp_path/'A.CSV').write_bytes('\ufeffquestion,answer\r\n"wie groß?",4\r\n'.encode())
    item, = load(tmp_path/'A.CSV')
    assert (item.question, item.answer, item.benchmark)==('wie groß?', '4', 'A')
    (tmp_path/'b.csv').write_bytes('question,answer\ngroß?,4\n'.encode('latin1'))
    with pytest.raises(ValueError, match='no csv table that can be read'): load(tmp_path/'b.csv')
    write(tmp_path, '[1].csv', own([text(RED)]))
    assert colour(load(tmp_path/'[1].csv')[0].images[0])==(255, 0, 0)

def test_answers_loosely_written():
    for answer in ('b', '(B)', 'B.', ' B '):
        assert own_row(dict(question='Q', A='x', B='y', answer=answer, __row__=0)).answer_option=='B'
    assert own_row(dict(question='Q', A='b', B='a', answer='b', __row__=0)).answer_option=='A'
    assert own_row(dict(question='Q', A='x', B='y', answer=None, __row__=0)).answer_option is None

def test_wrong_types_are_told_by_row(tmp_path):
    items, told = faulty(tmp_path, 'a.jsonl', [dict(question='a?', image=5),
                                               dict(question='b?', choices=7, answer='A'),
                                               dict(question='c?', precision='two'),
                                               dict(question='d?', image={'bytes': None, 'path': None}),
                                               dict(question=['e', 'f'])])
    assert 'line 1: the image is int' in told and 'line 2: the choices are no list' in told
    assert "line 3: `precision` is 'two'" in told
    assert 'line 4: the image is empty' in told and [i.question for i in items]==['["e", "f"]']

def test_indices_that_stand_twice(tmp_path):
    items, told = faulty(tmp_path, 'a.csv', [dict(index=i, question=f'{i}?', answer=i) for i in 'abacb'])
    assert [i.id for i in items]==list('abc')
    assert told=='a.csv rows 3, 5: the index stands in an earlier row already; that one counts.'

# VLMEvalKit's tables

def star_table(tmp_path, images): return write(tmp_path, 'MMStar.tsv', [
    dict(index=i, image=v, question='Red?', A='yes', B='no', answer='A', category='math') for i,
    v in images.items()])

def test_pointers(tmp_path):
    items = load(star_table(tmp_path, {'10': text(RED), '11': '10', '12': '11', '13': '99', '14': '15',
                                       '15': '14', '16': '16', '17': ''}))
    assert [i.id for i in items]==['10', '11', '12', '17']
    assert [colour(i.images[0]) for i in items[:3]]==[(255, 0, 0)]*3 and items[3].images==()
    told = '\n'.join(items.problems)
    assert "MMStar.tsv row 4: the image points to index '99', which the table does not have." in told
    circle = "row 5: the image points to index '15', and from there back to itself."
    assert circle in told or 'back to itself' in told
    assert (items[0].benchmark, items[0].split)==('MMStar', 'val')

def test_a_pointer_to_a_long_image_is_read_later(tmp_path):
    items = load(star_table(tmp_path, {'0': text(big(3)), '1': '0',
                                       '2': f"['{text(big(4))}', '{text(big(5))}']"}))
    assert items[1].images[0].bytes()==big(3) and [p.bytes() for p in items[2].images]==[big(4), big(5)]

def test_localised_images(tmp_path):
    (tmp_path/'0.jpg').write_bytes(RED)
    rows = [dict(index='0', image_path='0.jpg', question='Hint: Q', answer='1'),
            dict(index='1', image_path="['0.jpg', '0.jpg']", question='Hint: Q', answer='1'),
            dict(index='2', image_path='../0.jpg', question='Hint: Q', answer='1'),
            dict(index='3', image_path='/etc/hostname', question='Hint: Q', answer='1')]
    items = load(write(tmp_path, 'MathVista_MINI.tsv', rows))
    assert [len(i.images) for i in items]==[1, 2]
    assert items.problems[0].endswith("'../0.jpg' is outside the folder.") and 'row 4' in items.problems[1]

# Images are not read before they are asked for

@pytest.mark.parametrize('name', ['big.parquet', 'big.tsv', 'big.csv', 'big.jsonl'])
def test_loading_reads_no_image(tmp_path, name, monkeypatch):
    asked = []
    read = readers._block
    monkeypatch.setattr(readers, '_block', lambda *a: asked.append(a) or read(*a))
    pictures_ = [big(i) for i in range(40)]
    path = write(tmp_path, name, own([dict(bytes=p, path=None) if name=='big.parquet' else text(p)
                                      for p in pictures_]))
    for _, row in rows_in(path):
        assert not any(isinstance(v, (bytes, str)) and len(v)>LONG for v in row.values())
    items = load(path)
    assert not asked and len(items)==40
    assert [i.images[0].bytes() for i in items]==pictures_                                     # In order,
    # and in any
    assert [items[k].images[0].bytes() for k in (39, 0, 17)]==[pictures_[k] for k in (39, 0, 17)]
    path.unlink()
    with pytest.raises(ValueError, match='row 1: |line 1: ') as e: items[0].images[0].open()
    assert 'Load the table again' in said(e)

def test_a_table_that_changed_is_read_anew(tmp_path):
    path = write(tmp_path, 'a.parquet', own([RED, BLUE]))
    items = load(path)
    assert colour(items[0].images[0])==(255, 0, 0)
    write(tmp_path, 'a.parquet', own([BLUE, RED]))
    os.utime(path, ns=(1, 10**18))
    assert colour(items[0].images[0])==(0, 0, 255)

def test_a_broken_image_is_told_when_it_is_opened(tmp_path):
    items = load(write(tmp_path, 'a.csv', own([text(RED), text(b'no image at all'*9), 'A'*80+'!'])))
    assert len(items)==3
    with pytest.raises(ValueError, match='a.csv row 2: the image cannot be decoded'):
        items[1].images[0].open()
    with pytest.raises(ValueError, match='a.csv row 3: the image is neither a file nor base64 text'):
        items[2].images[0].open()

# A part of a benchmark

def test_a_part_is_the_same_for_everyone():
    items = [Item(str(10*g+v), '?', group=str(g), benchmark='DynaMath') for g in range(50) for v in range(10)]
    a = subset(items, 100)
    assert len(a)==100 and [i.id for i in a]==[i.id for i in items if i in a]
    assert {i.id for i in subset(items[::-1], 100)}=={i.id for i in a}!={i.id
        for i in subset(items, 100, seed=1)}
    assert {i.id for i in subset(items, 40)}<{i.id for i in a}
    assert len(subset(items, 5))==10 and len(subset(items, 15))==10 and len(subset(items, 10**6))==500
    assert {i.group for i in a}=={i.group for i in subset([replace(i, split='other') for i in items], 100)}
    alone = [Item(str(i), '?') for i in range(50)]
    assert len(subset(alone, 7))==7
    with pytest.raises(ValueError, match='n is 0'): subset(items, 0)

def test_which_part_is_taken_stays_from_version_to_version():
    items = [Item(str(i), '?', benchmark='MathVista') for i in range(1000)]
    assert [i.id for i in subset(items, 5)]==FIXED

FIXED = ['175', '497', '659', '802', '960']

# Preparing

def vista_mirror(folder, n=4):
    rows = [{**VISTA, 'pid': str(i), 'decoded_image': dict(bytes=big(i), path=f'{i}.jpg')} for i in range(n)]
    write(folder, 'data/testmini-00000-of-00001-725687bf7a18d64b.parquet', rows)
    write(folder, 'data/test-00000-of-00002-6a611c71596db30f.parquet', rows[:1])
    write(folder, 'data/test-00001-of-00002-6a611c71596db30f.parquet', [{**rows[1], 'pid': '77'}])
    (folder/'README.md').write_text('# card')
    return folder

def test_prepare_and_load_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv('VLM_MERGING_DATA', str(tmp_path/'data'))
    assert data_root()==tmp_path/'data'
    out = prepare('mathvista', source=vista_mirror(tmp_path/'mirror'))
    assert out==tmp_path/'data'/'MathVista'
    assert [p.name for p in (out/'data').iterdir()]==['testmini-00000-of-00001-725687bf7a18d64b.parquet']
    note = json.loads((out/'prepared.json').read_text())
    about, = note['patterns']['data/testmini-*.parquet']['files'].values()
    assert note['benchmark']=='MathVista' and len(about['sha256'])==64
    assert note['patterns']['data/testmini-*.parquet']['licence']=='CC BY-SA 4.0'
    items = load('MathVista', n=2)
    assert len(items)==2 and items[0].split=='testmini' and items[0].benchmark=='MathVista'
    assert items[0].images[0].bytes()==big(int(items[0].id))
    with pytest.raises(LookupError, match='--split test'): load('MathVista', split='test')
    prepare('MathVista', split='test', source=tmp_path/'mirror')
    # Both are there
    assert [i.id for i in load('MathVista', split='test')]==['0', '77'] and len(load('MathVista'))==4

def test_parts_of_one_file(tmp_path):
    write(tmp_path/'m', 'testmini.parquet', [verse(p, v) for p in range(6) for v in VERSIONS])
    write(tmp_path/'m', 'testmini_text_only.parquet',
          [verse(p, 'Text Only', image='', query_wo='Please directly answer.') for p in range(6)])
    prepare('MathVerse', tmp_path, source=tmp_path/'m')
    every, lite, only = (load('MathVerse', split=s, folder=tmp_path)
                         for s in (None, 'Text_Lite', 'Vision_Only'))
    assert len(every)==30 and len(lite)==len(only)==6 and {i.split for i in lite}=={'Text_Lite'}
    a, b = (load('MathVerse', split=s, folder=tmp_path, n=3) for s in ('Text_Lite', 'Vision_Only'))
    assert {i.group for i in a}=={i.group for i in b} and len(a)==3
    with pytest.raises(LookupError, match='is not prepared'):
        load('MathVerse', split='testmini_text_only', folder=tmp_path)
    prepare('MathVerse', tmp_path, 'testmini_text_only', tmp_path/'m')
    text_only = load('MathVerse', split='testmini_text_only', folder=tmp_path)
    assert len(text_only)==6 and not any(i.images for i in text_only) and text_only[0].split=='Text_Only'

def test_dynamath_from_ten_files(tmp_path):
    for v in range(1, 11):
        write(tmp_path/'m', f'data/sample{v}-00000-of-{v:05}.parquet',
              [dyna(q, ground_truth=str(q*v)) for q in range(1, 8)])
    prepare('DynaMath', tmp_path, source=tmp_path/'m')
    items = load('DynaMath', folder=tmp_path, n=30)
    assert len(items)==30 and len({i.group for i in items})==3
    assert {i.tags['variant'] for i in items}=={str(v) for v in range(1, 11)}
    assert len(load('DynaMath', 'sample_variant1', folder=tmp_path))==7  # Covered by the wider pattern
    assert {i.group for i in load('DynaMath', folder=tmp_path, n=30)}=={i.group for i in items}

def test_images_in_a_zip_beside_the_table(tmp_path):
    write(tmp_path/'m'/'MM_Math', 'MM_Math.jsonl',
          [dict(question='Q', solution=r'\boxed{3}', file_name='7.png', year='eight', difficult='easy',
                knowledge='x'),
                                                    dict(question='R', solution=r'\boxed{4}', file_name=None,
                                                         year='eight', difficult='easy', knowledge='x')])
    with zipfile.ZipFile(tmp_path/'m'/'MM_Math'/'MM_Math.zip', 'w') as z:
        z.writestr('MM_Math/images/7.png', RED)
    prepare('MM-Math', tmp_path, source=tmp_path/'m')
    a, b = load('MM-Math', folder=tmp_path)
    assert colour(a.images[0])==(255, 0, 0) and b.images==() and (a.answer, b.answer)==('3', '4')

@pytest.mark.parametrize('lay', ['flat', 'file', 'tsv'])
def test_mirrors_of_other_shapes(tmp_path, lay):
    source = tmp_path/'m'
    if lay=='tsv':
        write(source, 'MathVista_MINI.tsv', [dict(index='0', image=text(RED), question='Hint: Q',
                                                  answer='1')])
    else:
        source = write(source, 'testmini-0.parquet', [VISTA]) if lay=='file' else write(source,
            'testmini-0.parquet', [VISTA]).parent
    prepare('MathVista', tmp_path/'out', source=source)
    assert colour(load('MathVista', folder=tmp_path/'out')[0].images[0])==(255, 0, 0)

def test_tables_of_one_part_are_not_taken_for_the_whole(tmp_path):
    def table(name, version):
        others = 'query_wo', 'sample_index', 'image', 'metadata'
        write(tmp_path/'m', f'{name}.tsv', [
            {**{k: v for k, v in verse(p, version).items() if k not in others}, 'index': str(p),
             'question': verse(p, version)['query_wo'], 'image': text(RED)} for p in range(3)])
    table('MathVerse_MINI_Text_Lite', 'Text Lite')
    prepare('MathVerse', tmp_path, 'Text_Lite', tmp_path/'m')
    assert {i.split for i in load('MathVerse', 'Text_Lite', folder=tmp_path)}=={'Text_Lite'}
    for split in (None, 'Vision_Only'):
        with pytest.raises(LookupError, match='is not prepared'): load('MathVerse', split, folder=tmp_path)
    items = load(tmp_path/'m'/'MathVerse_MINI_Text_Lite.tsv')
    assert (items[0].benchmark, items[0].split, len(items))==('MathVerse', 'Text_Lite', 3)

def test_prepare_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path/'m').mkdir()
    (tmp_path/'m'/'other.parquet').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'holds no file data/testmini-.* of MathVista .testmini.; it holds '
                                         r'other.parquet'):
        prepare('MathVista', tmp_path, source=tmp_path/'m')
    with pytest.raises(ValueError, match='is not there'): prepare('MathVista', tmp_path, source=tmp_path/'no')
    with pytest.raises(LookupError, match='no split'):
        prepare('MathVista', tmp_path, split='train', source=tmp_path/'m')
    with pytest.raises(LookupError, match='No benchmark'): prepare('MathVisat', tmp_path)
    def refuse(*a, **k): raise ConnectionError('no network')
    monkeypatch.setattr('huggingface_hub.snapshot_download', refuse)
    with pytest.raises(ValueError) as e: prepare('MathVista', tmp_path)
    assert 'is not prepared, and AI4Math/MathVista@2b6ad69445fb' in said(e)
    assert 'could not be had from the hub' in said(e)
    assert 'source=' in said(e)
    assert not (tmp_path/'MathVista').exists()

def test_prepare_from_the_hub_notes_the_commit(tmp_path, monkeypatch):
    asked = []
    def snapshot(name, **how):
        asked.append((name, how))
        return str(vista_mirror(tmp_path/'cache'/('c'*40)))
    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot)
    out = prepare('MathVista', tmp_path/'out')
    assert asked[0][0]=='AI4Math/MathVista'
    assert asked[0][1]['allow_patterns']==['data/testmini-*.parquet', 'README.md']
    assert asked[0][1]['repo_type']=='dataset'
    note = json.loads((out/'prepared.json').read_text())['patterns']['data/testmini-*.parquet']
    assert note['commit']=='c'*40 and note['source']=='AI4Math/MathVista'
    assert note['revision']==BENCHMARKS['MathVista'].revision
    prepare('MathVista', tmp_path/'out')
    assert len(asked)==1  # Nothing is fetched twice,
    (out/'data'/'testmini-00000-of-00001-725687bf7a18d64b.parquet').write_bytes(b'damaged')
    prepare('MathVista', tmp_path/'out')
    assert len(asked)==2 and len(load('MathVista', folder=tmp_path/'out'))==4  # but what is damaged is
    prepare('MathVista', tmp_path/'out', revision='d'*40)
    assert asked[2][1]['revision']=='d'*40

@pytest.mark.parametrize('fault', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_prepare_interrupted(tmp_path, monkeypatch, fault):
    mirror, place, placed = vista_mirror(tmp_path/'m'), preparing._put, []
    def failing(path, out, to, link):
        if placed: raise fault
        placed.append(to)
        return place(path, out, to, link)
    monkeypatch.setattr(preparing, '_put', failing)
    with pytest.raises((ValueError, KeyboardInterrupt)) as e:
        prepare('MathVista', tmp_path/'out', 'test', mirror)
    if isinstance(fault, OSError): assert 'No space left on device' in said(e)
    monkeypatch.undo()
    with pytest.raises(LookupError, match='is not prepared'): load('MathVista', 'test', folder=tmp_path/'out')
    assert not list((tmp_path/'out').rglob('*.part'))
    prepare('MathVista', tmp_path/'out', 'test', mirror)
    assert len(load('MathVista', 'test', folder=tmp_path/'out'))==2

def test_files_of_the_user_are_copied(tmp_path):
    mirror = vista_mirror(tmp_path/'m')
    prepare('MathVista', tmp_path/'out', source=mirror)
    assert all(f.stat().st_nlink==1 for f in (tmp_path/'out').rglob('*') if f.is_file())

def test_where_links_do_not_work_files_are_copied(tmp_path, monkeypatch):
    def refuse(*a, **k): raise OSError(18, 'Invalid cross-device link')
    monkeypatch.setattr(os, 'link', refuse)
    prepare('MathVista', tmp_path/'out', source=vista_mirror(tmp_path/'m'))
    assert len(load('MathVista', folder=tmp_path/'out'))==4

@pytest.mark.parametrize('note', ['{', '[]', '{"patterns": 3}'])
def test_a_broken_note(tmp_path, note):
    (tmp_path/'MathVista').mkdir()
    (tmp_path/'MathVista'/'prepared.json').write_text(note)
    with pytest.raises(ValueError, match='Delete it and prepare again'):
        prepared('MathVista', folder=tmp_path)

def test_patterns():
    assert pattern_of(BENCHMARKS['MathVerse'], 'Text_Lite')==('testmini.parquet', 'Text_Lite')
    for b in BENCHMARKS.values():
        for s in b.splits: assert pattern_of(b, s)[0]


def test_what_a_model_should_say_can_be_said():
    "The letter where it is asked for one; of several accepted answers the first; never JSON"
    from vlm_merging.benchmarks.items import Item, right_answer
    assert right_answer(Item('1', 'Q', 'blue', choices=('red', 'blue'), answer_option='B'))=='B'
    assert right_answer(Item('2', 'Q', '["seven", "7"]', answer_type='any of'))=='seven'
    assert right_answer(Item('3', 'Q', 'blue'))=='blue' and right_answer(Item('4', 'Q')) is None


# What shows itself

HOSTILE = '<script>alert(1)</script> {{ 7*7 }} & "quotes" \'\'\' \0\u2028'

def test_an_item_shows_itself_escaped_and_never_prints_bytes():
    item = Item(HOSTILE, HOSTILE, HOSTILE, (Picture(RED, HOSTILE), Picture(b'broken', HOSTILE)),
                tags=dict(category=HOSTILE), benchmark=HOSTILE)
    page = item._repr_html_()
    assert '<script>' not in page and '49' not in page and '&lt;script&gt;' in page and page.count('<img')==1
    assert 'cannot be decoded' in page
    wide = Item('1', 'Q'*10_000, 'A'*10_000, tuple(Picture(big(i)) for i in range(9)))
    assert len(repr(wide))<200 and '\n' not in repr(wide) and 'PNG' not in repr(wide)+repr(wide.images)
    assert '9 pictures' in repr(wide)
    assert len(Item('1', '?', images=(Picture(Image.effect_noise((3000, 2000), 90)),))._repr_html_())<200_000
    assert wide._repr_html_().count('<img')==4                              # The first four will do

def test_a_list_of_items_is_no_longer_than_a_screen(tmp_path):
    rows = [dict(question=f'{i}\n?'*500, answer='x'*500)
            for i in range(100)]+[dict(question='', answer=str(i)) for i in range(100)]
    items = load(write(tmp_path, 'long.jsonl', rows))
    assert len(items)==100 and len(repr(items).splitlines())<20
    assert max(map(len, repr(items).splitlines()))<=310
    assert repr(load(write(tmp_path, 'one.csv',
                           [dict(question='How many?', answer='7')])))=='1 item\n1  How many?  7'

def test_a_question_is_typed_as_text_and_files(tmp_path):
    (tmp_path/'a.png').write_bytes(RED)
    for source in (tmp_path/'a.png', str(tmp_path/'a.png'), RED, Image.new('RGB', (2, 2), 'red'),
                   Picture(RED), f'data:image/png;base64,{text(RED)}'):
        item = as_item('Which colour?', source)
        assert item.question=='Which colour?' and colour(item.images[0])==(255, 0, 0)
    with pytest.raises(ValueError, match='no.png: cannot read'):
        as_item('?', tmp_path/'no.png').images[0].open()
    with pytest.raises(ValueError, match='brings its own pictures'): as_item(item, RED)
    assert as_item(item) is item

def test_items_or_what_is_loaded(tmp_path):
    path = write(tmp_path, 'a.csv', [dict(question='a?'), dict(question='')])
    items = [Item('1', '?')]
    assert as_items(items)==items and as_items(iter(items))==items
    assert [i.id for i in as_items('lab')[:2]]==['test-0-0', 'test-0-1']
    with pytest.warns(UserWarning, match='a.csv row 2: `question` is empty') as heard:
        assert len(as_items(path))==1
    assert len(heard)==1
    with pytest.raises(LookupError, match='No benchmark is named'): as_items('MathVisat')

# From a published file to a verdict: disciplines, hallucination, Korean

class Says:
    "An asker that replies what it is told, and keeps what it was sent"
    about = dict(weights='x')
    def __init__(self, replies): self.replies, self.sent = replies, []
    def many(self, items):
        for i in items:
            self.sent.append(wire_messages(i)[-1]['content'])
            yield Reply(i.id, self.replies[i.id])

def verdicts(folder, items, replies):
    "What was sent, and id -> correct"
    asker = Says(replies)
    table = ask(asker, items, folder/'run', progress=False)
    return asker.sent, dict(score(table).select('index', 'correct').iter_rows())

def order(content):
    "A message as texts and colours"
    def part(p):
        if p['type']=='text': return p['text']
        return colour(Picture(p['image_url']['url']))
    return [content] if isinstance(content, str) else [*map(part, content)]

R, B = (255, 0, 0), (0, 0, 255)

def colours(parts): return [p if isinstance(p, str) else colour(p) for p in parts]

def struct(data): return None if data is None else dict(bytes=data, path=None)

def mmmu(number, part='validation', **more):
    shown = {f'image_{k}': struct(more.pop(f'image_{k}', None)) for k in range(1, 8)}
    return dict(id=f'{part}_Math_{number}', question='What is <image 1>?', options="['red', 'blue']",
                explanation='', img_type="['Plots and Charts']", answer='A', topic_difficulty='Easy',
                question_type='multiple-choice', subfield='Logic')|shown|more

def test_mmmu_from_parquet_to_verdict(tmp_path):
    rows = [mmmu(1, image_1=RED, image_2=BLUE, question='<image 1> Which is like it?',
                 options="['<image 2>', 'none']"),
            mmmu(2, image_1=RED, question='Count <image 1>.', options='[]', answer="['3', 'three']",
                 question_type='open'),
            mmmu(3, image_1=RED, question='Seen or not?'),
            mmmu(4, image_1=RED, question='See <image 2>.'),                      # It is not there
            mmmu(5, image_2=BLUE, question='See <image 2>.'),                     # The first is missing
            mmmu(6, image_1=RED, answer='C')]                                     # No such option
    write(tmp_path/'m', 'data/validation-00000-of-00001.parquet', rows)
    write(tmp_path/'m', 'data/test-00000-of-00001.parquet', [mmmu(1, 'test', image_1=RED, answer='?')])
    prepare('MMMU', tmp_path/'d', source=tmp_path/'m')
    items = load('MMMU', folder=tmp_path/'d')
    assert [i.id.rpartition('_')[2] for i in items]==['1', '2', '3'] and items[0].tags['category']=='Math'
    assert len(items.left)==3
    faults = ' '.join(o.why for o in items.left)
    for words in ('the question names <image 2>, and there is 1 picture',
                  '`image_1` is empty, and `image_2` is not',
                  "`answer` is 'C', where the letter of one of 2 options is needed"): assert words in faults
    assert all('.parquet' in o.where and 'row' in o.where for o in items.left)
    by = {i.id.rpartition('_')[2]: i.id for i in items}
    sent, right = verdicts(tmp_path, list(items), {by['1']: 'A', by['2']: 'It is three.', by['3']: 'B'})
    asked = {order(s)[-1][:9]: order(s) for s in sent}
    first = next(o for o in map(order, sent) if B in o)
    assert first[:2]==[R, ' Which is like it?\nA. '] and first[2]==B and first[3].startswith('\nB. none')
    assert asked['Seen or n'][0]==R                                     # No mark: the picture is in front
    assert right=={by['1']: True, by['2']: True, by['3']: False}
    prepare('MMMU', tmp_path/'d', 'test', tmp_path/'m')
    hidden = load('MMMU', 'test', folder=tmp_path/'d')
    assert hidden[0].answer is None and 'no question has an answer' in hidden.problems[0]

def test_mmmu_from_a_table(tmp_path):
    shared = dict(question='<image 2> or <image 1>?', A='red', B='blue', category='Math', split='validation')
    path = write(tmp_path, 'MMMU_DEV_VAL.tsv', [
        dict(index='1', id='validation_Math_1', image=str([text(RED), text(BLUE)]), answer='B', **shared),
        dict(index='2', id='dev_Math_2', image=str([text(RED), text(BLUE)]), answer='A',
             **shared|dict(split='dev'))])
    items = load(path)
    assert [(i.split, i.answer) for i in items]==[('validation', 'B'), ('dev', 'A')]
    assert colours(parts_of(items[0].question, items[0].images))[:3]==[
        B, ' or ', R]

def test_mmmu_pro_shows_the_question_in_the_picture(tmp_path):
    choices = str(list('pqrstuvwxy'))
    write(tmp_path/'m', 'vision/test-00000-of-00001.parquet',
          [dict(id='test_Math_1', image=struct(RED), options=choices, answer='J', subject='Math')])
    for n in (4, 10):
        write(tmp_path/'m', f'standard ({n} options)/test-00000-of-00001.parquet',
              [mmmu(1, 'test', image_1=RED, options=str(list('pqrstuvwxy')[:n]), answer='D', subject='Math')])
    for split, gold, options in (('standard', 'D', 10), ('standard_4', 'D', 4), ('vision', 'J', 10)):
        prepare('MMMU-Pro', tmp_path/'d', split, tmp_path/'m')
        item, = load('MMMU-Pro', split, folder=tmp_path/'d')
        assert (item.answer, len(item.choices), item.split)==(gold, options, split)
        assert item.question.startswith(PRO_VISION if split=='vision' else 'What is <image 1>?\nA. p\nB. q')
        sent, right = verdicts(tmp_path/split, [item], {item.id: f'I think so.\nAnswer: {gold}'})
        assert right=={item.id: True} and R in order(sent[0])
    assert len(load('MMMU-Pro', folder=tmp_path/'d'))==1
    photo = mmmu_pro_row(dict(id='1', image=RED, options=choices, answer='J'))  # Also where no file tells
    assert photo.split=='vision'
    with pytest.raises(ValueError, match='the question names <image 1>, and there are 0 pictures'):
        mmmu_pro_row(dict(id='1', question='What is <image 1>?', options=choices, answer='J'))

def test_emma_has_a_folder_for_each_subject(tmp_path):
    def row(subject, **more):
        return dict(pid=f'{subject}_1', question='Next of <image_1> is <image_2>?', context=None,
                    image_1=struct(RED),
                    image_2=struct(BLUE), options=['yes', 'no'], answer='A', subject=subject, category='3D',
                    task='',
                    source='made')|more
    for subject in ('Chemistry', 'Coding', 'Math', 'Physics'):
        more = dict(options=[], answer='12') if subject=='Physics' else {}
        write(tmp_path/'m', f'{subject}/test-00000-of-00001.parquet', [row(subject, **more)])
    prepare('EMMA', tmp_path/'d', source=tmp_path/'m')
    items = load('EMMA', folder=tmp_path/'d')
    assert [i.tags['category'] for i in items]==['Chemistry', 'Coding', 'Math', 'Physics']
    one, = load('EMMA', 'Math', folder=tmp_path/'d')
    assert one.id=='Math_1' and one.question.endswith(EMMA_STEPS)
    replies = {i.id: r'So \boxed{A}.' for i in items}|{'Physics_1': r'It is \boxed{12}.',
                                                       'Coding_1': r'\boxed{B}'}
    sent, right = verdicts(tmp_path, list(items), replies)
    assert [order(s)[:4] for s in sent if 'Next' in str(s)][0]==['Next of ', R, ' is ', B]
    assert right=={'Chemistry_1': True, 'Coding_1': False, 'Math_1': True, 'Physics_1': True}

@pytest.mark.parametrize('name, to_item, row, wrong', [
    ('ScienceQA', scienceqa_row, dict(index='1', image=RED, question='Q', choices=['a', 'b'], answer=1,
                                      hint='h'),
     dict(answer=2)),
    ('AI2D', ai2d_row, dict(index='1', image=RED, question='Q', options=['a', 'b'], answer='1'),
     dict(image=None)),
    ('LogicVista', logicvista_row, dict(index='1', image=RED, question='Q\nA\nB', answer='B',
                                        skill="['deductive']"),
     dict(image=None)),
    ('BLINK', blink_row, dict(idx='val_1', prompt='Q\n(A) a\n(B) b', choices=['a', 'b'], answer='(B)',
                              image_1=RED,
                              image_2=BLUE, image_3=None, sub_task='Counting'), dict(image_1=None)),
    ('MMBench', mmbench_row, dict(index=1, image=RED, question='Q', A='a', B='b', C='nan', D=None, hint='nan',
                                  answer='B'), dict(index='x')),
    ('K-MMBench', korean_row, dict(index=1, image=RED, question='Q', A='a', B='b', C='nan', hint='nan',
                                   answer='B'),
     dict(A=None, B=None)),
    ('KRETA', kreta_row, dict(id='1', image=RED, question='Q', A='a', B='b', answer='B'), dict(image=None)),
])
def test_a_letter_is_asked_for_and_read(tmp_path, name, to_item, row, wrong):
    item = to_item(row)
    assert item.answer=='B' and BENCHMARKS[name].to_item is to_item and colour(item.images[0])==R
    item = replace(item, benchmark=name)
    for reply, correct in (('B', True), ('A', False), ('The answer is (B).', True)):
        assert verdicts(tmp_path/reply[:1]/str(correct), [item], {item.id: reply})[1]=={item.id: correct}
    with pytest.raises(ValueError): to_item(row|wrong)

def test_orders_of_the_options_are_one_group(tmp_path):
    def row(index, **more):
        return dict(index=str(index), image=text(RED), question='Q?', hint='nan', A='red', B='blue', C='',
                    D='',
                    answer='A', category='c', **{'l2-category': 'l'})|more
    rows = [row(7), row(1_000_007, A='blue', B='red', answer='B'), row(8)]
    items = load(write(tmp_path, 'MMBench_DEV_EN.tsv', rows))
    assert [i.group for i in items]==['7', '7', '8'] and {i.split for i in items}=={'dev'}
    _, right = verdicts(tmp_path, list(items), dict.fromkeys(('7', '1000007', '8'), 'A'))
    assert right=={'7': True, '1000007': False, '8': True}
    chinese = load(write(tmp_path, 'MMBench_DEV_CN_V11.tsv', rows))
    assert {i.split for i in chinese}=={'dev_cn_v11'}
    for language, answer in (('en', 'A'), ('cn', 'B')):
        write(tmp_path/'m', f'{language}/dev-00000-of-00001.parquet', [row(1, answer=answer)])
    for split in ('dev', 'dev_cn'): prepare('MMBench', tmp_path/'d', split, tmp_path/'m')
    assert [load('MMBench', s, folder=tmp_path/'d')[0].answer for s in ('dev', 'dev_cn')]==['A', 'B']
    test = load(write(tmp_path, 'MMBench_TEST_EN.tsv', [row(1, answer='')]))
    assert test[0].answer is None and test.problems

def test_folders_of_equal_names_are_not_mixed(tmp_path):
    for task in ('Counting', 'Jigsaw'):
        for split in ('val', 'test'):
            write(tmp_path/'m', f'{task}/{split}-00000-of-00001.parquet', [
                dict(idx=f'{split}_{task}_1', question='?', sub_task=task, image_1=struct(RED), image_2=None,
                     choices=['a', 'b'], answer='(A)' if split=='val' else 'hidden', prompt='? (A) a (B) b')])
    prepare('BLINK', tmp_path/'d', source=tmp_path/'m')
    assert [i.id for i in load('BLINK', folder=tmp_path/'d')]==['val_Counting_1', 'val_Jigsaw_1']
    assert [i.id for i in load('BLINK', 'Jigsaw', folder=tmp_path/'d')]==['val_Jigsaw_1']
    prepare('BLINK', tmp_path/'d', 'test', tmp_path/'m')
    assert {i.answer for i in load('BLINK', 'test', folder=tmp_path/'d')}=={None}
    flat = tmp_path/'flat'
    write(flat, 'val-00000-of-00001.parquet', [dict(idx='1')])
    with pytest.raises(ValueError, match='holds no file'): prepare('BLINK', tmp_path/'e', 'Jigsaw', flat)

def test_figures_and_pairs(tmp_path):
    def row(figure, number, answer, **more):
        return dict(category='VD', subcategory='illusion', visual_input='1', set_id='0', figure_id=figure,
                    question_id=number, question=f'Same {number}?', gt_answer=answer, image=struct(RED))|more
    rows = [row(f, q, a) for f, a in (('0', '1'), ('1', '0')) for q in '012']
    write(tmp_path/'m', 'data/image-00000-of-00001.parquet', rows)
    prepare('HallusionBench', tmp_path/'d', source=tmp_path/'m')
    items = load('HallusionBench', folder=tmp_path/'d')
    assert len({i.group for i in items})==1 and [i.answer for i in items]==['yes']*3+['no']*3
    table = load(write(tmp_path, 'HallusionBench.tsv', [dict(index='_'.join(r[k] for k in HALLUSION_KEYS),
        image=text(RED), question=r['question'], answer={'1': 'Yes', '0': 'No'}[r['gt_answer']])
        for r in rows]))
    def same(i): return i.id, i.group, i.answer, i.tags, i.question, i.benchmark, i.split
    assert [*map(same, table)]==[*map(same, items)]
    said = dict(zip([i.id for i in items], ['Yes, they are.', 'No.', 'Yes', 'No', 'no, they differ', 'no']))
    scores = score(ask(Says(said), list(items), tmp_path/'run', progress=False))
    def whole(by): return scores.group_by(by).agg(pl.col('correct').all())['correct'].mean()
    assert (scores['correct'].mean(), whole('figure'), whole('pair'))==(5/6, 1/2, 2/3)

def test_several_answers_are_a_list(tmp_path):
    row = dict(id='1', decoded_image=struct(RED), question_type='multiple_answers', answer='A, C',
               response_options=list('ABCD'), prompt_no_reasoning='Which points?', image_category='geometry',
               task_category='t')
    one = row|dict(id='2', question_type='true_false', answer='True', response_options=['True', 'False'])
    write(tmp_path/'m', 'data/geometry__triangle-00000-of-00001.parquet',
          [row, one, row|dict(id='3', answer='A, E')])
    prepare('VisOnlyQA', tmp_path/'d', source=tmp_path/'m')
    items = load('VisOnlyQA', folder=tmp_path/'d')
    assert [i.answer_type for i in items]==['list', None] and 'response_options' in items.left[0].why
    for reply, right in (('C, A', True), ('A', False), ('A, B, C', False)):
        got = verdicts(tmp_path/reply.replace(', ', ''), list(items), {'1': reply, '2': 'True'})[1]
        assert got=={'1': right, '2': True}

def test_what_only_a_judge_can_score_is_asked(tmp_path):
    path = write(tmp_path, 'KOFFVQA.tsv', [dict(index='1', image=text(RED), question='이것은 무엇인가요?',
                                                answer='색을 말하면 5점', category='c')])
    items = load(path)
    assert items[0].answer is None and items[0].question_for_eval=='색을 말하면 5점'
    assert 'no question has an answer' in items.problems[0]
    sent, right = verdicts(tmp_path, list(items), {'1': '빨간색'})
    assert right=={'1': None} and order(sent[0])==[R, '이것은 무엇인가요?'] and '5점' not in str(sent)

def test_steps_of_a_problem_are_one_group(tmp_path):
    def row(key, **more):
        return dict(ID=3, split='testmini', key=key, question='Angle?', option='A. 45; B. 60; C. no answer',
                    answer='B',
                    image_path=struct(RED), **{'question number': 1, 'knowledge concept': 'angles'})|more
    write(tmp_path/'m', 'testmini.parquet', [row('2steps_1'), row('2steps_2', answer='A'),
                                             row('2steps_multi'),
                                             row('2steps_3', option='none')])
    prepare('We-Math', tmp_path/'d', source=tmp_path/'m')
    items = load('We-Math', folder=tmp_path/'d')
    assert {i.group for i in items}=={'3'}
    assert [i.id for i in items]==['3-2steps_1', '3-2steps_2', '3-2steps_multi']
    assert "`option` is 'none'" in items.left[0].why
    says = {'3-2steps_1': 'As 30+30 is 60, the final answer is B.', '3-2steps_2': 'B', '3-2steps_multi': '60'}
    sent, right = verdicts(tmp_path, list(items), says)
    assert [*right.values()]==[True, False, True] and order(sent[0])[0]==R

def test_korean_files_and_tables_ask_the_same(tmp_path):
    seed = dict(question_id='7', question='무엇?', question_type_id=1, image=struct(RED), choice_a='개',
                choice_b='말',
                choice_c='새', choice_d='소', answer='C')
    write(tmp_path/'m', 'data/test-00000-of-00001.parquet', [seed, seed|dict(question_id='8', answer='E')])
    prepare('K-SEED', tmp_path/'d', source=tmp_path/'m')
    items = load('K-SEED', folder=tmp_path/'d')
    table = load(write(tmp_path, 'SEEDBench_IMG_KO.tsv', [
        dict(index='7', image=text(RED), question='무엇?', A='개', B='말', C='새', D='소', answer='C',
             category='1')]))
    assert table[0].question==items[0].question and (table[0].answer, table[0].benchmark)==('C', 'K-SEED')
    assert len(items)==1 and "'E'" in items.left[0].why
    assert verdicts(tmp_path, list(items), {'7': '정답은 C입니다.'})[1]=={'7': True}

# Pictures in their places, in a table of one's own

@pytest.mark.parametrize('name', ['t.csv', 't.jsonl', 't.parquet'])
def test_numbered_pictures_of_your_own(tmp_path, name):
    (tmp_path/'r.png').write_bytes(RED)
    (tmp_path/'b.png').write_bytes(BLUE)
    rows = [dict(question=q, image_1=a, image_2=b, answer='1') for q, a, b in [
        ('<image 2> before <image 1>?', 'r.png', 'b.png'), ('Just <image 1>?', 'r.png', None),
        ('Two, and then <image 2>', 'r.png', 'b.png'), ('No <image 7>', 'r.png', None),
        ('Gap', None, 'b.png')]]
    items = load(write(tmp_path, name, rows))
    made = [colours(parts_of(i.question, i.images)) for i in items]
    assert made==[[B, ' before ', R, '?'], ['Just ', R, '?'], [R, 'Two, and then ', B]]
    assert [i.tags for i in items]==[{}]*3
    assert [(o.where.replace('line', 'row'), o.why[:18]) for o in items.left]==[
        (f'{name} row 4', 'the question names'), (f'{name} row 5', '`image_1` is empty')]

def test_marks_are_places_in_every_way_of_asking():
    images = Picture(RED), Picture(BLUE)
    placed, plain = Item('1', '<image 2> or <image 1>', images=images), Item('1', 'Or?', images=images)
    assert order(wire_messages(placed)[-1]['content'])==[B, ' or ', R]
    assert order(wire_messages(plain)[-1]['content'])==[R, B, 'Or?']
    assert order(wire_messages(Item('1', 'Write <image 1>'))[-1]['content'])==['Write <image 1>']
    def plainly(item):                                                  # A key before there were places
        asked = json.dumps([{}, item.question, [p.sha256() for p in item.images]])
        return hashlib.sha256(asked.encode()).hexdigest()[:32]
    assert reply_key(plain, {})==plainly(plain) and reply_key(placed, {})!=plainly(placed)
    assert wire_messages(Item('1', '<image 1> <image 1>',
                              images=images[:1]))[-1]['content'][0]['type']=='image_url'
    vlm = open_model('lab/vlm', max_new_tokens=1)
    keeps = ("{% for m in messages %}{% for p in m['content'] %}{% if p['type']=='image' %}<image>{% else %}"
             "{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}")
    vlm.processor.chat_template = keeps
    assert colours(sent_parts(vlm, placed.question, images))==[B, ' or ', R]
    assert written(vlm, placed).split('<image>')==['', ' or ', '']
    vlm.processor.chat_template = ("{% for m in messages %}{% for p in m['content'] %}{% if "
                                   "p['type']=='image' %}"
        "<image>{% endif %}{% endfor %}{% for p in m['content'] %}{% if p['type']=='text' %}{{ p['text'] }}"
        "{% endif %}{% endfor %}{% endfor %}")
    assert colours(sent_parts(vlm, placed.question, images))==[
        R, B, placed.question]
    assert written(vlm, placed)=='<image><image><image 2> or <image 1>'

@pytest.mark.parametrize('name', RULE_OF)
def test_every_record_names_its_own_table(name):
    record = BENCHMARKS[name]
    for table, split in record.tables.items():
        others = [b.name for b in BENCHMARKS.values() if table in b.tables and b is not record]
        assert not others and record_of(table) is record and pattern_of(record, split)
