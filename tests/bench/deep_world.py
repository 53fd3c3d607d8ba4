"""A deeper trio, in whose world the language model must translate what it sees: does depth matter there?

    python tests/bench/deep_world.py --seeds 0 1 2 --out deep --table nbs/tutorials/deep_world.csv

The scenes and questions are those of the lab, but scenes are not told in whole words. In text a colour or a
number is spelled in two pieces, side by side. In a picture the two halves are spelled in *another* alphabet,
and lie four patches apart. What comes out of the projector, which is linear, is therefore not what
the language model knows: its early layers have to put the halves together and translate them. The decoder has
ten layers.

A trio is trained a seed at a time: base, LLM (it reasons in steps, whose first ones look things up), and VLM
(half of its diet is text). Each stage is kept in `--out` and not trained again. All is measured on scenes
of `test`, and the rows of a seed are written to the table at once. Weight and layers that stay the VLM's are
chosen on `dev` by `choose_weight`. Which claims hold is told by `claims` and `over_seeds`, and
written to a second table, whose name ends in `_claims`.
"""
import argparse, copy, math, sys, time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vlm_merging import choose_weight, logit_lens, masked                         # noqa: E402
from vlm_merging.comparing.pairs import difference                                # noqa: E402
from vlm_merging.comparing.statistics import wilson                               # noqa: E402
from vlm_merging.lab.lessons import ID, VOCAB, ids                                # noqa: E402
from vlm_merging.lab.training import core, llama, train                           # noqa: E402
from vlm_merging.lab.trio import COLORS, TOPICS, question_about, scene            # noqa: E402

# --- The world

LAYERS, HIDDEN, CODE = 10, 64, 64
SEEN, WORKED_OUT = ('number', 'color'), ('plus', 'minus', 'more')
WORDS = [*COLORS, *map(str, range(10))]
GRID = 5                                                    # First halves, and second halves, of a word
PIECES = [f'{half}{k}' for half in 'ab' for k in range(GRID)]
PIECE = {piece: len(VOCAB)+k for k, piece in enumerate(PIECES)}
IMAGE = ID['<image>']
NOISE = .3                                                  # Standard deviation; that of a code is 1
_rng = np.random.default_rng(12345)                         # Both alphabets are the same for every seed
def _alphabet(): return {w: divmod(int(c), GRID) for w, c in zip(WORDS, _rng.permutation(GRID**2))}
WRITTEN, DRAWN = _alphabet(), _alphabet()
CODES = torch.tensor(_rng.normal(size=(2*GRID, CODE)), dtype=torch.float32)


def told(sc):
    "A scene as tokens: colour and number of the four things, two pieces each"
    halves = [WRITTEN[w] for color, _, n in sc for w in (color, str(n))]
    return [PIECE[o] for first, second in halves for o in (f'a{first}', f'b{second}')]


def seen(sc, rng):
    "A scene as 16 codes: rows of four, first the first halves of two things, below them the second ones"
    halves = [DRAWN[w] for color, _, n in sc for w in (color, str(n))]
    rows = [[half[k]+GRID*k for half in halves[i:i+4]] for i in (0, 4) for k in (0, 1)]
    return CODES[sum(rows, [])]+NOISE*torch.tensor(rng.normal(size=(16, CODE)), dtype=torch.float32)


class Reader(LlamaForCausalLM):
    "A language model of the lab that takes codes in the place of <image>, through a linear projector"
    def __init__(self, config):
        super().__init__(config)
        self.projector = torch.nn.Linear(CODE, config.hidden_size)
        torch.nn.init.normal_(self.projector.weight, 0, .1/math.sqrt(CODE))

    def forward(self, input_ids=None, codes=None, **more):
        at = input_ids==IMAGE
        if codes is None or not at.any(): return super().forward(input_ids=input_ids, **more)
        embedded = self.model.embed_tokens(input_ids).masked_scatter(at[..., None], self.projector(codes))
        return super().forward(inputs_embeds=embedded, **more)


def reader(seed):
    "A model that has learned nothing"
    torch.manual_seed(seed)
    config = llama(HIDDEN, LAYERS)
    config.vocab_size, config.image_token_id = len(VOCAB)+len(PIECES), IMAGE
    return Reader(config)


# --- Lessons and exams

