"What signatures tell the shell, and how messages of Python are told there"
import inspect, re
from dataclasses import MISSING, fields

import pytest
from vlm_merging.asking.models import LocalModel
from vlm_merging.asking.opening import open_model
from vlm_merging.cli.commands import COMMANDS, calls_of, command, flags_of, read_words, taken
from vlm_merging.cli.main import main
from vlm_merging.cli.messages import in_shell_words
from vlm_merging.cli.signatures import REQUIRED, constant_words, methods_read, parameters_of
from vlm_merging.merging.methods import METHODS
from vlm_merging.merging.recipe import Recipe
from vlm_merging.probing.masks import PARTS, WAYS


# --- Signatures, read without an import, are those that Python has

@pytest.mark.parametrize('where,function', [('asking.opening:open_model', open_model),
                                            ('merging.recipe:Recipe.layer_swap', Recipe.layer_swap)])
def test_a_function(where, function):
    code = function.__code__                # Tab may know more: what stands behind two stars
    names = code.co_varnames[:code.co_argcount+code.co_kwonlyargcount]
    known = {n:p for n, p in inspect.signature(function).parameters.items() if n in names}
    read = parameters_of(where)
    assert read.keys()==known.keys()
    for n, p in known.items():
        assert read[n].default==(REQUIRED if p.default is p.empty else p.default) and read[n].about

@pytest.mark.parametrize('where,cls', [('asking.models:LocalModel', LocalModel),
                                       ('merging.recipe:Recipe', Recipe)])
def test_a_dataclass(where, cls):
    read = parameters_of(where)
    assert [*read]==[f.name for f in fields(cls)]
    for f in fields(cls):
        default = (f.default_factory() if f.default_factory is not MISSING else
                   REQUIRED if f.default is MISSING else f.default)
        assert read[f.name].default==default and read[f.name].about

def test_kinds_and_lists():
    read = parameters_of('probing.probe:probe_folder')
    assert read['parts'].several and not read['layers'].several and 'str' in read['other'].kinds
    assert parameters_of('merging.merge:merge')['workers'].kinds==('int',)

def test_the_knobs_are_those_of_the_methods():
    read = methods_read()
    assert [*read]==[*METHODS]
    for name, m in METHODS.items():
        assert read[name][0]==m.about and [*read[name][1]]==[*m.knobs]
        for k in m.knobs.values():
            p = read[name][1][k.name]
            assert (p.default, p.about)==(k.default, k.about)
            assert p.bounds==(() if k.choices else (k.low, k.high))
            if k.choices and k.choices!=(True, False): assert p.choices==k.choices

def test_a_method_that_was_entered_brings_its_own_options(capsys):
    from vlm_merging.merging.methods import Share, merge_method
    import vlm_merging.merging.knobs as room
    source = dict(METHODS)
    def halves(vlm, llm, *, tilt:Share=.5): return tilt*vlm+(1-tilt)*llm
    try:
        merge_method(halves)
        assert 'tilt' in methods_read()['halves'][1] and main(['methods', 'halves'])==0
        assert '--tilt' in capsys.readouterr().out
    finally:
        for held in (room.METHODS, METHODS): held.clear(); held.update(source)

def test_constants():
    assert constant_words('probing.masks:WAYS')==WAYS and constant_words('probing.masks:PARTS')==PARTS
    assert constant_words('scoring.score:PROTOCOLS')==('offline', 'strict')

def test_what_is_not_there_is_told():
    with pytest.raises(LookupError, match='defines no nothing'): parameters_of('merging.recipe:nothing')


# --- What is typed

def read(line): return read_words(COMMANDS[line.split()[0]], line.split()[1:])

@pytest.mark.parametrize('line,name,value', [
    ('profile m --how skip,uniform', 'how', ('skip', 'uniform')),
    ('profile m --how skip uniform', 'how', ('skip', 'uniform')),
    ('profile m --how skip, uniform skip', 'how', ('skip', 'uniform')),
    ('profile m --by a,b', 'by', ('a', 'b')),
    ('profile m --ray', 'ray', 'local'),
    ('profile m --ray auto', 'ray', 'auto'), ('sweep --weights 0.6,0.7', 'weights', ('0.6', '0.7')),
    ('sweep --layers 6-31 0-5,8', 'layers', ['6-31', '0-5,8']),
    ('ask m --benchmark a b,c', 'benchmark', ('a', 'b', 'c')), ('compare a b --by ,', 'by', ()),
    ('ask m -n 3', 'n', 3), ('ask m --temperature 0.5', 'temperature', .5),
    ('merge --overwrite', 'overwrite', True), ('plan --weight 1,0.9,0.7', 'weight', [1., .9, .7]),
    ('plan --rescale no', 'rescale', False),
    ('prepare', 'names', None), ('prepare a b', 'names', ['a', 'b']), ('prepare a --to x', 'data', 'x')])
