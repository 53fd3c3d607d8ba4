"What others plant is not followed, what is written is on disk, what cannot be read is named, on any system"
import builtins, contextlib, errno, json, os, shutil, signal, stat, subprocess, sys
from pathlib import Path

import polars as pl
import pytest
from test_faults import (Die, LEFT, a_sentence, context, files, names, patched, refused, resumed, watched,
                         write_trio)
from vlm_merging.asking.ask import ask
from vlm_merging.asking.jobs import carry_out
from vlm_merging.benchmarks.load import load
from vlm_merging.benchmarks.prepare import prepare, prepared
from vlm_merging.checkpoints import disk, headers, identity, writer
from vlm_merging.cli.files import write_table
from vlm_merging.cli.main import main
from vlm_merging.merging import merge as room
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan
from vlm_merging.merging.recipe import Recipe
from vlm_merging.probing.mixing import Mixer

THESIS = 'three years of work'

@pytest.fixture(autouse=True)
def note_each_piece(monkeypatch): monkeypatch.setattr(writer, 'FLUSH', 1)

@pytest.fixture
def thesis(tmp_path):
    "A file of the user's, which nobody may change"
    path = tmp_path/'thesis'
    path.write_text(THESIS)
    yield path
    assert path.read_text()==THESIS

@pytest.fixture
def out(tmp_path):
    (tmp_path/'there').mkdir()
    return tmp_path/'there'/'out'

def asker(item): return f'The answer is {item.id}.'

def asked(out, n=3): return ask(asker, load('lab', n=n), out=out, run='asker', progress=False)

def square(n): return pl.DataFrame(dict(n=[n], square=[n*n]))

def squares(out):
    return carry_out(square, {f'part-{n}': (n,) for n in range(3)}, out, dict(what='squares'), progress=False)

def mirror(folder):
    "A table of a benchmark, and another one"
    folder.mkdir(parents=True, exist_ok=True)
    text = 'index\tquestion\tanswer\timage\n'+''.join(f'{i}\tHow many?\t{i}\t{"A"*200}\n' for i in range(4))
    for name in 'MathVista_MINI.tsv', 'MathVista.tsv': (folder/name).write_text(text)
    return folder


# Where others may write

def test_a_draft_of_another_user_is_refused(tmp_path, thesis, out):
    if not hasattr(os, 'chown') or os.geteuid(): pytest.skip('needs the right to give files away')
    recipe, draft = write_trio(tmp_path), out.with_name('.out.draft')
    draft.mkdir()
    (draft/'.key').symlink_to(thesis)
    os.chown(draft, 1234, 1234)
    refused(recipe, out, 'belongs to another user')
    assert [p.name for p in draft.iterdir()]==['.key']
    old = out.with_name('.out.old')                    # and one that would become the result
    old.mkdir()
    (old/'recipe.json').write_text('{}')
    os.chown(old, 1234, 1234)
    shutil.rmtree(draft)
    merge(recipe, out=out)
    assert (old/'recipe.json').read_text()=='{}' and (out/'config.json').exists()

def test_where_all_files_seem_to_be_of_another_user(tmp_path, out, monkeypatch):
    "As on a network disk: a draft of ours is gone on with all the same"
    recipe = write_trio(tmp_path)
    def stop(*_): raise KeyboardInterrupt
    with patched(room, copy_sides=stop), pytest.raises(KeyboardInterrupt): merge(recipe, out=out)
    monkeypatch.setattr(os, 'geteuid', lambda: 4321)
    assert resumed(recipe, out)==0

@pytest.mark.parametrize('kind', ['link', 'second name'])
def test_a_draft_that_was_open_to_others_is_not_trusted(kind, tmp_path, thesis, out):
    recipe, draft = write_trio(tmp_path), out.with_name('.out.draft')
    right = files(merge(recipe, out=out))
    shutil.rmtree(out)
    draft.mkdir()
    draft.chmod(0o777)
    (draft/'code').symlink_to(tmp_path)
    for name in (*right, '.key', '.journal', 'model.safetensors.part', '.mode'):
        with contextlib.suppress(FileExistsError):
            if kind=='link': (draft/name).symlink_to(thesis)
            else: os.link(thesis, draft/name)
    out.with_name('.out.lock').symlink_to(thesis)
    with pytest.raises(ValueError, match='in the way of a lock'): merge(recipe, out=out)
    out.with_name('.out.lock').unlink()
    merge(recipe, out=out)
    assert files(out)==right and not any(p.is_symlink() for p in out.rglob('*'))
    assert stat.S_IMODE(out.stat().st_mode)==stat.S_IMODE(out.parent.stat().st_mode)

