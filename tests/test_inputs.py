"Which file is the model, by transformers' own word; and what is named is what was read, whoever swaps files"
import hashlib, itertools, json, os, shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from vlm_merging.asking import opening
from vlm_merging.asking.fingerprints import weights_hash
from vlm_merging.asking.opening import open_model
from vlm_merging.checkpoints import headers
from vlm_merging.checkpoints.headers import Checkpoint, folder_summary, refuse_changed
from vlm_merging.checkpoints.model_files import take_stamps
from conftest import patched
from vlm_merging.cli.main import main
from vlm_merging.lab.tiny import make_trio
from vlm_merging.lab.trio import lab_folder
from vlm_merging.merging import merge as room
from vlm_merging.merging.checks import sample
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.probing import weights as probing_weights
from vlm_merging.probing.diagnose import diagnose
from vlm_merging.probing.weights import weight_stats


# The order of transformers

LLAMA = dict(model_type='llama', architectures=['LlamaForCausalLM'], hidden_size=8, intermediate_size=8,
             num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=8,
             tie_word_embeddings=False, torch_dtype='float32')
EMBEDDING = 'model.embed_tokens.weight'

@pytest.fixture(scope='module')
def numbers():
    "The names and shapes of a model of one layer"
    from transformers import AutoModelForCausalLM, LlamaConfig
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    return {n: x.shape for n, x in model.state_dict().items()}

def put(folder, stem, value, shapes, kind='safetensors', shards=0):
    "A set of weights whose numbers are all `value`"
    write = save_file if kind=='safetensors' else torch.save
    how = dict(metadata=dict(format='pt')) if kind=='safetensors' else {}
    state = {n: torch.full(s, float(value)) for n, s in shapes.items()}
    if not shards: return write(state, folder/f'{stem}.{kind}', **how)
    names = [f'{stem}-{value}-{i}.{kind}' for i in range(shards)]
    where = {n: names[i%shards] for i, n in enumerate(state)}
    for f in names: write({n: x for n, x in state.items() if where[n]==f}, folder/f, **how)
    index = dict(metadata=dict(total_size=1), weight_map=where)
    (folder/f'{stem}.{kind}.index.json').write_text(json.dumps(index))

SETS = {'model.safetensors': ('model', 1), 'model.safetensors.index.json': ('model', 2, 2),
        'pytorch_model.bin': ('pytorch_model', 3), 'pytorch_model.bin.index.json': ('pytorch_model', 4, 2),
        'model.fp16.safetensors': ('model.fp16', 5), 'consolidated.safetensors': ('consolidated', 6),
        'other.safetensors': ('other', 7), 'other.safetensors.index.json': ('other', 8, 2)}
NAMED = (None, 'other.safetensors', 'other.safetensors.index.json', 'model.fp16.safetensors',
         'sub/other.safetensors')

def put_sets(folder, names, shapes):
    for name in names:
        stem, value, *shards = SETS[name]
        put(folder, stem, value, shapes, 'bin' if '.bin' in name else 'safetensors', *shards)

def of_transformers(folder):
    "The value that transformers finds, or None"
    from transformers import AutoModelForCausalLM
    try: model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, KeyError): return None
    assert not info['missing_keys']
    return float(model.get_input_embeddings().weight.detach()[0, 0])

def ours(folder):
    "The value that is read here, or None with a sentence"
    try: return float(sample(Checkpoint.open(folder), EMBEDDING)[0])
    except ValueError as e:
        assert str(e).endswith('.') and '\n' not in str(e)
        return None