def test_values(line, name, value): assert read(line).get(name)==value

def test_a_file_with_a_comma_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a,b.csv').touch()
    assert read('ask m --benchmark a,b.csv c,d')['benchmark']==('a,b.csv', 'c', 'd')

def test_what_belongs_to_a_function():
    given = dict(data='x', n=3, benchmark=('b',), batch_size=4)
    assert taken(given, 'benchmarks.load:load n split folder=data',
                 'asking.models:LocalModel batch_size')==dict(n=3, folder='x', batch_size=4)

def test_a_command_is_a_function_and_a_list():
    @command(shows=dict(what='benchmarks.load:load n seed'), example='vlm-merging count a',
             choices=dict(way='probing.masks:WAYS'))
    def count_command(
        folder:str,       # What is counted
        *,
        way:str='skip',   # How
        **given,
    ): return folder, way, given
    made = COMMANDS.pop('count')
    assert made.name=='count' and made.run('f', n=2)==('f', 'skip', dict(n=2))


# --- What is told

NAMES = dict(base='--base', overwrite='--overwrite', allow_nonfinite='--allow-nonfinite', n='-n',
             weight='--weight', layers='--layers', items='--benchmark')

@pytest.mark.parametrize('said,told', [
    ('ties needs `base`: the model.', 'ties needs --base: the model.'),
    ('Pass `overwrite=True`.', 'Pass --overwrite.'),
    ('Pass overwrite=True to replace it.', 'Pass --overwrite to replace it.'),
    ('allow it with `allow_nonfinite`.', 'allow it with --allow-nonfinite.'),
    ('ties: weight is 4; it is', 'ties: --weight is 4; it is'), ("layers is 'x'", "--layers is 'x'"),
    ('Widen `layers` or `modules`.', 'Widen --layers or `modules`.'),
    ('The weight of the base is in layers 0-3.', 'The weight of the base is in layers 0-3.'),
    ('a/allow_nonfinite.json', 'a/allow_nonfinite.json'),
    ('`weight=[1, .5]`', '--weight 1,0.5'),
    ('ties: weight is nan; it', 'ties: --weight is nan; it'),
    ("`layers='6-31'`", '--layers 6-31'), ('n is 0', '-n is 0'),
    ('in (at)', 'in (at)')])
def test_names(said, told): assert in_shell_words(said, NAMES)==told

@pytest.mark.parametrize('verb,said,told', [
    ('ask', "items are needed: load('mine.csv').", 'items are needed: --benchmark mine.csv.'),
    ('ask', "or prepare('MathVista', source='folder') from files", 'or vlm-merging prepare MathVista --from '
                                                                   'folder from files'),
    ('ask', 'see load(this, that=3)', 'see load(this, that=3)'),
    ('ask', 'name it with `weights`', 'name it with --serves'),
    ('merge', 'as merge(vlm, llm) does', 'as vlm-merging merge VLM LLM does'),
    ('score', 'with replies(folder)', 'with replies(folder)')])
def test_calls(verb, said, told):
    assert in_shell_words(said, flags_of(COMMANDS[verb]), lambda: calls_of(COMMANDS[verb]))==told


# --- Refusals of every command, in words that can be typed

