"""Build the site without Quarto: nbdev reads the notebooks, smalldocs draws the pages into `_docs/`.
`python .ci/docs.py` builds it; `python .ci/docs.py readme` makes README.md from nbs/index.ipynb."""
import ast, hashlib, json, multiprocessing, os, re, shutil, sys, tempfile, warnings
from configparser import ConfigParser
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import yaml

here = Path(__file__).resolve().parent
project, site = here.parent, here.parent/'_docs'
# stand for this site until links are made relative
DOCS, CODE = 'https://docs.invalid', 'https://code.invalid'
WORKERS = 2                      # Processes that read notebooks
SOURCES = 'nbs', 'vlm_merging', '.ci', '_quarto.yml', 'settings.ini'      # What the pages are made from

# A notebook's outputs, as a still page can show them: rich, told in words, without the net

def joined(text): return ''.join(text) if isinstance(text, list) else text
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

VEGA = '<script src="/vega.js"></script>'

def still_chart(html):
    "A chart that finds its libraries in `VEGA`, and so leaves no address of the net in the page"
    charts = dict(re.findall(r'maybeLoadScript\("(vega[\w-]*)", "([^"]+)"\)', html))
    if not charts: return html
    have = json.dumps({f'{k.replace("-", "")}_version': v for k, v in charts.items()})
    html = re.sub(r'https://cdn\.jsdelivr\.net/npm/[^"]*', '', html)
    html = html.replace('"mode": "vega-lite"', '"mode": "vega-lite", "renderer": "svg"')     # It can shrink
    return f'{VEGA}\n<script>var VEGA_DEBUG = {have};</script>\n{html}'

HEAD = re.compile(r'<thead>(<tr>.*?</tr>)(<tr>.*?</tr>)?</thead>', re.S)
NUMBER = re.compile(r'[-+]?[\d.,]+(e[-+]?\d+)?%?|null')

def told_table(html):
    "A polars table for people: without types of columns, numbers below each other, p as it is written"
    from vlm_merging.comparing.findings import p_said
    head = HEAD.search(html)
    if 'class="dataframe"' not in html or not head: return html
    heads = re.findall(r'<th>(.*?)</th>', head[1], flags=re.S)
    def cell(name, text):
        if not NUMBER.fullmatch(text): return f'<td>{text}</td>'
        if re.fullmatch(r'p([_ ].*)?', name) and text!='null':
            text = escape(p_said(float(text))[2:].lstrip('= '))
        return f'<td class="number">{text}</td>'
    def row(m):
        texts = re.findall(r'<td>(.*?)</td>', m[0], flags=re.S)
        return f'<tr>{"".join(map(cell, heads, texts))}</tr>'
    before = re.sub(r'<style>.*?</style>\s*', '', html[:head.start()], flags=re.S)
    top = head[1].replace('_', '_<wbr>')                        # Where a long name may be broken
    return f'{before}<thead>{top}</thead>' + re.sub(r'<tr>.*?</tr>', row, html[head.end():], flags=re.S)

def told(out, alt, code):
    "An output whose picture says what it shows; `alt` tells of it, or its `code`"
    last = (code.splitlines() or ['no code shown'])[-1].strip()
    data, words = out.get('data', {}), escape(alt or f'Picture, made by the code above: {last}')
    if 'text/html' in data: html = told_table(still_chart(told_chart(joined(data['text/html']), alt)))
    elif 'image/svg+xml' in data:
        html = joined(data['image/svg+xml']).replace('<svg ', f'<svg role="img" aria-label="{words}" ', 1)
    elif kind := next((k for k in ('image/png', 'image/jpeg') if k in data), None):
        html = f'<img class="img-fluid" alt="{words}" src="data:{kind};base64,{joined(data[kind]).strip()}">'
    else: return out
    return dict(out, data={'text/html': html})

def as_is(out):
    "What an output says, to be read as Markdown"
    if out['output_type']=='stream': return joined(out['text'])
    data = out['data']
    return joined(next(data[k] for k in ('text/markdown', 'text/html', 'text/plain') if k in data))

def is_widget(out):
    "Is an output a widget, of which nothing is left but its name? A picture stands below it"
    return {'application/vnd.jupyter.widget-view+json'}=={*out.get('data', ())}-{'text/plain'}

def told_cell(cell):
    "A cell as smalldocs shows it"
    if cell['cell_type']!='code': return cell
    source = joined(cell['source'])
    said = directives(source)
    alt = said.get('alt', said.get('fig-alt', ''))
    outputs = [told(o, alt, code_of(source)) for o in cell['outputs'] if not is_widget(o)]
    if said.get('output')=='asis':
        outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': as_is(o)})
                   for o in outputs]
        source = re.sub(r'^#\| *output: *asis *\n?', '', source, flags=re.M)
    return dict(cell, source=source, outputs=outputs)