@pytest.mark.parametrize('named', NAMED)
def test_what_is_read_here_is_what_transformers_opens(named, numbers, tmp_path):
    "All sixteen combinations of its four names, with decoys and without"
    opened = 0
    core, decoys = list(SETS)[:4], list(SETS)[4:]
    for i, there in enumerate(itertools.product((0, 1), repeat=5)):
        folder = tmp_path/str(i)
        folder.mkdir()
        put_sets(folder, [n for n, yes in zip(core, there) if yes]+decoys*there[-1], numbers)
        if named=='sub/other.safetensors':
            (folder/'sub').mkdir()
            put(folder/'sub', 'other', 9, numbers)
        more = dict(transformers_weights=named) if named else {}
        (folder/'config.json').write_text(json.dumps(LLAMA|more))
        right, read = of_transformers(folder), ours(folder)
        if named=='sub/other.safetensors': assert (right, read)==(9, None)   # Refused: no plain file
        else: assert read==right, (there, named)
        opened += read is not None
        if read is None: continue
        checkpoint = Checkpoint.open(folder)
        beside = {n for n in core+decoys if (folder/n).is_file()}-{checkpoint.index, *checkpoint.files}
        assert beside<=set(checkpoint.unread)
        assert ('not the model' in folder_summary(checkpoint))==bool(checkpoint.unread)
    assert opened==(30 if named is None else 0 if '/' in named else 16)

STRANGE = 3, [], '', '../other.safetensors', 'other.bin', '/other.safetensors', 'gone.safetensors'
@pytest.mark.parametrize('named', STRANGE)
def test_a_strange_name_in_the_configuration_is_refused_as_by_transformers(named, numbers, tmp_path):
    from transformers import AutoModelForCausalLM
    put_sets(tmp_path, SETS, numbers)
    (tmp_path/'config.json').write_text(json.dumps(LLAMA|dict(transformers_weights=named)))
    with pytest.raises(ValueError, match='transformers_weights'): Checkpoint.open(tmp_path)
    with pytest.raises(Exception): AutoModelForCausalLM.from_pretrained(tmp_path)

def test_a_name_that_is_a_folder_or_leads_nowhere_does_not_count(numbers, tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(LLAMA))
    (tmp_path/'model.safetensors').symlink_to('gone')
    (tmp_path/'model.safetensors.index.json').mkdir()
    put_sets(tmp_path, ['pytorch_model.bin'], numbers)
    assert ours(tmp_path)==of_transformers(tmp_path)==3

@pytest.mark.parametrize('who', ('vlm', 'llm'))
@pytest.mark.parametrize('name', ('odd.txt', 'README.md', 'config.json', 'model.safetensors'))
def test_a_link_to_itself_is_as_if_it_were_not_there(who, name, tmp_path):
    folder = Path(shutil.copytree(lab_folder()/who, tmp_path/who))
    (folder/name).unlink(missing_ok=True)
    (folder/name).symlink_to(name)
    sides = [folder if w==who else f'lab/{w}' for w in ('vlm', 'llm')]
    if name in ('odd.txt', 'README.md'):
        assert not plan(*sides).stops
        out = merge(*sides, out=tmp_path/'out', progress=False)
        assert not (out/'odd.txt').exists()
    else:
        with pytest.raises(ValueError, match='no config.json|a file that is not there'): plan(*sides)

@pytest.mark.parametrize('make', ('mkdir', 'mkfifo'))
def test_what_stands_in_the_place_of_weights_is_called_what_it_is(make, tmp_path):
    folder = Path(shutil.copytree(lab_folder()/'llm', tmp_path/'llm'))
    (folder/'model.safetensors').unlink()
    getattr(os, make)(folder/'model.safetensors')
    with pytest.raises(ValueError, match='is there, but is no file'): plan('lab/vlm', folder)