def test_a_draft_is_closed_to_others_while_it_is_worked_in(tmp_path, out):
    modes = []
    def look(src, dst): modes.append(stat.S_IMODE(dst.stat().st_mode))
    with patched(room, copy_sides=look): merge(write_trio(tmp_path), out=out)
    assert modes==[0o700]

@pytest.mark.parametrize('kind', ['link', 'second name'])
def test_no_file_of_a_run_is_a_way_out(kind, tmp_path, thesis):
    "Whatever name a run gives to a file may stand there already, as a way to another one"
    def plant(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(thesis) if kind=='link' else os.link(thesis, path)
    work = dict(asked=asked, squares=squares)
    for what, do in work.items():
        do(tmp_path/what)
        (tmp_path/what/'replies.torn').touch()
        written = [p.relative_to(tmp_path/what) for p in (tmp_path/what).rglob('*') if p.is_file()]
        assert len(written)>3
        for n, name in enumerate([*written, Path('.run.json.part'), Path('failures.jsonl')]):
            folder = tmp_path/f'{what}-{n}'
            do(folder)
            (folder/name).unlink(missing_ok=True)
            if name.name=='replies.torn': (folder/'replies.jsonl').open('a').write('{"torn')
            plant(folder/name)
            with contextlib.suppress(ValueError, LookupError): do(folder)
            assert thesis.read_text()==THESIS, (what, name)

def test_a_folder_of_parts_that_leads_elsewhere(tmp_path):
    squares(tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'parts')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'part-0.parquet').write_text(THESIS)
    (tmp_path/'run'/'parts').symlink_to(tmp_path/'mine')
    with pytest.raises(ValueError, match='is a link') as e: squares(tmp_path/'run')
    a_sentence(str(e.value))
    assert (tmp_path/'mine'/'part-0.parquet').read_text()==THESIS

def test_tables_recipes_and_benchmarks_follow_no_link(tmp_path, thesis):
    for name in 'table.csv', 'table.parquet', 'table.jsonl', 'recipe.json': (tmp_path/name).symlink_to(thesis)
    for name in 'table.csv', 'table.parquet', 'table.jsonl': write_table(square(3), tmp_path/name)
    Recipe('a', 'b').write(tmp_path/'recipe.json')
    assert not any(p.is_symlink() for p in tmp_path.iterdir())
    here = tmp_path/'data'/'MathVista'
    here.mkdir(parents=True)
    for name in '.prepared.json.part', 'prepared.json.part', 'MathVista_MINI.tsv':
        (here/name).symlink_to(thesis)
    prepare('MathVista', tmp_path/'data', source=mirror(tmp_path/'m'))
    assert len(load('MathVista', folder=tmp_path/'data'))==4
    (tmp_path/'m'/'below').mkdir()
    shutil.move(tmp_path/'m'/'MathVista_MINI.tsv', tmp_path/'m'/'below')
    (tmp_path/'elsewhere').mkdir()
    (here/'below').symlink_to(tmp_path/'elsewhere')
    with pytest.raises(ValueError, match='leads out of'):
        prepare('MathVista', tmp_path/'data', source=tmp_path/'m')
    assert not any((tmp_path/'elsewhere').iterdir())


# On disk before it counts

class Disk:
    "What a power cut would leave: names whose bytes were not flushed, and folders whose names were not"
    def __init__(self, root): self.root, self.synced, self.loose, self.unsafe = root, {}, set(), []
    def __call__(self, n, name, call, args):
        if name=='fsync':
            info = os.fstat(args[0])
            if stat.S_ISDIR(info.st_mode): self.loose.discard(info.st_ino)
            else: self.synced[info.st_ino] = info.st_size, info.st_mtime_ns
        elif name in ('mkdir', 'rename', 'replace', 'link'):
            to = Path(args[-1] if name!='mkdir' else args[0])
            if not to.absolute().is_relative_to(self.root) or to.name=='.mode': return
            if name=='mkdir' and (to.exists() or not to.parent.exists()): return
            if name in ('rename', 'replace') and (src := Path(args[0])).is_file():
                info = src.stat()
                if self.synced.get(info.st_ino)!=(info.st_size, info.st_mtime_ns): self.unsafe.append(to.name)
            self.loose.add(to.parent.stat().st_ino)
    def check(self):
        assert self.unsafe==[], 'a file got its name before its bytes were on disk'
        inside = {p.stat().st_ino: p for p in (self.root, *self.root.rglob('*')) if p.is_dir()}
        assert [inside[i] for i in self.loose if i in inside]==[], 'names in these folders were not flushed'

