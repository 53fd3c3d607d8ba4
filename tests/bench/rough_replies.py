"""Hostile replies, by hand: each gets a verdict within seconds, and the pages show letters only.

    python tests/bench/rough_replies.py -n 2000 --seed 0 [FOLDER]   # with real replies (parquet) to mix in

A reply is made of what models write (boxes, fractions, letters, lists, units, JSON) and of what breaks
readers: brackets in brackets, powers of powers, factorials, numbers of 10^5 digits, text on which regular
expressions run away, halves of characters, marks that turn or hide text. It is scored by the rule of some
benchmark in both protocols; then two runs of such replies are compared, and each is shown in the browser of
replies. Printed are the slowest rows with what they were made of, and by how much memory grew; the exit code
is 1 if a row has no verdict, takes more than 2 seconds of the processor, or if anything is shown that cannot
be seen.
"""
import argparse, json, random, re, resource, sys, time, traceback
from collections import Counter
from pathlib import Path
import polars as pl

SECONDS, GROWTH = 2., 400           # Of the processor for one row; MB

# Questions: what the rules of the benchmarks look at

FOUR = dict(question='Which? Choices: A. 12 B. 15 C. 18 D. none', choices='["12", "15", "18", "none"]',
            answer='B', question_type='multi_choice')
FREE = dict(question='Find the value.', question_type='free_form')
QUESTIONS = [dict(benchmark='MathVista', **FREE, answer='7', answer_type='integer'),
             dict(benchmark='MathVista', **FREE, answer='1.45', answer_type='float', precision=2, unit='cm'),
             dict(benchmark='MathVista', **FREE, answer='[1, 2, 3]', answer_type='list'),
             dict(benchmark='MathVista', **FREE, answer='a red cube', answer_type='text'),
             dict(benchmark='MathVista', **FOUR), dict(benchmark='MMStar', **FOUR),
             dict(benchmark='MathVision', **FOUR),
             dict(benchmark='MathVision', **FREE, answer='\\frac{\\pi}{3}'),
             *(dict(benchmark='MathVerse', **FREE, answer=a)
               for a in ('2\\sqrt{3}', 'y=2x^2+5', '(3,-4)', '2 \\leq x < 5', 'x(x+1)(x-2)!', '35°', '1:64',
                         '(-\\infty,1)\\cup(3,\\infty)', '3 cm and 5 cm', '7:00 PM',
                         '\\begin{pmatrix}1\\\\2\\end{pmatrix}')),
             *(dict(benchmark='DynaMath', question='Find it.', answer=a, answer_type=k)
               for a, k in (('0.5', 'float'), ('B', 'multiple choice'), ('sin(x)', 'text'))),
             *(dict(benchmark='made up', question='What is it?', answer=a, metric=m)
               for m, a in (('mm_math', '3, 5'), ('relaxed', '42.2%'),
                            ('anls', '["14 May 1999", "May 14, 1999"]'),
                            ('vqa', json.dumps(['nokia']*8+['two']*2)), ('contains', '["x^2 + 1", "blue"]'),
                            ('yesno', 'no')))]

# Replies: bits of what models write, and ways to put them together

SOUND = ['The answer is ', 'Answer: ', 'So ', 'Therefore, ', 'x = ', 'B', '(C)', 'A. 12', 'option D',
         'not B', ' or ', ' and ', '7', '-3.5', '1,234', '15%', '2/3', '3 cm', '5 ft 7 in', '35°', '10:15',
         '1:64', '\\boxed{7}', '$2\\sqrt{3}$', '\\frac{1}{2}', '**7**', '#### 7', '<answer>', '</answer>',
         '<think>', '</think>', '{"short answer": "7"}', 'y=2x+1', '(3,-4)', '[2,5)', '\\cup',
         '2 \\leq x < 5', 'twenty-one', 'half', 'minus ', 'yes', 'no', 'not', 'because', '\n', '\n\n', '. ',
         ', ', '; ', ': ', ' = ', '最终答案是', '정답은 ', 'La respuesta es ', 'إجابة', '答案：', '．', '７', '٣',
         'wait, ', 'I cannot see', 'Choices: ', 'to verify, ']