def test_an_index_of_two_kinds_is_refused(numbers, tmp_path):
    put_sets(tmp_path, ['model.safetensors.index.json', 'pytorch_model.bin'], numbers)
    (tmp_path/'config.json').write_text(json.dumps(LLAMA))
    index = json.loads((tmp_path/'model.safetensors.index.json').read_text())
    index['weight_map'][EMBEDDING] = 'pytorch_model.bin'
    (tmp_path/'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match='not a plain safetensors file'): Checkpoint.open(tmp_path)

def test_parts_of_a_distributed_checkpoint_are_what_transformers_takes_and_we_refuse(numbers, tmp_path):
    from transformers.distributed.checkpoint import is_sharded_checkpoint
    put_sets(tmp_path, ['model.safetensors'], numbers)
    (tmp_path/'config.json').write_text(json.dumps(LLAMA))
    parts = {'shard-00000-model-00001-of-00001.safetensors': True, 'shard-0-model.safetensors': False}
    for name, part in parts.items():
        (tmp_path/name).write_bytes(b'')
        assert is_sharded_checkpoint(str(tmp_path))==part
        if part:
            with pytest.raises(ValueError, match='distributed'): Checkpoint.open(tmp_path)
        else: assert ours(tmp_path)==1
        (tmp_path/name).unlink()


# What lies beside the weights

LORA = dict(peft_type='LORA', r=2, lora_alpha=2, target_modules=['q_proj'], task_type='CAUSAL_LM',
            base_model_name_or_path='x')

def test_an_adapter_beside_full_weights_is_a_stop_for_everyone(tmp_path, capsys):
    vlm, llm, _ = make_trio('llava', tmp_path/'trio')
    (vlm/'adapter_config.json').write_text(json.dumps(LORA))
    for act in (Checkpoint.open, open_model, lambda v: plan(v, llm), lambda v: diagnose(v, llm),
                lambda v: merge(v, llm, out=tmp_path/'out')):
        with pytest.raises(ValueError, match='adapter_config.json.*peft'): act(vlm)
    assert main(['inspect', str(vlm)])==3 and 'peft' in capsys.readouterr().err
    assert not (tmp_path/'out').exists()

def test_with_peft_transformers_does_act_on_it(numbers, tmp_path):
    "Were it not so, the stop would be needless"
    pytest.importorskip('peft')
    put_sets(tmp_path, ['model.safetensors'], numbers)
    (tmp_path/'config.json').write_text(json.dumps(LLAMA))
    assert ours(tmp_path)==of_transformers(tmp_path)==1
    (tmp_path/'adapter_config.json').write_text(json.dumps(LORA))
    assert of_transformers(tmp_path) is None

LEFT_BEHIND = ('training_args.bin', 'optimizer.pt', 'scheduler.pt', 'rng_state_0.pth', 'pytorch_model.bin',
               'consolidated.safetensors', 'model.fp16.safetensors', 'adapter_model.safetensors',
               'quantize_config.json', 'hf_quant_config.json', 'quant_config.json',
               'lora/adapter_config.json',
               'lora/adapter_model.safetensors', 'onnx/model.onnx', 'original/consolidated.00.pth')

def vlm_of(folder, layout):
    "A VLM whose weights lie as `layout` says, and its numbers as transformers opens them"
    from transformers import AutoModelForImageTextToText
    path, config = folder/'model.safetensors', json.loads((folder/'config.json').read_text())
    state = load_file(path)
    if layout!='single': path.unlink()
    if layout=='bin': torch.save(state, folder/'pytorch_model.bin')
    if layout=='named': save_file(state, folder/'mine.safetensors', metadata=dict(format='pt'))
    if 'index' in layout:
        where = {n: f'part-{i%2}.safetensors' for i, n in enumerate(state)}
        for f in set(where.values()):
            save_file({n: x for n, x in state.items() if where[n]==f}, folder/f, metadata=dict(format='pt'))
        name = 'mine.safetensors.index.json' if 'named' in layout else 'model.safetensors.index.json'
        (folder/name).write_text(json.dumps(dict(metadata={}, weight_map=where)))
    if 'named' in layout:
        named = 'mine.safetensors'+'.index.json'*('index' in layout)
        (folder/'config.json').write_text(json.dumps(config|dict(transformers_weights=named)))
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()

@pytest.mark.parametrize('layout', ['single', 'index', 'bin', 'named', 'named index'])
def test_what_an_untidy_folder_becomes_opens_as_its_model(layout, tmp_path):
    "At weight 1 transformers finds in the output what it finds in the input, and nothing else"
    from transformers import AutoModelForImageTextToText
    vlm, llm, _ = make_trio('llava', tmp_path/'trio')
    right = vlm_of(vlm, layout)
    stale = dict(metadata={}, weight_map={'a': 'gone.safetensors'})
    if layout not in ('index', 'bin'):
        (vlm/'model.safetensors.index.json').write_text(json.dumps(stale))
    for name in LEFT_BEHIND:
        if layout=='bin' and name=='pytorch_model.bin': continue
        (vlm/name).parent.mkdir(exist_ok=True)
        (vlm/name).write_text('{}')
    findings = [str(f) for f in plan(vlm, llm).findings]
    for odd in ' quantize_config.json', ' hf_quant_config.json', ' quant_config.json', 'not read':
        assert sum(odd in f for f in findings)==1, odd
    out = merge(vlm, llm, out=tmp_path/'out', weight=1.)
    assert not [n for n in LEFT_BEHIND if (out/n).exists()]
    there = {p.name for p in out.iterdir() if 'safetensors' in p.name or p.suffix=='.bin'}
    plain = dict(single={'model.safetensors'}, bin={'model.safetensors'}, named={'mine.safetensors'})
    assert there==plain.get(layout, {'part-0.safetensors', 'part-1.safetensors',
                 ('mine' if 'named' in layout else 'model')+'.safetensors.index.json'})
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    for n, x in model.state_dict().items(): assert torch.equal(x, right[n]), n
    assert not Checkpoint.open(out).unread and not plan(out, llm).stops

def test_an_index_without_metadata_becomes_one_that_transformers_reads(tmp_path):
    from transformers import AutoModelForImageTextToText
    vlm, llm, _ = make_trio('llava', tmp_path/'trio')
    vlm_of(vlm, 'index')
    index = vlm/'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map=json.loads(index.read_text())['weight_map'])))
    out = merge(vlm, llm, out=tmp_path/'out')
    assert not AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)[1]['missing_keys']

