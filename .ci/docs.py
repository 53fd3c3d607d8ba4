"Build the site without Quarto: notebooks, through nbdev and pandoc, become plain pages in `_docs/`"
import ast, json, os, re, shutil, sys, tempfile, warnings
from html import escape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import pypandoc, yaml

here = Path(__file__).resolve().parent
project, site = here.parent, here.parent/'_docs'
DOCS, CODE = 'https://docs.invalid', 'https://code.invalid'  # stand for this site until links are made relative
KINDS = 'text/markdown', 'text/html', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/latex', 'text/plain'
READER = 'markdown-smart+lists_without_preceding_blankline+autolink_bare_uris'

# From the notebook to one text that pandoc reads

def joined(text): return ''.join(text) if isinstance(text, list) else text
def fence(text, kind): return f'````````{{{kind}}}\n{text.rstrip()}\n````````\n'
def no_colours(text): return re.sub(r'\x1b\[[0-9;]*m', '', text)

def output_text(out, asis):
    "One output of a cell, in the richest form a still page can show"
    if out['output_type']=='error': return fence(no_colours('\n'.join(out['traceback'])), '.text')
    data = {'text/plain': out['text']} if out['output_type']=='stream' else out['data']
    for kind in KINDS:
        if kind not in data: continue
        text = joined(data[kind])
        if asis or kind in ('text/markdown', 'text/latex'): return text + '\n'
        if kind=='text/plain': return fence(no_colours(text), '.text')
        if kind.startswith('image/') and kind!='image/svg+xml':
            text = f'<img alt="" src="data:{kind};base64,{text.strip()}">'
        return fence(text, '=html')
    return ''

def cell_text(cell):
    source = joined(cell['source'])
    if cell['cell_type']!='code': return source
    lines = source.splitlines()
    said = dict(re.findall(r'^#\| *([\w-]+): *(\S+)', source, flags=re.M))
    code = '\n'.join(o for o in lines if not o.startswith('#|')).strip()
    if said.get('include')=='false': return ''
    asis = said.get('output')=='asis'
    parts = [fence(code, '.python')] if code and said.get('echo')!='false' else []
    shown = [] if said.get('output')=='false' else [output_text(o, asis) for o in cell['outputs']]
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

def sidebar(pages, groups, page):
    def link(o):
        here = ' aria-current="page"' if o==page else ''
        return f'<li><a href="{relpath(o, PurePosixPath(page).parent)}"{here}>{escape(pages[o])}</a></li>'
    return '\n'.join(f'<b>{escape(name)}</b><ul>{"".join(map(link, some))}</ul>' for name, some in groups)

def draw(page, text, sidebar='', before='', after=''):
    root = relpath('.', PurePosixPath(page).parent) + '/'
    charts = dict(re.findall(r'maybeLoadScript\("(vega[\w-]*)", "([^"]+)"\)', text))
    said = dict(root=root, sidebar=sidebar, before=before, after=after, **{'charts': 'yes'} if charts else {})
    args = [f'--template={here/"page.html"}', '--toc', '--mathml', '--wrap=none', '-s']
    args += [f'--variable={k}={v}' for k,v in said.items()]
    html = pypandoc.convert_text(text, 'html5', format=READER, extra_args=args)
    if charts:  # say that the libraries are loaded already, and leave no address of the net in the page
        have = json.dumps({f'{k.replace("-", "")}_version': v for k,v in charts.items()})
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

# Every link must lead somewhere

class Links(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.ids, self.to, self.fetched = set(), [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d.get('id'), d.get('name')}
        if d.get('href'): (self.to if tag=='a' else self.fetched).append(d['href'])
        if d.get('src'): self.fetched.append(d['src'])

def broken_links():
    found = {o.relative_to(site).as_posix(): Links(o.read_text(encoding='utf-8')) for o in site.rglob('*.html')}
    for page, links in found.items():
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

def sidebar_groups():
    "The pages by section, as `_quarto.yml` orders them"
    config = yaml.safe_load((project/'_quarto.yml').read_text(encoding='utf-8'))
    groups = [('', [])]
    for o in config['website']['sidebar']['contents']:
        if isinstance(o, str): groups[0][1].append(o)
        else: groups.append((o['section'], o['contents']))
    listed = [o for _, some in groups for o in some]
    there = [o.relative_to(project/'nbs').as_posix() for o in (project/'nbs').rglob('*.ipynb')
             if not any(p.startswith(('.', '_')) for p in o.relative_to(project/'nbs').parts)]
    lost, gone = (', '.join(sorted(o)) for o in (set(there) - set(listed), set(listed) - set(there)))
    if lost: sys.exit(f'The sidebar in _quarto.yml does not list {lost}. Add it.')
    if gone: sys.exit(f'The sidebar in _quarto.yml lists {gone}, which is not in nbs/.')
    return groups

def main():
    groups = sidebar_groups()
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
        os.environ['IN_TEST'] = '1'
        try: build(groups, work)
        finally: os.chdir(project)
    if wrong := list(broken_links()): sys.exit('Links that lead nowhere:\n' + '\n'.join(sorted(wrong)))
    print(f'{len(list(site.rglob("*.html")))} pages in {site.name}/')

def module_of(nb):
    "Text and syntax tree of the module that a notebook is exported to"
    names = re.findall(r'^#\| *default_exp +(\w+)', '\n'.join(o.source for o in nb.cells), flags=re.M)
    text = (project/f'vlm_merging/{names[0]}.py').read_text(encoding='utf-8') if names else ''
    return text, ast.parse(text)

def build(groups, work):
    from nbdev.processors import FilterDefaults
    from nbdev.frontmatter import nb_frontmatter
    from fastcore import docments
    from fastcore.nbio import read_nb
    def fields(cls):
        found = [o for o in package[1].body if isinstance(o, ast.ClassDef) and o.name==cls.__name__]
        return ast.get_source_segment(package[0], found[0]) if found else ''
    docments.get_dataclass_source = fields  # it cannot read the comments of a class that lives in a notebook
    warnings.filterwarnings('error', message='Found cells containing imports')
    texts, titles, wrong = {}, {}, []
    for path in [o for _, some in groups for o in some]:
        try:
            os.chdir((work/'nbs'/path).parent)
            nb = read_nb(work/'nbs'/path)
            package = module_of(nb)
            FilterDefaults()(nb)
            texts[page_name(path)] = '\n\n'.join(map(cell_text, nb.cells))
            titles[page_name(path)] = nb_frontmatter(nb).get('title') or Path(path).stem
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
    groups = [(name, [page_name(o) for o in some]) for name, some in groups]
    order, drawn = list(texts), {}
    for i, page in enumerate(order):
        def turn(j, words):
            href = relpath(order[j], PurePosixPath(page).parent)
            return f'<a href="{href}">{words.format(escape(titles[order[j]]))}</a>'
        before = turn(i-1, '← {}') if i else '<span></span>'
        after = turn(i+1, '{} →') if i+1<len(order) else ''
        try: drawn[page] = draw(page, texts[page], sidebar(titles, groups, page), before, after)
        except Exception as e: sys.exit(f'{page} does not build: {e}')
    for o in sorted((project/'vlm_merging').glob('[!_]*.py')):
        page = f'source/vlm_merging/{o.stem}.html'
        code = fence(o.read_text(encoding='utf-8'), '#L .python .numberLines')
        text = f'---\ntitle: vlm_merging/{o.name}\n---\n\n{code}'
        drawn[page] = draw(page, text, sidebar(titles, groups, page))
    write(drawn)

if __name__=='__main__': main()