WRITES = dict(
    merge=lambda p: merge(write_trio(p/'w', shards=3), out=p/'out'), ask=lambda p: asked(p/'a'/'run'),
    parts=lambda p: squares(p/'b'/'run'), table=lambda p: write_table(square(3), p/'table.parquet'),
    recipe=lambda p: Recipe('a', 'b').write(p/'recipe.json'),
    copied=lambda p: prepare('MathVista', p/'data', source=mirror(p/'m')),
    linked=lambda p: from_hub(p))

def from_hub(p):
    from vlm_merging.benchmarks import prepare as preparing
    with patched(preparing, _from_hub=lambda *_: mirror(p/'snapshots'/('c'*40))):
        prepare('MathVista', p/'data')

@pytest.mark.parametrize('what', WRITES)
def test_everything_is_on_disk_when_it_counts(what, tmp_path):
    write_trio(tmp_path/'w', shards=3) if what=='merge' else mirror(tmp_path/'m')
    if what=='linked': mirror(tmp_path/'snapshots'/('c'*40))
    seen = Disk(tmp_path)
    do = (lambda p: merge(again, out=p/'out')) if what=='merge' else WRITES[what]
    again = Recipe(*(tmp_path/'w'/'in'/w for w in ('vlm', 'llm', 'base')), method='dare_ties')
    with watched(seen, ['fsync', 'mkdir', 'rename', 'replace', 'link']): do(tmp_path)
    seen.check()

def test_old_pieces_are_gone_from_the_disk_before_a_draft_has_a_new_key(tmp_path):
    draft, seen = tmp_path/'.out.draft', []
    draft.mkdir(0o700)
    writer._begin(draft, 'recipe A')
    for name in 'model.safetensors.part', writer.JOURNAL: (draft/name).write_text('of recipe A')
    def note(n, name, call, args):
        is_folder = name=='fsync' and stat.S_ISDIR(os.fstat(args[0]).st_mode)
        seen.append('flushed' if is_folder else name if name!='replace' else Path(args[1]).name)
    with watched(note, ['fsync', 'unlink', 'replace']): writer._begin(draft, 'recipe B')
    last = max(i for i, s in enumerate(seen) if s=='unlink')
    assert 'flushed' in seen[last:seen.index(writer.KEY)]

def preparing(source, folder, act):
    with watched(act): prepare('MathVista', folder, source=source)

def test_a_killed_prepare_leaves_nothing_for_ever(tmp_path):
    source = mirror(tmp_path/'m')
    with watched(lambda *_: None) as seen: prepare('MathVista', tmp_path/'first', source=source)
    right, left = files(tmp_path/'first'), 0
    for n in range(1, len(seen)+1):
        folder = tmp_path/f'{n}'
        process = context.Process(target=preparing, args=(source, folder, Die(n)))
        process.start(); process.join()
        assert process.exitcode==-signal.SIGKILL
        left += any(p.name.endswith('.part') for p in folder.rglob('*'))
        prepare('MathVista', folder, source=source)
        assert files(folder)==right and len(load('MathVista', folder=folder))==4, n
    assert left>2

def test_two_prepare_at_once(tmp_path):
    source = mirror(tmp_path/'m')
    both = [context.Process(target=preparing, args=(source, tmp_path/'data', linger)) for _ in range(3)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both]==[0, 0, 0] and len(load('MathVista', folder=tmp_path/'data'))==4

def linger(n, name, *_):
    import time
    if name=='replace': time.sleep(.05)

@pytest.mark.parametrize('harm', [lambda p: os.truncate(p, 0), lambda p: os.truncate(p, 100),
                                  lambda p: p.write_bytes(bytes(p.stat().st_size))],
                         ids=['empty', 'cut', 'zeros'])