@pytest.mark.parametrize('entry', [dict(quant_method='gptq', bits=4), {}, 'int4', dict(load_in_4bit=True)])
@pytest.mark.parametrize('inside', [False, True])
def test_left_over_settings_of_a_quantizer_are_told(entry, inside, tmp_path):
    vlm, llm, base = make_trio('llava', tmp_path/'trio')
    config = json.loads((vlm/'config.json').read_text())
    (config['text_config'] if inside else config)['quantization_config'] = entry
    (vlm/'config.json').write_text(json.dumps(config))
    for p in (plan(vlm, llm), plan(vlm, llm, base, method='dare_ties')):
        told = [f for f in p.findings if 'quantization_config' in f.what]
        assert told and not p.stops and {f.level for f in told}=={'warn'}
        assert 'Take the entry out of the merged config.json' in told[0].fix

@pytest.mark.parametrize('dtype', ['F64', 'C64', 'I32', 'U8', 'F8_E4M3'])
def test_no_type_of_number_passes_without_a_word(dtype, tmp_path):
    trio = make_trio('llava', tmp_path/'trio')
    wide = dict(F64=torch.float64, C64=torch.complex64, I32=torch.int32, U8=torch.uint8,
                F8_E4M3=torch.float8_e4m3fn)
    for folder in trio:
        state = {n: x.to(wide[dtype]) if x.is_floating_point() else x
                 for n, x in load_file(folder/'model.safetensors').items()}
        save_file(state, folder/'model.safetensors', metadata=dict(format='pt'))
    findings = plan(trio.vlm, trio.llm, trio.base, method='ties').findings
    if dtype=='F64': assert [f.level for f in findings if 'F64' in f.what and 'float32' in f.fix]==['warn']
    else: assert [f for f in findings if f.level=='stop' and dtype in f.what]


# What is named is what was read

def other_bytes(path):
    "Content of the same length, of which a header stays a header"
    data = bytearray(path.read_bytes())
    if path.suffix=='.safetensors': data[-3] ^= 1
    else: data = data.replace(b'"', b'"', 1)[:-1]+b' '
    return bytes(data)

def keeping_times(path, act):
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    act()
    os.utime(path, ns=times)

def rewritten(path): keeping_times(path, lambda: path.write_bytes(other_bytes(path)))
def replaced(path):
    new = path.with_name('.new')
    new.write_bytes(other_bytes(path))
    keeping_times(path, lambda: os.replace(new, path))