def lesson(rng, mix, chain, image=False, n=16, each=8):
    "A batch of scenes, each with questions that do not see each other"
    share, rows, codes = np.array([*mix.values()])/sum(mix.values()), [], []
    for _ in range(n):
        sc = scene(rng, 'train')
        x = [ID['<bos>']]+([IMAGE]*16 if image else told(sc))
        y, at, whose, behind = [-100]*17, [*range(17)], [0]*17, 17
        for k, topic in enumerate(rng.choice([*mix], each, p=share)):
            q, steps, a = question_about(topic, sc, rng)
            if steps and rng.random()<chain: a = f'{steps} so {a}'
            q, a = ids(f'question {q} answer'), ids(f'{a} <eos>')
            x += q+a; y += [-100]*len(q)+a; at += range(behind, behind+len(q+a)); whose += [k+1]*len(q+a)
        rows.append((x, y, at, whose))
        if image: codes.append(seen(sc, rng))
    longest = max(len(r[0]) for r in rows)
    x, y, at, whose = (torch.tensor([r[i]+[fill]*(longest-len(r[i])) for r in rows])
                       for i, fill in enumerate((0, -100, 0, -1)))
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    sight = ((whose[:, :, None]==whose[:, None, :]) | (whose[:, None, :]==0)) & earlier
    sight = torch.zeros(sight.shape)[:, None].masked_fill(~sight[:, None], torch.finfo(torch.float32).min)
    batch = dict(input_ids=x, labels=y, position_ids=at, attention_mask=sight)
    return batch|(dict(codes=torch.stack(codes)) if image else {})


def questions(n, seed, split, image, topics=SEEN+WORKED_OUT):
    "Topic -> n prompts of one length, and their answers"
    rng, asked = np.random.default_rng([seed, *split.encode(), image]), {}
    for topic in topics:
        x, answers, codes = [], [], []
        for _ in range(n):
            sc = scene(rng, split)
            q, _, a = question_about(topic, sc, rng)
            x.append([ID['<bos>']]+([IMAGE]*16 if image else told(sc))+ids(f'question {q} answer'))
            answers.append(ID[a])
            if image: codes.append(seen(sc, rng))
        x = dict(input_ids=torch.tensor(x))
        asked[topic] = x|(dict(codes=torch.stack(codes)) if image else {}), torch.tensor(answers)
    return asked


@torch.inference_mode()
def right(model, prompts, answers):
    "Is the last word of each reply the answer? And how many words has it?"
    x = prompts['input_ids']
    out = model.generate(**prompts, attention_mask=torch.ones_like(x), max_new_tokens=9, do_sample=False,
                         pad_token_id=0, eos_token_id=2)[:, x.shape[1]:]
    out = torch.nn.functional.pad(out, (0, 1), value=2)
    length = (out==2).int().argmax(1)
    last = out.gather(1, (length-1).clamp(min=0)[:, None])[:, 0]
    return ((last==answers)&(length>0)).float(), length


def exam(model, asked):
    "Topic -> percent right"
    return {topic: 100*right(model, *o)[0].mean().item() for topic, o in asked.items()}


# --- A trio

LOOK, ALL = dict(number=1, color=1), dict(number=.25, color=.15, plus=.2, minus=.2, more=.2)
STEPS = dict(number=.1, plus=.3, minus=.3, more=.3)
PICTURES = dict(number=.5, color=.4, plus=.04, minus=.04, more=.02)
ROUNDS = 6


def rounds(stage, passed, model, asked, what, say):
    "Train until an exam is passed; raise ValueError if it never is"
    for k in range(ROUNDS):
        stage(k)
        marks = exam(model, asked)
        say(f'{what}, round {k+1}: '+', '.join(f'{t} {v:.0f}' for t, v in marks.items()))
        if passed(marks): return
    raise ValueError(f'{what} did not pass its exam in {ROUNDS} rounds. Try another seed.')


def sees(marks): return min(marks[t] for t in SEEN)>=97


def make_base(seed, say):
    "The base: it looks things up in spelled text, and has some reasoning"
    base, rng, asked = reader(seed), np.random.default_rng([seed, 1]), questions(100, 1, 'dev', False)
    def learn(mix, steps, chain=0.):
        train(base, [(base.parameters(), 2e-3)], steps, lambda: base(**lesson(rng, mix, chain)).loss)
    rounds(lambda k: learn(LOOK, 400), sees, base, asked, 'base, looking', say)
    rounds(lambda k: learn(ALL, 500, .5), sees, base, asked, 'base', say)
    return base


def make_llm(base, seed, say):
    "The base, tuned on text to work things out in steps"
    llm, rng, asked = copy.deepcopy(base), np.random.default_rng([seed, 2]), questions(100, 1, 'dev', False)
    def learn(k):
        train(llm, [(core(llm.model), 1e-3)], 300, lambda: llm(**lesson(rng, STEPS, 1.)).loss)
    rounds(learn, lambda marks: min(marks[t] for t in WORKED_OUT)>=90, llm, asked, 'LLM', say)
    return llm


