"""What a plan costs where tensors are many: a mixture of experts, each stored apart.

    python tests/bench/planning.py [--layers 56] [--experts 128] [--runs 3] [--profile]

makes, as files with headers and holes (no numbers, no room on the disk), an LLM of Qwen3-30B-A3B's shapes
with every expert in matrices of its own, and two VLMs over it: one with experts apart, one with them stacked
in blocks. 56 layers of 128 experts are some 22,000 tensors. Printed are seconds of processor time, the least
of some runs, beside the floor: reading and parsing the JSON of all headers.
"""
import argparse, cProfile, json, pstats, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from vlm_merging.merging.plan import plan                                         # noqa: E402

HIDDEN, INNER, HEADS, KV, HEAD, VOCAB = 2048, 768, 32, 4, 128, 151936


def language_model(layers, experts, stem, head, stacked):
    "Names and shapes"
    made = {f'{stem}embed_tokens.weight': (VOCAB, HIDDEN), f'{stem}norm.weight': (HIDDEN,),
            f'{head}lm_head.weight': (VOCAB, HIDDEN)}
    for i in range(layers):
        s = f'{stem}layers.{i}.'
        made |= {f'{s}{n}_layernorm.weight': (HIDDEN,) for n in ('input', 'post_attention')}
        made |= {f'{s}self_attn.{x}_norm.weight': (HEAD,) for x in 'qk'}
        made |= {f'{s}self_attn.{x}_proj.weight': (n*HEAD, HIDDEN)
                 for x, n in (('q', HEADS), ('k', KV), ('v', KV))}
        made |= {f'{s}self_attn.o_proj.weight': (HIDDEN, HEADS*HEAD),
                 f'{s}mlp.gate.weight': (experts, HIDDEN)}
        if stacked:
            made |= {f'{s}mlp.experts.gate_up_proj': (experts, 2*INNER, HIDDEN),
                     f'{s}mlp.experts.down_proj': (experts, HIDDEN, INNER)}
            continue
        for e in range(experts):
            made |= {f'{s}mlp.experts.{e}.{x}_proj.weight': (INNER, HIDDEN) for x in ('gate', 'up')}
            made[f'{s}mlp.experts.{e}.down_proj.weight'] = HIDDEN, INNER
    return made


def tower(layers=27, width=1152):
    return {f'model.visual.blocks.{i}.{n}.weight': (width, width)
            for i in range(layers) for n in ('attn.qkv', 'attn.proj', 'mlp.linear_fc1', 'mlp.linear_fc2')}


def write(folder, tensors, config, shards=16):
    "Headers and holes"
    folder.mkdir(parents=True)
    names, table = [*tensors], {}
    per = -(-len(names)//shards)
    for k in range(shards):
        head, at, file = {'__metadata__': {'format': 'pt'}}, 0, f'model-{k+1:05}-of-{shards:05}.safetensors'
        for n in names[k*per:(k+1)*per]:
            size = 2*tensors[n][0]*(tensors[n][1] if len(tensors[n])>1 else 1)*(
                tensors[n][2] if len(tensors[n])>2 else 1)
            head[n] = dict(dtype='BF16', shape=list(tensors[n]), data_offsets=[at, at+size])
            at += size
            table[n] = file
        raw = json.dumps(head).encode()
        with open(folder/file, 'wb') as f:
            f.write(len(raw).to_bytes(8, 'little')+raw)
            f.truncate(8+len(raw)+at)
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=table)))
    (folder/'config.json').write_text(json.dumps(config))
    return folder


def floor(folders):
    "Read and parse what a plan cannot do without"
    for folder in folders:
        json.loads((folder/'model.safetensors.index.json').read_text())
        for file in sorted(folder.glob('*.safetensors')):
            with open(file, 'rb') as f: json.loads(f.read(int.from_bytes(f.read(8), 'little')))


def seconds(act, runs):
    "Processor time, the least of some runs"
    best = []
    for _ in range(runs):
        start = time.process_time()
        act()
        best.append(time.process_time()-start)
    return min(best)


if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--layers', type=int, default=56)
    p.add_argument('--experts', type=int, default=128)
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--profile', action='store_true', help='where the time goes')
    args = p.parse_args()
    text = dict(model_type='qwen3_moe', hidden_size=HIDDEN, num_hidden_layers=args.layers, head_dim=HEAD,
                num_attention_heads=HEADS, num_key_value_heads=KV, moe_intermediate_size=INNER,
                num_experts=args.experts, num_experts_per_tok=8, vocab_size=VOCAB, rope_theta=1e6)
    with tempfile.TemporaryDirectory() as room:
        llm = write(Path(room)/'llm', language_model(args.layers, args.experts, 'model.', '', False), text)
        for name, stacked in (('apart', False), ('stacked', True)):
            tensors = language_model(args.layers, args.experts, 'model.language_model.', '', stacked)|tower()
            inner = text|dict(model_type='qwen3_vl_moe_text')
            vlm = write(Path(room)/name, tensors, dict(model_type='qwen3_vl_moe', text_config=inner))
            made = plan(vlm, llm)
            assert not made.stops, made
            least = seconds(lambda: floor((vlm, llm)), args.runs)
            took, shown = seconds(lambda: plan(vlm, llm), args.runs), seconds(lambda: str(made), args.runs)
            print(f'experts {name}: {len(made.vlm.tensors)} and {len(made.llm.tensors)} tensors, '
                  f'{len(made.merged)} merged; plan {took:.2f} s, shown {shown:.2f} s, floor {least:.2f} s')
            if args.profile:
                with cProfile.Profile() as pr: plan(vlm, llm)
                pstats.Stats(pr).sort_stats('tottime').print_stats(25)