def by_a_link(path):
    new = path.parent.parent/f'elsewhere{path.suffix}'
    new.write_bytes(other_bytes(path))
    keeping_times(path, lambda: (path.unlink(), path.symlink_to(new)))
def with_its_folder(path):
    old = path.parent.rename(path.parent.with_name('old'))
    shutil.copytree(old, path.parent)
    rewritten(path)
def joined_by_an_adapter(path): (path.parent/'adapter_config.json').write_text('{}')
def joined_by_another(path): put(path.parent, 'model', 1, {'x': (1,)}, 'safetensors', 1)
def gone(path): path.unlink()
SWAPS = rewritten, replaced, by_a_link, with_its_folder, joined_by_an_adapter, joined_by_another, gone

def once(act, then):
    "`then`, with `act` before its first call"
    calls = []
    def wrapper(*args, **how):
        if not calls: calls.append(act())
        return then(*args, **how)
    return wrapper

def after(act, then):
    "`then`, with `act` after its first call"
    calls = []
    def wrapper(*args, **how):
        result = then(*args, **how)
        if not calls: calls.append(act())
        return result
    return wrapper

STAGES = dict(opened=('_refuse', once), hashed=('fingerprints', after), planned=('need_room', once),
              reading=('merge_one', after), read=('copy_sides', once), written=('model_card', after))
WHAT = [(who, f) for who in ('vlm', 'llm', 'base') for f in ('model.safetensors', 'config.json')]
WHAT += [('vlm', 'README.md')]

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A trio of a few numbers, to be copied"
    at = tmp_path_factory.mktemp('lab')
    text = dict(model_type='llama', hidden_size=8, num_hidden_layers=2, num_attention_heads=2, rope_theta=1e4)
    sizes = {f'layers.{i}.{n}.weight': s for i in (0, 1) for n, s in
             {'self_attn.q_proj': (8, 8), 'mlp.up_proj': (16, 8), 'input_layernorm': (8,)}.items()}
    sizes['embed_tokens.weight'] = 16, 8
    draw, folders = np.random.default_rng(0), {}
    state = {n: draw.standard_normal(s).astype('f4') for n, s in sizes.items()}
    for who, stem in ('vlm', 'language_model.model.'), ('llm', 'model.'), ('base', 'model.'):
        folders[who] = folder = at/who
        folder.mkdir()
        near = {stem+n: x+.1*draw.standard_normal(x.shape).astype('f4') for n, x in state.items()}
        if who=='vlm': near['vision.w'] = np.ones((4, 4), 'f4')
        (folder/'model.safetensors').write_bytes(save({n: torch.tensor(x) for n, x in near.items()}))
        config = dict(model_type='llava', text_config=text) if who=='vlm' else text
        (folder/'config.json').write_text(json.dumps(config))
        (folder/'tokenizer.json').write_text('{}')
        (folder/'README.md').write_text('---\nlicense: mit\n---\n')
    return folders

@pytest.mark.parametrize('who,name', WHAT)
@pytest.mark.parametrize('stage', STAGES)
def test_whatever_is_swapped_whenever_no_merge_names_what_it_did_not_read(stage, who, name, lab, tmp_path):
    at, wrapped = STAGES[stage]
    for swap in SWAPS if (who, name)==WHAT[0] else SWAPS[:2]:
        here = {w: Path(shutil.copytree(f, tmp_path/swap.__name__/w)) for w, f in lab.items()}
        out, act = tmp_path/swap.__name__/'out', lambda: swap(here[who]/name)
        with patched(room, **{at: wrapped(act, getattr(room, at))}):
            why = 'changed|shorter|cannot be|No such file|points out'
            with pytest.raises((ValueError, FileNotFoundError), match=why):
                merge(*here.values(), method='task_arithmetic', out=out, sha256=True, workers=1)
        assert not out.exists()