ODD = ['\0', '\x1b[2J', '\x07', '\x85', '\u2028', '\u202e', '\u2066', '\u200b', '\u200d', '\ufeff', '\ud800',
       '\udc00', '\U000e0041', '\uffff', 'e\u0301'*9, 'a'+'\u0336'*50, '½', '²', '𝟛', '∞', '√', '−', '—',
       '％', '🏳\ufe0f\u200d🌈', '</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '<<',
       '>>', '&#x202e;', '{{ 7*7 }}', '{% for %}', '[x](javascript:alert(1))', '`', '|', '~', '_x000D_',
       '%s%n', '\\', '\\\\', '$', '$$', '{', '}', '(', ')', '[', ']', '^', '!', '_', '&', '%', '#', '"', "'",
       '*', '-', '+', '/', '.', ',', ' ', '\t', '0', '9', '1', 'A', 'x', 'i', 'e', 'pi', 'sin', 'sqrt',
       '\\left', '\\right', '\\text{', '\\mathrm{', '\\hline', '\\\\[1em]']
NESTS = [('(', ')'), ('[', ']'), ('{', '}'), ('|', '|'), ('\\frac{1}{', '}'), ('\\sqrt{', '}'),
         ('\\sqrt[3]{', '}'), ('\\boxed{', '}'), ('\\left(', '\\right)'), ('x^{', '}'), ('2^(', ')'),
         ('sin(', ')'), ('-(', ')'), ('1+(', ')'), ('(1,', ')'), ('{"a": ', '}'), ('[1, ', ']'),
         ('\\text{', '}'), ('\\begin{pmatrix}', '\\end{pmatrix}'), ('<answer>', '</answer>'),
         ('<think>', '</think>'), ('**', '**'), ('$', '$'), ('"', '"'), ('\\binom{9}{', '}'),
         ('\\sum_{i=1}^{9}{', '}'), ('\\int_0^{', '} x dx'), ('\\log_{2}{', '}')]
HUGE = ['10^10^10', '9^9^9^9^9', '9!!!!', '(9!)!', '99999999!', '2^{10^9}', '10^{10^{10}}', '1e999999',
        '1e-999999', '0^-1', '1/0', '0/0', '0.0000', '\\frac{1}{0}', '(-8)^(1/3)', '(-1)^0.5',
        'exp(exp(exp(9)))', 'tan(pi/2)', 'log(0)', '\\binom{10^6}{10^5}', '\\sum_{n=1}^{10^9} n!',
        '(x+1)^{10000}', '(a+b+c+d)^{99}', 'x^{99999}-1', '\\prod_{i=1}^{99999} i', '\\int e^{x^{x^x}} dx',
        '\\sqrt[99999]{2}', 'inf', 'nan', '0x7', '\\lim_{x \\to 0} x^x', 'sin(10^400)', '3'*400, '9'*5_000]

def small(rng): return rng.choice(rng.choice([SOUND, SOUND, ODD, HUGE]))