# Links

def page_name(path):
    "`nbs/tutorials/01a_look.ipynb` is shown as `tutorials/look.html`, as nbdev names it"
    path = PurePosixPath(path)
    return str(path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html'))

def notebook_name(path):
    "The notebook from which a page is drawn: it is called as the page"
    return page_name(path).removesuffix('html') + 'ipynb'

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
    elif re.match(r'[\w./-]*\.(ipynb|html)(#|$)', href):
        path, mark, anchor = href.partition('#')
        to = page_name(normpath(f'{PurePosixPath(page).parent}/{path}')) + mark + anchor
    else: return href
    return relpath(to, PurePosixPath(page).parent)

def settle():
    "Make all links of the pages lead within the site, and none out of its style sheets"
    pages = {o.relative_to(site).as_posix(): o.read_text(encoding='utf-8') for o in site.rglob('*.html')}
    ids = {page: Links(html).ids for page, html in pages.items()}
    for page, html in pages.items():
        html = re.sub(r'(<a [^>]*href=")([^"]+)', lambda m: m[1] + local(m[2], page, ids), as_mathml(html))
        up = relpath('.', PurePosixPath(page).parent)
        ours = f'<link rel="icon" href="data:,"><script src="{up}/site.js" defer></script>'
        html = html.replace('</head>', ours + '</head>', 1)
        first, vega, rest = html.partition(VEGA)
        html = first + vega.replace('/vega.js', f'{up}/vega.js') + rest.replace(VEGA, '')     # Once a page
        (site/page).write_text(html, encoding='utf-8')
    for o in site.rglob('*.css'):
        plain = re.sub(r'@import url\(https?:[^)]*\);?', '', o.read_text(encoding='utf-8'))
        o.write_text(plain, encoding='utf-8')

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

def pages_of(contents):
    "The notebooks that a sidebar of `_quarto.yml` names, in order"
    for o in contents:
        if isinstance(o, str): yield o
        elif 'section' in o: yield from pages_of(o['contents'])
        else: yield o['href']

def listed_pages():
    "The notebooks in the order of the sidebar, once it is sure that it lists exactly what is there"
    config = yaml.safe_load((project/'_quarto.yml').read_text(encoding='utf-8'))
    listed = list(pages_of(config['website']['sidebar']['contents']))
    there = [o.relative_to(project/'nbs').as_posix() for o in (project/'nbs').rglob('*.ipynb')
             if not any(p.startswith(('.', '_')) for p in o.relative_to(project/'nbs').parts)]
    lost, gone = (', '.join(sorted(o)) for o in (set(there) - set(listed), set(listed) - set(there)))
    twice = ', '.join(sorted({o for o in listed if listed.count(o)>1}))
    if lost: sys.exit(f'The sidebar in _quarto.yml does not list {lost}. Add it.')
    if gone: sys.exit(f'The sidebar in _quarto.yml lists {gone}, which is not in nbs/.')
    if twice: sys.exit(f'The sidebar in _quarto.yml lists {twice} more than once.')
    return listed

def fingerprint():
    "Hash of all that the pages are made from"
    made = hashlib.sha256()
    for o in SOURCES:
        for file in sorted((project/o).rglob('*')) if (project/o).is_dir() else [project/o]:
            if file.is_file() and file.suffix in ('.ipynb', '.py', '.html', '.css', '.js', '.yml', '.svg',
                                                  '.ini', '.csv') and '.ipynb_checkpoints' not in file.parts:
                made.update(f'{file.relative_to(project)}\0'.encode() + file.read_bytes())
    return made.hexdigest()

def main():
    notebooks, made_from = listed_pages(), fingerprint()
    with tempfile.TemporaryDirectory() as tmp:
        work, pages = Path(tmp)/'project', Path(tmp)/'pages'
        ignore = shutil.ignore_patterns('__pycache__', '.*')
        for o in 'nbs', 'vlm_merging': shutil.copytree(project/o, work/o, ignore=ignore)
        for o in 'pyproject.toml', 'settings.ini', 'setup.py': shutil.copy(project/o, work)
        index = work/'vlm_merging/_modidx.py'
        if index.exists():
            about = {}
            exec(index.read_text(encoding='utf-8'), about)
            about['d']['settings'].update(doc_host=DOCS, doc_baseurl='/', git_url=CODE)
            index.write_text(f'd = {about["d"]!r}\n', encoding='utf-8')
        sys.path.insert(0, str(work))
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['nbdev.processors', 'torch', 'transformers', 'polars', 'altair'])
        with context.Pool(WORKERS) as pool:     # Each notebook leaves a shell behind, which ends with it
            parts = [(notebooks[i::WORKERS], work, pages) for i in range(WORKERS)]
            wrong = sum(pool.starmap(read_notebooks, parts), [])
        if wrong: sys.exit('\n\n'.join(wrong))
        draw(work, pages)
    settle()
    if wrong := list(faults()): sys.exit('The pages are built, but:\n' + '\n'.join(sorted(wrong)))
    (site/'made_from').write_text(made_from)
    print(f'{len(list(site.rglob("*.html")))} pages in {site.name}/')