def make_vlm(base, seed, say):
    "The base, tuned on pictures and text in turn; in pictures it hardly reasons, in text it answers at once"
    vlm, rng, asked = copy.deepcopy(base), np.random.default_rng([seed, 3]), questions(100, 1, 'dev', True)
    moves, turn = [*vlm.projector.parameters(), *core(vlm.model)], [0]
    def loss():
        turn[0] += 1
        return vlm(**lesson(rng, PICTURES if turn[0]%2 else ALL, 0., image=bool(turn[0]%2))).loss
    rounds(lambda k: train(vlm, [(moves, 1e-3)], 500 if k else 1000, loss), sees, vlm, asked, 'VLM', say)
    return vlm


def trio(folder, seed, say):
    "Base, LLM and VLM of a seed; what is in the folder is not trained again"
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for name, stage in (('base', make_base), ('llm', make_llm), ('vlm', make_vlm)):
        kept = folder/f'{name}.pt'
        model = reader(seed)
        if kept.exists(): model.load_state_dict(torch.load(kept))
        else:
            model = stage(*models[:1], seed, say)
            torch.save(model.state_dict(), kept.with_suffix('.draft'))
            kept.with_suffix('.draft').rename(kept)
        models.append(model.eval())
    return models


def mixed(vlm, llm, weight, kept=0):
    "Layers and final norm at `weight` of the VLM; the first `kept` layers stay the VLM's"
    merged, other = copy.deepcopy(vlm), dict(llm.model.named_parameters())
    with torch.no_grad():
        for name, p in merged.model.named_parameters():
            own = name.startswith('layers.') and int(name.split('.')[1])<kept
            if not own and (name.startswith('layers.') or name=='norm.weight'):
                p.copy_(weight*p+(1-weight)*other[name])
    return merged


# --- What is measured

WEIGHTS = (1., .9, .8, .7, .6, .5, .4, .2, 0.)
KEPT = (0, 2, 4, 6)                                         # First layers that may stay the VLM's
COLUMNS = (dict(seed=pl.Int64, what=pl.String, model=pl.String, weight=pl.Float64, kept=pl.Int64,
                layer=pl.Int64, kind=pl.String, n=pl.Int64)
           | dict.fromkeys('value low high change change_low change_high words'.split(), pl.Float64))


def by_kind(model, asked):
    "Kind -> right (0 or 1) of every question, and mean length of a reply"
    replies = {t: right(model, *o) for t, o in asked.items()}
    def joined(kind): return zip(*(r for t, r in replies.items() if TOPICS[t]==kind))
    return {kind: tuple(torch.cat(o).float() for o in joined(kind)) for kind in ('perception', 'reasoning')}


def cells(now, before, **about):
    "Rows of one model: the share that is right of each kind, and its paired change against `before`"
    for kind, (good, words) in now.items():
        n, gain = len(good), (good-before[kind][0]).double().numpy()
        low, high = wilson(good.mean().item(), n)
        change, change_low, change_high = difference(np.stack([gain, np.ones(n)], 1), resamples=2000)
        yield about|dict(kind=kind, n=n, value=good.mean().item(), low=low, high=high, change=change,
                         change_low=change_low, change_high=change_high, words=words.mean().item())


def chosen_merge(vlm, llm, asked):
    "Weight and kept layers, on `dev`: the rule for each number of kept layers; the best reasoner of these"
    found = []
    for kept in KEPT:
        tried = pl.DataFrame([
            dict(what='accuracy', where=kind, weight=w, n=len(good), value=good.mean().item())
            for w in WEIGHTS for kind, (good, _) in by_kind(mixed(vlm, llm, w, kept), asked).items()])
        weight = choose_weight(tried)
        found.append((tried.filter(where='reasoning', weight=weight)['value'][0], -kept, weight))
    _, kept, weight = max(found)
    return weight, -kept


def profiles(name, model, full, asked, **about):
    "Rows of masks: each layer skipped, and pictures hidden from each layer on"
    for how in ('skip', 'blind'):
        for i in range(LAYERS):
            with masked(model, i if how=='skip' else range(i, LAYERS), how=how):
                yield from cells(by_kind(model, asked), full, what=how, model=name, layer=i, **about)


def lens(name, model, asked, **about):
    "Rows of the logit lens: how often the answer is the likeliest word behind each layer, answering at once"
    read = {}
    for topic, (prompts, answers) in asked.items():
        table = logit_lens(model, prompts, answers[:, None])
        for (i,), part in table.group_by('layer'):
            read.setdefault((TOPICS[topic], i), []).extend((part['rank']==1).cast(pl.Float64))
    for (kind, i), first in sorted(read.items()):
        low, high = wilson(np.mean(first), len(first))
        yield about|dict(what='lens', model=name, layer=i, kind=kind, n=len(first),
                         value=float(np.mean(first)), low=low, high=high)