REFUSED = '''
plan
plan lab/vlm
plan lab/vlm lab/llm --method ties
plan lab/vlm lab/llm --density .5
plan lab/vlm lab/llm --weight 7
plan lab/vlm lab/llm --as-run --method della lab/base
plan lab/vlm lab/llm --modules eyes
plan lab/vlm lab/llm --modules mlp --layers 9-
plan lab/llm lab/vlm
plan lab/vlm lab/xlm
plan nowhere lab/llm
plan --recipe nowhere
plan --recipe BAD
plan lab/vlm lab/llm --rescale maybe
plan lab/vlm lab/llm lab/base --method dare_linear --as-run --rescale yes
merge lab/vlm lab/llm
merge lab/vlm lab/llm --out HERE
merge lab/vlm lab/llm --out HERE --overwrite
merge lab/vlm lab/llm --out gone/x
merge lab/vlm lab/llm --out x --device cuda:9
merge lab/vlm lab/llm --out x --workers 0
inspect HERE
methods tis
prepare Nothing
prepare MathVista --from gone
prepare MathVista --from HERE
prepare MathVista --to BAD
ask --out x
ask lab/vlm --out x
ask lab/vlm --benchmark MathVista --out x
ask lab/vlm --benchmark HERE --out x
ask lab/vlm --benchmark gone.csv --out x
ask lab/vlm --benchmark BAD --out x
ask LAB --out x
ask lab/vlm LAB --out BAD
ask lab/vlm LAB --out x --serves y
ask lab/vlm LAB --dtype int7
ask lab/vlm LAB --out x --device cuda7
ask lab/vlm LAB --out x --temperature -1
ask lab/vlm LAB --out x --dtype int7
ask lab/vlm --benchmark lab --split nosplit --out x
ask --endpoint nonsense LAB --out x
ask --endpoint http://127.0.0.1:9 LAB --out x
score gone
score HERE
score BAD
score TABLE --protocol judge
score TABLE --out x.txt
score TABLE --protocol judge --judge http://127.0.0.1:9
score TABLE --out gone/x.csv
compare TABLE gone
compare TABLE TABLE --by nothing
compare TABLE TABLE --chart x.gif
diagnose lab/vlm
diagnose lab/vlm lab/llm --candidates gone
diagnose lab/vlm lab/llm --subspace -1
profile lab/vlm LAB
profile lab/vlm LAB --out x --layers 99
profile lab/vlm --out x
profile lab/vlm LAB --out x --how weights
profile lab/vlm LAB --out x --measure no
profile lab/vlm LAB --out x --by nothing
profile lab/vlm LAB --out x --other lab/llm
profile lab/vlm LAB --out x --diagnosis gone
profile lab/vlm LAB --out x --target no
sweep lab/vlm lab/llm --weights no LAB --out x
sweep lab/vlm lab/llm LAB --out x
sweep lab/vlm lab/llm --weights .5,7 LAB --out x
sweep lab/vlm lab/llm --weights .5 LAB
sweep lab/vlm lab/llm --weights .5 --knobs x LAB --out x
sweep lab/vlm lab/llm --weights .5 --knobs weight=.5 LAB --out x
sweep lab/vlm lab/llm --weights .5 --density .5 LAB --out x
sweep lab/vlm lab/llm --weights .5 --layers 31-6 LAB --out x
sweep lab/vlm lab/llm --weights .5 --ray 127.0.0.1:9 LAB --out x
plan lab/vlm lab/llm --weight nan
plan lab/vlm/ lab/llm --weight 1e999
score TORN.jsonl
demo -n 3
demo --seed -1
demo --weight 7
demo --out HERE
'''
PYTHON = re.compile(r"""\b[a-z]\w*_\w+\b|`(?!hf |vlm-merging |-|`)[^`]*`"""
                    r"""|\b\w+=(?:True|False|None|\w*\.?\d|')"""
                    r"""|\b[a-z_]+\([^)\n]*['=]|\b(?:None|True|False|int|float|Traceback|Errno)\b""")
KNOWN = '|'.join(['vlm_merging', 'save_pretrained', 'from_pretrained', 'auto_map', 'model_type', *METHODS])

@pytest.mark.parametrize('line', REFUSED.strip().splitlines())
def test_a_refusal_speaks_as_the_shell_does(line, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VLM_MERGING_DATA', str(tmp_path/'data'))
    (tmp_path/'HERE').mkdir()
    (tmp_path/'HERE'/'file').touch()
    (tmp_path/'BAD').write_bytes(b'\xff\xfe\x00{')
    (tmp_path/'TORN.jsonl').write_text('{"index": ')
    (tmp_path/'TABLE.csv').write_text('index,question,answer,prediction\n1,How many?,7,7\n')
    line = line.replace('LAB', '--benchmark lab -n 4 --max-new-tokens 2').replace('TABLE', 'TABLE.csv')
    code, out, err = call(*line.split())
    told = [s for s in (out+err).splitlines() if s.startswith(('vlm-merging', 'stop:', '  stop:'))]
    assert code in (1, 2, 3) and told, (code, out, err)
    words = re.sub(KNOWN, '', re.sub(r"'[^'\n]*'|\S*/\S*", '', ' '.join(told)))
    assert not (odd := PYTHON.findall(words)), (odd, told)
