"The deeper world of `tests/bench`: both spellings tell the whole scene; a claim is judged by its interval"
import sys
from pathlib import Path

import numpy as np, polars as pl, pytest, torch

sys.path.insert(0, str(Path(__file__).resolve().parent/'bench'))
import deep_world as world                                                        # noqa: E402

torch.set_num_threads(1)
HALF = world.LAYERS//2


def named(codes):
    "The eight words that 16 codes without much noise spell"
    nearest = torch.cdist(codes, world.CODES).argmin(1).tolist()
    words = {half: w for w, half in world.DRAWN.items()}
    pairs = [(nearest[i+k], nearest[i+4+k]-world.GRID) for i in (0, 8) for k in range(4)]
    return [words[o] for o in pairs]


def test_text_and_picture_spell_the_same_scene_in_two_alphabets():
    rng = np.random.default_rng(0)
    sc = world.scene(rng, 'test')
    wanted = [w for color, _, n in sc for w in (color, str(n))]
    assert named(world.seen(sc, rng))==wanted
    pieces, words = world.told(sc), {half: w for w, half in world.WRITTEN.items()}
    own = [world.PIECES[o-len(world.VOCAB)] for o in pieces]
    assert [words[int(a[1]), int(b[1])] for a, b in zip(own[::2], own[1::2])]==wanted
    assert sum(world.WRITTEN[w]!=world.DRAWN[w] for w in world.WORDS)>=len(world.WORDS)-3


def test_a_linear_projector_cannot_translate():
    "The picture's halves would have to be sent to the text's, one by one; but they belong to other words"
    for half in (0, 1):
        goes = {}
        for w in world.WORDS: goes.setdefault(world.DRAWN[w][half], set()).add(world.WRITTEN[w][half])
        assert max(map(len, goes.values()))>1


def rows(seed=0, **losses):
    "A table of one seed; each loss: (layers it is lost in, points), with an interval of a point each side"
    out = [dict(what='chosen', model='merge', kind='reasoning', change=.3, change_low=.25, change_high=.35)]
    for name, (where, points) in losses.items():
        model, kind = name.split('_')
        for i in range(world.LAYERS):
            change = -points if i in where else 0.
            out.append(dict(what='skip', model=model, kind=kind, layer=i, change=change,
                            change_low=change-.01, change_high=change+.01))
    return pl.DataFrame([dict(seed=seed)|r for r in out], schema=world.COLUMNS)


@pytest.mark.parametrize('claim, kind, model, where, points, said', [
    ('perception early', 'perception', 'VLM', [0, 1], .9, 'holds'),
    ('perception early', 'perception', 'VLM', [0, HALF], .9, 'does not hold'),
    ('perception early', 'perception', 'VLM', [0, HALF], .05, 'cannot be told'),
    ('reasoning later', 'reasoning', 'VLM', [0, HALF], .2, 'holds'),
    ('reasoning later', 'reasoning', 'VLM', [0, 1], .2, 'does not hold'),
    ('reasoning later', 'reasoning', 'VLM', [0, HALF], .055, 'cannot be told'),
    ('all layers after merging', 'reasoning', 'merge', range(world.LAYERS-1), .1, 'holds'),
    ('all layers after merging', 'reasoning', 'merge', [0, 1], .1, 'does not hold')])
def test_a_claim_is_judged_by_its_interval(claim, kind, model, where, points, said):
    losses = dict(VLM_perception=([0], .9), VLM_reasoning=([0], .3), merge_reasoning=([0], .3))
    assert world.claims(rows(**losses|{f'{model}_{kind}': (where, points)}))[claim]==said


def test_of_a_merge_that_is_the_vlm_nothing_is_said():
    same = rows(VLM_perception=([0], .9), VLM_reasoning=([0], .3), merge_reasoning=([0], .3))
    same = same.with_columns(weight=pl.when(what='chosen').then(1.))
    assert world.claims(same)['all layers after merging']=='cannot be told'


def test_one_seed_gives_no_verdict_over_seeds():
    one = rows(VLM_perception=([0], .9), VLM_reasoning=([HALF], .3),
               merge_reasoning=(range(world.LAYERS), .3))
    assert set(world.claims(one).values())=={'holds'}
    assert set(world.over_seeds(one).values())=={'cannot be told'}
    def seeds(n, other=()):
        return pl.concat([one.with_columns(seed=pl.lit(k, pl.Int64)) for k in range(n)]+[*other])
    assert set(world.over_seeds(seeds(3)).values())=={'holds'}
    against = rows(seed=9, VLM_perception=([HALF], .9), VLM_reasoning=([HALF], .3), merge_reasoning=([0], .3))
    assert world.over_seeds(seeds(2, [against]))['perception early']=='cannot be told'
    assert world.over_seeds(seeds(3, [against]))['perception early']=='holds'
    told = world.verdicts(seeds(2, [against]))
    assert told.row(0)==('perception early', 'holds', 'holds', 'does not hold', 'cannot be told')