def test_a_prepared_file_that_is_not_what_it_was(harm, tmp_path, call):
    source = mirror(tmp_path/'m')
    out = prepare('MathVista', tmp_path/'data', source=source)
    harm(out/'MathVista_MINI.tsv')
    for read in prepared, load:
        with pytest.raises(ValueError, match='MathVista_MINI.tsv is not what was prepared') as e:
            read('MathVista', folder=tmp_path/'data')
        a_sentence(str(e.value))
    prepare('MathVista', tmp_path/'data', source=source)
    assert len(load('MathVista', folder=tmp_path/'data'))==4

@pytest.mark.parametrize('note', [{'p':3}, {'p':{}}, {'p':dict(files=3)}, {'p':dict(files={'a':{}})}])
def test_a_note_of_another_shape(note, tmp_path):
    (tmp_path/'MathVista').mkdir()
    (tmp_path/'MathVista'/'prepared.json').write_text(json.dumps(dict(patterns=note)))
    with pytest.raises(ValueError, match='Delete it and prepare again'):
        prepared('MathVista', folder=tmp_path)

def test_leftovers_of_killed_runs_are_taken_away(tmp_path):
    asked(tmp_path/'run')
    for name in '.run.json.0123.part', '.replies.jsonl.9.part': (tmp_path/'run'/name).write_text('half')
    (tmp_path/'run'/'parts').mkdir()
    (tmp_path/'run'/'parts'/'.part-1.parquet.77.part').write_text('half')
    asked(tmp_path/'run')
    assert not list((tmp_path/'run').rglob('*.part'))


# Refused before anything is written

def test_a_side_file_that_leads_elsewhere_is_refused_by_the_plan(tmp_path, thesis, out):
    recipe = write_trio(tmp_path)
    (Path(recipe.vlm)/'words.txt').symlink_to(thesis)
    (found,) = plan(recipe).stops
    assert 'words.txt points out of its folder' in found.what and found.fix.startswith('Replace it')
    with patched(room, write_shards=None): refused(recipe, out, 'points out of its folder')

def test_a_side_link_does_not_matter_in_memory(tmp_path):
    from vlm_merging.asking.opening import open_model
    from vlm_merging.lab.trio import lab_folder
    (tmp_path/'tokenizer').mkdir()
    vlm = shutil.copytree(lab_folder()/'vlm', tmp_path/'vlm')
    shutil.move(vlm/'tokenizer.json', tmp_path/'tokenizer')
    (vlm/'tokenizer.json').symlink_to(tmp_path/'tokenizer'/'tokenizer.json')
    recipe = Recipe(vlm, lab_folder()/'llm')
    assert plan(recipe).stops
    Mixer(open_model(vlm), recipe).restore()

def test_a_target_that_cannot_be_is_refused_before_inputs_are_read(tmp_path, out):
    recipe = write_trio(tmp_path)
    with patched(room, fingerprints=None):
        for to in tmp_path/'nowhere'/'out', out.parent:
            with pytest.raises(ValueError, match='not a folder|already there'):
                merge(recipe, out=to, sha256=True)

def test_a_late_refusal_keeps_what_is_done(tmp_path, thesis, out):
    recipe, sides = write_trio(tmp_path), room.copy_sides
    right = files(merge(recipe, out=out))
    shutil.rmtree(out)
    def meanwhile(*args):
        (Path(recipe.vlm)/'late.json').symlink_to(thesis)
        sides(*args)
    with patched(room, copy_sides=meanwhile), pytest.raises(ValueError, match='points out.*is kept in'):
        merge(recipe, out=out)
    assert names(out.parent)=={*LEFT}
    (Path(recipe.vlm)/'late.json').unlink()
    assert resumed(recipe, out)==0 and files(out)==right


# Which disk is bad?

def bad_sector(*_): raise OSError(errno.EIO, os.strerror(errno.EIO))

class BadFile:
    "An open file of which nothing can be read"
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __getattr__(self, name): return bad_sector if name=='read' else getattr(self.file, name)

def opens_badly(where, bad):
    "`open` in some modules gives a file that cannot be read"
    def opening(path, *args, **kw):
        file = builtins.open(path, *args, **kw)
        return BadFile(file) if str(path).endswith(bad) else file
    return [opens_by(o, opening) for o in where]

@contextlib.contextmanager
def opens_by(where, opening):
    where.open = opening
    try: yield
    finally: del where.open