def repeated(rng):
    "A few bits over and over, and an end that does not fit"
    bits = [small(rng) for _ in range(rng.choice([1, 1, 2, 3, 5]))]
    times = min(rng.choice([20, 200, 2_000, 20_000]), 100_000//len(''.join(bits)))
    return ''.join(bits)*times+rng.choice(['', '!', 'x', '\n7'])

def nested(rng):
    "Brackets in brackets, closed, half closed or open"
    kinds, depth = rng.choices(NESTS, k=rng.choice([1, 1, 2, 4])), rng.choice([5, 30, 45, 300, 3_000, 20_000])
    path = [rng.choice(kinds) for _ in range(depth)] if depth<500 else kinds*(depth//len(kinds))
    closed = path[:rng.choice([0, depth//2, depth, depth])]
    return ''.join(a for a, _ in path)+small(rng)+''.join(b for _, b in reversed(closed))

def digits(rng):
    "A number of up to 10^5 digits, or something made of it"
    n = rng.choice([20, 400, 5_000, 100_000])
    text = ''.join(rng.choices('0123456789', k=min(n, 1_000)))*max(1, n//1_000)
    form = rng.choice(['{}', '0.{}', '-{}', '{}/3', '1e{}', '{}!', '\\frac{{1}}{{{}}}', '{}^{{2}}'])
    return form.format(text)+rng.choice(['', '%', ' cm', '°'])

BETWEEN = [',', ', ', ',000', '.', ':', ' ', '-', '/', '^', ' and ', '=', ';', '|', '&', '\n']
VALUES = ['1', '12', '123', 'x', 'A', '1/2', '\\pi', 'three', 'sin x', '(1,2)']

def commas(rng):
    "A list of values, with one sign between them"
    return rng.choice(BETWEEN).join(rng.choices(VALUES, k=rng.choice([9, 60, 900, 9_000])))

def mixed(rng): return ''.join(small(rng) for _ in range(rng.choice([3, 20, 150, 900])))

ATOMS = ['x', 'y', 'z', 'a', '2', '10', '\\pi', 'e', '0', '-1']
TERMS = ['({}+{})', '{}\\cdot{}', '\\frac{{{}}}{{{}}}', '({})^{{{}}}', '({}-{})', '\\sqrt{{{}{}}}',
         '\\sin({}^{})', '|{}|{}', '\\log_{{{}}}{{{}}}', '{}={}', '({})!{}', '\\binom{{{}}}{{{}}}']

def formula(rng):
    "A formula of some size that another program would have to expand, solve or sum"
    def term(d):
        if d==0 or rng.random()<.15: return rng.choice([*ATOMS, rng.choice(HUGE)])
        return rng.choice(TERMS).format(term(d-1), term(d-1))
    return term(rng.choice([2, 4, 6, 8]))

WAYS = dict(repeated=repeated, nested=nested, digits=digits, commas=commas, mixed=mixed, formula=formula,
            huge=lambda rng: rng.choice(HUGE))
FRAMES = ['{}', 'The answer is {}.', '\\boxed{{{}}}', 'So $x = {}$.', 'Answer: {}', '**{}**',
          '<answer>{}</answer>', '<think>{}</think>7', '<think>{}',
          '{{"solution": "s", "short answer": "{}"}}', 'Let us see.\n\n### Final Answer\n\n{}',
          '{}\n\nThe answer is B.', 'A or {} or C', 'not {}', '{} = 7']

def hostile(rng, real):
    "How a reply was made, and the reply"
    way, frame = rng.choice([*WAYS]), rng.choice(FRAMES)
    text = WAYS[way](rng)
    if rng.random()<.15: way, text = way+'+mixed', text[:3_000]+mixed(rng)
    text = frame.format(text)
    if real and rng.random()<.6:
        true, at = rng.choice(real), rng.random()
        i = rng.randrange(len(true)+1)
        text = true[:i]+text+true[i:] if at<.6 else text+true if at<.8 else true+text
        way += ' in a real one'
    if rng.random()<.2:
        i = rng.randrange(len(text)+1)
        text = text[:i]+rng.choice(ODD)+text[i:]
    return f'{way} in {frame!r}', text

def real_ones(folder):
    "Replies, and rows to be asked, of parquet files"
    frames = [pl.read_parquet(p) for p in sorted(Path(folder).glob('*.parquet'))] if folder else []
    rows = [{k: v for k, v in r.items() if 'judge' not in k and k!='run'} for d in frames
            for r in d.sample(min(200, d.height), seed=0).to_dicts()]
    return [r['prediction'] for r in rows if r['prediction']], rows

# What must hold

UNSEEN = re.compile('[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u2028-\u202e\u2060-\u206f\ufeff\uffff'
                    '\ud800-\udfff\U000e0000-\U000e007f]')

def verdict_given(made):
    assert made['correct'] in (True, False) and 0<=made['value']<=1, made
    assert made['tier'] in ('exact', 'pattern', 'fallback', 'none'), made
    assert 'cannot be read' not in made['reason'], made
    assert len(made['picked'])<=500 and len(made['reason'])<=500 and made['outcome'], made

def shown(where, text, most, markup=True):
    assert not UNSEEN.search(text), (where, repr(UNSEEN.search(text)), text[:300])
    assert len(text)<=most, f'{where}: {len(text):,} letters'
    if markup: assert '<script>alert' not in text and '<img src=x' not in text, (where, 'markup of a reply')

def timed(act, *args):
    start = time.process_time()
    return act(*args), time.process_time()-start

def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def score_all(rows, ways, faults):
    "Each row in both protocols: seconds and what it was made of"
    from vlm_merging.scoring.algebra import Algebra
    from vlm_merging.scoring.score import PROTOCOLS, score_row
    times, ends = [], Counter()
    with Algebra() as algebra:
        algebra.start()
        for row, way in zip(rows, ways):
            for protocol in PROTOCOLS:
                try:
                    made, spent = timed(score_row, row, protocol, algebra)
                    verdict_given(made)
                    ends[made['outcome']] += 1
                except Exception as e:
                    faults.append((way, row['benchmark'], row['answer'], type(e).__name__, str(e)[:600]))
                    continue
                times.append((spent, protocol, row['benchmark'], row['answer'][:30], way))
                if spent>SECONDS: faults.append((*times[-1], row['prediction'][:60]))
    return sorted(times, reverse=True), ends

def show_all(rows, faults):
    "Two runs of the same questions, compared, drawn, and shown one by one"
    from vlm_merging import ReplyBrowser, compare, problems, reply_table, save_chart, score
    from vlm_merging.widgets.reply_browser import reply_html
    from tempfile import TemporaryDirectory
    half = len(rows)//2
    def run(name, part):
        said = [r['prediction'] for r in part]
        return score(reply_table([{**o, 'prediction': s, 'run': name, 'index': str(i), 'task': s[:200],
                                   'split': 'all'} for i, (o, s) in enumerate(zip(rows, said))]))
    runs = run('before', rows[:half]), run('after', rows[half:2*half])
    for table in runs:
        assert table.height==half and not table['correct'].null_count(), 'a verdict is missing'
        assert not table.filter(outcome='undecided')['correct'].any(), 'undecided and right'
        for p in problems(table): shown('problems', p, 2_000, False)
    found = compare(*runs, by='task', resamples=200)
    shown('verdict', found.verdict, 10**6, False)
    shown('in a notebook', found._repr_markdown_(), 40_000)
    with TemporaryDirectory() as folder:
        save_chart(found.chart(), page := Path(folder)/'page.html')
        shown('chart', page.read_text(encoding='utf-8'), 2*10**7)
    browser = ReplyBrowser(*runs)
    for row in browser.rows.iter_rows(named=True):
        try:
            page, spent = timed(reply_html, row)
            shown('browser', str(page), 400_000)
            assert spent<SECONDS, f'{spent:.1f} s to show'
        except Exception as e: faults.append(('browser', row['index'], type(e).__name__, str(e)[:600]))
    browser.text.value = '9'
    shown('filtered', browser.view.value, 400_000)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', help='parquet files with real replies')
    p.add_argument('-n', type=int, default=2000, help='replies')
    p.add_argument('--seed', type=int, default=0)
    given, start, faults = p.parse_args(), time.perf_counter(), []
    rng, (real, asked) = random.Random(given.seed), real_ones(given.folder)
    ways, replies = zip(*(hostile(rng, real) for _ in range(given.n)))
    def asks(): return rng.choice(asked if asked and rng.random()<.5 else QUESTIONS)
    rows = [dict(asks(), prediction=text) for text in replies]
    before = memory()
    times, ends = score_all(rows, ways, faults)
    print(', '.join(f'{k} {n}' for k, n in ends.most_common()))
    mean = 1000*sum(t[0] for t in times)/len(times)
    print(f'{given.n} replies in {time.perf_counter()-start:.0f} s, mean {mean:.0f} ms a row; the slowest:')
    for spent, *what in times[:12]: print(f'{spent:7.2f} s', *what)
    try: show_all(rows, faults)
    except Exception as e:
        faults.append(('pages', type(e).__name__, str(e)[:900] or traceback.format_exc()[-300:]))
    growth = memory()-before
    if growth>GROWTH: faults.append(('all', f'memory grew by {growth:.0f} MB'))
    print(f'scored and shown in {time.perf_counter()-start:.0f} s, memory grew by {growth:.0f} MB, '
          f'{len(faults)} faults')
    for fault in faults[:20]: print('FAULT', *map(ascii, fault))
    sys.exit(bool(faults))

if __name__=='__main__': main()
