"""What a full profile costs when work before a masked layer is reused, against running all from the start.

    python tests/bench/profiles.py [--layers 24] [--hidden 512] [--items 8] [--prompt 128] [--answer 16]
                                  [--batch 8] [--llava] [--device cpu] [--rounds 1]
                                  [--only likelihood,riding,seldom,worst]

A random Llama (with --llava: a LLaVA with a CLIP tower around it) is made in memory and masked at every
layer, attention and MLP. CPU seconds of this process, or seconds on the clock on a GPU; both ways in one run,
and their results are compared. `work` is the ratio of tokens that go through decoder layers (counted for
replies, by arithmetic for likelihood), which no load on the machine can change. The floor for masks of one
layer is (L+1)/2L = 0.52 at 24 layers; the unmasked pass and the checks of the first batch come on top. Where
others use the machine, seconds move by a third from minute to minute: so the likelihood is timed mask by
mask, the two ways in turns; for replies take the best of some --rounds.

likelihood  all masks on one batch, the unmasked pass and both checks included
riding      the same with a third of the items, so that three masks ride beside each other
seldom      generation where masks seldom change a reply: each layer adds next to nothing
worst       generation where every mask changes every reply
"""
import argparse, time, warnings
from contextlib import contextmanager
from types import SimpleNamespace
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig,
                          LlavaForConditionalGeneration,
                          LlavaProcessor, PreTrainedTokenizerFast)
from transformers.utils import logging
from vlm_merging.probing.effects import effects
from vlm_merging.asking.models import LocalModel, prompt_inputs
from vlm_merging.probing.layers import decoder_layers
from vlm_merging.probing.masks import masks
from vlm_merging.probing.replay import (answer_ids, record, forward_pass, token_logprobs, teacher_forced,
                                        masked_logits)

WORDS = 2000
CHAT = ("{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}{% for p in m.content "
        "%}"
        "{{ '<image>' if p.type=='image' else p.text }} {% endfor %}{% endif %}{% endfor %}")

def tokenizer():
    names = ['<pad>', '<s>', '</s>', '<unk>', '<image>']
    vocab = {w:i for i, w in enumerate(names+[f'w{i}' for i in range(WORDS-len(names))])}
    made = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token='<pad>', bos_token='<s>',
                                   eos_token='</s>', unk_token='<unk>',
                                   padding_side='left', chat_template=CHAT,
                                   extra_special_tokens={'image_token':'<image>'})

def asker(o, gentle):
    "A random model; gentle: each layer adds so little that masking one seldom changes what is said"
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=WORDS, hidden_size=o.hidden, intermediate_size=o.hidden*11//4,
                       num_hidden_layers=o.layers,
                       num_attention_heads=o.hidden//64, num_key_value_heads=o.hidden//64,
                       max_position_embeddings=4096,
                       initializer_range=.05, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    words = tokenizer()
    if o.llava:
        tower = CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
                                 num_attention_heads=4, image_size=112,
                                 patch_size=14, projection_dim=256)
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=text,
                                                          image_token_index=4))
        reads = LlavaProcessor(CLIPImageProcessor(size=dict(shortest_edge=112),
                                                  crop_size=dict(height=112, width=112)), words,
                                                  patch_size=14,
                               vision_feature_select_strategy='default', chat_template=CHAT,
                               image_token='<image>',
                               num_additional_image_tokens=1)
    else: model, reads = LlamaForCausalLM(text), words
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model = model.eval().to(o.device)
    if gentle:
        with torch.no_grad():
            for layer in model.get_decoder().layers:
                layer.self_attn.o_proj.weight.mul_(.001)
                layer.mlp.down_proj.weight.mul_(.001)
    return LocalModel(model, reads, 'random', batch_size=o.batch, max_new_tokens=o.answer)

def questions(o):
    g = torch.Generator().manual_seed(1)
    def text(n): return ' '.join(f'w{i}' for i in torch.randint(0, WORDS-5, (n,), generator=g).tolist())
    pictures = ((Image.effect_noise((112, 112), 80).convert('RGB'),) if o.llava else ()
                for _ in range(o.items))
    return [SimpleNamespace(id=str(i), question=text(o.prompt-i%4-(65 if o.llava else 0)), images=p,
                            answer=text(o.answer-i%3), tags={})
            for i, p in enumerate(pictures)]

def timed(o, **how):
    "Seconds and the table"
    clock = time.process_time if o.device=='cpu' else time.perf_counter
    if o.device!='cpu': torch.cuda.synchronize()
    start = clock()
    made = effects(score=lambda item, text: 0., **how)
    if o.device!='cpu': torch.cuda.synchronize()
    return clock()-start, made

