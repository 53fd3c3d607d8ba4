"Pictures from anywhere: five formats, of bounded size; whatever fails is one item with its reason"
import base64, io, json, os, runpy, struct, subprocess, sys, warnings, zipfile, zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageOps
from vlm_merging.asking.ask import ask
from vlm_merging.asking.wire import data_url
from vlm_merging.asking.folder import read_lines
from vlm_merging.asking.models import Reply, decode_picture, picture_size
from vlm_merging.asking.opening import open_model
from vlm_merging.benchmarks.items import Item
from vlm_merging.benchmarks.load import load
from vlm_merging.benchmarks.pictures import HEAVIEST, PIXELS, Picture, opened_picture
from vlm_merging.widgets.panels import picture_html

rough = runpy.run_path(str(Path(__file__).parent/'bench'/'rough_pictures.py'))

def file_of(image, kind='PNG', **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()

def chunk(kind, body): return struct.pack('>I', len(body))+kind+body+struct.pack('>I', zlib.crc32(kind+body))

def png(width, height, *chunks, data=b'\0'*64):
    "A PNG that claims to be of a size, whatever is in it"
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    ends = chunk(b'IDAT', zlib.compress(data))+chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+b''.join(chunks)+ends

RED = file_of(Image.new('RGB', (8, 6), 'red'))

def layers(n):
    "A progressive JPEG with its last layer n times"
    data = file_of(Image.effect_noise((64, 64), 50), 'JPEG', progressive=True)
    return data[:-2]+data[data.rindex(b'\xff\xda'):-2]*n+data[-2:]

HOSTILE = dict(
    postscript=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n',
    dds=b'DDS '+struct.pack('<I', 124)+bytes(120), tiff=file_of(Image.new('I;16', (4, 4), 9), 'TIFF'),
    ppm=b'P6 4 4 255\n'+bytes(48), huge=png(13_000, 13_000), tall=png(1, 60_000_000), strip=png(1, 40_000),
    short=png(5_000, 5_000), endless=png(2**31-1, 2**31-1), nothing=png(0, 0),
    text=png(4, 4, chunk(b'zTXt', b'k\0\0'+zlib.compress(bytes(10**8)))),
    profile=png(4, 4, chunk(b'iCCP', b'x\0\0'+zlib.compress(bytes(10**8)))), layers=layers(2_000),
    svg=b'<svg onload="alert(1)"/>', empty=b'', cut=RED[:50],
    gif=b'GIF89a'+struct.pack('<HH', 65_535, 65_535)+bytes(9),
    bmp=b'BM'+struct.pack('<IIIIiiHH', 99, 0, 54, 40, 6_000, 6_000, 1, 24)+bytes(24),
    webp=b'RIFF\x20\0\0\0WEBPVP8X'+b'\xff'*20)

@pytest.mark.parametrize('name', HOSTILE)
def test_no_picture_is_more_than_one_sentence(name):
    picture = Picture(HOSTILE[name], 'mine.csv row 3')
    for use in (picture.open, picture.thumbnail, lambda: decode_picture(picture), lambda: data_url(picture)):
        with pytest.raises(ValueError) as e: use()
        assert str(e.value).startswith('mine.csv row 3: the image cannot be decoded (')
        assert len(str(e.value))<250
        assert ' at 0x' not in str(e.value) and '\n' not in str(e.value)
    assert picture._repr_png_() is None and '<img' not in str(picture_html(picture))
    assert 'mine.csv row 3' in Item('1', '?', images=(picture,))._repr_html_()
    try: picture_size(picture)                              # Where the header is sound it may be known
    except ValueError: pass

def test_a_small_file_takes_little_memory():
    "Of a picture of 169 million pixels, and of text chunks of 100 MB, nothing is decoded"
    code = ("import sys, resource; sys.path.insert(0, 'tests'); import test_pictures as t\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "for name in 'huge tall strip endless text profile gif webp layers'.split():\n"
            "    try: t.Picture(t.HOSTILE[name]).open()\n"
            "    except ValueError: pass\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)//1024)")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                         check=True, cwd=Path(__file__).parent.parent)
    assert int(out.stdout)<120