def measured(seed, base, llm, vlm, n):
    "All rows of one seed"
    test, text = (questions(n, 3, 'test', image) for image in (True, False))
    before, in_text = by_kind(vlm, test), by_kind(base, text)
    rows = []
    def add(asker, asked, compared, **about):
        now = by_kind(asker, asked)
        rows.extend(cells(now, compared, **about))
        return now
    for name, model in dict(LLM=llm, VLM=vlm).items(): add(model, text, in_text, what='text', model=name)
    for w in WEIGHTS: add(mixed(vlm, llm, w), test, before, what='weight', model='merge', weight=w, kept=0)
    add(mixed(vlm, base, .5), test, before, what='control', model='base instead', weight=.5, kept=0)
    for k in range(LAYERS+1):
        add(mixed(vlm, llm, .5, k), test, before, what='swap', model='merge', weight=.5, kept=k)
    weight, kept = chosen_merge(vlm, llm, questions(n, 2, 'dev', True))
    merge, about = mixed(vlm, llm, weight, kept), dict(weight=weight, kept=kept)
    after = add(merge, test, before, what='chosen', model='merge', **about)
    rows += [*profiles('VLM', vlm, before, test), *profiles('merge', merge, after, test, **about),
             *lens('VLM', vlm, test), *lens('merge', merge, test, **about)]
    return pl.DataFrame([dict(seed=seed)|r for r in rows], schema=COLUMNS)


# --- What it says

LOSS = .05                                                  # Less is taken for nothing


def claims(table):
    """Claim -> 'holds', 'does not hold' or 'cannot be told', of one seed, by the 95% intervals of losses.

    Perception early: in the later half no layer may cost more than `LOSS`. Reasoning later: one of them
    surely costs more than that, and more than it costs perception. All layers after merging: all but one
    surely cost something; where the rule took no merge but the VLM itself, that cannot be told. Reasoning
    arrives: what the rule took surely gains more than `LOSS`."""
    def losses(model, kind):
        rows = table.filter(what='skip', model=model, kind=kind).sort('layer')
        return -rows['change_high'].to_numpy(), -rows['change_low'].to_numpy()  # At least, at most
    def said(yes, no): return 'holds' if yes else 'does not hold' if no else 'cannot be told'
    late, found = slice(LAYERS//2, None), {}
    least, most = losses('VLM', 'perception')
    found['perception early'] = said((most[late]<LOSS).all(), (least[late]>LOSS).any())
    sure, at_most = losses('VLM', 'reasoning')
    deeper = (sure[late]>LOSS)&(sure[late]>most[late])
    found['reasoning later'] = said(deeper.any(), (at_most[late]<LOSS).all())
    gain = table.filter(what='chosen', kind='reasoning').row(0, named=True)
    (sure, at_most), merged = losses('merge', 'reasoning'), gain['weight']!=1
    found['all layers after merging'] = said(merged and (sure>0).sum()>=LAYERS-1,
                                             merged and (at_most<LOSS).sum()>=2)
    found['reasoning arrives'] = said(gain['change_low']>LOSS, gain['change_high']<LOSS)
    return found


def over_seeds(table):
    "Claim -> the same over seeds: what all of three say, or all but one of more; else it cannot be told"
    each = [claims(part) for _, part in table.group_by('seed', maintain_order=True)]
    def verdict(says):
        return next((o for o in ('holds', 'does not hold')
                     if says.count(o)>=max(3, len(says)-1)), 'cannot be told')
    return {c: verdict([o[c] for o in each]) for c in each[0]}


def verdicts(table):
    "A row a claim: what each seed says of it, and all together"
    together = over_seeds(table)
    of_seed = {f'seed {k}': claims(part) for (k,), part in table.group_by('seed', maintain_order=True)}
    return pl.DataFrame([dict(claim=c, **{k: o[c] for k, o in of_seed.items()}, together=together[c])
                         for c in together])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    parser.add_argument('--out', type=Path, default='deep', help='folder of the trios, one a seed')
    parser.add_argument('--table', type=Path, default='deep_world.csv')
    parser.add_argument('--questions', type=int, default=150, help='of each of the five topics')
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    def say(what): print(f'{time.process_time()-start:5.0f} s  {what}', flush=True)
    table = pl.read_csv(given.table, schema=COLUMNS) if given.table.exists() else pl.DataFrame(schema=COLUMNS)
    for seed in given.seeds:
        if seed in table['seed']: continue
        models = trio(given.out/str(seed), seed, lambda what: say(f'seed {seed}, {what}'))
        table = pl.concat([table, measured(seed, *models, given.questions)]).sort('seed', maintain_order=True)
        table.write_csv(given.table, float_precision=4)
        say(f'seed {seed}: {claims(table.filter(seed=seed))}')
    found = verdicts(table)
    found.write_csv(given.table.with_stem(f'{given.table.stem}_claims'))
    for claim, *_, together in found.rows(): say(f'{claim}: {together}')


if __name__=='__main__': main()