def module_of(nb):
    "Name, text and syntax tree of the module that a notebook is exported to"
    names = re.findall(r'^#\| *default_exp +([\w.]+)', '\n'.join(o.source for o in nb.cells), flags=re.M)
    text = ''
    if names: text = (project/f"vlm_merging/{names[0].replace('.', '/')}.py").read_text(encoding='utf-8')
    return names[0] if names else '', text, ast.parse(text)

MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)

def as_mathml(html):
    "Formulas as the browser itself sets them, without a library from the net"
    from latex2mathml.converter import convert
    html = re.sub(r'<(script|link)[^>]*katex[^>]*>(</script>)?', '', html)
    html = re.sub(r'<script>[^<]*renderMathInElement.*?</script>', '', html, flags=re.S)
    return MATH.sub(lambda m: convert(unescape(m[2]), display='block' if m[1]=='display' else 'inline'), html)

# A notebook that is exported: what it offers stands first, and what it keeps to itself is folded

DEFINES = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef

def names_in(code):
    "The names that code defines for others: those of functions and classes, and what it assigns"
    body = ast.parse(code).body
    defined = [o.name for o in body if isinstance(o, DEFINES)]
    targets = [t for o in body if isinstance(o, (ast.Assign, ast.AnnAssign))
               for t in getattr(o, 'targets', None) or [o.target]]
    return defined, [n.id for t in targets for n in ast.walk(t)
                     if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]

def folded(code):
    "An exported cell without a public function, to be unfolded by who wants it; None: not such a cell"
    defined, assigned = names_in(code)
    if not defined + assigned or any(o[0]!='_' for o in defined): return None
    public = [o for o in assigned if o[0]!='_']
    names = ', '.join(public or defined or assigned)
    what = f'{"Constants" if public else "How it is done"}: {names}'
    return f'#| code-fold: true\n#| code-summary: "{what}"\n{code}'

def offer(module, tree, face):
    "The public names of a module, each with what it does and a link; `face` are those of the package"
    public = next((ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign)
                   and o.targets[0].id=='__all__'), ())
    about = {o.name: (ast.get_docstring(o) or '').partition('\n')[0]
             for o in tree.body if isinstance(o, DEFINES)}
    def told(names): return [f'- [`{o}`](#{o}): {about[o]}' for o in names]
    known = [o for o in public if o in about]
    others = ', '.join(f'`{o}`' for o in public if o not in about)
    parts = {'From `vlm_merging`': told(o for o in known if o in face),
             f'From `vlm_merging.{module}`': told(o for o in known if o not in face)}
    said = [f'{head}:\n\n' + '\n'.join(lines) for head, lines in parts.items() if lines]
    if others: said.append(f'Constants of `vlm_merging.{module}`: {others}')
    return '::: {.offer}\n' + '\n\n'.join(said) + '\n:::' if said else ''

def placed(cells):
    "Give what is documented its name as its place, and the level below the heading that it stands under"
    under = '#'
    for o in cells:
        if o['cell_type']=='markdown' and re.search(r'^## ', joined(o['source']), re.M): under = '##'
        for out in o.get('outputs', ()) if 'show_doc(' in joined(o['source']) else ():
            data, place = out['data'], under + r'\1 \2 {#\2}'
            told = joined(data['text/markdown'])
            data['text/markdown'] = re.sub(r'^##(#+) ([\w.]+) *$', place, told, flags=re.M)