@pytest.mark.parametrize('trouble', [
    NotImplementedError('DDS'), RuntimeError(''), MemoryError(), RecursionError('deep'), KeyError('x'),
    struct.error('unpack'), subprocess.CalledProcessError(1, 'gs'), OSError(5, 'gone'),
    Image.DecompressionBombWarning('large')])
def test_whatever_a_decoder_raises(monkeypatch, trouble):
    def load(self): raise trouble
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', load)
    with pytest.raises(ValueError, match='row 7: the image cannot be decoded'): Picture(RED, 'row 7').open()
    def source(): raise trouble
    with pytest.raises(ValueError, match='row 8: '): Picture(source, 'row 8').bytes()

def test_ghostscript_and_rare_decoders_never_start(monkeypatch):
    started = []
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *a, **k: started.append(a))
    monkeypatch.setattr('subprocess.Popen', lambda *a, **k: started.append(a))
    for data in HOSTILE.values():
        try: Picture(data).open()
        except ValueError: pass
    assert not started

def test_what_is_sound_is_decoded_as_before():
    rng = np.random.default_rng(0)
    for mode in ('RGB', 'L', 'RGBA', 'P', '1', 'CMYK', 'LA'):
        for kind in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP'):
            for turn in range(1, 9):
                exif = Image.Exif()
                exif[0x0112] = turn
                image = Image.fromarray(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)).convert(mode)
                try: data = file_of(image, kind, **dict(exif=exif) if kind in ('PNG', 'JPEG', 'WEBP') else {})
                except (OSError, ValueError): continue      # This format has no such mode
                old = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB')
                new = Picture(data).open()
                assert (old.size, old.tobytes())==(new.size, new.tobytes()), (mode, kind, turn)
                assert new.width*new.height==Picture(data).pixels()==picture_size(Picture(data))

def test_moving_pictures_show_their_first_frame():
    frames = [Image.new('RGB', (6, 6), c) for c in ('red', 'blue')]
    for kind in ('GIF', 'PNG', 'WEBP'):
        sharp = dict(lossless=True) if kind=='WEBP' else {}
        data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **sharp)
        assert Picture(data).open().getpixel((0, 0))==(255, 0, 0)

