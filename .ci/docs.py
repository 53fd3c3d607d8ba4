"""Build the site without Quarto: notebooks, through nbdev and pandoc, become plain pages in `_docs/`.
`python .ci/docs.py` builds it; `python .ci/docs.py readme` makes README.md from nbs/index.ipynb."""
import ast, hashlib, json, os, re, shutil, subprocess, sys, tempfile, warnings
from concurrent.futures import ThreadPoolExecutor
from html import escape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import pypandoc, yaml

here = Path(__file__).resolve().parent
project, site = here.parent, here.parent/'_docs'
# stand for this site until links are made relative
DOCS, CODE = 'https://docs.invalid', 'https://code.invalid'
KINDS = 'text/markdown', 'text/html', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/latex', 'text/plain'
READER = 'markdown-smart-implicit_figures+lists_without_preceding_blankline+autolink_bare_uris'
SOURCES = 'nbs', 'vlm_merging', '.ci', '_quarto.yml', 'settings.ini'      # What the pages are made from

# From the notebook to one text that pandoc reads

def joined(text): return ''.join(text) if isinstance(text, list) else text
def fence(text, kind):
    marks = '`'*(1+max([7, *map(len, re.findall('`+', text))]))     # More than any that stand in it
    return f'{marks}{{{kind}}}\n{text.rstrip()}\n{marks}\n'
def no_colours(text): return re.sub(r'\x1b\[[0-9;]*m', '', text)

def directives(source): return dict(re.findall(r'^#\| *([\w-]+): *(.+?) *$', source, flags=re.M))
def code_of(source): return '\n'.join(o for o in source.splitlines() if not o.startswith('#|')).strip()

def spec_title(spec):
    "The title of a Vega-Lite chart, or the first one inside it"
    title = spec.get('title')
    if isinstance(title, dict): title = title.get('text')
    if title: return ' '.join(title) if isinstance(title, list) else title
    for key in 'layer', 'hconcat', 'vconcat', 'concat':
        for o in spec.get(key, ()):
            if found := spec_title(o): return found
    return spec_title(spec['spec']) if isinstance(spec.get('spec'), dict) else ''

def told_chart(html, alt):
    "A chart that tells those who do not see it what it shows"
    start = html.find('})({', html.find('vegaEmbed'))
    if start<0: return html
    spec, _ = json.JSONDecoder().raw_decode(html, start+3)
    told = alt or f"Chart: {spec_title(spec) or spec.get('description') or 'the table that stands with it'}"
    return re.sub(r'<div id="(altair-viz[\w-]*)">', lambda m: f'<div id="{m[1]}" role="figure" '
                                                              f'aria-label="{escape(told)}">', html)

def output_text(out, asis, alt, code):
    "One output of a cell, as rich as a still page can show it; `alt` tells of a picture, or its `code`"
    if out['output_type']=='error': return fence(no_colours('\n'.join(out['traceback'])), '.text')
    data = {'text/plain': out['text']} if out['output_type']=='stream' else out['data']
    for kind in KINDS:
        if kind not in data: continue
        text = joined(data[kind])
        if asis or kind in ('text/markdown', 'text/latex'): return text + '\n'
        if kind=='text/plain': return fence(no_colours(text), '.text')
        told = escape(alt or f'Picture, made by the code above: '
                             f'{(code.splitlines() or ["no code shown"])[-1].strip()}')
        if kind=='text/html': text = told_chart(text, alt)
        elif kind=='image/svg+xml':
            text = re.sub(r'<svg(?![^>]*aria-label)', f'<svg role="img" aria-label="{told}"', text, count=1)
        else: text = f'<img alt="{told}" src="data:{kind};base64,{text.strip()}">'
        return fence(text, '=html')
    return ''

def cell_text(cell):
    source = joined(cell['source'])
    if cell['cell_type']!='code': return source
    said, code = directives(source), code_of(source)
    if said.get('include')=='false': return ''
    asis, alt = said.get('output')=='asis', said.get('alt', said.get('fig-alt', ''))
    parts = [fence(code, '.python')] if code and said.get('echo')!='false' else []
    shown = [] if said.get('output')=='false' else [output_text(o, asis, alt, code) for o in cell['outputs']]
    if shown: parts += shown if asis else ['::::::::{.output}\n', *shown, '::::::::\n']
    return '\n'.join(parts)

# From the text to a page