def test_an_undisturbed_merge_names_the_hashes_of_what_it_read(lab, tmp_path):
    out = merge(*lab.values(), method='task_arithmetic', out=tmp_path/'out', sha256=True)
    inputs = json.loads((out/'recipe.json').read_text())['inputs']
    for who, folder in lab.items():
        for f, p in inputs[who]['files'].items():
            assert p['sha256']==hashlib.sha256((folder/f).read_bytes()).hexdigest()

def test_a_blob_of_the_hub_that_was_written_to_is_hashed_when_asked(lab, tmp_path):
    blob = tmp_path/'blobs'/('0'*64)
    blob.parent.mkdir()
    folder = Path(shutil.copytree(lab['vlm'], tmp_path/'snapshots'/'x'))
    (folder/'model.safetensors').rename(blob)
    (folder/'model.safetensors').symlink_to(blob)
    prints = {full: room.fingerprints(Checkpoint.open(folder), full) for full in (0, 1)}
    said = {full: p['model.safetensors']['sha256'] for full, p in prints.items()}
    assert said=={0: '0'*64, 1: hashlib.sha256(blob.read_bytes()).hexdigest()}

OPENING = dict(opened=('_from_pretrained', once), loaded=('_from_pretrained', after),
               hashed=('weights_hash', once))
ASKED = 'model.safetensors', 'config.json', 'tokenizer.json', 'chat_template.jinja'
@pytest.mark.parametrize('name', ASKED)
@pytest.mark.parametrize('stage', OPENING)
def test_the_model_that_is_opened_is_the_model_that_is_hashed(stage, name, tmp_path):
    at, wrapped = OPENING[stage]
    for swap in SWAPS if name=='model.safetensors' else SWAPS[:1]:
        folder = Path(shutil.copytree(lab_folder()/'vlm', tmp_path/swap.__name__/'vlm'))
        assert (folder/name).is_file()
        with patched(opening, **{at: wrapped(lambda: swap(folder/name), getattr(opening, at))}):
            why = 'changed|cannot be|No such file|no chat template'
            with pytest.raises((ValueError, FileNotFoundError), match=why):
                open_model(folder, device='cpu')

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_file_that_is_written_to_changes_no_open_model(dtype, tmp_path):
    folder = Path(shutil.copytree(lab_folder()/'vlm', tmp_path/'vlm'))
    asker, path = open_model(folder, device='cpu', dtype=dtype), folder/'model.safetensors'
    before = {n: x.clone() for n, x in asker.model.state_dict().items()}
    n = int.from_bytes(path.read_bytes()[:8], 'little')
    with open(path, 'r+b') as f: f.seek(8+n); f.write(bytes(path.stat().st_size-8-n))
    for n, x in asker.model.state_dict().items(): assert torch.equal(x, before[n]), n
    assert asker.model.get_input_embeddings().weight is not None

def test_a_diagnosis_of_files_that_change_is_none(lab, tmp_path):
    for swap, diagnosed in itertools.product(SWAPS[:4], (diagnose, weight_stats)):
        at = tmp_path/f'{swap.__name__} {diagnosed.__name__}'
        here = {w: Path(shutil.copytree(f, at/w)) for w, f in lab.items()}
        act = lambda: swap(here['llm']/'model.safetensors')
        with patched(probing_weights, _rows_of=once(act, probing_weights._rows_of)):
            with pytest.raises(ValueError, match='changed'): diagnosed(*here.values())

def test_a_sweep_of_other_weights_than_it_names_is_none(lab, tmp_path):
    from vlm_merging.probing import sweep as sweeping
    from vlm_merging.benchmarks.load import load
    here = {w: Path(shutil.copytree(lab_folder()/w, tmp_path/w)) for w in ('vlm', 'llm')}
    items = load('lab', n=2)
    how = dict(weights=[.5], items=items, max_new_tokens=2, device='cpu')
    first = sweeping.sweep(*here.values(), out=tmp_path/'out', **how).table
    for who in here:
        for f in list((tmp_path/'out'/'parts').iterdir()): f.unlink()
        original = sweeping.open_mixer
        opened = once(lambda: rewritten_inside(here[who]/'model.safetensors'), original)
        opened.cache_clear = original.cache_clear
        with patched(sweeping, open_mixer=opened), pytest.raises(ValueError, match='not what it was'):
            sweeping.sweep(*here.values(), out=tmp_path/'out', **how)
        shutil.rmtree(here[who]); shutil.copytree(lab_folder()/who, here[who])
    assert sweeping.sweep(*here.values(), out=tmp_path/'out', **how).table.equals(first)