@contextmanager
def counted(model):
    "Tokens that go through decoder layers"
    seen = [0]
    def note(_, args, out): seen[0] += (out[0] if isinstance(out, tuple) else out).shape[:2].numel()
    hooks = [m.register_forward_hook(note) for m in (l.input_layernorm for l in decoder_layers(model))]
    try: yield seen
    finally:
        for h in hooks: h.remove()

def in_turns(o, what, who, items, room):
    "One batch of `effects`, layer by layer, the two ways in turns"
    clock = time.process_time if o.device=='cpu' else time.perf_counter
    def timed(do):
        start, made = clock(), do()
        if o.device!='cpu': torch.cuda.synchronize()
        return clock()-start, made
    model, every = who.model, masks(who.model, ('layer', 'mlp', 'attention'))
    ids = [answer_ids(who, i, i.answer) for i in items]
    with torch.inference_mode():
        full, keep = teacher_forced(model, prompt_inputs(who, items, [list(i.images) for i in items]),
                                    ids), 1+max(map(len, ids))
        forward_pass(model, full, keep)  # Warm
        (fast, held), (plain, _) = timed(lambda: record(model, full, keep)), timed(lambda: forward_pass(model,
            full, keep))
        # Two checks; unmasked pass and one
        fast, slow, off, few, many = fast+2*plain, 2*plain, 0., 3.*o.layers, 2.*o.layers
        for layer in range(o.layers):
            group = [m for m in every if m.layers==(layer,)]
            f, a = timed(lambda: dict(masked_logits(model, full, keep, group, held, room)))
            s, b = timed(lambda: dict(masked_logits(model, full, keep, group)))
            off = max(off, *(float((token_logprobs(a[k], ids)-token_logprobs(b[k], ids)).sum(-1).abs().max())
                             for k in a))
            fast, slow, few, many = fast+f, slow+s, few+len(group)*(o.layers-layer), many+len(group)*o.layers
    assert off<1e-3, f'{what}: the two ways differ by {off}'
    print(f'{what:11}{len(items):6}{len(every):7}{slow:10.1f}{fast:9.1f}{fast/slow:8.3f}{few/many:8.3f}   '
          f'largest difference {off:.1e} nats', flush=True)

def compare(o, what, who, items, measure, batch):
    every = masks(who.model, ('layer', 'mlp', 'attention'))
    timed(o, asker=who, items=items[:1], masks=every[:1], measures=measure)             # Warm
    seconds, work = {True:[], False:[]}, {}
    for _ in range(o.rounds):
        for r in (True, False):
            with counted(who.model) as seen:
                spent, table = timed(o, asker=who, items=items, masks=every, measures=measure, reuse=r,
                                     batch_size=batch)
            seconds[r].append(spent)
            work[r] = seen[0], table
    (few, a), (many, b) = work[True], work[False]
    fast, slow = min(seconds[True]), min(seconds[False])
    off = (a['after']-b['after']).abs().max()
    same = a.drop('before', 'after').equals(b.drop('before', 'after'))
    assert same and off<1e-3, f'{what}: the two ways differ'
    note = f"replies identical; {100*(a['reply_before']!=a['reply_after']).mean():.0f}% changed by their mask"
    print(f'{what:11}{len(items):6}{len(every):7}{slow:10.1f}{fast:9.1f}{fast/slow:8.3f}{few/many:8.3f}   '
          f'{note}', flush=True)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, n in dict(layers=24, hidden=512, items=8, prompt=128, answer=16, batch=8, rounds=1).items():
        p.add_argument(f'--{name}', type=int, default=n)
    p.add_argument('--llava', action='store_true')
    p.add_argument('--device', default='cpu')
    p.add_argument('--only', default='likelihood,riding,seldom,worst')
    o = p.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter('error', UserWarning)          # A fallback would be a warning: here it is a failure
    only, items = o.only.split(','), questions(o)
    print(f'{o.layers} layers, hidden {o.hidden}, {"LLaVA" if o.llava else "Llama"}, {o.device}; floor '
          f'{(o.layers+1)/(2*o.layers):.3f}')
    print(f"{'':11}{'items':>6}{'masks':>7}{'scratch s':>10}{'reuse s':>9}{'ratio':>8}{'work':>8}")
    if 'likelihood' in only: in_turns(o, 'likelihood', asker(o, False), items[:o.batch], o.batch)
    if 'riding' in only: in_turns(o, 'riding', asker(o, False), items[:max(1, o.batch//3)], o.batch+1)
    if 'seldom' in only: compare(o, 'seldom', asker(o, True), items, 'answer', o.batch)
    if 'worst' in only: compare(o, 'worst', asker(o, False), items, 'answer', o.batch)