def page_name(path):
    "`nbs/tutorials/01a_look.ipynb` is shown as `tutorials/look.html`, as nbdev names it"
    path = PurePosixPath(path)
    return str(path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html'))

def local(href, page, ids):
    "A link of a page that leads to this site, made relative to the page; `ids` are the places in each page"
    if href.startswith(DOCS):  # nbdev links every name; where one is not shown, its class or its page will do
        to, _, name = href[len(DOCS):].lstrip('/').partition('#')
        for place in name, name.partition('.')[0]:
            if place in ids.get(to, ()):
                to += f'#{place}'
                break
    elif m := re.fullmatch(CODE + r'/blob/[^/]+/(.*)\.py#L(.*)', href):
        to = f'source/{m[1]}.html' + (f'#L-{m[2]}' if m[2]!='None' else '')
    elif re.match(r'[\w./-]*\.ipynb(#|$)', href):
        path, mark, anchor = href.partition('#')
        to = page_name(normpath(f'{PurePosixPath(page).parent}/{path}')) + mark + anchor
    else: return href
    return relpath(to, PurePosixPath(page).parent)

def inside(part): return [part['href']] if 'href' in part else [o for p in part['parts'] for o in inside(p)]

LONG = 12    # Pages from which on a section is folded, and folds the others where it is open

def sidebar(parts, page, top=True):
    "Sections that fold away: open is the one with this page, and short ones at the top unless it is long"
    roomy = top and not any(page in inside(o) for o in parts if len(inside(o))>=LONG)
    made = []
    for o in parts:
        if 'href' in o:
            here = ' aria-current="page"' if o['href']==page else ''
            to = relpath(o['href'], PurePosixPath(page).parent)
            made.append(f'<li><a href="{to}"{here}>{escape(o["text"])}</a></li>')
        else:
            shown = ' open' if page in inside(o) or roomy and len(inside(o))<LONG else ''
            made.append(f'<li><details{shown}><summary>{escape(o["text"])}</summary>'
                        f'{sidebar(o["parts"], page, False)}</details></li>')
    return f'<ul>{"".join(made)}</ul>'

def draw(page, text, sidebar='', before='', after=''):
    root = relpath('.', PurePosixPath(page).parent) + '/'
    charts = dict(re.findall(r'maybeLoadScript\("(vega[\w-]*)", "([^"]+)"\)', text))
    said = dict(root=root, sidebar=sidebar, before=before, after=after, **{'charts': 'yes'} if charts else {})
    args = [f'--template={here/"page.html"}', '--toc', '--mathml', '--wrap=none', '-s']
    args += [f'--variable={k}={v}' for k, v in said.items()]
    done = subprocess.run([pypandoc.get_pandoc_path(), f'--from={READER}', '--to=html5', *args],
                          input=text, capture_output=True, encoding='utf-8')
    if done.returncode: raise ValueError(done.stderr.strip())
    html = done.stdout
    if charts:  # say that the libraries are loaded already, and leave no address of the net in the page
        have = json.dumps({f'{k.replace("-", "")}_version': v for k, v in charts.items()})
        html = html.replace('</head>', f'<script>var VEGA_DEBUG = {have};</script>\n</head>', 1)
        html = re.sub(r'https://cdn\.jsdelivr\.net/npm/[^"]*', root + 'vega.js', html)
    return html

def write(drawn):
    ids = {page: Links(html).ids for page, html in drawn.items()}
    for page, html in drawn.items():
        dest = site/page
        dest.parent.mkdir(parents=True, exist_ok=True)
        html = re.sub(r'(<a [^>]*href=")([^"]+)', lambda m: m[1] + local(m[2], page, ids), html)
        dest.write_text(html, encoding='utf-8')

# Every link must lead somewhere, and every picture say what it shows

class Links(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.ids, self.to, self.fetched, self.mute, self.titles = set(), [], [], [], 0
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.titles += tag=='h1'
        if tag=='img' and not d.get('alt'): self.mute.append(d.get('src', '')[:60])
        self.ids |= {d.get('id'), d.get('name')}
        if d.get('href'): (self.to if tag=='a' else self.fetched).append(d['href'])
        if d.get('src'): self.fetched.append(d['src'])

def faults():
    found = {o.relative_to(site).as_posix(): Links(o.read_text(encoding='utf-8'))
             for o in site.rglob('*.html')}
    for page, links in found.items():
        if links.titles!=1: yield f'{page} has {links.titles} titles (h1). A notebook has one `# Title`.'
        for src in links.mute:
            yield (f'{page} has a picture without a text for those who do not see it: {src}. '
                   'Write ![text](file), or `#| alt: text` in its cell.')
        for href in links.to + links.fetched:
            if re.match(r'data:|mailto:', href): continue
            if re.match(r'(https?:)?//', href):
                if href in links.fetched: yield f'{page} fetches {href} from the net'
                continue
            path, _, anchor = href.partition('#')
            to = normpath(f'{PurePosixPath(page).parent}/{path}') if path else page
            if not (site/to).is_file(): yield f'{page} leads to {href}, which is not there'
            elif anchor and to in found and anchor not in found[to].ids:
                yield f'{page} leads to {href}: no such heading'

# All of it

def sidebar_parts(contents):
    "The sidebar of `_quarto.yml`: pages as `href` and `text` (None: its title), sections as `text`, `parts`"
    for o in contents:
        if isinstance(o, str): yield dict(href=o, text=None)
        elif 'section' in o: yield dict(text=o['section'], parts=list(sidebar_parts(o['contents'])))
        else: yield dict(href=o['href'], text=o['text'])

def listed_pages():
    "The sidebar, once it is sure that it lists exactly what is there"
    config = yaml.safe_load((project/'_quarto.yml').read_text(encoding='utf-8'))
    parts = list(sidebar_parts(config['website']['sidebar']['contents']))
    listed = [o for p in parts for o in inside(p)]
    there = [o.relative_to(project/'nbs').as_posix() for o in (project/'nbs').rglob('*.ipynb')
             if not any(p.startswith(('.', '_')) for p in o.relative_to(project/'nbs').parts)]
    lost, gone = (', '.join(sorted(o)) for o in (set(there) - set(listed), set(listed) - set(there)))
    twice = ', '.join(sorted({o for o in listed if listed.count(o)>1}))
    if lost: sys.exit(f'The sidebar in _quarto.yml does not list {lost}. Add it.')
    if gone: sys.exit(f'The sidebar in _quarto.yml lists {gone}, which is not in nbs/.')
    if twice: sys.exit(f'The sidebar in _quarto.yml lists {twice} more than once.')
    return parts

def fingerprint():
    "Hash of all that the pages are made from"
    made = hashlib.sha256()
    for o in SOURCES:
        for file in sorted((project/o).rglob('*')) if (project/o).is_dir() else [project/o]:
            if file.is_file() and file.suffix in ('.ipynb', '.py', '.html', '.css', '.yml', '.svg',
                                                  '.ini', '.csv') and '.ipynb_checkpoints' not in file.parts:
                made.update(f'{file.relative_to(project)}\0'.encode() + file.read_bytes())
    return made.hexdigest()

def main():
    parts, made_from = listed_pages(), fingerprint()
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)/'project'
        ignore = shutil.ignore_patterns('__pycache__', '.*')
        for o in 'nbs', 'vlm_merging': shutil.copytree(project/o, work/o, ignore=ignore)
        for o in 'pyproject.toml', 'settings.ini', 'setup.py': shutil.copy(project/o, work)
        index = work/'vlm_merging/_modidx.py'
        if index.exists():
            about = {}
            exec(index.read_text(encoding='utf-8'), about)
            about['d']['settings'].update(doc_host=DOCS, doc_baseurl='/', git_url=CODE)
            index.write_text(f'd = {about["d"]!r}\n', encoding='utf-8')
        os.chdir(work/'nbs')
        sys.path.insert(0, str(work))
        try: build(parts, work)
        finally: os.chdir(project)
    if wrong := list(faults()): sys.exit('The pages are built, but:\n' + '\n'.join(sorted(wrong)))
    (site/'made_from').write_text(made_from)
    print(f'{len(list(site.rglob("*.html")))} pages in {site.name}/')

def module_of(nb):
    "Text and syntax tree of the module that a notebook is exported to"
    names = re.findall(r'^#\| *default_exp +([\w.]+)', '\n'.join(o.source for o in nb.cells), flags=re.M)
    text = ''
    if names: text = (project/f"vlm_merging/{names[0].replace('.', '/')}.py").read_text(encoding='utf-8')
    return text, ast.parse(text)

def build(parts, work):
    from nbdev.processors import FilterDefaults
    from nbdev.frontmatter import nb_frontmatter
    from fastcore import docments
    from fastcore.nbio import read_nb
    def fields(cls):
        found = [o for o in package[1].body if isinstance(o, ast.ClassDef) and o.name==cls.__name__]
        return ast.get_source_segment(package[0], found[0]) if found else ''
    docments.get_dataclass_source = fields  # it cannot read the comments of a class that lives in a notebook
    warnings.filterwarnings('error', message='Found cells containing imports')
    texts, titles, about, wrong = {}, {}, {}, []
    for path in [o for p in parts for o in inside(p)]:
        try:
            os.chdir((work/'nbs'/path).parent)
            nb = read_nb(work/'nbs'/path)
            package = module_of(nb)
            FilterDefaults()(nb)
            page, front = page_name(path), nb_frontmatter(nb)
            texts[page] = '\n\n'.join(map(cell_text, nb.cells))
            titles[page], about[page] = front.get('title') or Path(path).stem, front.get('description') or ''
        except Exception as e: wrong.append(f'nbs/{path} does not build. {e}')
    if wrong: sys.exit('\n\n'.join(wrong))
    for o in (work/'nbs').rglob('*'):
        to = site/o.relative_to(work/'nbs')
        if o.is_file() and o.suffix!='.ipynb' and o.name[0]!='_':
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(o, to)
    site.mkdir(exist_ok=True)
    shutil.copy(here/'site.css', site)
    import vl_convert
    (site/'vega.js').write_text(vl_convert.javascript_bundle(), encoding='utf-8')
    def named(part):
        if 'parts' in part: return dict(part, parts=[named(o) for o in part['parts']])
        return dict(href=page_name(part['href']), text=part['text'] or titles[page_name(part['href'])])
    parts, order, jobs = [named(o) for o in parts], list(texts), {}
    for i, page in enumerate(order):
        def turn(j, words):
            href = relpath(order[j], PurePosixPath(page).parent)
            return f'<a href="{href}">{words.format(escape(titles[order[j]]))}</a>'
        before = turn(i-1, '← {}') if i else '<span></span>'
        jobs[page] = texts[page], before, turn(i+1, '{} →') if i+1<len(order) else ''
    for o in sorted((project/'vlm_merging').rglob('[!_]*.py')):
        code, name = fence(o.read_text(encoding='utf-8'), '#L .python .numberLines'), o.relative_to(project)
        jobs[f"source/{name.with_suffix('.html')}"] = f'---\ntitle: {name}\n---\n\n{code}', '', ''
    def drawn(page):
        text, before, after = jobs[page]
        try: return draw(page, text, sidebar(parts, page), before, after)
        except ValueError as e: sys.exit(f'{page} does not build: {e}')
    with ThreadPoolExecutor(os.cpu_count()) as pool: write(dict(zip(jobs, pool.map(drawn, jobs))))
    (site/'llms.txt').write_text(llms(parts, titles, about, texts[order[0]]), encoding='utf-8')

def llms(parts, titles, about, index):
    "What is here, for readers who are programs: llmstxt.org"
    def listed(part):
        if 'parts' in part: return [o for p in part['parts'] for o in listed(p)]
        page = part['href']
        return [f'- [{titles[page]}]({page})' + (f': {about[page]}' if about[page] else '')]
    first = next(o for o in re.split(r'\n{2,}', index.split('---', 2)[-1]) if re.match(r'\w', o))
    first = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', first)
    groups = [f"## {o['text']}\n\n" + '\n'.join(listed(o)) for o in parts]
    return '\n\n'.join([f"# {titles['index.html']}", f"> {about['index.html']}", first, *groups]) + '\n'

# The README is the index, as GitHub shows it

FOOT = '[How to work on it](CONTRIBUTING.md) · [Changes](CHANGELOG.md) · Licence: [Apache-2.0](LICENSE)'

def moved(text):
    "Links of a notebook in nbs/, as they are seen from the folder above"
    return re.sub(r'(\]\()(?!https?:|#|mailto:)([^)\s]+)', lambda m: m[1] + normpath('nbs/' + m[2]), text)

def plain_output(out):
    "An output as text; a picture or a chart has none"
    data = {'text/plain': out['text']} if out['output_type']=='stream' else out.get('data', {})
    if 'text/markdown' in data: return moved(joined(data['text/markdown']))
    if {'image/png', 'image/svg+xml', 'application/vnd.vegalite.v5+json'} & set(data): return ''
    return f"```text\n{no_colours(joined(data.get('text/plain', ''))).rstrip()}\n```"

def readme():
    "README.md, made from nbs/index.ipynb"
    parts = []
    for cell in json.loads((project/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = joined(cell['source'])
        if cell['cell_type']=='markdown': parts.append(moved(source.strip()))
        elif cell['cell_type']=='code' and not re.match(r'#\| *hide', source):
            said, code = directives(source), code_of(source)
            if code and said.get('echo')!='false':
                if parts[-1:] and parts[-1].startswith('```python\n'):
                    code = parts.pop()[len('```python\n'):-len('\n```')] + '\n' + code
                parts.append(f'```python\n{code}\n```')
            parts += filter(None, map(plain_output, cell['outputs']))
    return '\n\n'.join([*parts, FOOT]) + '\n'

def leave(job):
    "Do a job and be gone: each notebook left a shell behind, and an orderly end clears them for a minute"
    code = 0
    try: job()
    except SystemExit as e: code = print(e.code, file=sys.stderr) or 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

if __name__=='__main__':
    if sys.argv[1:]==['readme']: (project/'README.md').write_text(readme(), encoding='utf-8')
    elif sys.argv[1:]:
        sys.exit(f'No job {" ".join(sys.argv[1:])!r}. There is `readme`; without a word the site is built.')
    else: leave(main)