def rewritten_inside(path):
    "Other numbers throughout, so that samples differ too"
    data = path.read_bytes()
    n = 8+int.from_bytes(data[:8], 'little')
    path.write_bytes(data[:n]+bytes(b^1 for b in data[n:]))

def test_a_mixture_stays_with_the_models_that_were_opened(tmp_path):
    from vlm_merging.merging.recipe import Recipe
    from vlm_merging.probing.mixing import Mixer
    here = {w: Path(shutil.copytree(lab_folder()/w, tmp_path/w)) for w in ('vlm', 'llm')}
    mixer = Mixer(open_model(here['vlm'], device='cpu'), Recipe(*here.values()))
    assert mixer.others['llm']==weights_hash(Checkpoint.open(here['llm']))
    mixer.mix(knobs=dict(weight=.5))
    rewritten(here['llm']/'model.safetensors')
    with pytest.raises(ValueError, match='changed'): mixer.mix(knobs=dict(weight=.6))

def test_a_probe_of_another_model_than_it_names_is_none(tmp_path):
    from vlm_merging.probing import probe as probing
    from vlm_merging.benchmarks.load import load
    folder = Path(shutil.copytree(lab_folder()/'vlm', tmp_path/'vlm'))
    original = probing.probe_part
    def part(*args):
        probing.opened_once.cache_clear()           # As in a worker on another machine
        return original(*args)
    how = dict(parts=('layer',), layers='0', max_new_tokens=2, device='cpu')
    probing_folder = lambda: probing.probe_folder({'vlm': folder}, load('lab', n=2), tmp_path/'out', **how)
    with patched(probing, probe_part=once(lambda: rewritten_inside(folder/'model.safetensors'), part)):
        with pytest.raises(ValueError, match='not what it was'): probing_folder()
    shutil.rmtree(folder); shutil.copytree(lab_folder()/'vlm', folder)
    with patched(probing, probe_part=part): assert probing_folder().height
    named = json.loads((tmp_path/'out'/'run.json').read_text())
    assert [p.name for p in (tmp_path/'out'/'parts').iterdir()]==[
        f'vlm-{weights_hash(Checkpoint.open(folder))[:8]}-0000.parquet'], named

def test_stamps_see_a_write_in_the_same_tick(tmp_path):
    (tmp_path/'config.json').write_text('{}')
    for i in range(40):
        path = tmp_path/'a'
        path.write_bytes(bytes(8))
        before = take_stamps(tmp_path)
        path.write_bytes(bytes([i%255+1])*8)
        assert headers.changed_files(tmp_path, before)==['a']

@pytest.mark.parametrize('text', ['[1]', '{', '{"recipe": 3}', '\\ud800'])
def test_a_strange_recipe_in_a_folder_is_a_sentence_or_nothing(text, tmp_path, call):
    folder = Path(shutil.copytree(lab_folder()/'vlm', tmp_path/'vlm'))
    (folder/'recipe.json').write_text(text)
    for act in (lambda: weights_hash(Checkpoint.open(folder)), lambda: open_model(folder, device='cpu')):
        try: act()
        except ValueError as e: assert 'recipe.json cannot be read' in str(e)
    code, out, errors = call('inspect', folder)
    assert 'Traceback' not in errors and code in (0, 3)

def test_hidden_files_and_folders_do_not_count(lab, tmp_path):
    folder = Path(shutil.copytree(lab['vlm'], tmp_path/'vlm'))
    opened = Checkpoint.open(folder)
    (folder/'.cache').write_text('')
    (folder/'runs').mkdir()
    refuse_changed(opened)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match='changed'): refuse_changed(opened)