def read_notebooks(paths, work, pages):
    "Write notebooks as nbdev shows them, under the names of their pages; what is wrong with them"
    from nbdev.processors import FilterDefaults, clean_magics, rm_export
    from nbdev.frontmatter import nb_frontmatter
    from fastcore import docments
    from fastcore.nbio import nb2dict, read_nb
    import vlm_merging
    def fold_or_leave_out(cell):
        ours = cell.cell_type=='code' and 'export' in cell.directives_ and folded(cell.source)
        if ours: cell.source = ours
        else: rm_export(cell)
    class Pages(FilterDefaults):
        def base_procs(self):   # No notebook has magics, and to clean them reads pyproject.toml for each cell
            return [fold_or_leave_out if o is rm_export else o
                    for o in super().base_procs() if o is not clean_magics]
    def fields(cls):
        found = [o for o in package[1].body if isinstance(o, ast.ClassDef) and o.name==cls.__name__]
        return ast.get_source_segment(package[0], found[0]) if found else ''
    docments.get_dataclass_source = fields  # it cannot read the comments of a class that lives in a notebook
    warnings.filterwarnings('error', message='Found cells containing imports')
    wrong = []
    for path in paths:
        try:
            os.chdir((work/'nbs'/path).parent)
            nb = read_nb(work/'nbs'/path)
            module, *package = module_of(nb)
            Pages()(nb)
            nb_frontmatter(nb)
            page = notebook_name(path)
            plain = nb2dict(nb)
            cells = [told_cell(o) for o in plain['cells']]
            placed(cells)
            if text := offer(module, package[1], vlm_merging._HOMES):
                cells.insert(1, dict(cell_type='markdown', id='offer', metadata={}, source=text))
            (pages/page).parent.mkdir(parents=True, exist_ok=True)
            (pages/page).write_text(json.dumps(dict(plain, cells=cells)), encoding='utf-8')
        except Exception as e: wrong.append(f'nbs/{path} does not build. {e}')
    return wrong

SOURCE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="stylesheet" href="{up}/source.css"></head>
<body><main><p><a href="{up}/{page}">{back}</a></p><h1>{name}</h1>
{code}
</main></body></html>"""

def write_sources():
    "Each module as a plain page, on which each line has a place of its own"
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    form = HtmlFormatter(lineanchors='L', cssclass='source', wrapcode=True)
    for file in sorted((project/'vlm_merging').rglob('[!_]*.py')):
        name, text = file.relative_to(project), file.read_text(encoding='utf-8')
        to = site/'source'/name.with_suffix('.html')
        to.parent.mkdir(parents=True, exist_ok=True)
        notebook = re.search(r'^# AUTOGENERATED! .* File to edit: [./]*nbs/(\S+\.ipynb)', text, flags=re.M)
        page, back = 'index.html', 'To the pages'
        if notebook: page, back = page_name(notebook[1]), 'The page about it'
        to.write_text(SOURCE.format(name=name, up=relpath('.', f'source/{name.parent}'), page=page, back=back,
                                    code=highlight(text, PythonLexer(), form)), encoding='utf-8')
    dark = HtmlFormatter(style='github-dark').get_style_defs('.source')
    styles = (here/'source.css').read_text(encoding='utf-8'), form.get_style_defs('.source'), \
        '@media (prefers-color-scheme: dark) {', dark, '}'
    (site/'source.css').write_text('\n'.join(styles), encoding='utf-8')

def rank():
    "Tell the search (`site.js`) which parts of the site teach, and which are of a name in the face"
    from vlm_merging import _HOMES
    public = {f"{home.replace('.', '/')}.html#{name}" for name, home in _HOMES.items()}
    file = site/'search.json'
    index = json.loads(file.read_text(encoding='utf-8'))
    for o in index:
        o['teaches'] = o['href'].startswith(('index', 'guide/', 'tutorials/'))
        o['public'] = o['href'] in public
    file.write_text(json.dumps(index, ensure_ascii=False), encoding='utf-8')

def draw(work, pages):
    "The pages, by smalldocs"
    import vl_convert
    from smalldocs.config import load
    from smalldocs.site import Site
    for o in (work/'nbs').rglob('*'):
        to = pages/o.relative_to(work/'nbs')
        if o.is_file() and o.suffix!='.ipynb' and o.name[0]!='_':
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(o, to)
    config = yaml.safe_load((project/'_quarto.yml').read_text(encoding='utf-8'))
    def named(o):
        if isinstance(o, str): return notebook_name(o)
        if 'section' in o: return dict(o, contents=[named(x) for x in o['contents']])
        return dict(o, href=named(o['href']))
    sidebar = config['website']['sidebar']
    sidebar['contents'] = [named(o) for o in sidebar['contents']]
    config['project']['output-dir'] = str(site)
    about = ConfigParser(delimiters='=', interpolation=None)
    about.read(project/'settings.ini', encoding='utf-8')
    config['website'].update({'title': about['DEFAULT']['lib_name'], 'llms-txt': True,
                              'description': about['DEFAULT']['description']})
    config['format']['html']['css'] = 'site.css'
    (pages/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    shutil.copy(here/'site.css', pages)
    (pages/'vega.js').write_text(vl_convert.javascript_bundle(), encoding='utf-8')
    Site(load(pages), quiet=True).build()
    shutil.copy(pages/'vega.js', site)
    shutil.copy(here/'site.js', site)
    write_sources()
    rank()

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

if __name__=='__main__':
    if sys.argv[1:]==['readme']: (project/'README.md').write_text(readme(), encoding='utf-8')
    elif sys.argv[1:]:
        sys.exit(f'No job {" ".join(sys.argv[1:])!r}. There is `readme`; without a word the site is built.')
    else: main()