@pytest.mark.parametrize('who', ['vlm', 'llm', 'base'])
def test_an_input_that_cannot_be_read_is_named(who, tmp_path, out):
    recipe, read = write_trio(tmp_path), os.preadv
    right = files(merge(recipe, out=out))
    shutil.rmtree(out)
    bad = (tmp_path/'in'/who/'model.safetensors').stat().st_ino
    def reading(fd, views, at):
        if os.fstat(fd).st_ino==bad and out.with_name('.out.draft').exists(): bad_sector()
        return read(fd, views, at)
    with patched(os, preadv=reading, copy_file_range=bad_sector), pytest.raises(OSError) as e:
        merge(recipe, out=out)
    said = e.value.strerror
    assert f'Input/output error while reading {tmp_path}/in/{who}/model.safetensors' in said, said
    assert 'writing' not in said and 'is kept in' in said and names(out.parent)=={*LEFT}
    merge(recipe, out=out)
    assert files(out)==right

def test_a_disk_that_cannot_be_written_is_still_told_as_such(tmp_path, out):
    with patched(os, pwrite=bad_sector), pytest.raises(OSError, match='output error while writing .*out'):
        merge(write_trio(tmp_path), out=out)

@pytest.mark.parametrize('bad', ['config.json', 'vlm/model.safetensors', 'chat_template.jinja'])
def test_headers_settings_and_side_files_that_cannot_be_read(bad, tmp_path, out):
    recipe = write_trio(tmp_path)
    with contextlib.ExitStack() as stack:
        for o in opens_badly((headers, identity, disk), bad): stack.enter_context(o)
        read = lambda p: bad_sector() if p.name==bad else read_bytes(p)
        stack.enter_context(patched(Path, read_bytes=read))
        with pytest.raises(OSError, match=f'Input/output error while reading .*{bad}'): merge(recipe, out=out)
    merge(recipe, out=out)
read_bytes = Path.read_bytes

def test_a_source_or_a_run_that_cannot_be_read(tmp_path, capsys):
    source = mirror(tmp_path/'m')
    with contextlib.ExitStack() as stack:
        for o in opens_badly([disk], 'MathVista_MINI.tsv'): stack.enter_context(o)
        with pytest.raises(OSError, match='while reading .*m/MathVista_MINI.tsv'):
            prepare('MathVista', tmp_path/'data', source=source)
    asked(tmp_path/'run')
    read = Path.read_bytes
    for name in 'run.json', 'replies.jsonl':
        def of_one(path, name=name): return (bad_sector if path.name==name else read)(path)
        with patched(Path, read_bytes=of_one):
            with pytest.raises(OSError, match=f'while reading .*{name}'): asked(tmp_path/'run')
    (tmp_path/'t.jsonl').write_text('{"question": "How many?"}\n')
    from vlm_merging.benchmarks import tables
    class Bad(BadFile):
        def __iter__(self): bad_sector()
    with opens_by(tables, lambda p, *a, **k: Bad(builtins.open(p, *a, **k))):
        table, to = str(tmp_path/'t.jsonl'), str(tmp_path/'r')
        assert main(['ask', '--model', 'lab/vlm', '--benchmark', table, '--out', to])==1
    assert f'Input/output error while reading {tmp_path}/t.jsonl.' in capsys.readouterr().err

def test_an_input_that_ends_early(tmp_path, out):
    "Truncated between the plan and the reading of it: in what is sampled, hashed, copied or merged"
    recipe, plans = write_trio(tmp_path), room.plan
    def meanwhile(*args, **how):
        planned = plans(*args, **how)
        os.truncate(Path(recipe.llm)/'model.safetensors', 3000)
        return planned
    with patched(room, plan=meanwhile), pytest.raises(ValueError, match='became shorter|changed'):
        merge(recipe, out=out)
    assert not names(out.parent)


# A full disk

def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

@pytest.mark.parametrize('do', [asked, squares, lambda p: write_table(square(1), p.with_suffix('.csv'))],
                         ids=['ask', 'parts', 'table'])
def test_a_full_disk_is_told_with_the_folder_and_what_is_free(do, tmp_path):
    for call in ('write', 'fsync', 'replace') if do is asked else ('fsync', 'replace'):
        with patched(os, **{call: full}), pytest.raises(OSError) as e: do(tmp_path/'run')
        assert 'No space left on device while writing' in str(e.value) and str(tmp_path) in str(e.value)
        assert 'MB are free' in str(e.value)
        assert not list(tmp_path.rglob('.*.part'))
        if call!='write': do(tmp_path/'run')
        shutil.rmtree(tmp_path/'run', ignore_errors=True)

