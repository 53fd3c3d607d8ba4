"""What a rough world does to the package, by hand and in number.

    python tests/bench/rough_pictures.py [N]    # N damaged pictures (30,000): each opens, or is one sentence

Each job prints what it counted, the longest time of one try (of the processor) and the peak of memory, and
ends with 1 if anything else happened than what the line above says.
"""
import io, random, resource, struct, sys, time, warnings, zlib
from collections import Counter
from PIL import Image, PngImagePlugin

# Pictures

def picture(kind, size=(24, 16), **how):
    "A picture with a bit of everything, as a file"
    image = Image.effect_noise(size, 60).convert('RGB')
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'on its side'
    more = dict(exif=exif) if kind in ('PNG', 'JPEG', 'WEBP', 'TIFF', 'AVIF') else {}
    if kind in ('PNG', 'JPEG', 'WEBP', 'TIFF'): more['icc_profile'] = bytes(400)
    if kind=='PNG':
        more['pnginfo'] = PngImagePlugin.PngInfo()
        more['pnginfo'].add_text('note', 'x'*500, zip=True)
    if how.pop('moves', False):
        more |= dict(save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    file = io.BytesIO()
    image.save(file, kind, **more|how)
    return file.getvalue()

def seeds():
    "Sound pictures of what is opened, and of what must never be"
    out = [picture('PNG'), picture('PNG', moves=True), picture('JPEG'), picture('JPEG', progressive=True),
           picture('WEBP'), picture('WEBP', lossless=True), picture('WEBP', moves=True), picture('GIF'),
           picture('GIF', moves=True), picture('BMP')]
    out += [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'DDS '+bytes(124), b'<svg/>', b'']
    for kind in 'TIFF PPM ICO TGA PCX SGI IM DDS EPS PDF JPEG2000 AVIF MPO'.split():
        try: out.append(picture(kind))
        except (OSError, KeyError, ValueError): pass        # Not in this build of Pillow
    return out

def mended(data):
    "A PNG whose checksums hold again, so that what is inside is read"
    out, at = [data[:8]], 8
    while at+12<=len(data):
        size = min(struct.unpack('>I', data[at:at+4])[0], len(data)-at-12)
        body = data[at+4:at+8+size]
        out.append(struct.pack('>I', size)+body+struct.pack('>I', zlib.crc32(body)))
        at += 12+size
    return b''.join(out)

NUMBERS = [struct.pack(f, n) for f in ('>I', '<I', '>H', '<H') for n in (0, 1, 255, 0x7fff, 0xffff)]
NUMBERS += [struct.pack('>I', n) for n in (2**31-1, 2**32-1, 6_000, 13_000)]

def damaged(rng, data, others):
    "Change a picture in a few places: other bytes, cut off, doubled, taken out, or begun as another"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data)+1) if rng.random()<.5 else rng.randrange(min(64, len(data))+1)
        how, few = rng.randrange(7), rng.randrange(1, 40)
        if how==0: data[at:at+1] = bytes([rng.randrange(256)])
        if how==1: data[at:at+4] = rng.choice(NUMBERS)
        if how==2: del data[at+few:]
        if how==3: data[at:at] = data[at:at+few]*rng.choice((1, 3, 99))
        if how==4: del data[at:at+few]
        if how==5: data[at:at+few] = rng.randbytes(few)
        if how==6 and rng.random()<.2: data = bytearray(rng.choice(others)[:at])+data[at:]
    data = bytes(data)
    return mended(data) if data[:4]==b'\x89PNG' and rng.random()<.7 else data

def tried(data):
    "What became of a picture: shown, or the reason; raise AssertionError if it is neither"
    from vlm_merging.benchmarks.pictures import PIXELS, Picture
    mine = Picture(data, 'row 7')
    for use in (mine.open, mine.pixels, mine.thumbnail, mine.sha256):
        try: seen = use()
        except ValueError as e:
            assert str(e).startswith('row 7: ') and '\n' not in str(e) and ' at 0x' not in str(e), str(e)
            return str(e)
        if use==mine.open: assert seen.mode=='RGB' and 0<seen.width*seen.height<=PIXELS
    return 'shown'

def pictures(n=30_000, seed=0):
    "Damage pictures, and open them in every way"
    rng, sound, count, longest = random.Random(seed), seeds(), Counter(), 0.
    for k in range(int(n)):
        data, start = damaged(rng, rng.choice(sound), sound), time.process_time()
        try: count['shown' if tried(data)=='shown' else 'one sentence'] += 1
        except BaseException as e:
            count[f'{type(e).__name__}: {str(e)[:80]}'] += 1
            if isinstance(e, KeyboardInterrupt): raise
        longest = max(longest, time.process_time()-start)
    return count, longest

# All of them

JOBS = dict(pictures=pictures)

if __name__=='__main__':
    warnings.simplefilter('ignore')
    if len(sys.argv)<2 or sys.argv[1] not in JOBS: sys.exit(__doc__)
    count, longest = JOBS[sys.argv[1]](*sys.argv[2:])
    for what, n in count.most_common(): print(f'{n:9,}  {what}')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
    print(f'longest {longest:.2f} s of the processor, peak {peak} MB')
    sys.exit(bool(count.keys()-{'shown', 'one sentence'}))