def test_a_picture_may_be_as_large_as_it_says():
    data = file_of(Image.new('L', (8_000, PIXELS//8_000)))
    with opened_picture(data) as image: assert image.width*image.height==PIXELS
    with pytest.raises(ValueError, match='40 million are the most'):
        with opened_picture(file_of(Image.new('L', (8_001, PIXELS//8_000)))): pass

def test_an_ending_says_nothing(tmp_path):
    (tmp_path/'a.jpg').write_bytes(RED)
    assert Picture(tmp_path/'a.jpg').open().size==(8, 6)

def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    (tmp_path/'gone.png').symlink_to(tmp_path/'nowhere')
    (tmp_path/'round.png').symlink_to(tmp_path/'round.png')
    with open(tmp_path/'disk.png', 'wb') as f: f.truncate(HEAVIEST+1)
    paths = [tmp_path, *(tmp_path/f'{o}.png' for o in ('pipe', 'gone', 'round', 'disk')), Path('/dev/zero'),
             Path('a\0b.png'), Path('x'*5_000), tmp_path/os.fsdecode(b'caf\xe9.png')]
    for path in paths:
        with pytest.raises(ValueError, match='^row 7: '): Picture(path, 'row 7').bytes()
    strange = tmp_path/os.fsdecode(b'caf\xe8.png')
    strange.write_bytes(RED)
    assert Picture(strange).open().size==(8, 6)

def test_zips_that_lie(tmp_path):
    with zipfile.ZipFile(tmp_path/'pictures.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('a/red.png', RED)
        z.writestr('a/bomb.png', b'\0'*(HEAVIEST+1))
    with zipfile.ZipFile(tmp_path/'more.zip', 'w') as z:
        z.writestr('torn.png', RED*9)
    data = (tmp_path/'more.zip').read_bytes()
    (tmp_path/'more.zip').write_bytes(data.replace(RED[20:40], b'?'*20, 3))
    (tmp_path/'none.zip').write_bytes(b'PK\3\4'+bytes(60))
    rows = [dict(question='?', image=f'{o}.png', answer='1') for o in ('red', 'bomb', 'torn')]
    pl.DataFrame(rows).write_csv(tmp_path/'mine.csv')
    items = load(tmp_path/'mine.csv')
    assert items[0].images[0].open().size==(8, 6)
    for item, why in zip(items[1:], ('has more than', 'cannot be read')):
        with pytest.raises(ValueError, match=f'mine.csv row .: .*{why}'): item.images[0].open()

def test_hundreds_of_damaged_pictures():
    "Each is shown, or is one sentence; the same as tests/bench/rough_pictures.py does by the ten thousand"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        count, _ = rough['pictures'](600, seed=5)
    assert count.keys()=={'shown', 'one sentence'} and count.total()==600 and count['shown']>30

# In tables and runs

def table_of(tmp_path, pictures, kind):
    "Pictures in a table: as bytes, as base64 text, or as files beside it"
    if kind=='parquet':
        frame = pl.DataFrame(dict(question=['?']*len(pictures), answer=['1']*len(pictures), image=pictures))
        frame.write_parquet(tmp_path/'mine.parquet')
        return tmp_path/'mine.parquet'
    cells = [base64.b64encode(o).decode() for o in pictures]
    if kind=='data url': cells = [f'data:image/png;base64,{c}' for c in cells]
    if kind=='files':
        for n, o in enumerate(pictures): (tmp_path/f'{n}.png').write_bytes(o)
        cells = [f'{n}.png' for n in range(len(pictures))]
    lines = (json.dumps(dict(question='?', answer='1', image=c))+'\n' for c in cells)
    (tmp_path/'mine.jsonl').write_text(''.join(lines))
    return tmp_path/'mine.jsonl'

class Looks:
    "An asker that opens what it is shown, and does not catch"
    about = dict(weights='x')
    def many(self, items):
        for i in items:
            try: yield Reply(i.id, str([p.open().size for p in i.images]))
            except ValueError as e: yield Reply(i.id, '', error=str(e))

@pytest.mark.parametrize('kind', ['parquet', 'base64', 'data url', 'files'])
def test_a_run_goes_on_however_many_pictures_fail(tmp_path, kind):
    bad = [o for o in HOSTILE.values() if len(o)>60]
    pictures = [*bad, *bad, RED, *bad]                          # More than fail before a run is given up
    with pytest.warns(UserWarning, match=rf'1 of {len(pictures)} items have a reply'):
        table = ask(Looks(), table_of(tmp_path, pictures, kind), tmp_path/'run')
    assert table['prediction'].to_list()==['[(8, 6)]']
    failed = read_lines(tmp_path/'run'/'failures.jsonl')[0]
    assert len(failed)==3*len(bad) and all('cannot be decoded' in r['error'] for r in failed)

def test_the_embedded_model_goes_on_too(tmp_path):
    vlm = open_model('lab/vlm', max_new_tokens=2)
    items = [Item(n, '?', '1', (Picture(o, n),)) for n, o in HOSTILE.items()]
    items += [Item('half', 'Half a character \ud800', '1'), Item('ok', '?', '1', (Picture(RED),))]
    with pytest.warns(UserWarning, match=f'1 of {len(items)} items'): table = ask(vlm, items, tmp_path/'run')
    assert table['index'].to_list()==['ok']
    assert len(read_lines(tmp_path/'run'/'failures.jsonl')[0])==len(items)-1

def test_names_that_are_no_text_are_written_down(tmp_path):
    name = os.fsdecode(b'caf\xe9.png')
    items = [Item(f'a{name}', f'{name}?', '1', (Picture(tmp_path/name, name),)), Item('2', '?', '1')]
    with pytest.warns(UserWarning, match='1 of 2 items'): ask(Looks(), items, tmp_path/'run')
    assert 'caf?.png' in read_lines(tmp_path/'run'/'failures.jsonl')[0][0]['error']