def test_a_full_disk_says_how_much_is_missing(tmp_path, out):
    recipe, usage = write_trio(tmp_path), shutil.disk_usage
    def fill(*_): shutil.disk_usage = lambda p: usage(tmp_path)._replace(free=1000)
    try:
        with patched(room, need_room=fill), patched(os, pwrite=full):
            with pytest.raises(OSError, match='kB are missing'): merge(recipe, out=out)
    finally: shutil.disk_usage = usage


# Other systems

LACKING = {
    'a read or write at a place': ['preadv', 'pwritev', 'pread', 'pwrite'],
    'copies in the kernel': ['copy_file_range', 'sendfile'], 'users': ['geteuid', 'getuid', 'chown'],
    'hints': ['posix_fadvise', 'posix_fallocate', 'sched_getaffinity'],
    'second names': ['link'], 'flags': ['O_NOFOLLOW', 'O_DIRECTORY', 'O_CLOEXEC']}

def closed_folders(path, flags, *args, opens=os.open, **kw):
    "As Windows does it: a folder is nothing that can be opened"
    if os.path.isdir(path): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    return opens(path, flags, *args, **kw)

def do_all(folder):
    "Merge the lab, ask, make parts, prepare, write tables: hashes of all that holds no times"
    folder.mkdir()
    merge('lab/vlm', 'lab/llm', out=folder/'merged', weight=.6, progress=False)
    asked(folder/'run')
    asked(folder/'run', 5)
    squares(folder/'parts')
    from_hub(folder)
    write_table(square(3), folder/'table.csv')
    Recipe('a', 'b').write(folder/'recipe.json')
    assert not [p for p in folder.rglob('*') if p.name.endswith(('.part', '.draft', '.out.lock'))]
    timed = 'run.json', '.lock', 'replies.jsonl'
    return {f: sha for f, sha in files(folder).items() if Path(f).name not in timed}

@pytest.fixture(scope='module')
def usual(tmp_path_factory): return do_all(tmp_path_factory.mktemp('usual')/'all')

@pytest.mark.parametrize('what', [*LACKING, 'open folders'])
def test_a_system_without(what, usual, tmp_path, monkeypatch):
    for name in LACKING.get(what, ()): monkeypatch.delattr(os, name, raising=False)
    if what=='open folders': monkeypatch.setattr(os, 'open', closed_folders)
    assert do_all(tmp_path/'all')==usual

BARE = """
import os, signal, sys, warnings
for name in 'fcntl', 'resource', 'termios', 'pwd', 'grp': sys.modules[name] = None
sys.path.insert(0, 'tests')
for name in {gone}: vars(os).pop(name, None)
for name in 'setitimer', 'SIGALRM': vars(signal).pop(name, None)
import ctypes
library = ctypes.CDLL
def no_library(name, *args, **kw):
    if name is None: raise TypeError('a name is needed')
    return library(name, *args, **kw)
ctypes.CDLL = no_library
warnings.filterwarnings('error', category=EncodingWarning, module=r'vlm_merging\\.')
import json
from pathlib import Path
from types import SimpleNamespace
try: import pytest
except Exception: raise
import test_disk
os.open = test_disk.closed_folders
print(json.dumps(test_disk.do_all(Path(sys.argv[1]))))
"""

def test_a_system_that_lacks_all_of_it(usual, tmp_path):
    "In a process in which it was never there, and where no text is written in the code of the country"
    code = BARE.format(gone=repr([n for some in LACKING.values() for n in some]))
    here = Path(__file__).resolve().parent.parent
    argv = [sys.executable, '-X', 'warn_default_encoding', '-c', code, str(tmp_path/'all')]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True,
                          env=os.environ|dict(PYTHONPATH=str(here)))
    assert done.returncode==0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])==usual

def test_names_that_every_system_can_hold(tmp_path):
    "No name that the package gives is one that Windows forbids, and none differs from another by case alone"
    do_all(tmp_path/'all')
    paths = [p.relative_to(tmp_path) for p in (tmp_path/'all').rglob('*')]
    for p in paths:
        stem = p.name.split('.')[0].upper()
        assert not set('<>:"/\\|?*') & set(p.name) and p.name[-1] not in '. ', p
        ports = {f'{d}{i}' for d in ('COM', 'LPT') for i in range(10)}
        assert stem not in {'CON', 'PRN', 'AUX', 'NUL', *ports}, p
    assert len({str(p).lower() for p in paths})==len(paths)
